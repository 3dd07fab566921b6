"""A container's environment, as the kubelet would make it of the manifests: each kind of variable, and what leads nowhere."""

from __future__ import annotations

import base64

import pytest

from serinus.local.plan.container_environment import config_data, expand, resolve_environment
from serinus.manifests.containers import parse_container
from serinus.manifests.documents import Source, load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.problems import Problems

CONFIG = f"""\
kind: ConfigMap
apiVersion: v1
metadata: {{name: c}}
data: {{A: 1, B: two}}
---
kind: ConfigMap
apiVersion: v1
metadata: {{name: far, namespace: other}}
data: {{A: far}}
---
kind: Secret
apiVersion: v1
metadata: {{name: s}}
data: {{A: {base64.b64encode(b"hidden").decode()}, BAD: '?', LATIN: {base64.b64encode(bytes([255])).decode()}, W: {base64.b64encode(b"old").decode()}}}
stringData: {{W: new, N: 5}}
---
kind: Pod
apiVersion: v1
metadata: {{name: p}}
data: {{A: no}}
"""
METADATA = "{name: fraud, labels: {app: x}, annotations: {a/b: c}}"


def environment(container: str) -> tuple[dict[str, str], list[str]]:
    text = (
        f"apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {METADATA}\nspec:\n"
        f"  predictor:\n    containers:\n      - {container}\n"
    )
    (document,) = load_text(text, "isvc.yaml")
    problems = Problems()
    source = Source(((document, ("spec", "predictor", "containers", 0)),))
    found = parse_container(document.get(("spec", "predictor", "containers", 0)), source)
    data = config_data(load_text(CONFIG, "config.yaml"))
    env = resolve_environment(parse_inference_service(document), found, data, problems)
    return env, [f"{problem.field}: {problem.message}: {problem.mend}" for problem in problems.all]


def test_only_configuration_and_secrets_are_data_and_what_is_no_text_is_left_out():
    entries = config_data(load_text(CONFIG, "f")).entries
    assert entries == {
        ("ConfigMap", "default", "c"): {"A": "1", "B": "two"},
        ("ConfigMap", "other", "far"): {"A": "far"},
        ("Secret", "default", "s"): {"A": "hidden", "W": "new", "N": "5"},
    }


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("x$(A)-$(B)y", "x1-2y"),
        ("$(NONE)", "$(NONE)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $(A", "$A ${A} $(A"),
        ("$(1A)", "$(1A)"),
        ("$(A.b-c_1)", "3"),
    ],
)
def test_references_are_replaced_and_two_dollars_are_one(text: str, expanded: str):
    assert expand(text, {"A": "1", "B": "2", "A.b-c_1": "3", "1A": "no"}) == expanded


def test_line_breaks_in_a_secrets_base64_are_passed_over():
    folded = "QUFB\nQUFB\r\n"
    (document,) = load_text(f"kind: Secret\nmetadata: {{name: s}}\ndata: {{A: {folded!r}}}\n".replace("'", '"'), "f")
    assert config_data([document]).entries["Secret", "default", "s"] == {"A": "AAAAAA"}


def test_values_refer_to_those_before_them_alone():
    env, problems = environment(
        "{env: [{name: B, value: $(A)}, {name: A, value: x}, {name: C, value: $(A)y}, {name: D}]}"
    )
    assert env == {"B": "$(A)", "A": "x", "C": "xy", "D": ""}
    assert problems == []


@pytest.mark.parametrize(
    ("container", "env"),
    [
        ("{envFrom: [{configMapRef: {name: c}}]}", {"A": "1", "B": "two"}),
        ("{envFrom: [{configMapRef: {name: c}, prefix: P_}]}", {"P_A": "1", "P_B": "two"}),
        ("{envFrom: [{secretRef: {name: s}}]}", {"A": "hidden", "W": "new", "N": "5"}),
        ("{envFrom: [{secretRef: {name: s}}, {configMapRef: {name: c}}]}", {"A": "1", "B": "two", "W": "new", "N": "5"}),
        ("{envFrom: [{configMapRef: {name: c}}], env: [{name: A, value: own}]}", {"A": "own", "B": "two"}),
        ("{envFrom: [{configMapRef: {name: none, optional: true}}, {secretRef: {name: none, optional: true}}]}", {}),
        ("{env: [{name: X, valueFrom: {configMapKeyRef: {name: c, key: B}}}]}", {"X": "two"}),
        ("{env: [{name: X, valueFrom: {secretKeyRef: {name: s, key: W}}}]}", {"X": "new"}),
        ("{env: [{name: X, valueFrom: {secretKeyRef: {name: s, key: none, optional: true}}}]}", {}),
        ("{env: [{name: X, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}", {"X": "fraud"}),
        ("{env: [{name: X, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}]}", {"X": "default"}),
        ("{env: [{name: X, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}]}", {"X": "default/fraud"}),
        ("{env: [{name: X, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]}", {"X": "127.0.0.1"}),
        ("{env: [{name: X, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}]}", {"X": "x"}),
        ("{env: [{name: X, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['a/b']\"}}}]}", {"X": "c"}),
        ("{env: [{name: X, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['none']\"}}}]}", {"X": ""}),
    ],
    ids=lambda value: str(value)[:70],
)  # fmt: skip
def test_a_variable_comes_from_where_the_manifest_says(container: str, env: dict[str, str]):
    assert environment(container) == (env, [])


