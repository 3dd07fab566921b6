"""An InferenceGraph on a real cluster: its services are ready, and KServe makes the router that the local runner runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cluster import Cluster, render

FOLDER = Path(__file__).resolve().parents[2] / "inferenceservices/fraud/graph"


@pytest.fixture
def graph(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """The fraud graph as written, with its services applied and settled."""
    documents = [item for item in yaml.safe_load_all(render(FOLDER)) if item]
    services = [item["metadata"]["name"] for item in documents if item["kind"] == "InferenceService"]
    (written,) = [item for item in documents if item["kind"] == "InferenceGraph"]
    try:
        cluster.apply(yaml.safe_dump_all(cluster.placed(documents)))
        for name in services:
            cluster.wait_settled(name)
        yield written
    finally:
        cluster.kubectl("delete", "inferencegraph", written["metadata"]["name"], "--ignore-not-found", check=False)
        for name in services:
            cluster.remove(name)


def test_the_router_is_given_the_graph_and_the_graph_becomes_ready(cluster: Cluster, graph: dict[str, Any]) -> None:
    name = graph["metadata"]["name"]

    def ready() -> dict[str, Any] | None:
        found = cluster.get("inferencegraph", name) or {}
        return found if cluster.condition(found, "Ready").get("status") == "True" else None

    cluster.wait(
        f"InferenceGraph {name} is Ready",
        ready,
        seen=lambda: str((cluster.get("inferencegraph", name) or {}).get("status")),
    )
    router = cluster.get("deployment", name)
    assert router is not None
    (container,) = router["spec"]["template"]["spec"]["containers"]
    told = json.loads(container["args"][container["args"].index("--graph-json") + 1])
    assert told["nodes"].keys() == graph["spec"]["nodes"].keys()
    steps = [step for node in told["nodes"].values() for step in node["steps"] if step.get("serviceName")]
    # The router asks each service at the address that KServe gives it inside the cluster.
    assert steps
    assert all(f".{cluster.namespace}.svc" in step["serviceUrl"] for step in steps)
