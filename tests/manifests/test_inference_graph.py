"""An InferenceGraph as values: each field, and what stands where none is written."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from serinus.manifests.documents import Document, load_text
from serinus.manifests.graphs.inference_graph import (
    ROOT,
    GraphNode,
    GraphStep,
    RouterTimeouts,
    parse_inference_graph,
    parse_nodes,
)


def document(spec: Any, **metadata: Any) -> Document:
    value = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": "g", **metadata},
        "spec": spec,
    }
    (found,) = load_text(yaml.safe_dump(value), "g.yaml")
    return found


NO_STEP = GraphStep("", "", "", "", "", "", 0, is_hard=False, maps_predictions=False)
STEPS: dict[str, tuple[dict[str, Any], GraphStep]] = {
    "nothing": ({}, NO_STEP),
    "all": (
        {
            "name": "s",
            "nodeName": "n",
            "serviceName": "v",
            "serviceUrl": "http://u",
            "data": "$request",
            "condition": "[@this].#(a)",
            "weight": 30,
            "dependency": "Hard",
            "mapPredictionsToInstances": True,
        },
        GraphStep("s", "n", "v", "http://u", "$request", "[@this].#(a)", 30, is_hard=True, maps_predictions=True),
    ),
    "the other words": ({"dependency": "Soft", "mapPredictionsToInstances": False, "weight": 0}, NO_STEP),
    "wrong kinds": ({"dependency": True, "mapPredictionsToInstances": "true", "weight": "30"}, NO_STEP),
    "nulls": ({"name": None, "nodeName": None, "weight": None, "dependency": None}, NO_STEP),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_has_what_is_written_and_else_nothing(case: str):
    written, step = STEPS[case]
    assert parse_nodes({ROOT: {"routerType": "Sequence", "steps": [written]}}) == {
        "root": GraphNode("Sequence", (step,))
    }


def test_nodes_keep_their_order_and_kinds_and_one_without_has_none():
    nodes = parse_nodes(
        {"b": {"routerType": "Switch", "steps": [{"name": "x"}, {"name": "y"}]}, "a": {"routerType": None}, "c": None}
    )
    assert [(name, node.kind, [step.name for step in node.steps]) for name, node in nodes.items()] == [
        ("b", "Switch", ["x", "y"]),
        ("a", "", []),
        ("c", "", []),
    ]


def test_times_are_KServes_where_none_are_written():
    assert RouterTimeouts() == RouterTimeouts(60.0, 60.0, 180.0, None)
    graph = parse_inference_graph(document({"nodes": {}}))
    assert graph.timeouts == RouterTimeouts(60.0, 60.0, 180.0, None)
    assert graph.timeout_s is None
    assert graph.min_replicas == 1
    assert (graph.nodes, graph.annotations, graph.key) == ({}, {}, f"{graph.namespace}/g")


def test_times_are_those_that_are_written():
    times = {"serverRead": 1, "serverWrite": 2, "serverIdle": 3, "serviceClient": 4}
    graph = parse_inference_graph(
        document({"nodes": {}, "routerTimeouts": times, "timeout": 5, "minReplicas": 0}, namespace="n")
    )
    assert graph.timeouts == RouterTimeouts(1.0, 2.0, 3.0, 4.0)
    assert graph.timeout_s == 5.0
    assert graph.min_replicas == 0
    assert graph.key == "n/g"


@pytest.mark.parametrize("key", ["serverRead", "serverWrite", "serverIdle"])
def test_a_time_alone_leaves_the_others(key: str):
    timeouts = parse_inference_graph(document({"nodes": {}, "routerTimeouts": {key: 7}})).timeouts
    found = (timeouts.server_read_s, timeouts.server_write_s, timeouts.server_idle_s)
    places = ("serverRead", "serverWrite", "serverIdle")
    assert found == tuple(
        7.0 if place == key else default for place, default in zip(places, (60.0, 60.0, 180.0), strict=True)
    )


@pytest.mark.parametrize(("value", "seconds"), [(0, 0.0), (1, 1.0), ("a", 0.0)])
def test_a_call_and_a_whole_request_have_a_limit_as_soon_as_one_is_written(value: Any, seconds: float):
    graph = parse_inference_graph(document({"nodes": {}, "routerTimeouts": {"serviceClient": value}, "timeout": value}))
    assert (graph.timeouts.service_client_s, graph.timeout_s) == (seconds, seconds)


def test_annotations_are_texts_and_a_steps_place_is_that_of_its_index():
    graph = parse_inference_graph(
        document({"nodes": {"root": {"steps": [{}, {}]}}}, annotations={"a": "1", "b": "yes"})
    )
    assert graph.annotations == {"a": "1", "b": "yes"}
    assert graph.step_source("root", 1).parts == ((graph.document, ("spec", "nodes", "root", "steps", 1)),)


def test_a_graph_is_a_value():
    assert parse_inference_graph(document({"nodes": {}})).timeouts == RouterTimeouts()
    with pytest.raises(AttributeError):
        NO_STEP.name = "other"  # pyright: ignore[reportAttributeAccessIssue] # that is what is tested