@pytest.mark.parametrize(
    ("resource", "limits", "divisor", "value"),
    [
        ("limits.cpu", "cpu: 1500m", None, "2"),
        ("limits.cpu", "cpu: 1500m", "1m", "1500"),
        ("limits.cpu", "cpu: 2", None, "2"),
        ("limits.memory", "memory: 1Gi", "1Mi", "1024"),
        ("limits.memory", "memory: 1025Ki", "1Mi", "2"),
        ("limits.memory", "memory: 1Ki", None, "1024"),
        ("limits.cpu", "cpu: 1500m", "'0'", "2"),
    ],
)
def test_an_amount_is_counted_in_its_divisor_and_rounded_up(
    resource: str, limits: str, divisor: str | None, value: str
):
    by = f", divisor: {divisor}" if divisor else ""
    container = (
        f"{{resources: {{limits: {{{limits}}}, requests: {{cpu: 7}}}}, "
        f"env: [{{name: X, valueFrom: {{resourceFieldRef: {{resource: {resource}{by}}}}}}}]}}"
    )
    assert environment(container) == ({"X": value}, [])


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ("{envFrom: [{}, {configMapRef: {name: none}}]}",
         "envFrom[1]: ConfigMap none is in no manifest: add its manifest to the folder"),
        ("{envFrom: [{secretRef: {name: c}}]}", "envFrom[0]: Secret c is in no manifest: add its manifest to the folder"),
        ("{envFrom: [{configMapRef: {name: far}}]}", "envFrom[0]: ConfigMap far is in no manifest"),
        ("{env: [{name: X, valueFrom: {configMapKeyRef: {name: c, key: none}}}]}",
         "env[0].valueFrom.configMapKeyRef: key none of ConfigMap c is in no manifest: add its manifest to the folder, or set optional: true"),
        ("{env: [{name: X, valueFrom: {secretKeyRef: {name: none, key: A}}}]}",
         "env[0].valueFrom.secretKeyRef: key A of Secret none is in no manifest"),
        ("{env: [{name: X, valueFrom: {fieldRef: {fieldPath: status.phase}}}]}",
         "env[0].valueFrom.fieldRef.fieldPath: status.phase is not known here: use one of metadata.name, metadata.namespace"),
        ("{env: [{name: X, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]}",
         "env[0].valueFrom: resource limits.cpu has no value in this container: set it under resources"),
        ("{env: [{name: X, valueFrom: {resourceFieldRef: {divisor: 1}}}]}",
         "env[0].valueFrom: resource (none) has no value in this container: set it under resources"),
        ("{env: [{name: X, valueFrom: {other: {}}}]}",
         "env[0].valueFrom: this reference is not known here: use configMapKeyRef, secretKeyRef, fieldRef or resourceFieldRef"),
        ("{resources: {limits: {cpu: 1}}, env: [{name: X, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: x}}}]}",
         "env[0].valueFrom: resource limits.cpu has no value"),
    ],
    ids=lambda value: str(value)[:70],
)  # fmt: skip
def test_a_reference_that_leads_nowhere_is_told_and_leaves_no_variable(container: str, said: str):
    env, (problem,) = environment(container)
    assert env == {}
    assert problem.startswith(f"spec.predictor.containers[0].{said}")


def test_a_key_that_is_missing_leaves_the_others():
    env, problems = environment(
        "{env: [{name: X, valueFrom: {secretKeyRef: {name: none, key: A}}}, {name: Y, value: y}, "
        "{name: Z, valueFrom: {configMapKeyRef: {name: c, key: A}}}]}"
    )
    assert env == {"Y": "y", "Z": "1"}
    assert len(problems) == 1
