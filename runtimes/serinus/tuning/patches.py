"""What tuning found, as a kustomize patch: the InferenceService itself, and its comments, stay as they are.

A JSON patch (RFC 6902), because kustomize replaces lists of a custom resource whole in strategic merges, and the
containers of a predictor are a list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from .limits import Resources
from .search import Config

__all__ = ["PATCH_FILE", "check_target", "operations", "write_patch"]

PATCH_FILE = "tuned.patch.yaml"
_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml")


def operations(predictor: Mapping[str, Any], config: Config, wanted: Resources) -> list[dict[str, Any]]:
    """Build the patch of one InferenceService.

    Args:
        predictor: its `spec.predictor`, which says whether the server is a `model` or a container, and what it has already.
        config: the settings; `workers` is a flag of the server, the others are in the model's own file.
        wanted: of a pod.
    """
    if predictor.get("model") is not None:
        place, server = "/spec/predictor/model", predictor["model"]
    else:
        containers: Sequence[Mapping[str, Any]] = predictor.get("containers") or []
        names = [container.get("name") for container in containers]
        if not containers:
            raise ConfigError("spec.predictor has neither a model nor containers; only those forms are known here")
        index = names.index("kserve-container") if "kserve-container" in names else 0
        place, server = f"/spec/predictor/containers/{index}", containers[index]
    amount = {"cpu": f"{wanted.cpu:g}", "memory": f"{wanted.memory_mib}Mi"}
    # What else it has, such as a GPU, it keeps.
    has = server.get("resources") or {}
    sized = {**has, **{kind: {**(has.get(kind) or {}), **amount} for kind in ("requests", "limits")}}
    found: list[dict[str, Any]] = [{"op": "add", "path": f"{place}/resources", "value": sized}]
    entry = {"name": "SERINUS_WORKERS", "value": str(config.workers)}
    environment: Sequence[Mapping[str, Any]] = server.get("env") or []
    at = [index for index, variable in enumerate(environment) if variable.get("name") == entry["name"]]
    if at:
        found.append({"op": "replace", "path": f"{place}/env/{at[0]}", "value": entry})
    elif environment:
        found.append({"op": "add", "path": f"{place}/env/-", "value": entry})
    else:
        found.append({"op": "add", "path": f"{place}/env", "value": [entry]})
    for key, value in (
        ("minReplicas", wanted.min_replicas),
        ("maxReplicas", wanted.max_replicas),
        ("containerConcurrency", wanted.container_concurrency),
    ):
        found.append({"op": "add", "path": f"/spec/predictor/{key}", "value": value})
    return found


def check_target(folder: Path) -> None:
    """See that `write_patch` will be able to do its work, before a search of minutes.

    Raises:
        ConfigError: no such folder, no InferenceService in it or several, one of a form that cannot be patched, or no right to write.
    """
    folder, service = _find_service(folder)
    operations(
        service.get("spec", {}).get("predictor") or {},
        Config(),
        Resources(cpu=1, memory_mib=1, min_replicas=1, max_replicas=1, container_concurrency=1),
    )
    file = folder / PATCH_FILE
    written = [file] if file.exists() else [folder]
    written += [path for each in _KUSTOMIZATIONS if (path := folder / each).is_file()]
    for path in written:
        if not os.access(path, os.W_OK):
            raise ConfigError(f"--write {folder}: {path} cannot be written; give a folder of your own")


def _find_service(folder: Path) -> tuple[Path, dict[str, Any]]:
    if not folder.exists():
        raise ConfigError(f"--write {folder}: no such folder; name one that holds an InferenceService's YAML")
    if folder.is_file():
        folder = folder.parent
    found = [document for path in sorted(folder.glob("*.yaml")) for document in _services(path)]
    if len(found) != 1:
        raise ConfigError(f"--write {folder}: {len(found)} InferenceServices in its YAML files, one was expected")
    return folder, found[0]


def write_patch(folder: Path, config: Config, wanted: Resources) -> tuple[Path, bool]:
    """Write `tuned.patch.yaml` beside an InferenceService, and name it in the folder's kustomization.

    Args:
        folder: holds the InferenceService's YAML, and usually a kustomization.
        config: the settings.
        wanted: of a pod.

    Returns:
        The patch, and whether the kustomization names it now.

    Raises:
        ConfigError: no InferenceService is there, or several.
    """
    folder, service = _find_service(folder)
    name = service.get("metadata", {}).get("name", "")
    predictor = service.get("spec", {}).get("predictor") or {}
    # kustomize applies inline patches and files alike; a file of operations needs its target named in the kustomization.
    file = folder / PATCH_FILE
    head = "# Written by `serinus tune`: measured on one machine under one load; measure again where either differs.\n"
    file.write_text(head + yaml.safe_dump(operations(predictor, config, wanted), sort_keys=False), encoding="utf-8")
    kustomization = next((folder / each for each in _KUSTOMIZATIONS if (folder / each).is_file()), None)
    if kustomization is None:
        return file, False
    text = kustomization.read_text(encoding="utf-8")
    if PATCH_FILE not in text:
        lines = f"  - path: {PATCH_FILE}\n    target:\n      kind: InferenceService\n      name: {name}\n"
        listed = re.search(r"^patches:[ \t]*(#.*)?\n", text, re.MULTILINE)
        if listed:
            text = text[: listed.end()] + lines + text[listed.end() :]
        elif re.search(r"^patches:", text, re.MULTILINE):
            return file, False
        else:
            text = f"{text.rstrip()}\npatches:\n{lines}"
        kustomization.write_text(text, encoding="utf-8")
    return file, True


def _services(path: Path) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    return [each for each in documents if isinstance(each, dict) and each.get("kind") == "InferenceService"]
