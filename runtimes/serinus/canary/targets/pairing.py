"""Whether KServe would pair a canary predictor with its transformer: what `serinus lint` says, asked of the live object before traffic moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...manifests.documents import Document
from ...manifests.linter import check_inference_service
from ...manifests.problems import Problem, Problems

__all__ = ["unpaired"]

_ONE_SPLIT: Final = "traffic-percent-beside-transformer"
_NO_ROUTE: Final = "traffic-canary-behind-transformer"


def unpaired(document: Document) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Say where requests would reach a pair of transformer and predictor that nobody meant.

    Args:
        document: an InferenceService with its status.

    Returns:
        Why nothing may be moved, and what must be known; each names the topology to use instead.
    """
    found = Problems()
    check_inference_service(document, found)
    told: dict[str, str] = {}
    for each in found.all:
        if each.rule in (_ONE_SPLIT, _NO_ROUTE):
            told.setdefault(each.rule, _words(each))
    refusals, notes = [], []
    if _NO_ROUTE in told:
        refusals.append(told[_NO_ROUTE])
    if _ONE_SPLIT in told:
        second = _second_split(document.value)
        if second:
            refusals.append(f"{second}, so that old and new meet crosswise: {told[_ONE_SPLIT]}")
        else:
            notes.append(told[_ONE_SPLIT])
    return tuple(refusals), tuple(notes)


def _words(problem: Problem) -> str:
    return f"{problem.field}: {problem.message}; {problem.mend} ({problem.rule})"


def _second_split(service: Mapping[str, Any]) -> str:
    """Say how the transformer is split too; empty: it is not, and both versions of the predictor meet the same one."""
    transformer = _object(_object(service.get("spec")).get("transformer"))
    percent = transformer.get("canaryTrafficPercent")
    if percent is not None:
        return f"the transformer has a split of its own (canaryTrafficPercent: {percent})"
    status = _object(_object(_object(service.get("status")).get("components")).get("transformer"))
    latest, rolled = status.get("latestCreatedRevision"), status.get("latestRolledoutRevision")
    if latest and rolled and latest != rolled:
        return f"the transformer changes from {rolled} to {latest} at the same time"
    return ""


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
