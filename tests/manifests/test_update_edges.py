"""What may change from one manifest to the next, what workers need, and who speaks of a finding."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from serinus.manifests.documents import Document, load_text
from serinus.manifests.problems import Problems
from serinus.manifests.rules.pods.volume_rules import downward_items
from serinus.manifests.rules.rule import Block, Rule, judge
from serinus.manifests.rules.update_rules import check_updates
from serinus.manifests.rules.worker_rules import WORKER_RULES

KINDS = {
    "InferenceService": "serving.kserve.io/v1beta1",
    "ServingRuntime": "serving.kserve.io/v1alpha1",
    "TrainedModel": "serving.kserve.io/v1alpha1",
    "LLMInferenceService": "serving.kserve.io/v1alpha2",
}


def document(kind: str, spec: Any) -> Document:
    value = {"apiVersion": KINDS[kind], "kind": kind, "metadata": {"name": "x"}, "spec": spec}
    (found,) = load_text(yaml.safe_dump(value), "x.yaml")
    return found


def said(kind: str, old: Any, new: Any) -> list[str]:
    problems = Problems()
    check_updates([document(kind, old)], [document(kind, new)], problems)
    return [problem.message.partition(": ")[2] or problem.message for problem in problems.all]


def predictor(name: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"predictor": {**({} if name is None else {"name": name}), **fields}}


ONE, TWO = {"model": {"storageUri": "gs://a/1"}}, {"model": {"storageUri": "gs://a/2"}}
IN_ENV = {"containers": [{"env": [{"name": "STORAGE_URI", "value": "gs://a/1"}]}]}


@pytest.mark.parametrize(
    ("old", "new", "fine"),
    [
        (predictor("v1", **ONE), predictor("v1", **ONE), True),
        (predictor("v1", **ONE), predictor("v2", **TWO), True),
        (predictor("v1", **ONE), predictor("v1", **TWO), True),
        (predictor("v1", **ONE), predictor("v2", **ONE), False),
        (predictor(None, **ONE), predictor("v2", **ONE), False),
        (predictor("v1", **ONE), predictor(None, **ONE), False),
        (predictor("v1", **IN_ENV), predictor("v2", **ONE), False),
        (predictor("v1"), predictor("v2"), False),
    ],
)
def test_a_predictor_takes_another_name_with_another_model_only(old: Any, new: Any, fine: bool):
    names = [one["predictor"].get("name") or "" for one in (old, new)]
    found = [one for one in said("InferenceService", old, new) if "storage URI" in one]
    expected = f"changes from {names[0]!r} to {names[1]!r} with the same storage URI"
    assert [one.endswith(expected) for one in found] == ([] if fine else [True])


@pytest.mark.parametrize(
    ("old", "new", "fine"),
    [("1Gi", "1Gi", True), ("1Gi", "1024Mi", True), ("1Gi", "2Gi", False), ("2Gi", "1Gi", False)],
)
def test_a_trained_model_keeps_its_memory(old: str, new: str, fine: bool):
    found = said("TrainedModel", *({"model": {"memory": each}} for each in (old, new)))
    assert [one.endswith(f"cannot be changed from {old} to {new}") for one in found] == ([] if fine else [True])


@pytest.mark.parametrize(
    ("old", "new", "sizes"),
    [
        ({}, {}, None),
        ({}, {"pipeline": 1}, None),
        ({"pipeline": 2}, {"pipeline": 2}, None),
        ({"pipeline": 2}, {"pipeline": 3}, (2, 3)),
        ({"data": 4, "dataLocal": 2}, {"data": 2}, None),
        ({"data": 4, "dataLocal": 2}, {"data": 4}, (2, 4)),
        ({"data": 1, "dataLocal": 4}, {}, None),
        ({"dataLocal": 4}, {}, None),
        ({"data": 3, "pipeline": 2}, {"data": 3}, None),
        ({"pipeline": "2"}, {}, None),
        ({"pipeline": True}, {}, None),
        ({"pipeline": 0}, {}, None),
        ({"pipeline": -2}, {}, None),
        ({"pipeline": 2.5}, {}, None),
    ],
)
@pytest.mark.parametrize("part", ["decode", "prefill"])
def test_the_number_of_nodes_is_kept(old: Any, new: Any, sizes: tuple[int, int] | None, part: str):
    specs = [{"parallelism": each} if part == "decode" else {"prefill": {"parallelism": each}} for each in (old, new)]
    found = said("LLMInferenceService", *specs)
    expected = "" if sizes is None else f"its size cannot be changed from {sizes[0]} to {sizes[1]}"
    assert [one.endswith(expected) for one in found] == ([] if sizes is None else [True])


@pytest.mark.parametrize(
    ("old", "new", "fine"), [({}, {}, True), ({}, None, False), (None, {}, True), (None, None, True)]
)
def test_a_runtime_keeps_its_workers(old: Any, new: Any, fine: bool):
    specs = [{} if each is None else {"workerSpec": each} for each in (old, new)]
    assert bool(said("ServingRuntime", *specs)) is not fine


# Workers

RULES = {rule.id: rule for rule in WORKER_RULES}
DEVICES = "serving.kserve.io/gpu-resource-types"


def block(part: str, value: dict[str, Any], **annotations: str) -> Block:
    return Block(("spec", part) if part != "spec" else ("spec",), value, annotations)


def container(name: str, *resources: str) -> dict[str, Any]:
    return {"name": name, "resources": {"limits": dict.fromkeys(resources, 1)}}


WORKER = {"workerSpec": {"containers": []}}
CUSTOM = ("cpu", "example.com/tpu")


def devices(found: Block) -> list[tuple[Any, ...]]:
    return [path for path, _, _ in RULES["worker-known-devices"].check(found)]


@pytest.mark.parametrize(
    ("part", "value", "paths"),
    [
        ("predictor", {"model": container("m", *CUSTOM)}, [("spec", "predictor", "model")]),
        ("predictor", {"containers": [container("kserve-container", *CUSTOM)]}, []),
        ("transformer", {"model": container("m", *CUSTOM)}, []),
        ("transformer", {"containers": [container("kserve-container", *CUSTOM)]}, []),
        ("spec", {"model": container("m", *CUSTOM)}, []),
        ("spec", {"containers": [container("kserve-container", *CUSTOM)]}, [("spec", "containers", 0)]),
        ("spec", {"containers": [container("other", *CUSTOM)]}, []),
        (
            "spec",
            {"containers": [container("other", *CUSTOM), container("kserve-container", *CUSTOM)]},
            [("spec", "containers", 1)],
        ),
    ],
)
def test_devices_of_the_container_that_leads_workers_are_known(part: str, value: Any, paths: list[Any]):
    found = devices(block(part, {**WORKER, **value}))
    assert found == [(*path, "resources", "limits", "example.com/tpu") for path in paths]


@pytest.mark.parametrize(
    ("part", "own", "inherited", "known"),
    [
        ("spec", {}, {}, False),
        ("spec", {DEVICES: '["example.com/tpu"]'}, {}, True),
        ("spec", {}, {DEVICES: '["example.com/tpu"]'}, True),
        ("spec", {DEVICES: '["example.com/other"]'}, {DEVICES: '["example.com/tpu"]'}, False),
        ("predictor", {}, {DEVICES: '["example.com/tpu"]'}, True),
        ("predictor", {DEVICES: '["example.com/tpu"]'}, {}, False),
    ],
)
def test_devices_are_declared_by_a_runtimes_or_the_services_annotations(
    part: str, own: Any, inherited: Any, known: bool
):
    leads = (
        {"containers": [container("kserve-container", *CUSTOM)]}
        if part == "spec"
        else {"model": container("m", *CUSTOM)}
    )
    worker = {"workerSpec": {"containers": [container("worker-container", *CUSTOM)]}}
    found = devices(block(part, {**worker, **leads, "annotations": own}, **inherited))
    assert bool(found) is not known


@pytest.mark.parametrize(
    ("written", "fine"),
    [
        ('["example.com/tpu"]', True),
        ('["example.com/tpu", "b"]', True),
        ('["example.com/tpu", ""]', False),
        ('["example.com/tpu", 1]', False),
        ("[]", False),
        ("{}", False),
        ('"example.com/tpu"', False),
        ("[", False),
    ],
)
@pytest.mark.parametrize("part", ["explainer", "predictor", "spec", "transformer"])
def test_an_annotation_of_devices_is_a_list_of_names_where_it_is_written(written: str, fine: bool, part: str):
    annotations = {DEVICES: written}
    found = devices(block(part, {**WORKER, "annotations": annotations}, **annotations))
    where = ("spec", "annotations", DEVICES) if part == "spec" else ("metadata", "annotations", DEVICES)
    assert found == ([] if fine else [where])


# Volumes and findings


@pytest.mark.parametrize(
    ("item", "count"),
    [
        ({"fieldRef": {"fieldPath": "metadata.name"}}, 1),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, 1),
        ({}, 0),
        ({"fieldRef": None}, 0),
        ({"fieldRef": {}, "resourceFieldRef": {}}, 2),
    ],
)
@pytest.mark.parametrize("projected", [True, False])
def test_a_file_of_the_downward_API_has_one_source(item: Any, count: int, projected: bool):
    source = {"downwardAPI": {"items": [{"path": "a", **item}]}}
    volume = {"name": "v", **({"projected": {"sources": [source]}} if projected else source)}
    found = [message for _, message, _ in downward_items(Block(("spec",), {"volumes": [volume]}, {}))]
    assert found == ([] if count == 1 else [f"{count} sources"])


@pytest.mark.parametrize("severity", ["error", "warning"])
@pytest.mark.parametrize("layer", ["webhook", "server", "controller"])
@pytest.mark.parametrize("spoken", [None, "server"])
def test_a_finding_is_its_rules_layers_and_a_warning_of_a_webhook_is_ignored(severity: Any, layer: Any, spoken: Any):
    rule: Rule[Any] = Rule("id", lambda judged: [(("spec",), "said", "mend")], severity=severity, layer=layer)
    problems = Problems()
    judge([rule], None, document("TrainedModel", {}), problems, layer=spoken)
    (problem,) = problems.all
    assert (problem.severity, problem.rule) == (severity, "id")
    quiet = "ignored" if layer == "webhook" else layer
    assert problem.layer == ((spoken or layer) if severity == "error" else quiet)
