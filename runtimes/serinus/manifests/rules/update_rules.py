"""An object against its previous version: what the webhooks refuse of an update and would take of a new object (15).

Source: validateDeploymentMode and validatePredictorNameChange of InferenceServices, validateMultiNodeSpec of runtimes, the memory of
TrainedModels, and the parallelism of LLMInferenceServices in KServe 0.21.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..conventions import DEPLOYMENT_MODE, deployment_mode
from ..documents import Document
from ..fields import LEGACY_FRAMEWORKS, listed, mapping
from ..problems import Problems
from ..quantities import parse_quantity
from .rule import Findings

__all__ = ["check_updates"]


def check_updates(previous: Sequence[Document], documents: Sequence[Document], problems: Problems) -> None:
    """Judge each object that has a previous version against it.

    Args:
        previous: what is in the cluster, or was last applied; objects that are in one list only are new or gone and not looked at.
        documents: what is to be applied.
        problems: takes the findings, all of layer `webhook`.
    """
    before = {(old.kind, old.namespace, old.name): old for old in previous}
    for new in documents:
        old = before.get((new.kind, new.namespace, new.name))
        for kinds, rule, check in _RULES:
            if old is not None and new.kind in kinds:
                for path, message, mend in check(old, new):
                    problems.error(new, path, message, mend, rule=rule)


def same_mode(old: Document, new: Document) -> Findings:
    """A service's deployment mode stays; status tells the one in force, or the annotation where no controller has looked."""
    written = mapping(new.metadata.get("annotations")).get(DEPLOYMENT_MODE)
    recorded = mapping(old.value.get("status")).get("deploymentMode")
    annotation = mapping(old.metadata.get("annotations")).get(DEPLOYMENT_MODE)
    before = recorded or annotation
    if written is None or before is None:
        return
    was, wanted = (deployment_mode({DEPLOYMENT_MODE: word}) for word in (before, written))
    if was != wanted:
        path = ("metadata", "annotations", DEPLOYMENT_MODE)
        yield path, f"cannot be changed from {was} to {wanted}", "keep it, or delete the service and make it anew"


def _uri(document: Document) -> str:
    predictor = mapping(mapping(document.value.get("spec")).get("predictor"))
    for name in ("model", *LEGACY_FRAMEWORKS):
        if mapping(predictor.get(name)).get("storageUri"):
            return str(mapping(predictor.get(name))["storageUri"])
    for item in listed(predictor.get("containers")):
        for variable in map(mapping, listed(mapping(item).get("env"))):
            if variable.get("name") == "STORAGE_URI":
                return str(variable.get("value"))
    return ""


def name_with_model(old: Document, new: Document) -> Findings:
    """A predictor takes another name only with another model: so is a canary promoted."""
    names = [mapping(mapping(doc.value.get("spec")).get("predictor")).get("name") or "" for doc in (old, new)]
    if names[0] != names[1] and _uri(old) == _uri(new):
        yield (
            ("spec", "predictor", "name"),
            f"changes from {names[0]!r} to {names[1]!r} with the same storage URI",
            "keep the name (the pods are rolled), or give the new version a storage URI of its own",
        )


def worker_stays(old: Document, new: Document) -> Findings:
    """A runtime keeps its workers."""
    specs = [mapping(doc.value.get("spec")) for doc in (old, new)]
    if specs[0].get("workerSpec") is not None and specs[1].get("workerSpec") is None:
        yield ("spec", "workerSpec"), "cannot be removed", "keep it, or make a runtime of another name"


def memory_stays(old: Document, new: Document) -> Findings:
    """A TrainedModel keeps its memory."""
    written = [mapping(mapping(doc.value.get("spec")).get("model")).get("memory") for doc in (old, new)]
    if parse_quantity(written[0]) != parse_quantity(written[1]):
        yield (
            ("spec", "model", "memory"),
            f"cannot be changed from {written[0]} to {written[1]}",
            "keep it, or make a model of another name",
        )


def parallelism_stays(old: Document, new: Document) -> Findings:
    """An LLMInferenceService keeps the number of its processes."""
    for below in ((), ("prefill",)):
        sizes = [
            _size(
                mapping(doc.value.get("spec")) if not below else mapping(mapping(doc.value.get("spec")).get("prefill"))
            )
            for doc in (old, new)
        ]
        present = not below or all(mapping(doc.value.get("spec")).get("prefill") is not None for doc in (old, new))
        if present and sizes[0] != sizes[1]:
            yield (
                ("spec", *below, "parallelism"),
                f"its size cannot be changed from {sizes[0]} to {sizes[1]}",
                "keep it",
            )


def _size(workload: Mapping[str, Any]) -> int:
    """Number of nodes of a workload: pipeline, or data over local data, or 1 (ParallelismSpec.GetSize)."""
    spec = mapping(workload.get("parallelism"))
    numbers = {
        key: value
        for key, value in spec.items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 0
    }
    if "data" in numbers or "dataLocal" in numbers:
        return max(1, numbers.get("data", 1) // numbers.get("dataLocal", 1))
    return numbers.get("pipeline", 1)


_RULES = (
    (("InferenceService",), "update-same-mode", same_mode),
    (("InferenceService",), "update-name-with-model", name_with_model),
    (("ServingRuntime", "ClusterServingRuntime"), "update-worker-stays", worker_stays),
    (("TrainedModel",), "update-memory-stays", memory_stays),
    (("LLMInferenceService",), "update-parallelism-stays", parallelism_stays),
)
