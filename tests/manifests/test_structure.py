"""Manifests against published schemas: what the API server's strict decoding and its schemas refuse, at any depth."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import yaml

from serinus.manifests.documents import load_text
from serinus.manifests.linter import check_documents
from serinus.manifests.problems import Problem, Problems
from serinus.manifests.published_schemas import Schema, published

SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: fraud, annotations: {serving.kserve.io/deploymentMode: Standard}}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: a
        env: [{name: PROTOCOL, value: v2}]
        resources: {requests: {cpu: 1, memory: 1Gi}}
        %s
    %s
"""
RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: a}
spec:
  containers:
    - name: kserve-container
      image: a
      %s
  %s
"""


DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: a}}
spec:
  selector: {{matchLabels: {{a: b}}}}
  template:
    metadata: {{labels: {{a: b}}}}
    spec:
      containers:
        - name: c
          image: a
          {}
      {}
"""


def found(text: str) -> list[Problem]:
    problems = Problems()
    check_documents(load_text(text, "f"), problems)
    return [problem for problem in problems.all if problem.rule.startswith("structure")]


def service(container: str = "", spec: str = "") -> list[Problem]:
    return found(SERVICE % (container, spec))


CONTAINER = [
    ("volumeMounts: [{name: a, mountpath: /a}]", "volumeMounts[0].mountpath", "unknown field", "did you mean mountPath?"),
    ("securityContext: {runAsUser: root}", "securityContext.runAsUser", "'root' is not a whole number", "write a whole number"),
    ("securityContext: {capabilities: {drop: ALL}}", "securityContext.capabilities.drop", "'ALL' is not a list", "dash"),
    ("readinessProbe: {httpGet: {port: 80, pth: /}}", "readinessProbe.httpGet.pth", "unknown field", "did you mean path?"),
    ("lifecycle: {preStop: {exec: {command: sleep}}}", "lifecycle.preStop.exec.command", "not a list", "dash"),
    ("args: [1]", "args[0]", "1 is not text", 'write "1" in quotes'),
    ("args: [true]", "args[0]", "true is not text", 'write "true" in quotes'),
    ("tty: 'yes'", "tty", "'yes' is not true or false", "write true or false"),
    ("ports: [{containerPort: 8080}, {containerPort: 8080, name: b}]", "ports[1]", "containerPort 8080, protocol TCP is item 0 already", "remove one"),
    ("envFrom: [{configMapRef: name}]", "envFrom[0].configMapRef", "'name' is not a mapping", "key: value"),
    ("securityContext: {runAsUser: 99999999999999999999}", "securityContext.runAsUser", "too large for int64", "smaller"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "field", "message", "mend"), CONTAINER, ids=[case[0] for case in CONTAINER])
def test_a_slip_in_a_container_is_told_with_its_field(text: str, field: str, message: str, mend: str) -> None:
    problems = [problem for problem in service(text) if problem.field == f"spec.predictor.containers[0].{field}"]
    assert [(message in problem.message, mend in problem.mend, problem.layer) for problem in problems] == [
        (True, True, "server")
    ], service(text)


SPEC = [
    ("tolerations: [{key: a, operater: Exists}]", "tolerations[0].operater", "did you mean operator?"),
    ("affinity: {nodeAffinity: {required: []}}", "affinity.nodeAffinity.required", "remove it; known here"),
    ("volumes: [{name: a, emptyDir: {sizeLimit: 1Gi, medum: Memory}}]", "volumes[0].emptyDir.medum", "did you mean medium?"),
    ("topologySpreadConstraints: [{maxSkew: a, topologyKey: b, whenUnsatisfiable: c}]", "topologySpreadConstraints[0].maxSkew", "write a whole number"),
    ("deploymentStrategy: {rollingUpdate: {maxSurge: [1]}}", "deploymentStrategy.rollingUpdate.maxSurge", "a number or text"),
    ("autoScaling: {metrics: [{type: External, external: {metric: {}, authModes: x}}]}", "autoScaling.metrics[0].external.authModes", "remove it; known here"),
    ("scaleMetric: memry", "scaleMetric", "use one of cpu, memory, concurrency, rps"),
    ("storageUri: gs://a", "storageUri", "write predictor.model.storageUri"),
    ("image: a", "image", "write containers[0].image"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "field", "mend"), SPEC, ids=[case[0] for case in SPEC])
