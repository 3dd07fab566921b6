"""What a rule says, word by word where a word is computed; names that only look like the one; and that the linter asks every table."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from serinus.manifests.documents import load_text
from serinus.manifests.linter import check_documents, check_runtimes
from serinus.manifests.problems import Problems
from serinus.manifests.rules.canary_rules import CANARY_RULES
from serinus.manifests.rules.component_pitfalls import COMPONENT_PITFALLS
from serinus.manifests.rules.component_rules import COMPONENT_RULES
from serinus.manifests.rules.kinds.graph_rules import GRAPH_RULES, TRAINED_MODEL_RULES
from serinus.manifests.rules.kinds.runtime_rules import RUNTIME_RULES, shared_priorities
from serinus.manifests.rules.pods.container_rules import CONTAINER_RULES
from serinus.manifests.rules.pods.pod_rules import METADATA_RULES, POD_RULES
from serinus.manifests.rules.rule import Block, Rule, ServiceView
from serinus.manifests.rules.scaling_rules import SCALING_RULES
from serinus.manifests.rules.service_pitfalls import SERVICE_PITFALLS, TRANSFORMER_PITFALLS
from serinus.manifests.rules.service_rules import OBJECT_RULES, SERVICE_RULES
from serinus.manifests.rules.storage_rules import STORAGE_RULES
from serinus.manifests.rules.worker_rules import WORKER_RULES

BLOCK_RULES = (
    *CONTAINER_RULES,
    *COMPONENT_RULES,
    *STORAGE_RULES,
    *SCALING_RULES,
    *WORKER_RULES,
    *POD_RULES,
    *COMPONENT_PITFALLS,
)
DOCUMENTS = (*OBJECT_RULES, *METADATA_RULES, *GRAPH_RULES, *TRAINED_MODEL_RULES)
SERVICES = (*SERVICE_RULES, *CANARY_RULES, *SERVICE_PITFALLS, *TRANSFORMER_PITFALLS)
RULES: dict[str, Rule[Any]] = {rule.id: rule for rule in (*BLOCK_RULES, *SERVICES, *DOCUMENTS, *RUNTIME_RULES)}
MODE = "serving.kserve.io/deploymentMode"
SCALER = "serving.kserve.io/autoscalerClass"


def of_block(rule: str, text: str, *, part: str = "predictor", annotations: str = "{}") -> list[str]:
    block = Block(("spec", part), yaml.safe_load(text), yaml.safe_load(annotations))
    return [f"{message}; {mend}" for _, message, mend in RULES[rule].check(block)]


def of_service(rule: str, spec: str, *, metadata: str = "{name: fraud}") -> list[str]:
    (document,) = load_text(
        f"apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {metadata}\nspec: {spec}\n", "f"
    )
    judged = document if rule.startswith("object-") else ServiceView.of(document)
    return [f"{message}; {mend}" for _, message, mend in RULES[rule].check(judged)]


@pytest.mark.parametrize("name", ["A", "STORAGE_URJ", "STORAGE_URH", "zzz", "''"])
def test_a_variable_that_is_called_otherwise_is_no_storage(name: str):
    env = f"env: [{{name: {name}, value: x://y}}]"
    assert of_block("container-transformer-storage", f"containers: [{{name: transformer-container, {env}}}]") == []
    assert of_block("component-storage-scheme", f"containers: [{{{env}}}]") == []
    found = of_service(
        "canary-stable-has-storage", f"{{predictor: {{containers: [{{name: kserve-container, {env}}}]}}}}"
    )
    assert len(found) == 1


@pytest.mark.parametrize("name", ["A", "kserve-container", "transformer", "transformer-containes", "zzz", "''"])
def test_a_container_that_is_called_otherwise_is_no_transformer(name: str):
    text = f"containers: [{{name: {name}, env: [{{name: STORAGE_URI}}]}}]"
    assert of_block("container-transformer-storage", text) == []
    spec = f"{{predictor: {{containers: [{{}}, {{name: {name}, args: [--protocol=v2]}}]}}}}"
    assert of_service("transformer-dead-protocol-flag", spec) == []


@pytest.mark.parametrize("name", ["A", "PROTOCOK", "PROTOCOM", "zzz"])
def test_a_variable_that_is_called_otherwise_is_no_protocol(name: str):
    assert of_block("container-custom-protocol", f"containers: [{{env: [{{name: {name}, value: x}}]}}]") == []
    assert of_block("container-pythonpath", f"containers: [{{env: [{{name: {name}}}]}}]") == []


SAID = [
    ("component-model-container-first", "containers: [{name: first}, {name: kserve-container}, {name: third}]",
        "first comes first; the controller overwrites it with kserve-container; put kserve-container first"),
    ("component-model-container-there", "containers: [{name: a}, {name: b}, {name: c}]",
        "of 3 containers none is called kserve-container; the controller crashes on it; name the model's container kserve-container"),
    ("component-resources-written", "containers: [{resources: {limits: {cpu: 1}}}]",
        "no memory: KServe sets 1 CPU and 2Gi as request and limit, which throttles; write requests and limits"),
    ("component-resources-written", "containers: [{}]",
        "no cpu and memory: KServe sets 1 CPU and 2Gi as request and limit, which throttles; write requests and limits"),
    ("component-one-implementation", "model: {}\nsklearn: {x: 1}\ncontainers: [{name: kserve-container}]",
        "predictor has 3 implementations: sklearn, model, containers; keep one; beside model, a container must not be called kserve-container"),
    ("component-replicas-in-order", "{minReplicas: 3, maxReplicas: 2}", "3 is more than maxReplicas 2; raise maxReplicas"),
    ("component-replicas-not-negative", "{minReplicas: -2}", "-2 is less than 0; use 0 or more"),
    ("port-number", "containers: [{ports: [{containerPort: 65536}]}]", "65536 is not a port; use 1 to 65535"),
    ("port-number", "containers: [{ports: [{containerPort: 0}]}]", "0 is not a port; use 1 to 65535"),
    ("port-one-in-knative", "containers: [{ports: [{}, {}, {}]}]",
        f"3 ports; Knative takes one per service (knative/serving 8471); keep one, or set the annotation {MODE}: Standard to have REST and gRPC"),
    ("component-storage-scheme", "model: {storageUri: 'gss://a'}",
        "gss:// is not a storage of KServe; the webhook lets it pass and the controller refuses it; did you mean gs://?"),
    ("storage-common-parent", "storageUris: [{uri: gs://a, mountPath: /a/x}, {uri: gs://b, mountPath: /y}]",
        "mount paths share no parent: /a/x, /y; put them all below one folder, such as /mnt/models/a and /mnt/models/b"),
    ("storage-uris-exclude-uri", "{storageUris: [{uri: gs://a}], sklearn: {storageUri: gs://b}}",
        "sklearn.storageUri is set as well; keep one of the two"),
    ("storage-confidential-needs-uri", "model: {confidential: {enabled: true}}", "needs storageUri; add model.storageUri"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "text", "said"), SAID, ids=[case[0] for case in SAID])
def test_a_component_is_told_what_was_found_and_how_to_mend_it(rule: str, text: str, said: str):
    assert of_block(rule, text) == [said]


@pytest.mark.parametrize("part", ["transformer", "explainer"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {a: 1}", "{} has no implementation; add containers:"),
        ("sklearn: {a: 1}", "{} has no implementation; add containers:"),
        ("containers: [{}]", None),
        ("art: {a: 1}", None),
    ],
)
def test_a_model_is_no_implementation_of_a_transformer_or_an_explainer(part: str, text: str, said: str | None):
    found = of_block("component-one-implementation", text, part=part)
    assert found == ([] if said is None else [said.format(part)])


def test_an_unknown_scheme_that_looks_like_none_is_told_all_there_are():
    (said,) = of_block("component-storage-scheme-of-platform", "model: {storageUri: 'quarantine://a'}")
    assert "use one of gs, s3, " in said


SERVICE_SAID = [
    ("service-known-mode", f"{{name: f, annotations: {{{MODE}: Standart}}}}", "{}", "write Standard"),
    ("service-known-mode", f"{{name: f, annotations: {{{MODE}: qqqq}}}}", "{}", "write Standard or Knative"),
    ("service-known-annotations", "{name: f, annotations: {serving.kserve.io/stopp: x}}", "{}", "did you mean serving.kserve.io/stop?"),
    ("service-known-annotations", "{name: f, annotations: {serving.kserve.io/qqqqqqqq: x}}", "{}", "remove it"),
    ("service-host-fits", "{name: " + "f" * 41 + "}", "{}", "shorten the name by 3"),
    ("canary-total", "{name: f}", "{canary: [{trafficPercent: 60}, {trafficPercent: 70}]}", "the canaries take 130 % together"),
    ("canary-one-implementation", "{name: f}", "{canary: [{predictor: {model: {a: 1}, sklearn: {a: 1}}}]}", "this one 2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "metadata", "spec", "said"), SERVICE_SAID, ids=[f"{c[0]}: {c[3]}" for c in SERVICE_SAID]
)
def test_a_service_is_told_what_was_found_and_how_to_mend_it(rule: str, metadata: str, spec: str, said: str):
    (found,) = of_service(rule, spec, metadata=metadata)
    assert said in found


RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: %s
metadata: {name: %s%s}
spec:
  supportedModelFormats: [%s]
  protocolVersions: [v2]
  containers: [{name: kserve-container, image: x, resources: {limits: {cpu: 1, memory: 1Gi}}%s}]
"""
FORMAT = "{name: x, autoSelect: true, priority: 1}"


