"""InferenceGraphs as frozen values. Pure.

Source: `inference_graph.go` (serving.kserve.io/v1alpha1) and `cmd/router/main.go` of KServe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..documents import Document, Source
from ..fields import listed, mapping, whole_number

__all__ = ["ROOT", "GraphNode", "GraphStep", "InferenceGraph", "RouterTimeouts", "parse_inference_graph", "parse_nodes"]

ROOT = "root"
"""The node that requests come to."""


@dataclass(frozen=True, slots=True)
class GraphStep:
    """One destination of a node."""

    name: str
    """Empty: none is written; the step is known by its index."""
    node: str
    service: str
    url: str
    """One of `node`, `service` and `url` is written; `service` gets a URL before the graph runs."""
    data: str
    condition: str
    weight: int
    is_hard: bool
    maps_predictions: bool


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One node: how it routes, and where to."""

    kind: str
    """`Sequence`, `Switch`, `Ensemble` or `Splitter`."""
    steps: tuple[GraphStep, ...]


@dataclass(frozen=True, slots=True)
class RouterTimeouts:
    """`routerTimeouts`, seconds; the defaults are KServe's (`pkg/constants/constants.go` 72-74)."""

    server_read_s: float = 60.0
    server_write_s: float = 60.0
    server_idle_s: float = 180.0
    service_client_s: float | None = None
    """Of each call of a step; None: no limit but `server_write_s`."""


@dataclass(frozen=True, slots=True)
class InferenceGraph:
    """One InferenceGraph that admission has let pass."""

    name: str
    namespace: str
    annotations: Mapping[str, str]
    nodes: Mapping[str, GraphNode]
    timeouts: RouterTimeouts
    timeout_s: float | None
    """`spec.timeout`, of a whole request."""
    min_replicas: int
    document: Document

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def step_source(self, node: str, index: int) -> Source:
        """Where a step is written."""
        return Source(((self.document, ("spec", "nodes", node, "steps", index)),))


def parse_inference_graph(document: Document) -> InferenceGraph:
    """Read an InferenceGraph that admission has let pass."""
    spec = mapping(document.value.get("spec"))
    written = mapping(spec.get("routerTimeouts"))
    base = RouterTimeouts()
    low = whole_number(spec.get("minReplicas"))
    return InferenceGraph(
        name=document.name,
        namespace=document.namespace,
        annotations={str(key): str(value) for key, value in mapping(document.metadata.get("annotations")).items()},
        nodes=parse_nodes(mapping(spec.get("nodes"))),
        timeouts=RouterTimeouts(
            _seconds(written.get("serverRead"), base.server_read_s),
            _seconds(written.get("serverWrite"), base.server_write_s),
            _seconds(written.get("serverIdle"), base.server_idle_s),
            _seconds(written["serviceClient"], 0.0) if written.get("serviceClient") is not None else None,
        ),
        timeout_s=_seconds(spec["timeout"], 0.0) if spec.get("timeout") is not None else None,
        min_replicas=1 if low is None else low,
        document=document,
    )


def _seconds(value: Any, default: float) -> float:
    found = whole_number(value)
    return default if found is None else float(found)


def parse_nodes(nodes: Mapping[str, Any]) -> dict[str, GraphNode]:
    """Read `spec.nodes`, of a manifest or as a router is given it."""
    return {
        str(name): GraphNode(
            str(mapping(node).get("routerType") or ""),
            tuple(_step(mapping(step)) for step in listed(mapping(node).get("steps"))),
        )
        for name, node in nodes.items()
    }


def _step(step: Mapping[str, Any]) -> GraphStep:
    def text(key: str) -> str:
        return str(step.get(key) or "")

    return GraphStep(
        name=text("name"),
        node=text("nodeName"),
        service=text("serviceName"),
        url=text("serviceUrl"),
        data=text("data"),
        condition=text("condition"),
        weight=whole_number(step.get("weight")) or 0,
        is_hard=step.get("dependency") == "Hard",
        maps_predictions=step.get("mapPredictionsToInstances") is True,
    )