def test_a_slip_beside_the_containers_is_told_with_its_field(text: str, field: str, mend: str) -> None:
    problems = [problem for problem in service("", text) if problem.field == f"spec.predictor.{field}"]
    assert [mend in f"{problem.message}: {problem.mend}" for problem in problems] == [True], service("", text)


FINE = [
    ("resources: {limits: {cpu: 0.1, memory: 1Gi}}", ""),  # the mutating webhook rewrites a number
    ("readinessProbe: {httpGet: {path: /}}", ""),  # Knative sets the port
    ("ports: [{containerPort: 8080}, {containerPort: 8080, protocol: UDP}]", ""),
    ("startupProbe: {httpGet: {port: http, path: /}, periodSeconds: 1.0}", ""),
    ("env: null", "volumes: null"),
    ("", "deploymentStrategy: {rollingUpdate: {maxSurge: 25%}}"),
    ("", "volumes: [{name: a, emptyDir: {sizeLimit: 1Gi}}, {name: b, projected: {sources: [{serviceAccountToken: {path: c}}]}}]"),
    ("", "affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: a}}]}}"),
]  # fmt: skip


@pytest.mark.parametrize(("container", "spec"), FINE)
def test_what_the_server_takes_has_no_finding(container: str, spec: str) -> None:
    assert service(container, spec) == []


def test_what_the_webhook_fills_is_not_missed_in_a_service_and_is_in_a_runtime() -> None:
    bare = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: a}\nspec: {predictor: {containers: [{image: a}]}}\n"
    assert found(bare) == []
    (missing,) = found((RUNTIME % ("", "")).replace("name: kserve-container", "tty: true"))
    assert (missing.field, missing.message, missing.layer) == ("spec.containers[0].name", "missing", "server")


def test_a_field_missing_in_a_service_is_accepted_and_fails_later() -> None:
    text = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: a}\nspec: {predictor: {model: {modelFormat: {}}}}\n"
    (missing,) = found(text)
    assert (missing.field, missing.layer) == ("spec.predictor.model.modelFormat.name", "controller")


def test_an_empty_item_is_filled_in_a_service_and_refused_in_a_runtime() -> None:
    (port,) = service("ports: [null]")
    assert (port.message, port.severity, port.layer) == ("an empty item", "error", "controller")
    (word,) = service("args: [a, null]")
    assert (word.severity, word.layer) == ("warning", "ignored")
    (word,) = found(RUNTIME % ("args: [a, null]", ""))
    assert (word.severity, word.layer) == ("error", "server")


def test_a_float_is_a_quantity_where_it_is_decoded_and_none_where_a_crds_schema_is_asked() -> None:
    half = "resources: {limits: {cpu: 0.5}}"
    assert service(half) == []
    (told,) = found(RUNTIME % (half, ""))
    assert (told.mend, told.layer) == ('write "0.5" in quotes', "server")
    pod = f"{{spec: {{containers: [{{name: a, {half}}}]}}}}"
    head = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n"
    deployment = f"{head}spec: {{selector: {{}}, template: {pod}}}\n"
    assert found(deployment) == []


def test_an_empty_value_that_the_schema_refuses_is_missed() -> None:
    told = service("", "autoScaling: {metrics: [{type: Resource, resource: {}}]}")
    assert {problem.field.rpartition("resource.")[2] for problem in told} == {"name"}, (
        "of target the scaling rules speak"
    )
    assert {problem.layer for problem in told} == {"server"}


def test_a_quantity_is_refused_where_it_is_decoded_by_the_webhook_or_the_server() -> None:
    limits = "resources: {limits: {memory: 2GB}}"
    (told,) = service(limits, "")
    assert (told.field.rpartition(".")[2], told.mend, told.layer) == ("memory", "write 2G", "webhook")
    (told,) = found(RUNTIME % (limits, ""))
    assert (told.field.rpartition(".")[2], told.layer) == ("memory", "server")


