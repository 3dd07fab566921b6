"""Several nodes, `workerSpec`, of predictors and of runtimes: what the webhooks refuse (4).

Source: validateMultiNodeVariables (InferenceServices) and validateMultiNodeSpec (runtimes) of KServe 0.21.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..conventions import AUTOSCALER, KSERVE_CONTAINER, PREFIX
from ..documents import FieldPath
from ..fields import listed, mapping, variables_of, whole_number
from .rule import Block, Findings, Rule

__all__ = ["WORKER_RULES"]

_DEVICES = ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu", "habana.ai/gaudi")
_BASIC = {"cpu", "memory", "storage", "ephemeral-storage"}
_SIZES = {"PIPELINE_PARALLEL_SIZE": "pipelineParallelSize", "TENSOR_PARALLEL_SIZE": "tensorParallelSize"}
_DEVICE_TYPES = PREFIX + "gpu-resource-types"
WORKER_CONTAINER = "worker-container"


def worker_sizes(block: Block) -> Findings:
    """Degrees of parallelism are 1 or more."""
    for key in ("pipelineParallelSize", "tensorParallelSize"):
        size = whole_number(_worker(block).get(key))
        if size is not None and size < 1:
            yield (*block.path, "workerSpec", key), f"{size} is less than 1", "use 1 or more"


def workers_not_scaled(block: Block) -> Findings:
    """Several nodes of a model are not autoscaled, and the service says so."""
    if _of_model(block) and block.annotations.get(AUTOSCALER) != "none":
        yield (*block.path, "workerSpec"), "several nodes cannot be autoscaled", f"set {AUTOSCALER}: none"


def workers_share_storage(block: Block) -> Findings:
    """Several nodes read one storage."""
    if not _of_model(block):
        return
    uri = mapping(block.value.get("model")).get("storageUri")
    at = (*block.path, "model", "storageUri")
    if uri is None:
        yield at, "missing: several nodes need shared storage", "use pvc:// or oci://"
    elif isinstance(uri, str) and uri.split("://", 1)[0] not in ("pvc", "oci"):
        yield at, "several nodes need shared storage", "use pvc:// or oci://"


def workers_one_container(block: Block) -> Findings:
    """A worker is one container."""
    if len(listed(_worker(block).get("containers"))) > 1:
        yield (*block.path, "workerSpec", "containers"), "has several containers", "keep one"


def sizes_not_in_environment(block: Block) -> Findings:
    """Degrees of parallelism are fields, no variables."""
    if not _has_workers(block):
        return
    for path, container in _heads(block):
        for at, variable in variables_of(path, container):
            field = _SIZES.get(str(variable.get("name")))
            if field is not None:
                yield at, f"{variable.get('name')} is forbidden beside workerSpec", f"set workerSpec.{field}"


def known_devices(block: Block) -> Findings:
    """Devices are of a type that KServe counts, or that an annotation names."""
    if not _has_workers(block):
        return
    more = _declared(block)
    if more is None:
        yield (
            ("metadata", "annotations", _DEVICE_TYPES)
            if block.part != "spec"
            else (*block.path, "annotations", _DEVICE_TYPES),
            "is not a JSON list of names",
            "write such as '[\"example.com/gpu\"]'",
        )
        return
    for path, container in [*_heads(block), *_workers(block)]:
        resources = mapping(container.get("resources"))
        for kind in ("limits", "requests"):
            for name in mapping(resources.get(kind)):
                if name not in _BASIC and name not in (*_DEVICES, *more):
                    yield (
                        (*path, "resources", kind, str(name)),
                        f"{name} is no device that KServe counts",
                        f"use one of {', '.join(_DEVICES)}, or name it in the annotation {_DEVICE_TYPES}",
                    )


def _declared(block: Block) -> list[str] | None:
    written = {**block.annotations, **(mapping(block.value.get("annotations")) if block.part == "spec" else {})}.get(
        _DEVICE_TYPES
    )
    if written is None:
        return []
    try:
        names = json.loads(str(written))
    except ValueError:
        return None
    fine = isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)
    return list(names) if fine else None


def _worker(block: Block) -> Mapping[str, Any]:
    return mapping(block.value.get("workerSpec"))


def _has_workers(block: Block) -> bool:
    return isinstance(block.value.get("workerSpec"), dict) and not block.is_canary


def _of_model(block: Block) -> bool:
    return _has_workers(block) and block.part == "predictor" and isinstance(block.value.get("model"), dict)


def _heads(block: Block) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    """The containers that lead the workers."""
    if block.part == "predictor" and isinstance(block.value.get("model"), dict):
        yield (*block.path, "model"), mapping(block.value.get("model"))
    for index, item in enumerate(listed(block.value.get("containers"))):
        if block.part == "spec" and mapping(item).get("name") == KSERVE_CONTAINER:
            yield (*block.path, "containers", index), mapping(item)


def _workers(block: Block) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    for index, item in enumerate(listed(_worker(block).get("containers"))):
        if block.part != "spec" or mapping(item).get("name") == WORKER_CONTAINER:
            yield (*block.path, "workerSpec", "containers", index), mapping(item)


WORKER_RULES: tuple[Rule[Block], ...] = (
    Rule("scaling-worker-sizes", worker_sizes),
    Rule("scaling-workers-not-scaled", workers_not_scaled),
    Rule("scaling-workers-share-storage", workers_share_storage),
    Rule("scaling-workers-one-container", workers_one_container),
    Rule("worker-sizes-not-in-environment", sizes_not_in_environment),
    Rule("worker-known-devices", known_devices),
)
