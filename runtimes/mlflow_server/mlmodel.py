"""The file `MLmodel` of a folder, as values.

Source: MLflow, "MLmodel file format" (mlflow.org/docs/latest/ml/model/), and `mlflow.models.Model.to_dict` of 2.x and 3.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from serinus.artifacts import leads_out
from serinus.content.untrusted_yaml import load_untrusted
from serinus.errors import ConfigError
from serinus.settings import ModelSettings
from serinus.small_file import read_bytes

from .signature import MlSignature, read_signature, told

__all__ = ["FILE", "PYFUNC", "MlModel", "read"]

FILE: Final = "MLmodel"
PYFUNC: Final = "python_function"
"""The flavour that every model has which MLflow itself can serve."""
_MOST_BYTES: Final = 4 << 20
"""Of the file; a signature of 10,000 columns takes a fourth of it."""


@dataclass(frozen=True, slots=True)
class MlModel:
    """One folder."""

    folder: Path
    flavours: Mapping[str, Mapping[str, Any]]
    """What each says of itself, by name."""
    signature: MlSignature
    mlflow_version: str
    """Of the MLflow that saved it; empty: the file does not say."""

    def file(self, name: object, settings: ModelSettings) -> Path:
        """Find a file or folder that a flavour names.

        Raises:
            ConfigError: it is no name, is not there, or leads out of the folder.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"{self.folder / FILE}: a flavour names its data as {told(name)}; a path in the folder was expected"
            )
        path = self.folder / name
        if leads_out(path, self.folder, settings.allow_uri):
            raise ConfigError(
                f"{self.folder / FILE}: the data {told(name)} lead out of the folder; to trust them, start with --allow_uri and the folder to read from"
            )
        if not path.exists():
            raise ConfigError(
                f"{self.folder / FILE}: the data {told(name)} are not there; the folder was not copied whole"
            )
        return path


def read(settings: ModelSettings) -> MlModel:
    """Read the `MLmodel` of a model's folder.

    Args:
        settings: `model_dir` is the folder, or the file itself.

    Raises:
        ConfigError: it is not there, or is none.
    """
    named = settings.model_dir
    if named is None:
        raise ConfigError(f"model {settings.name!r}: name the folder that MLflow saved (--model_dir)")
    folder = named.parent if named.name == FILE and named.is_file() else named
    path = folder / FILE
    if leads_out(path, folder, settings.allow_uri):
        raise ConfigError(
            f"{path}: leads out of the folder; to trust it, start with --allow_uri and the folder to read from"
        )
    try:
        text = read_bytes(path, most_bytes=_MOST_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: there is no file {FILE}; the folder that mlflow's save_model wrote was expected"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    document = _parse(path, text)
    flavours = document.get("flavors")
    if not isinstance(flavours, dict) or not flavours:
        raise ConfigError(f"{path}: names no flavors; a mapping of them was expected")
    for name, flavour in flavours.items():
        if not isinstance(name, str) or not isinstance(flavour, dict):
            raise ConfigError(f"{path}: the flavour {told(name)} is no mapping")
    version = document.get("mlflow_version")
    return MlModel(
        folder,
        flavours,
        read_signature(document.get("signature"), str(path)),
        version if isinstance(version, str) else "",
    )


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        document = load_untrusted(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not YAML that is read: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: is no mapping; a file that mlflow's save_model wrote was expected")
    return document