def runtime(
    name: str, *, kind: str = "ServingRuntime", namespace: str = "", formats: str = FORMAT, more: str = ""
) -> str:
    return RUNTIME % (kind, name, f", namespace: {namespace}" if namespace else "", formats, more)


def shared(*texts: str) -> list[str]:
    documents = [document for text in texts for document in load_text(text, "f.yaml")]
    return [f"{document.name}: {message}; {mend}" for document, (_, message, mend) in shared_priorities(documents)]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([runtime("a", kind="ClusterServingRuntime", namespace="n1"), runtime("b", kind="ClusterServingRuntime", namespace="n2")], 1),
        ([runtime("a", namespace="n1"), runtime("b", namespace="n2")], 0),
        ([runtime("a", namespace="n1"), runtime("b", namespace="n1")], 1),
        ([runtime("a", formats=f"{{name: y}}, {FORMAT}"), runtime("b", formats=f"{{name: z, autoSelect: true}}, {FORMAT}")], 1),
        ([runtime("a", formats=FORMAT.replace("}", ", version: '1'}")), runtime("b", formats=FORMAT.replace("}", ", version: '1'}"))], 1),
        ([runtime("a"), runtime("b"), runtime("c")], 2),
        ([runtime("a", formats=FORMAT.replace("}", ", version: '1'}")), runtime("b", formats=FORMAT.replace("}", ", version: '2'}"))], 0),
    ],
    ids=["a cluster has no namespaces", "two namespaces", "one namespace", "after entries that do not count", "one version", "three", "two versions"],
)  # fmt: skip
def test_runtimes_share_a_priority_within_their_scope(texts: list[str], found: int):
    said = shared(*texts)
    assert len(said) == found
    for one in said:
        assert one[1:] == ": runtime a has priority 1 for x over v2 as well; use another priority"


