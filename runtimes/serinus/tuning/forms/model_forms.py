"""The forms of a model: what an exporter makes, and how a form becomes a directory that `serinus serve` runs.

An image package that can make other forms of its models has a module `export` with one function,

    export(source: ModelSettings, samples: Mapping[str, np.ndarray], output: Path) -> Iterator[Form | Skipped]

which writes each form into a folder of its own below `output`. It is found by the package's name, so that the library imports no
framework, and each new form is offered to its own package in turn: TorchScript gives ONNX, ONNX gives int8.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import ConfigError
from ...loading.directory import SETTINGS_FILE
from ...protocol.types import TensorSpec
from ...settings import ModelSettings

__all__ = ["Form", "Precision", "Skipped", "copy_file", "update_settings", "write_settings"]

Precision = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of the model."""

    name: str
    path: Path
    """A model directory, or what the user named."""
    package: str
    """The image that serves it."""
    precision: Precision = "fp32"
    """What it computes in; sets the tolerance."""
    note: str = ""
    exports: bool = False
    """Its package may make further forms of it."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A form that was not made, and why."""

    name: str
    reason: str


_LINKED_BYTES = 2**20


def copy_file(source: Path, target: Path) -> None:
    """Copy a file or folder; a model of a gigabyte is linked where that can be.

    Small files are copied: settings are edited in place, and an edit would reach the file's other names, the user's own too.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_link)
    else:
        _link(str(source), str(target))


def _link(source: str, target: str) -> str:
    Path(target).unlink(missing_ok=True)
    if Path(source).stat().st_size >= _LINKED_BYTES:
        try:
            os.link(source, target)
            return target
        except OSError:  # another file system
            pass
    shutil.copy2(source, target)
    return target


def write_settings(
    folder: Path,
    *,
    package: str,
    source: ModelSettings,
    inputs: Sequence[TensorSpec] = (),
    outputs: Sequence[TensorSpec] = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `model-settings.json` of a form, and bring the labels of the source along.

    Args:
        folder: of the form; its model file is there already.
        package: the image's.
        source: name, version and labels are taken from it.
        inputs: specs to declare; empty: the file says its own.
        outputs: likewise.
        extra: the runtime's own settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {}
    if source.name:
        document["name"] = source.name
    if source.version:
        document["version"] = source.version
    document["implementation"] = package
    for field, specs in (("inputs", inputs), ("outputs", outputs)):
        if specs:
            document[field] = [
                {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs
            ]
    parameters: dict[str, Any] = {"uri": "."}
    kept = {key: value for key, value in (extra or {}).items() if key != "labels"}
    if kept:
        parameters["extra"] = kept
    document["parameters"] = parameters
    (folder / SETTINGS_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    labels = _labels_of(source)
    # Under the name that every runtime looks for.
    target = folder / ("labels.json" if labels is not None and labels.suffix == ".json" else "labels.txt")
    if labels is not None and not target.exists():
        copy_file(labels, target)


def _labels_of(source: ModelSettings) -> Path | None:
    """Find the labels of a model: beside its file, or beside the numbered folder of a SavedModel."""
    if source.model_dir is None:
        return None
    folder = source.model_dir if source.model_dir.is_dir() else source.model_dir.parent
    folders = [folder, folder.parent] if folder.name.isdecimal() else [folder]
    named = source.extra.get("labels")
    names = [named] if isinstance(named, str) and named else ["labels.txt", "labels.json"]
    return next((place / name for place in folders for name in names if (place / name).is_file()), None)


def update_settings(path: Path, changes: Mapping[str, Any], *, defaults: Mapping[str, Any]) -> Path:
    """Change keys of a model directory's `model-settings.json`, keeping what else it says; nested objects are merged.

    Args:
        path: a model directory, its settings file, or a model file, beside which the settings are written.
        changes: keys to set.
        defaults: the document where there is none yet.

    Returns:
        The file.

    Raises:
        ConfigError: there is one that is no JSON object.
    """
    file = path if path.name == SETTINGS_FILE else (path if path.is_dir() else path.parent) / SETTINGS_FILE
    document: Any = dict(defaults)
    if file.is_file():
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{file}: not JSON: {error}") from None
        if not isinstance(document, dict):
            raise ConfigError(f"{file}: an object was expected")
    for key, value in changes.items():
        if isinstance(value, Mapping):
            document[key] = {**(document.get(key) or {}), **value}
        else:
            document[key] = value
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return file
