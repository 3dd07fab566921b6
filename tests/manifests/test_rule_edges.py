"""Rules at their edges: the last value that passes, the first that does not, and what is another rule's."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from serinus.manifests.documents import Document, load_text
from serinus.manifests.fields import flag_value
from serinus.manifests.problems import nearest
from serinus.manifests.quantities import check_resources
from serinus.manifests.rules.kinds.core_rules import claims, pod_templates
from serinus.manifests.rules.kinds.llm_rules import LLM_RULES
from serinus.manifests.rules.pods.pod_rules import tolerations
from serinus.manifests.rules.pods.pod_value_rules import POD_VALUE_RULES
from serinus.manifests.rules.rule import Block


def document(value: dict[str, Any]) -> Document:
    (found,) = load_text(yaml.safe_dump({"metadata": {"name": "x"}, **value}), "x.yaml")
    return found


def block(pod: dict[str, Any]) -> Block:
    return Block(("spec",), pod, {})


# Workloads and claims


@pytest.mark.parametrize(
    ("version", "kind", "found"),
    [
        ("apps/v1", "Deployment", True),
        ("apps/v1beta2", "StatefulSet", True),
        ("batch/v1", "Job", True),
        ("example.com/v1", "Deployment", False),
        ("v1", "Deployment", False),
        ("apps/v1", "ControllerRevision", False),
        ("batch/v1", "Other", False),
    ],
)
def test_only_workloads_of_the_groups_of_Kubernetes_have_pod_templates(version: str, kind: str, found: bool):
    value = {"apiVersion": version, "kind": kind, "spec": {"template": {"spec": {"containers": []}}}}
    assert [one.path for one in pod_templates(document(value))] == ([("spec", "template", "spec")] if found else [])


STORAGE = ("spec", "resources", "requests", "storage")


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("10Gi", None),
        (1, None),
        ("1m", None),
        (None, "missing"),
        (0, "0 is nothing"),
        ("0Gi", "'0Gi' is nothing"),
        ("-1", "'-1' is nothing"),
        ("much", None),
    ],
)
def test_a_claim_asks_for_more_than_nothing(storage: Any, said: str | None):
    requests = {} if storage is None else {"storage": storage}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": requests}}
    found = list(claims(document({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": spec})))
    assert found == ([] if said is None else [(STORAGE, said, "write such as 10Gi")])


# Tolerations


@pytest.mark.parametrize(
    ("toleration", "paths"),
    [
        ({"key": "a", "value": "b"}, []),
        ({"key": "a", "operator": "Exists"}, []),
        ({"key": "a"}, []),
        ({"key": "a", "value": "not a label"}, [("spec", "tolerations", 0)]),
        ({"key": "a", "value": "x" * 63}, []),
        ({"key": "a", "value": "x" * 64}, [("spec", "tolerations", 0)]),
        ({"key": "not a key"}, [("spec", "tolerations", 0)]),
        ({"operator": "Exists"}, []),
        ({"key": "", "operator": "Exists"}, []),
        ({"value": "b"}, [("spec", "tolerations", 0, "operator")]),
        ({"key": "a", "operator": "Exists", "value": "b"}, [("spec", "tolerations", 0, "value")]),
        ({"key": "a", "tolerationSeconds": 5}, [("spec", "tolerations", 0, "tolerationSeconds")]),
        (
            {"key": "a", "tolerationSeconds": 0, "effect": "NoSchedule"},
            [("spec", "tolerations", 0, "tolerationSeconds")],
        ),
        ({"key": "a", "tolerationSeconds": 5, "effect": "NoExecute"}, []),
    ],
)
def test_a_toleration_is_a_label_and_an_operator_that_fits(toleration: dict[str, Any], paths: list[Any]):
    assert [path for path, _, _ in tolerations(block({"tolerations": [toleration]}))] == paths


# Ranges of a pod's values


def out_of_range(pod: dict[str, Any]) -> list[str]:
    return [
        ".".join(str(part) for part in finding[0][1:]) for rule in POD_VALUE_RULES for finding in rule.check(block(pod))
    ]


def nested(path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    inner = nested(rest, value) if rest else value
    return {name.removesuffix("[]"): [inner] if name.endswith("[]") else inner}


INT32 = 2**31 - 1
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
RANGES = {
    "securityContext.runAsUser": (0, INT32),
    "securityContext.runAsGroup": (0, INT32),
    "securityContext.fsGroup": (0, INT32),
    "securityContext.supplementalGroups[]": (0, INT32),
    "topologySpreadConstraints[].maxSkew": (1, INT32),
    "topologySpreadConstraints[].minDomains": (1, INT32),
    f"affinity.nodeAffinity.{PREFERRED}[].weight": (1, 100),
    f"affinity.podAffinity.{PREFERRED}[].weight": (1, 100),
    f"affinity.podAntiAffinity.{PREFERRED}[].weight": (1, 100),
    "volumes[].projected.sources[].serviceAccountToken.expirationSeconds": (600, 2**32),
    **{f"volumes[].{kind}.defaultMode": (0, 0o777) for kind in ("configMap", "secret", "projected", "downwardAPI")},
    **{f"volumes[].{kind}.items[].mode": (0, 0o777) for kind in ("configMap", "secret", "downwardAPI")},
}


@pytest.mark.parametrize("path", RANGES)
def test_a_number_of_a_pod_has_its_bounds(path: str):
    least, most = RANGES[path]
    where = path.replace("[]", ".0")
    for value, passes in ((least, True), (most, True), (least - 1, False), (most + 1, False)):
        found = [one for one in out_of_range(nested(path, value)) if one == where]
        assert found == ([] if passes else [where]), value


# Scalers of an LLMInferenceService


@pytest.mark.parametrize("by_variant", [False, True])
def test_only_the_variant_autoscaler_forbids_modifiers_of_a_scale(by_variant: bool):
    keda = {"triggers": [{"type": "cpu"}], "advanced": {"scalingModifiers": {"formula": "a"}}}
    scaling = {"minReplicas": 1, "maxReplicas": 2, **({"wva": {"keda": keda}} if by_variant else {"keda": keda})}
    spec = {"model": {"uri": "hf://a"}, "scaling": scaling}
    value = {"apiVersion": "serving.kserve.io/v1alpha2", "kind": "LLMInferenceService", "spec": spec}
    found = [".".join(map(str, finding[0])) for rule in LLM_RULES for finding in rule.check(document(value))]
    assert [path for path in found if "scalingModifiers" in path] == (
        ["spec.scaling.wva.keda.advanced.scalingModifiers"] if by_variant else []
    )


# Words


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--model_name=a"], "a"),
        (["--model-name", "a"], "a"),
        (["--model_name="], ""),
        (["--model_name"], ""),
        (["x"] * 300 + ["--model_name"], ""),
        (["x"] * 300 + ["--model_name", "a"], "a"),
        (["--model_name", 5], "5"),
        (["model_name=a", 5, "--other", "--model_name", "b"], "b"),
        (["--model_name_too=a"], None),
        ([], None),
    ],
)
def test_the_value_of_a_flag_is_behind_its_name(args: list[Any], value: str | None):
    assert flag_value(args, "model_name") == value


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("predicter", ["predictor", "transformer"], "predictor"),
        ("abcd", ["abxd", "abcx", "abcde"], "abcde"),
        ("abc", ["xyz"], None),
        ("abc", [], None),
    ],
)
def test_the_nearest_name_is_the_one_that_was_meant(name: str, known: list[str], found: str | None):
    assert nearest(name, known) == found


@pytest.mark.parametrize("whole", [None, False, True])
def test_a_request_without_a_limit_lacks_it_only_where_nothing_is_merged_into_it(whole: bool | None):
    options = {} if whole is None else {"whole": whole}
    extended = {"requests": {"nvidia.com/gpu": 1}}
    assert bool(list(check_resources(extended, **options))) is bool(whole)
    assert not list(check_resources({"limits": {"nvidia.com/gpu": 1}, **extended}, **options))
