"""Containers: what the API server and KServe's webhooks refuse in those of a component or runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...conventions import KSERVE_CONTAINER, TRANSFORMER_CONTAINER, implementations
from ...documents import FieldPath
from ...fields import containers_of, mapping, variables_of
from ...quantities import check_resources, parse_quantity
from ..rule import Block, Findings, Rule

__all__ = ["CONTAINER_RULES"]


def _variables(block: Block) -> Iterator[tuple[FieldPath, FieldPath, Mapping[str, Any], Mapping[str, Any]]]:
    """Every variable: its container's path, its own, the container, the variable."""
    for where, container in containers_of(block.path, block.value):
        for at, variable in variables_of(where, container):
            yield where, at, container, variable


def python_path(block: Block) -> Findings:
    """PYTHONPATH is forbidden in every container (webhook, rule 3); in those of a canary it is not looked for until the canary is promoted."""
    if not block.is_canary:
        yield from _python_path(block)


def python_path_of_canary(block: Block) -> Findings:
    """What a canary may have and a stable predictor may not."""
    if block.is_canary:
        yield from _python_path(block)


def _python_path(block: Block) -> Findings:
    runtime = block.part == "spec"
    workers = [found for below in _worker(block) for found in below]
    for where, at, _, variable in [*_variables(block), *workers]:
        if variable.get("name") == "PYTHONPATH" and not (runtime and "initContainers" in where):
            yield at, "PYTHONPATH is forbidden in every container", "build the code into the image instead"


def _worker(block: Block) -> Iterator[list[tuple[FieldPath, FieldPath, Mapping[str, Any], Mapping[str, Any]]]]:
    worker = block.value.get("workerSpec")
    if isinstance(worker, dict):
        yield list(_variables(Block((*block.path, "workerSpec"), worker, block.annotations)))


def transformer_storage(block: Block) -> Findings:
    """STORAGE_URI is the model's container's (webhook, rule 5)."""
    if block.is_canary or block.part != "predictor":
        return
    for _, at, container, variable in _variables(block):
        if variable.get("name") == "STORAGE_URI" and container.get("name") == TRANSFORMER_CONTAINER:
            yield at, f"STORAGE_URI is forbidden on {TRANSFORMER_CONTAINER}", f"set it on {KSERVE_CONTAINER}"


def custom_protocol(block: Block) -> Findings:
    """A custom predictor speaks v1 or v2 (webhook, rule 10; predictor_custom.go looks at the first container and its first PROTOCOL)."""
    if block.part != "predictor" or implementations(block.value) != ["containers"]:
        return
    first = (*block.path, "containers", 0)
    found = [
        (at, variable)
        for where, at, _, variable in _variables(block)
        if where == first and variable.get("name") == "PROTOCOL"
    ]
    for at, variable in found[:1]:
        if variable.get("value") not in ("v1", "v2"):
            yield (
                (*at, "value"),
                f"{variable.get('value')!r} is not a protocol of a custom predictor",
                "use v1 or v2; gRPC is served beside v2 whatever is declared here",
            )


def quantities(block: Block) -> Findings:
    """Amounts of resources are quantities, and requests fit their limits; see `serinus.manifests.quantities`."""
    found = containers_of(block.path, block.value)
    worker = mapping(block.value.get("workerSpec"))
    for path, container in (*found, *containers_of((*block.path, "workerSpec"), worker)):
        resources = mapping(container.get("resources"))
        # Into a framework's block, and into containers of a service that names a runtime, the runtime's are merged.
        whole = isinstance(path[-1], int) and (
            block.part != "predictor" or implementations(block.value) == ["containers"]
        )
        for below, message, mend in check_resources(resources, null_is_zero=block.part != "spec", whole=whole):
            written = resources[below[0]][below[1]]
            if written is None or parse_quantity(written) is not None:  # what is none is refused earlier, by its form
                yield (*path, "resources", *below), message, mend


CONTAINER_RULES: tuple[Rule[Block], ...] = (
    Rule("container-pythonpath", python_path),
    Rule("container-pythonpath-of-canary", python_path_of_canary, "warning", "controller"),
    Rule("container-transformer-storage", transformer_storage),
    Rule("container-custom-protocol", custom_protocol),
    Rule("container-quantities", quantities, layer="controller"),
)