OTHERS = [
    ("serving.kserve.io/v1alpha1", "TrainedModel", "inferenceService: a, model: {framework: a, storageUri: 'gs://a', memory: 1GI}", "spec.model.memory",
        "write 1Gi"),
    ("serving.kserve.io/v1alpha1", "LocalModelCache", "sourceModelUri: 'gs://a', modelSize: 10 GB, nodeGroups: [a]", "spec.modelSize", "write 10G"),
    ("mlops.seldon.io/v1alpha1", "Model", "memory: ''", "spec.memory", "such as 2Gi"),
    ("v1", "Service", "ports: [{port: 80, targetPort: 8589934592}]", "spec.ports[0].targetPort", "smaller"),
    ("serving.kserve.io/v1alpha1", "InferenceGraph", "nodes: {root: {routerType: Sequence, routes: []}}", "spec.nodes.root.routes", "write steps"),
    ("serving.kserve.io/v1alpha1", "InferenceGraph", "nodes: {root: {routerType: sequence}}", "spec.nodes.root.routerType", "Sequence"),
    ("serving.kserve.io/v1alpha1", "TrainedModel", "inferenceService: a", "spec.model", "add model"),
    ("serving.kserve.io/v1alpha1", "ClusterStorageContainer", "container: {name: a}", "spec.supportedUriFormats", "add supportedUriFormats"),
    ("serving.kserve.io/v1alpha2", "LLMInferenceService", "model: {url: x}", "spec.model.url", "did you mean uri?"),
    ("mlops.seldon.io/v1alpha1", "Model", "storageUrl: gs://a", "spec.storageUrl", "did you mean storageUri?"),
    ("mlops.seldon.io/v1alpha1", "Server", "replicas: two", "spec.replicas", "write a whole number"),
    ("apps/v1", "Deployment", "replica: 1", "spec.replica", "did you mean replicas?"),
    ("v1", "Service", "ports: [{port: http}]", "spec.ports[0].port", "write a whole number"),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "maxReplicas: 1", "spec.scaleTargetRef", "add scaleTargetRef"),
    ("policy/v1", "PodDisruptionBudget", "minAvailble: 1", "spec.minAvailble", "did you mean minAvailable?"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "kind", "spec", "field", "mend"), OTHERS, ids=[f"{case[1]}: {case[2]}" for case in OTHERS]
)
def test_kinds_beside_services_are_held_against_their_schemas(
    version: str, kind: str, spec: str, field: str, mend: str
) -> None:
    text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{{spec}}}\n"
    assert mend in {problem.field: problem.mend for problem in found(text)}[field]


