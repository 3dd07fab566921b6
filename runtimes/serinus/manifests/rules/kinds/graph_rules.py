"""InferenceGraphs and TrainedModels: what their webhooks refuse, and what graphs do otherwise than they seem to.

Source: `inference_graph_validation.go`, `trainedmodel_webhook.go` and the agent's list of protocols of KServe 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...conventions import NAME
from ...documents import Document, FieldPath
from ...fields import listed, mapping, whole_number
from ...graphs.gjson_path import condition_problem
from ...problems import nearest
from ..rule import Findings, Rule

__all__ = ["GRAPH_RULES", "TRAINED_MODEL_RULES"]

_TARGETS = ("nodeName", "serviceName", "serviceUrl")
_TRAINED_NAME = re.compile(r"^[a-zA-Z0-9_-]+$")
_TRAINED_SCHEMES = ("s3://", "gs://", "https://", "http://")


def _nodes(document: Document) -> Iterator[tuple[FieldPath, str, Mapping[str, Any]]]:
    for name, node in mapping(mapping(document.value.get("spec")).get("nodes")).items():
        if node is None:
            continue  # absent to the API server
        yield ("spec", "nodes", str(name)), str(name), mapping(node)


def _steps(document: Document) -> Iterator[tuple[FieldPath, str, Mapping[str, Any]]]:
    for path, name, node in _nodes(document):
        for index, step in enumerate(listed(node.get("steps"))):
            yield (*path, "steps", index), name, mapping(step)


def graph_name(document: Document) -> Findings:
    """The name becomes a part of hosts."""
    if not NAME.match(document.name):
        message = f"{document.name!r} is not a name for an InferenceGraph"
        yield ("metadata", "name"), message, "use lower-case letters, digits and dashes, beginning with a letter"


def root_node(document: Document) -> Findings:
    """Requests come to the node `root`."""
    names = [name for _, name, _ in _nodes(document)]
    if "root" not in names:
        near = nearest("root", names)
        yield (
            ("spec", "nodes"),
            "no node is called root, where requests come in",
            f"rename {near} to root" if near else "add a node root",
        )


def step_names(document: Document) -> Findings:
    """No two steps of a node have one name."""
    seen: set[tuple[str, str]] = set()
    for path, node, step in _steps(document):
        name = step.get("name")
        if name and (node, str(name)) in seen:
            yield (*path, "name"), f"{name!r} names two steps of node {node}", "use another name"
        seen.add((node, str(name)))


def one_target(document: Document) -> Findings:
    """A step leads to a node, a service or an address, and to one of them."""
    for path, _, step in _steps(document):
        found = [key for key in _TARGETS if step.get(key)]
        if len(found) != 1:
            said = f"{len(found)} targets: {', '.join(found)}" if found else "no target"
            yield path, said, f"write one of {', '.join(_TARGETS)}"


def weights(document: Document) -> Findings:
    """A splitter's weights are a whole."""
    for path, name, node in _nodes(document):
        if node.get("routerType") != "Splitter":
            continue
        steps = [mapping(step) for step in listed(node.get("steps"))]
        missing = [index for index, step in enumerate(steps) if step.get("weight") is None]
        for index in missing:
            yield (*path, "steps", index, "weight"), "missing: a splitter gives each step its share", "add weight"
        total = sum(whole_number(step.get("weight")) or 0 for step in steps)
        if not missing and total != 100:
            yield (*path, "steps"), f"weights of node {name} sum to {total}", "make them 100 together"


def known_nodes(document: Document) -> Findings:
    """A step leads to a node that is there; the router answers 500 otherwise."""
    names = [name for _, name, _ in _nodes(document)]
    for path, _, step in _steps(document):
        target = step.get("nodeName")
        if target and str(target) not in names:
            near = nearest(str(target), names)
            yield (
                (*path, "nodeName"),
                f"there is no node {target}",
                f"did you mean {near}?" if near else f"use one of {', '.join(names)}",
            )