def said_of_runtimes(*texts: str) -> str:
    problems = Problems()
    check_runtimes([document for text in texts for document in load_text(text, "f.yaml")], problems)
    return "\n".join(map(str, problems.all))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(runtime("a").replace("v1alpha1", "v1beta1"), "does not serve kind ServingRuntime", id="object"),
        pytest.param(
            runtime("a").replace("protocolVersions", "protocolVersion"), "did you mean protocolVersions?", id="shape"
        ),
        pytest.param(
            runtime("a", more=", env: [{name: PYTHONPATH, value: x}]"), "PYTHONPATH is forbidden", id="containers"
        ),
        pytest.param(runtime("a", formats="{name: x, priority: 0}"), "0 is less than 1", id="runtime"),
        pytest.param(
            runtime("a", more=", ports: [{containerPort: 8081, name: rest}]"), "port 8081 looks like gRPC", id="ports"
        ),
    ],
)
def test_the_linter_asks_every_table_of_a_runtime(text: str, said: str):
    assert said_of_runtimes(runtime("a")) == ""
    assert said in said_of_runtimes(text)
    assert "use another priority" in said_of_runtimes(runtime("a"), runtime("b"))


SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: fraud, annotations: {serving.kserve.io/deploymentMode: Standard%s}}
spec:
  predictor: {name: v1, model: {modelFormat: {name: xgboost}, storageUri: gs://a}%s}
%s"""


def said_of(annotations: str = "", predictor: str = "", rest: str = "") -> str:
    problems = Problems()
    check_documents(load_text(SERVICE % (annotations, predictor, rest), "f.yaml"), problems)
    return "\n".join(map(str, problems.all))


TRANSFORMER = (
    "  transformer: {containers: [{name: kserve-container, image: x, args: [%s], "
    "resources: {limits: {cpu: 1, memory: 1Gi}}%s}]%s}\n"
)
CANARY = "  canary: [{trafficPercent: 10, predictor: {name: v2, model: {modelFormat: {name: xgboost}, storageUri: gs://b}%s}}]\n"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("", ", minReplica: 1", ""), "did you mean minReplicas?"),
        ((f", {SCALER}: kpa", "", ""), "is not an autoscaler class"),
        (("", ", minReplicas: -1", ""), "is less than 0"),
        (("", ", storageUris: []", ""), "is empty"),
        ((f", {SCALER}: hpa", ", scaleMetric: rps", ""), "is not scaled on by hpa"),
        ((", serving.kserve.io/stopp: x", "", ""), "KServe knows no such annotation"),
        (("", "", TRANSFORMER % ("--x", "", "")), "without --predictor_protocol"),
        (("", "", TRANSFORMER % ("--predictor_protocol=v2", ", ports: [{containerPort: 0}]", "")), "0 is not a port"),
        (("", "", TRANSFORMER % ("--predictor_protocol=v2", ", env: [{name: PYTHONPATH, value: x}]", "")), "PYTHONPATH is forbidden"),
        (("", "", TRANSFORMER % ("--predictor_protocol=v2", "", ", minReplicas: -1")), "is less than 0"),
        (("", "", "  explainer: {minReplicas: -1, art: {type: x}}\n"), "is less than 0"),
        (("", "", CANARY % ", maxReplicas: 2"), "forbidden in a canary"),
        (("", "", CANARY % ", initContainers: [{name: a, image: x, env: [{name: PYTHONPATH, value: x}]}]"), "PYTHONPATH is forbidden"),
        (("", "", CANARY.replace("gs://b", "s4://b") % ""), "s4:// is not a storage"),
    ],
)  # fmt: skip
def test_the_linter_asks_every_table_of_a_service(fields: tuple[str, str, str], said: str):
    assert said_of() == ""
    assert said_of(rest=TRANSFORMER % ("--predictor_protocol=v2", "", "")) == ""
    assert said_of(rest=CANARY % "") == ""
    assert said in said_of(*fields)


def test_two_objects_of_one_name_are_told_where_the_other_is_and_kinds_are_named():
    text = SERVICE % ("", "", "")
    problems = Problems()
    check_documents([*load_text(text, "a.yaml"), *load_text(text, "b.yaml")], problems)
    (problem,) = problems.all
    assert "InferenceService fraud is also at a.yaml:3" in str(problem)
    other = text.replace("name: fraud,", "name: fraud, namespace: other,")
    problems = Problems()
    check_documents([*load_text(text, "a.yaml"), *load_text(other, "b.yaml")], problems)
    assert problems.all == ()
    problems = Problems()
    check_documents(load_text(text.replace("kind: InferenceService", "kind: InferenceServise"), "a.yaml"), problems)
    assert "did you mean InferenceService?" in str(problems.all[0])
    problems = Problems()
    check_documents(load_text("apiVersion: v1\nkind: InferenceServise\nmetadata: {name: a}\n", "a.yaml"), problems)
    (unchecked,) = problems.all
    assert (unchecked.severity, unchecked.layer) == ("warning", "unchecked")


CHOICE = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: a}\nspec: {predictor: {model: {modelFormat: {name: %s}%s}}}\n"
OWN = (
    "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {name: my-server}\n"
    "spec: {supportedModelFormats: [{name: catboost, autoSelect: true}], containers: [{name: kserve-container, image: x}]}\n"
)


@pytest.mark.parametrize(
    ("kind", "runtime", "more", "said"),
    [
        ("xgbost", "", "", "no runtime of these manifests or of KServe's own serves xgbost; did you mean xgboost?"),
        ("XGBoost", "", "", "did you mean xgboost?"),
        ("prophet", "", "", "see that the cluster has one"),
        ("catboost", "", OWN, ""),
        ("any", ", runtime: kserve-xgbservr", "", "did you mean kserve-xgbserver?"),
        ("any", ", runtime: my-servr", OWN, "did you mean my-server?"),
        ("any", ", runtime: house-runtime", "", "see that the cluster has it"),
        ("any", ", runtime: serinus-xgboost-server", "", ""),
        ("any", ", runtime: my-server", OWN, ""),
    ],
)
def test_a_runtime_or_format_that_nobody_has_is_named_with_the_nearest(kind: str, runtime: str, more: str, said: str):
    problems = Problems()
    check_documents([*load_text(CHOICE % (kind, runtime), "a"), *load_text(more, "b")], problems)
    found = [problem for problem in problems.all if problem.rule == "runtime-unknown-choice"]
    assert [(problem.severity, said in f"{problem.message}; {problem.mend}") for problem in found] == (
        [("warning", True)] if said else []
    )


@pytest.mark.parametrize(
    ("kind", "runtime", "more", "said"),
    [
        ("xgboost", "serinus-onnx-server", "", "runtime serinus-onnx-server does not serve xgboost; it serves onnx"),
        ("tensorflow", "serinus-classic-server", "", "it serves xgboost, lightgbm, sklearn, catboost, onnx"),
        ("xgboost", "my-server", OWN, "runtime my-server does not serve xgboost; it serves catboost"),
        ("xgboost", "serinus-xgboost-server", OWN.replace("my-server", "serinus-xgboost-server"), "it serves catboost"),
        ("catboost, version: '2'", "my-server", OWN, "runtime my-server does not serve catboost 2; it serves catboost"),
        ("catboost", "my-server", OWN, ""),
        ("onnx", "serinus-classic-server", "", ""),
        ("sklearn, version: '1'", "serinus-sklearn-server", "", ""),  # which versions, only its manifest says
        ("xgboost", "house-runtime", "", ""),
    ],
)
def test_a_format_that_the_named_runtime_does_not_serve_is_an_error(kind: str, runtime: str, more: str, said: str):
    problems = Problems()
    check_documents([*load_text(CHOICE % (kind, f", runtime: {runtime}"), "a"), *load_text(more, "b")], problems)
    found = [problem for problem in problems.all if problem.rule == "runtime-serves-format"]
    assert [(problem.severity, said in f"{problem.message}; {problem.mend}") for problem in found] == (
        [("error", True)] if said else []
    )