def kinds(version: str, kind: str) -> list[tuple[str, str, str]]:
    problems = Problems()
    check_documents(load_text(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n", "f"), problems)
    return [
        (problem.severity, problem.layer, problem.message)
        for problem in problems.all
        if problem.field in {"kind", "apiVersion"}
    ]


@pytest.mark.parametrize(
    ("version", "kind", "severity", "layer", "words"),
    [
        ("serving.kserve.io/v1alpha1", "InferenceGraf", "error", "server", "not a kind of KServe"),
        ("serving.kserve.io/v1", "InferenceGraph", "error", "server", "does not serve kind"),
        ("serving.kubeflow.org/v1alpha2", "InferenceService", "error", "server", "does not serve kind"),
        ("apps/v1beta1", "Deployment", "error", "server", "does not serve kind"),
        ("mlops.seldon.io/v1alpha1", "Pipeline", "warning", "unchecked", "structure only"),
        ("machinelearning.seldon.io/v1", "SeldonDeployment", "warning", "unchecked", "not checked"),
        ("argoproj.io/v1alpha1", "Rollout", "warning", "unchecked", "not checked"),
        ("networking.istio.io/v1", "VirtualService", "warning", "unchecked", "not checked"),
    ],
)
def test_of_every_kind_it_is_said_what_was_checked(
    version: str, kind: str, severity: str, layer: str, words: str
) -> None:
    (one,) = kinds(version, kind)
    assert one[:2] == (severity, layer)
    assert words in one[2]


@pytest.mark.parametrize(("version", "kind"), [("v1", "ConfigMap"), ("serving.kserve.io/v1alpha1", "InferenceGraph")])
def test_kinds_that_are_known_need_no_word(version: str, kind: str) -> None:
    assert kinds(version, kind) == []


def test_a_field_that_an_older_kserve_lacks_is_warned_of_where_the_version_is_given() -> None:
    text = SERVICE % ("", "storageUris: [{uri: gs://a}]\n  canary: [{trafficPercent: 0, predictor: {name: a}}]")

    def newer(version: tuple[int, int] | None) -> list[str]:
        problems = Problems()
        check_documents(load_text(text, "f"), problems, kserve_version=version)
        return [problem.field for problem in problems.all if problem.rule == "structure-version"]

    assert newer(None) == newer((0, 20)) == newer((1, 0)) == []
    assert newer((0, 19)) == ["spec.canary"]
    assert newer((0, 15)) == ["spec.predictor.storageUris", "spec.canary"]
    problems = Problems()
    check_documents(load_text(text, "f"), problems, kserve_version=(0, 19))
    (told,) = [problem for problem in problems.all if problem.rule == "structure-version"]
    assert "KServe has it since 0.20; 0.19 prunes it, or refuses it from a strict client" in told.message
    assert told.mend == "remove it, or upgrade KServe"


@pytest.mark.slow  # imports both for this alone
def test_known_fields_are_those_of_the_kserve_and_kubernetes_clients() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packages' own, at import
        models = pytest.importorskip("kserve.models")
        core = pytest.importorskip("kubernetes.client")
    top = published().schema("serving.kserve.io/v1beta1", "InferenceService")
    runtime = published().schema("serving.kserve.io/v1alpha1", "ServingRuntime")
    pod = published().schema("v1", "Pod")

    def below(schema: Schema | None, *path: str) -> Schema:
        for name in path:
            assert schema is not None
            schema = schema.item() if name == "[]" else schema.field(name)
        assert schema is not None
        return schema

    pairs = [
        (models.V1beta1InferenceServiceSpec, below(top, "spec")),
        (models.V1beta1TracingSpec, below(top, "spec", "tracing")),
        (models.V1beta1PredictorSpec, below(top, "spec", "predictor")),
        (models.V1beta1TransformerSpec, below(top, "spec", "transformer")),
        (models.V1beta1ModelSpec, below(top, "spec", "predictor", "model")),
        (models.V1beta1LoggerSpec, below(top, "spec", "predictor", "logger")),
        (models.V1beta1CanarySpec, below(top, "spec", "canary", "[]")),
        (models.V1alpha1ServingRuntimeSpec, below(runtime, "spec")),
        (core.V1PodSpec, below(pod, "spec")),
        (core.V1Container, below(top, "spec", "predictor", "containers", "[]")),
        (core.V1Probe, below(top, "spec", "predictor", "model", "livenessProbe")),
        (core.V1ContainerPort, below(pod, "spec", "containers", "[]", "ports", "[]")),
    ]
    refused = {"ephemeralContainers", "schedulingGroup"}  # the SDK has Kubernetes' Go type, the CRD leaves them out
    for theirs, ours in pairs:
        assert set(theirs.attribute_map.values()) - refused == set(ours.fields) - refused, theirs.__name__


def test_the_published_data_names_their_sources_and_every_node_leads_to_one() -> None:
    known = published()
    assert {"generator", "kserve", "kserve-sdk", "seldon-core", "kubernetes"} <= set(known.sources)
    numbers = [*known.kinds.values()]
    for node in known.nodes:
        numbers += [*node.get("fields", {}).values(), *(node[key] for key in ("items", "values") if key in node)]
        assert set(node.get("required", ())) <= set(node.get("fields", {}))
    assert all(0 <= number < len(known.nodes) for number in numbers)


def test_what_kubectl_gives_back_is_accepted() -> None:
    managed = {
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {}},
        "manager": "kubectl",
        "operation": "Apply",
        "time": "2026-01-01T00:00:00Z",
    }
    value: dict[str, Any] = yaml.safe_load(SERVICE % ("", ""))
    value["metadata"] |= {
        "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 3, "uid": "a", "resourceVersion": "7", "finalizers": ["b"], "managedFields": [managed],
    }  # fmt: skip
    value["status"] = {"anything": [1]}
    problems = Problems()
    check_documents(load_text(json.dumps(value), "f"), problems)
    assert problems.all == ()


TWICE = "env: [{name: A, value: '1'}, {name: A, value: '2'}]"


@pytest.mark.parametrize(
    ("text", "severity", "said"),
    [
        (DEPLOYMENT.format(TWICE, ""), "warning", "name A is item 0 already: server-side apply refuses it"),
        (
            DEPLOYMENT.format("", "volumes: [{name: a, emptyDir: {}}, {name: a, emptyDir: {}}]"),
            "error",
            "name a is item 0 already; items of volumes",
        ),
        (RUNTIME % (TWICE, ""), "error", "name A is item 0 already; items of env are told apart by name"),
    ],
    ids=["decoded and loose", "decoded", "by a schema"],
)
def test_items_of_one_name_are_refused_but_where_the_last_one_simply_holds(text: str, severity: str, said: str) -> None:
    told = [(problem.severity, problem.message) for problem in found(text) if problem.rule == "structure-list-key"]
    assert [severity] == [one for one, _ in told]
    assert told[0][1].startswith(said)