def ends_somewhere(document: Document) -> Findings:
    """Nodes that lead to one another in a circle never answer."""
    below = {
        name: [str(s.get("nodeName")) for s in map(mapping, listed(n.get("steps"))) if s.get("nodeName")]
        for _, name, n in _nodes(document)
    }
    for start in below:
        seen, waiting = set(), list(below[start])
        while waiting:
            name = waiting.pop()
            if name == start:
                yield ("spec", "nodes", start), f"node {start} leads back to itself", "break the circle"
                break
            if name not in seen:
                seen.add(name)
                waiting += below.get(name, [])


def switch_has_conditions(document: Document) -> Findings:
    """A switch takes the first step whose condition holds; one without is never taken."""
    for path, _, node in _nodes(document):
        if node.get("routerType") == "Switch":
            for index, step in enumerate(map(mapping, listed(node.get("steps")))):
                if not step.get("condition"):
                    yield (
                        (*path, "steps", index, "condition"),
                        "missing: a switch never takes this step",
                        "add a condition",
                    )


def condition_means_something(document: Document) -> Findings:
    """A condition is a GJSON path; one that is cut off, or that leads somewhere in every request, is taken without a word."""
    for path, _, node in _nodes(document):
        if node.get("routerType") not in ("Switch", "Sequence"):
            continue
        for index, step in enumerate(map(mapping, listed(node.get("steps")))):
            condition = step.get("condition")
            problem = condition_problem(condition) if isinstance(condition, str) and condition else None
            if problem is not None:
                mend = "write a GJSON path that leads somewhere when the step is meant, such as instances.#(age>60)"
                yield (*path, "steps", index, "condition"), f"{condition!r} {problem}", mend


def first_of_sequence_has_no_condition(document: Document) -> Findings:
    """A sequence's condition asks the answer before it; before the first step there is none, and the router answers 500."""
    for path, _, node in _nodes(document):
        first = mapping(next(iter(listed(node.get("steps"))), None))
        if node.get("routerType") == "Sequence" and first.get("condition"):
            message = "there is no answer before the first step: each request gets 500"
            yield (*path, "steps", 0, "condition"), message, "put a Switch in front, or the condition on the next step"


def node_has_steps(document: Document) -> Findings:
    """A node without steps answers nothing: the router resets the connection (Sequence), or answers 404, 500 or an empty object."""
    for path, name, node in _nodes(document):
        if not listed(node.get("steps")):
            yield (*path, "steps"), f"node {name} leads nowhere", "add steps"


def trained_name(document: Document) -> Findings:
    """The name becomes a part of addresses."""
    if not _TRAINED_NAME.match(document.name):
        yield (
            ("metadata", "name"),
            f"{document.name!r} is not a name for a TrainedModel",
            "use letters, digits, - and _",
        )


def trained_storage(document: Document) -> Findings:
    """The agent fetches from so many storages."""
    model = mapping(mapping(document.value.get("spec")).get("model"))
    uri = model.get("storageUri")
    if uri is None:
        yield ("spec", "model", "storageUri"), "missing", f"add it, with one of {', '.join(_TRAINED_SCHEMES)}"
    elif isinstance(uri, str) and not uri.startswith(_TRAINED_SCHEMES):
        yield (
            ("spec", "model", "storageUri"),
            f"{uri!r} is no storage of TrainedModels",
            f"use one of {', '.join(_TRAINED_SCHEMES)}",
        )


GRAPH_RULES: tuple[Rule[Document], ...] = (
    Rule("graph-name", graph_name),
    Rule("graph-root-node", root_node),
    Rule("graph-step-names", step_names),
    Rule("graph-one-target", one_target),
    Rule("graph-weights", weights),
    Rule("graph-known-nodes", known_nodes, layer="controller"),
    Rule("graph-ends-somewhere", ends_somewhere, layer="controller"),
    Rule("graph-switch-has-conditions", switch_has_conditions, "warning"),
    Rule("graph-condition-means-something", condition_means_something, "warning"),
    Rule("graph-first-of-sequence", first_of_sequence_has_no_condition, "warning"),
    Rule("graph-node-has-steps", node_has_steps, "warning"),
)
TRAINED_MODEL_RULES: tuple[Rule[Document], ...] = (
    Rule("trained-model-name", trained_name),
    Rule("trained-model-storage", trained_storage),
)
