"""Which versions of a SavedModel are served: TensorFlow Serving's numbered folders and version policy.

Source: TensorFlow Serving, serving_config.md, "Serving a Specific Version of a Model"; file_system_storage_path_source.proto,
`ServableVersionPolicy`. A version is a folder whose name is a number; one without a SavedModel is not complete yet and
is passed over, as there. The folder is read when the model is loaded, and again at a load request, not polled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifacts import is_saved_model, leads_out
from ..errors import ConfigError
from ..settings import ModelSettings

__all__ = ["LABELS_KEY", "POLICY_KEY", "saved_model_versions"]

POLICY_KEY = "version_policy"
"""Extra setting: {"latest": n}, {"all": {}} or {"specific": [n, ...]}; {"specific": {"versions": [n, ...]}} and
{"latest": {"num_versions": n}} as TensorFlow Serving writes them."""

LABELS_KEY = "version_labels"
"""Extra setting: {"stable": 1, "canary": 2}, names of versions for `/v1/models/{m}/labels/{label}` (TensorFlow Serving, serving_config.md,
"Assigning String Labels to Model Versions")."""

_RUNTIME = "tensorflow_server"


def saved_model_versions(settings: ModelSettings, extra: Mapping[str, Any]) -> list[ModelSettings]:
    """Give one entry for each version to serve, lowest first.

    Args:
        settings: of a model of any kind; only SavedModels in numbered folders become several.
        extra: further extra settings, which win over those of `settings`.

    Raises:
        ConfigError: a policy that cannot be read, or one that names versions that are not there; labels of versions that are not served.
    """
    versions = _versions(settings, extra)
    if settings.implementation.partition(":")[0].partition(".")[0] == _RUNTIME:
        _check_labels({**settings.extra, **extra}.get(LABELS_KEY, {}), [one.version for one in versions], settings)
    return versions


def _versions(settings: ModelSettings, extra: Mapping[str, Any]) -> list[ModelSettings]:
    root = settings.model_dir
    if settings.implementation.partition(":")[0].partition(".")[0] != _RUNTIME or root is None or not root.is_dir():
        return [settings]
    if is_saved_model(root):
        if root.name.isdecimal() and not settings.version:
            return [dataclasses.replace(settings, version=_number(root))]
        return [settings]
    found = sorted(
        (child for child in root.iterdir() if child.name.isdecimal() and is_saved_model(child)),
        key=lambda child: int(child.name),
    )
    if not found:
        return [settings]
    for folder in found:
        if leads_out(folder, root, settings.allow_uri):
            raise ConfigError(
                f"{folder}: leads out of {root}; to trust it, start with --allow_uri and the folder to read from"
            )
    numbers = [_number(folder) for folder in found]
    for folder, number, following in zip(found, numbers, numbers[1:], strict=False):
        if number == following:
            raise ConfigError(f"{root}: version {number} is there twice, once as {folder.name}; remove one of them")
    chosen = _chosen(found, {**settings.extra, **extra}.get(POLICY_KEY, {"latest": 1}), root)
    return [dataclasses.replace(settings, model_dir=folder, version=_number(folder)) for folder in chosen]


def _number(folder: Path) -> str:
    """Name the version: clients ask for 123 where the folder is called 00000123, as TensorFlow Serving's own are."""
    return str(int(folder.name))


def _check_labels(labels: Any, served: list[str], settings: ModelSettings) -> None:
    """Refuse a label of a version that is not served, as TensorFlow Serving does."""
    if not isinstance(labels, dict) or not all(type(version) is int for version in labels.values()):
        raise ConfigError(
            f"model '{settings.name}': extra setting {LABELS_KEY!r} is {json.dumps(labels, default=str)[:200]}; accepted is "
            '{"stable": 1, "canary": 2}, with your labels and the numbers of your versions'
        )
    numbers = {int(version) for version in served if version.isdecimal()}
    for label, version in labels.items():
        if version not in numbers:
            raise ConfigError(
                f"model '{settings.name}': the label {label!r} ({LABELS_KEY}) is of version {version}, which is not served; served "
                f"{'is' if len(served) == 1 else 'are'} {', '.join(served) or 'none'} ({POLICY_KEY})"
            )


def _chosen(found: list[Path], policy: Any, root: Path) -> list[Path]:
    kind, value = next(iter(policy.items())) if isinstance(policy, dict) and len(policy) == 1 else ("", None)
    if kind == "all" and value in ({}, None, True):
        return found
    if kind == "latest":
        value = value.get("num_versions", 1) if isinstance(value, dict) else value
        if type(value) is int and value >= 1:
            return found[-value:]
    if kind == "specific":
        value = value.get("versions") if isinstance(value, dict) else value
        value = [value] if type(value) is int else value
        if isinstance(value, list) and value and all(type(version) is int for version in value):
            known = {int(folder.name): folder for folder in found}
            missing = [str(version) for version in value if version not in known]
            if missing:
                raise ConfigError(
                    f"{root}: no version {', '.join(missing)} ({POLICY_KEY}); there are {', '.join(map(str, known))}"
                )
            return [known[version] for version in sorted(set(value))]
    raise ConfigError(
        f"extra setting {POLICY_KEY!r} is {json.dumps(policy)}; accepted are "
        '{"latest": 1}, {"all": {}} and {"specific": [1, 2]}, with the numbers of your versions'
    )
