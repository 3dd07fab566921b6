"""Selectors of labels and nodes: in affinities, spread constraints, and what the Deployment that is made of a component is held to.

Source: ValidateLabelSelector of apimachinery and ValidateNodeSelectorTerm of validation.go, Kubernetes 1.37, asked of a kube-apiserver.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...documents import FieldPath
from ...fields import listed, mapping
from ..rule import Block, Findings, Rule

__all__ = ["SELECTOR_RULES"]

_REQUIRED, _PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_MEND = "use at most 63 letters, digits, - _ ."
_KEY_MEND = "write name or domain/name, the name of at most 63 letters, digits, - _ ."


def _is_key(text: str) -> bool:
    prefix, slash, name = text.rpartition("/")
    return bool(_NAME.fullmatch(name)) and (not slash or bool(_DOMAIN.fullmatch(prefix) and len(prefix) <= 253))


def _is_value(text: str) -> bool:
    return not text or bool(_NAME.fullmatch(text))


def _pods(block: Block) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    yield block.path, block.value
    yield (*block.path, "workerSpec"), mapping(block.value.get("workerSpec"))


def _terms(
    path: FieldPath, affinity: Mapping[str, Any], below: str
) -> Iterator[tuple[FieldPath, Mapping[str, Any], bool]]:
    """Terms of an affinity, each with whether it is required; `below` names a preferred one inside its weight."""
    required = affinity.get(_REQUIRED)
    items = listed(required) if isinstance(required, list) else listed(mapping(required).get("nodeSelectorTerms"))
    at = (*path, _REQUIRED) if isinstance(required, list) else (*path, _REQUIRED, "nodeSelectorTerms")
    for index, term in enumerate(items):
        yield (*at, index), mapping(term), True
    for index, item in enumerate(listed(affinity.get(_PREFERRED))):
        yield (*path, _PREFERRED, index, below), mapping(mapping(item).get(below)), False


def _pod_terms(path: FieldPath, pod: Mapping[str, Any]) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    affinity = mapping(pod.get("affinity"))
    for kind in ("podAffinity", "podAntiAffinity"):
        for at, term, _ in _terms((*path, "affinity", kind), mapping(affinity.get(kind)), "podAffinityTerm"):
            yield at, term


def label_selectors(block: Block) -> Findings:
    """Keys and values are those of labels; In and NotIn compare with values, Exists and DoesNotExist with none."""
    for path, pod in _pods(block):
        spreads = [
            ((*path, "topologySpreadConstraints", index), mapping(item))
            for index, item in enumerate(listed(pod.get("topologySpreadConstraints")))
        ]
        for at, term in (*_pod_terms(path, pod), *spreads):
            for name in ("labelSelector", "namespaceSelector"):
                yield from _label_selector((*at, name), mapping(term.get(name)))
            for name in ("matchLabelKeys", "mismatchLabelKeys"):
                for index, key in enumerate(listed(term.get(name))):
                    if isinstance(key, str) and not _is_key(key):
                        yield (*at, name, index), f"{key!r} is not a key of a label", _KEY_MEND
        for at, term in _pod_terms(path, pod):
            key = term.get("topologyKey")
            if isinstance(key, str) and key and not _is_key(key):
                yield (*at, "topologyKey"), f"{key!r} is not a key of a label", _KEY_MEND


def _label_selector(path: FieldPath, selector: Mapping[str, Any]) -> Findings:
    for key, value in mapping(selector.get("matchLabels")).items():
        if not _is_key(str(key)):
            yield (*path, "matchLabels", str(key)), f"{key!r} is not a key of a label", _KEY_MEND
        elif isinstance(value, str) and not _is_value(value):
            yield (*path, "matchLabels", str(key)), f"{value!r} is not a label's value", _LABEL_MEND
    for index, item in enumerate(listed(selector.get("matchExpressions"))):
        yield from _requirement((*path, "matchExpressions", index), mapping(item), values_are_labels=True)


def _requirement(path: FieldPath, item: Mapping[str, Any], *, values_are_labels: bool) -> Findings:
    key, operator = item.get("key"), item.get("operator")
    values = [value for value in listed(item.get("values")) if isinstance(value, str)]
    if (key is None or isinstance(key, str)) and not _is_key(key or ""):
        yield (*path, "key"), f"{key or ''!r} is not a key of a label", _KEY_MEND
    if operator in ("In", "NotIn") and not listed(item.get("values")):
        yield (*path, "values"), f"missing: {operator} compares with them", "write one or more"
    elif operator in ("Exists", "DoesNotExist") and values:
        yield (*path, "values"), f"forbidden beside {operator}", "remove them, or use In"
    elif operator in ("Gt", "Lt") and len(listed(item.get("values"))) != 1:
        yield (*path, "values"), f"{len(values)} values: {operator} compares with one", "write one number"
    if values_are_labels:
        for index, value in enumerate(values):
            if not _is_value(value):
                yield (*path, "values", index), f"{value!r} is not a label's value", _LABEL_MEND


def node_selectors(block: Block) -> Findings:
    """As selectors of labels; a required term's values are labels' values, and of fields there is one, `metadata.name`."""
    for path, pod in _pods(block):
        at = (*path, "affinity", "nodeAffinity")
        affinity = mapping(mapping(pod.get("affinity")).get("nodeAffinity"))
        required = affinity.get(_REQUIRED)
        if isinstance(required, dict) and not required.get("nodeSelectorTerms"):
            yield (*at, _REQUIRED, "nodeSelectorTerms"), "missing", "write one or more terms"
        for where, term, is_required in _terms(at, affinity, "preference"):
            for index, item in enumerate(listed(term.get("matchExpressions"))):
                spot = (*where, "matchExpressions", index)
                yield from _requirement(spot, mapping(item), values_are_labels=is_required)
            for index, item in enumerate(map(mapping, listed(term.get("matchFields")))):
                spot = (*where, "matchFields", index)
                if item.get("key") != "metadata.name":
                    yield (*spot, "key"), f"{item.get('key')!r} is not a field of a node", "use metadata.name"
                elif item.get("operator") not in ("In", "NotIn"):
                    yield (*spot, "operator"), f"{item.get('operator')!r} of a field", "use In or NotIn"
                elif len(listed(item.get("values"))) != 1:
                    yield (*spot, "values"), "a field is compared with one value", "write one name"


SELECTOR_RULES: tuple[Rule[Block], ...] = (
    Rule("pod-label-selectors", label_selectors, layer="controller"),
    Rule("pod-node-selectors", node_selectors, layer="controller"),
)
