"""`spec.tracing` as KServe's controller carries it out: variables and arguments of each container, and spans of a service that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_support import ask, manifest, up
from otlp_receiver import receiving
from serinus.local.plan.container_environment import config_data
from serinus.local.plan.deployment_plan import ComponentPlan, PlanOptions, ServicePlan
from serinus.local.plan.planner import Planner
from serinus.manifests.documents import load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.problems import Problems
from serinus.manifests.serving_runtimes import parse_runtime

ENDPOINT = "http://collector.example.com:4317"
TRACED = f"  tracing: {{exporterEndpoint: '{ENDPOINT}'}}\n"
STANDARD = "  annotations: {serving.kserve.io/deploymentMode: Standard}\n"
HEAD = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: fraud, namespace: ml}\nspec:\n"


def planned(text: str, runtimes: str = "", collector: str = "") -> tuple[ServicePlan, list[str]]:
    documents, problems = load_text(text, "isvc.yaml"), Problems()
    known = [parse_runtime(document) for document in load_text(runtimes, "runtimes.yaml")]
    options = PlanOptions(images={"python": ("python",)}, collector=collector)
    plan = Planner(known, [], config_data(documents), options, problems).plan(parse_inference_service(documents[0]))
    assert plan is not None, problems.all
    return plan, [f"{problem.field}: {problem.message}: {problem.mend}" for problem in problems.all]


def variables(component: ComponentPlan | None, container: int = 0) -> dict[str, str]:
    assert component is not None
    found = component.containers[container].env
    return {name: value for name, value in found.items() if name.startswith("OTEL_") or name.endswith("TRACING_SERVER")}


def attributes(service: str, component: str, namespace: str = "default") -> str:
    return f"k8s.namespace.name={namespace},k8s.node.name=localhost,k8s.pod.name={service},isvc.name={service},isvc.component={component}"


def test_a_predictor_gets_the_variables_that_the_controller_injects():
    plan, problems = planned(manifest() + TRACED)
    assert variables(plan.stable.predictor) == {
        "OTEL_SERVICE_NAME": "fraud-predictor",
        "OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.05",
        "OTEL_RESOURCE_ATTRIBUTES_NODE_NAME": "localhost",
        "OTEL_RESOURCE_ATTRIBUTES_POD_NAME": "fraud",
        "OTEL_RESOURCE_ATTRIBUTES": attributes("fraud", "predictor"),
    }
    assert problems == []


@pytest.mark.parametrize("tracing", ["", "  tracing:\n"])
def test_nothing_is_injected_where_tracing_is_not_written(tracing: str):
    assert variables(planned(manifest() + tracing)[0].stable.predictor) == {}


def test_an_empty_block_is_tracing_by_the_webhooks_defaults_and_every_field_is_taken():
    found = variables(planned(manifest() + "  tracing: {}\n")[0].stable.predictor)
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel-collector:4317"
    written = "{exporterEndpoint: 'http://a.b', sampler: always_on, samplerArg: '1', exporter: console}"
    found = variables(planned(manifest() + f"  tracing: {written}\n")[0].stable.predictor)
    names = ("EXPORTER_OTLP_ENDPOINT", "TRACES_SAMPLER", "TRACES_SAMPLER_ARG", "TRACES_EXPORTER")
    assert [found[f"OTEL_{name}"] for name in names] == ["http://a.b", "always_on", "1", "console"]


def test_a_variable_that_the_container_sets_stays():
    text = manifest().replace("{name: PROTOCOL, value: v2}", "{name: OTEL_SERVICE_NAME, value: mine}") + TRACED
    found = variables(planned(text)[0].stable.predictor)
    assert (found["OTEL_SERVICE_NAME"], found["OTEL_TRACES_EXPORTER"]) == ("mine", "otlp")


def test_a_transformer_is_a_service_of_its_own_and_its_neighbours_are_left_alone():
    text = manifest(transformer=["--predictor_protocol=v2"])
    text += "      - {name: beside, image: python}\n"
    plan, _ = planned(text + TRACED)
    found = variables(plan.stable.transformer)
    assert found["OTEL_SERVICE_NAME"] == "fraud-transformer"
    assert found["OTEL_RESOURCE_ATTRIBUTES"] == attributes("fraud", "transformer")
    assert variables(plan.stable.transformer, 1) == {}


def test_a_canary_says_its_name_and_the_stable_predictor_none():
    text = HEAD.replace("metadata: {", "metadata: {annotations: {serving.kserve.io/deploymentMode: Standard}, ") + (
        "  predictor: {containers: [{name: kserve-container, image: python}]}\n"
        "  canary: [{trafficPercent: 10, predictor: {name: v2, containers: [{name: kserve-container, image: python}]}}]\n"
    )
    plan, _ = planned(text + TRACED)
    expected = attributes("fraud", "predictor", "ml")
    assert variables(plan.stable.predictor)["OTEL_RESOURCE_ATTRIBUTES"] == expected
    (canary,) = plan.canaries
    found = variables(canary.predictor)
    assert found["OTEL_RESOURCE_ATTRIBUTES"] == expected + ",isvc.predictor.variant=v2"
    assert found["OTEL_SERVICE_NAME"] == "fraud-predictor"


def test_in_one_pod_each_is_known_by_its_containers_name():
    containers = "[{name: kserve-container, image: python}, {name: transformer-container, image: python}, {name: logs, image: python}]"
    plan, _ = planned(HEAD + f"  predictor: {{containers: {containers}}}\n" + TRACED)
    names = [variables(plan.stable.predictor, index).get("OTEL_SERVICE_NAME") for index in range(3)]
    assert names == ["fraud-predictor", "fraud-transformer", None]


NONE = ("a",)
VLLM = ("a", "--otlp-traces-endpoint", ENDPOINT, "--collect-detailed-traces", "all")
TRITON = (
    *("a", "--trace-config", "mode=opentelemetry", "--trace-config", f"opentelemetry,url={ENDPOINT}"),
    *("--trace-config", "opentelemetry,resource=service.name=fraud-predictor", "--trace-config", "level=TIMESTAMPS"),
)


@pytest.mark.parametrize(
    ("runtime", "annotation", "args", "words", "mlserver"),
    [
        pytest.param("kserve-mlserver", "", "[a]", NONE, True, id="MLServer by its name"),
        pytest.param("own", "mlserver", "[a]", NONE, True, id="MLServer by the annotation"),
        pytest.param("kserve-vllmserver", "", "[a]", VLLM, False, id="vLLM"),
        pytest.param("own", "vllmserver", "[a, --otlp-traces-endpoint=x, --collect-detailed-traces=y]", None, False, id="vLLM has its own"),
        pytest.param("kserve-tritonserver", "", "[a]", TRITON, False, id="Triton"),
        pytest.param("own", "tritonserver", "[a, --trace-config, level=OFF]", None, False, id="Triton has its own"),
        pytest.param("own", "", "[a]", NONE, False, id="another"),
    ],
)  # fmt: skip
def test_servers_that_read_no_variables_are_told_in_their_own_way(
    runtime: str, annotation: str, args: str, words: tuple[str, ...] | None, mlserver: bool
):
    metadata = f"{{name: {runtime}, annotations: {{serving.kserve.io/server-type: '{annotation}'}}}}"
    runtimes = (
        f"apiVersion: serving.kserve.io/v1alpha1\nkind: ClusterServingRuntime\nmetadata: {metadata}\n"
        f"spec:\n  supportedModelFormats: [{{name: any}}]\n  containers: [{{name: kserve-container, image: python, args: {args}}}]\n"
    )
    model = f"  predictor: {{model: {{modelFormat: {{name: any}}, runtime: {runtime}, storageUri: ./m}}}}\n"
    plan, _ = planned(HEAD + model + TRACED, runtimes)
    (found,) = plan.stable.predictor.containers
    expected = words if words is not None else tuple(word.strip() for word in args.strip("[]").split(","))
    assert found.words[1:] == expected
    assert variables(plan.stable.predictor).get("MLSERVER_TRACING_SERVER") == (ENDPOINT if mlserver else None)


@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [
        ("http://otel-collector:4317", True),
        ("http://otel.monitoring.svc:4317", True),
        ("https://otel.monitoring.svc.cluster.local", True),
        ("http://localhost:4317", False),
        ("http://127.0.0.1:4317", False),
        ("http://[::1]:4317", False),
        ("https://otlp.example.com", False),
    ],
)
def test_a_collector_that_only_a_cluster_knows_is_told_and_another_may_stand_in_for_it(endpoint: str, warned: bool):
    text = manifest() + f"  tracing: {{exporterEndpoint: '{endpoint}'}}\n"
    plan, problems = planned(text)
    assert [endpoint in problem and "OTEL_EXPORTER_OTLP_ENDPOINT" in problem for problem in problems] == [True] * warned
    assert variables(plan.stable.predictor)["OTEL_EXPORTER_OTLP_ENDPOINT"] == endpoint
    here, problems = planned(text, collector="http://127.0.0.1:9")
    assert problems == []
    assert variables(here.stable.predictor)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:9"
    assert here.stable.predictor.digest != plan.stable.predictor.digest, "another collector is another template"


@pytest.mark.slow
def test_spans_of_a_service_with_tracing_come_to_the_collector_of_this_machine(tmp_path: Path):
    (tmp_path / "model.py").write_text(
        "import numpy as np\nfrom serinus import Model, TensorSpec\n\n\nclass Double(Model):\n"
        "    inputs = (TensorSpec('x', 'FP32', (-1, 2)),)\n    outputs = (TensorSpec('y', 'FP32', (-1, 2)),)\n\n"
        "    def predict(self, inputs, call):\n        return {'y': np.asarray(inputs['x']) * 2}\n"
    )
    (tmp_path / "isvc.yaml").write_text(
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"
        "metadata:\n  name: fraud\n  annotations: {serinus.dev/local-class: 'model.py:Double'}\nspec:\n"
        "  predictor: {containers: [{name: kserve-container, image: double:1}]}\n  tracing: {sampler: always_on}\n"
    )
    body = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'
    with receiving() as collector, up(tmp_path, "isvc.yaml", env=collector.environment()) as running:
        status, _, answer = ask(running.gateway, "/v2/models/fraud/infer", body, host="fraud.default.localhost")
        assert (status, b'"data":[2' in answer) == (200, True), answer
        spans = collector.wait(4)
        assert {span.service for span in spans} == {"fraud-predictor"}
        assert "POST /v2/models/{model}/infer" in "".join(span.name for span in spans if span.kind == "server")
