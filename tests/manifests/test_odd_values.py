"""Whatever stands in a manifest, the linter answers with findings: each field of rich objects in turn holds a value of every other shape."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from depth import DEEP
from serinus.cli.policy_annotations import check_policy_annotations
from serinus.cli.serving.serve_arguments import check_serve_arguments
from serinus.manifests.documents import load_text
from serinus.manifests.linter import check_documents
from serinus.manifests.problems import Problems
from serinus.manifests.rules.update_rules import check_updates

ODD: tuple[Any, ...] = ([], {}, None, 0, True, "", "text", ["x"], [{}], [None], {"a": "b"}, 1.5)

CONTAINER = """
name: kserve-container
image: xgboost_server
args: [--model_name=a]
env: [{name: PROTOCOL, value: v2}, {name: KEY, valueFrom: {secretKeyRef: {name: a, key: b}}}]
ports: [{name: http1, containerPort: 8080, protocol: TCP}]
resources: {requests: {cpu: 100m}, limits: {cpu: 1, nvidia.com/gpu: 1}}
readinessProbe: {httpGet: {path: /, port: 8080}, successThreshold: 1}
startupProbe: {tcpSocket: {port: http1}, successThreshold: 1}
volumeMounts: [{name: tmp, mountPath: /tmp}]
imagePullPolicy: Always
securityContext: {runAsUser: 1, capabilities: {drop: [ALL]}}
"""
POD = f"""
containers: [{{{", ".join(CONTAINER.strip().splitlines())}}}]
volumes: [{{name: tmp, emptyDir: {{}}}}]
tolerations: [{{key: a, operator: Equal, value: b, effect: NoSchedule}}]
nodeSelector: {{a: b}}
labels: {{a: b}}
affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{{matchExpressions: [{{key: a, operator: Exists}}]}}]}}}}}}
"""
MODEL = "model: {modelFormat: {name: xgboost}, storageUri: 'gs://a', runtime: r, protocolVersion: v2}"
SCALING = """
minReplicas: 1
maxReplicas: 2
scaleMetric: cpu
scaleTarget: 80
logger: {mode: all, url: http://a}
batcher: {maxBatchSize: 4}
autoScaling: {metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]}
workerSpec: {pipelineParallelSize: 2, tensorParallelSize: 1, containers: [{name: worker-container, image: a}]}
"""


def document(kind: str, version: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        "name": "a",
        "labels": {"a": "b"},
        "annotations": {"serving.kserve.io/deploymentMode": "Standard", "serinus.dev/canary-policy": "steps=5/100"},
    }
    return {"apiVersion": f"serving.kserve.io/{version}", "kind": kind, "metadata": metadata, "spec": spec}


def read(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)


STEPS = "[{name: a, serviceName: b, weight: 100, condition: 'x>1', data: $request, dependency: Hard}]"
CASES = [
    document("InferenceService", "v1beta1", {"predictor": {**read(POD), **read(SCALING)}, "transformer": read(POD)}),
    document(
        "InferenceService",
        "v1beta1",
        {
            "predictor": {
                **read(MODEL),
                "name": "v1",
                "storageUris": [{"uri": "gs://a", "mountPath": "/mnt/models/a"}],
            },
            "canary": [{"trafficPercent": 10, "predictor": {**read(MODEL), "name": "v2"}}],
        },
    ),
    document(
        "ClusterServingRuntime",
        "v1alpha1",
        {
            **read(POD),
            "supportedModelFormats": [{"name": "xgboost", "version": "1", "autoSelect": True, "priority": 1}],
            "protocolVersions": ["v2"],
            "workerSpec": read(SCALING)["workerSpec"],
        },
    ),
    document("InferenceGraph", "v1alpha1", {"nodes": {"root": {"routerType": "Switch", "steps": read(STEPS)}}}),
    document(
        "TrainedModel",
        "v1alpha1",
        {"inferenceService": "a", "model": {"framework": "xgboost", "storageUri": "gs://a", "memory": "1Gi"}},
    ),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from places(below, (*path, key))


def replaced(whole: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(whole)
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def judge(documents: list[Any]) -> Problems:
    problems = Problems()
    check_documents(documents, problems, kserve_version=(0, 15))
    check_serve_arguments(documents, problems)
    check_policy_annotations(documents, problems)
    return problems


@pytest.mark.slow
@pytest.mark.parametrize("whole", CASES, ids=lambda case: case["kind"])
def test_a_value_of_any_shape_in_any_place_is_judged_and_breaks_nothing(whole: dict[str, Any]):
    before = load_text(json.dumps(whole), "before.yaml")
    for number, path in enumerate(places(whole)):
        # A list and a mapping everywhere, which no set holds; of the rest some at each place, in turn. A run that is not deep has one at each.
        every: list[Any] = [["x"], {"a": "b"}, ODD[number % len(ODD)]]
        for odd in every if DEEP else every[number % 3 :][:1]:
            after = load_text(json.dumps(replaced(whole, path, odd)), "after.yaml")
            problems = judge(after)
            check_updates(before, after, problems)
            check_updates(after, before, problems)
