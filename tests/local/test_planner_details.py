"""One service's plan, field by field: names, ports, shares, injected variables, and what needs a cluster."""

from __future__ import annotations

import pytest

from local_support import container, manifest
from serinus.local.plan.container_environment import config_data
from serinus.local.plan.deployment_plan import ContainerPlan, PlanOptions, ServicePlan
from serinus.local.plan.planner import ROUTE_TIMEOUT_S, Planner
from serinus.manifests.documents import load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.problems import Problems
from serinus.manifests.serving_runtimes import kserve_runtimes, parse_runtime

STANDARD = "  annotations: {serving.kserve.io/deploymentMode: Standard}\n"
FEATURES = ["--predictor_protocol=v2"]


def planned(text: str, runtimes: str = "") -> tuple[ServicePlan | None, Problems]:
    problems = Problems()
    documents = load_text(text, "isvc.yaml")
    known = [parse_runtime(document) for document in load_text(runtimes, "runtimes.yaml")]
    images = {"mlserver": ("mlserver", "start"), "python": ("python",)}
    planner = Planner(known, [], config_data(documents), PlanOptions(images=images), problems)
    return planner.plan(parse_inference_service(documents[0])), problems


def plan_of(text: str, runtimes: str = "") -> ServicePlan:
    plan, problems = planned(text, runtimes)
    assert plan is not None, problems.all
    return plan


def only(text: str) -> ContainerPlan:
    (found,) = plan_of(text).stable.predictor.containers
    return found


def with_transformer_percent(text: str, percent: int) -> str:
    return text.replace("  transformer:\n", f"  transformer:\n    canaryTrafficPercent: {percent}\n")


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        pytest.param(manifest(), None, id="none"),
        pytest.param(manifest(percent=10), 10, id="the predictor's"),
        pytest.param(manifest(percent=0), 0, id="none of it is a share"),
        pytest.param(manifest(transformer=FEATURES), None, id="transformer without"),
        pytest.param(manifest(percent=10, transformer=FEATURES), 10, id="the predictor's alone"),
        pytest.param(with_transformer_percent(manifest(transformer=FEATURES), 30), 30, id="the transformer's"),
        pytest.param(with_transformer_percent(manifest(percent=10, transformer=FEATURES), 30), 10, id="both"),
        pytest.param(manifest(percent=10, annotations=STANDARD), None, id="Standard mode ignores it"),
    ],
)
def test_a_canarys_share_is_the_predictors_or_else_the_transformers_in_knative_mode(text: str, percent: int | None):
    assert plan_of(text).canary_percent == percent


@pytest.mark.parametrize(("annotations", "knative"), [("", True), (STANDARD, False)])
def test_a_component_knows_whose_revisions_it_has(annotations: str, knative: bool):
    assert plan_of(manifest(annotations=annotations)).stable.predictor.knative is knative


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["anything"], ["kserve-container"]),
        ([""], ["kserve-container"]),
        (["", "other"], ["kserve-container", "other"]),
        (["first", "kserve-container"], ["first", "kserve-container"]),
        (["first", ""], ["first", ""]),
    ],
)
def test_the_only_or_the_unnamed_first_container_is_the_models(names: list[str], expected: list[str]):
    text = manifest()
    block = container()
    containers = "".join(
        "      " + block.replace("- name: kserve-container\n", f"- name: '{name}'\n") for name in names
    )
    plan = plan_of(text.replace("      " + block, containers))
    assert [each.name for each in plan.stable.predictor.containers] == expected
    assert plan.stable.predictor.entry == 0


def ports_of(command: str, *, env: str = "", ports: str = "", args: str = "") -> tuple[int, int]:
    text = (
        manifest()
        .replace(", --http_port=8080, --grpc_port=8081]", f"{command}]")
        .replace("args: []", f"args: [{args}]")
    )
    text = text.replace("env: [{name: PROTOCOL, value: v2}]", f"env: [{env}]\n        ports: [{ports}]")
    found = only(text)
    return found.http_port, found.grpc_port


@pytest.mark.parametrize(
    ("fields", "http", "grpc"),
    [
        pytest.param({}, 8080, 8081, id="default"),
        pytest.param({"command": ", --http_port=1, --grpc_port, '2'"}, 1, 2, id="command"),
        pytest.param({"args": "--http-port=3, --grpc-port=4"}, 3, 4, id="args"),
        pytest.param({"args": "--http_port=$(PORT)"}, 8080, 8081, id="no number"),
        pytest.param({"env": "{name: SERINUS_HTTP_PORT, value: '5'}, {name: MLSERVER_GRPC_PORT, value: '6'}"}, 5, 6, id="env"),
        pytest.param({"env": "{name: MLSERVER_HTTP_PORT, value: '5'}, {name: SERINUS_HTTP_PORT, value: '7'}"}, 7, 8081, id="ours first"),
        pytest.param({"args": "--http_port=9", "env": "{name: SERINUS_HTTP_PORT, value: '7'}"}, 9, 8081, id="flag before env"),
        pytest.param({"ports": "{containerPort: 10}, {containerPort: 11, name: grpc-v2}"}, 10, 11, id="ports by name"),
        pytest.param({"ports": "{containerPort: 12, name: h2c}"}, 8080, 12, id="gRPC alone"),
        pytest.param({"ports": "{containerPort: 10}, {containerPort: 8081}"}, 10, 8081, id="8081 is gRPC"),
        pytest.param({"ports": "{containerPort: 10}, {containerPort: 9000}"}, 10, 9000, id="9000 is gRPC"),
        pytest.param({"ports": "{containerPort: 10}, {containerPort: 9001}"}, 10, 8081, id="another port is not"),
        pytest.param({"ports": "{containerPort: 9000}"}, 9000, 8081, id="the only one is not"),
        pytest.param({"ports": "{containerPort: 10}, {containerPort: 9000}, {containerPort: 3, name: grpc}"}, 10, 3, id="a named one is"),
        pytest.param({"args": "--http_port=9", "ports": "{containerPort: 10}"}, 9, 8081, id="flag before ports"),
    ],
)  # fmt: skip
def test_ports_are_those_of_the_flags_the_environment_the_ports_or_the_default(
    fields: dict[str, str], http: int, grpc: int
):
    fields = {"command": "", **fields}
    assert ports_of(**fields) == (http, grpc)


@pytest.mark.parametrize(
    ("args", "env", "name"),
    [
        ("", "", "fraud"),
        ("--model_name=a", "", "a"),
        ("--model_name=a", "{name: SERINUS_MODEL_NAME, value: b}", "a"),
        ("", "{name: SERINUS_MODEL_NAME, value: b}", "b"),
        ("", "{name: MLSERVER_MODEL_NAME, value: c}", "c"),
        ("", "{name: MLSERVER_MODEL_NAME, value: c}, {name: SERINUS_MODEL_NAME, value: b}", "b"),
    ],
)
def test_the_models_name_is_the_flags_the_environments_or_the_services(args: str, env: str, name: str):
    text = manifest().replace("args: []", f"args: [{args}]").replace("{name: PROTOCOL, value: v2}", env)
    assert only(text).model_name == name


def test_named_ports_are_found_by_name():
    text = manifest().replace("env: [", "ports: [{containerPort: 1, name: http1}, {containerPort: 2}]\n        env: [")
    assert dict(only(text).port_names) == {"http1": 1}


@pytest.mark.parametrize(("value", "stopped"), [("'true'", True), ("'True'", True), ("'false'", False), ("''", False)])
def test_a_service_is_stopped_by_its_annotation(value: str, stopped: bool):
    text = manifest(annotations=f"  annotations: {{serving.kserve.io/stop: {value}}}\n")
    assert plan_of(text).stopped is stopped


@pytest.mark.parametrize(("written", "seconds"), [("", ROUTE_TIMEOUT_S), ("    timeout: 7\n", 7.0)])
def test_a_request_has_the_components_time_or_a_minute(written: str, seconds: float):
    assert ROUTE_TIMEOUT_S == 60
    text = manifest().replace("  predictor:\n", "  predictor:\n" + written)
    assert plan_of(text).stable.predictor.timeout_s == seconds


def test_an_explainer_is_left_out_with_a_warning():
    plan, problems = planned(manifest() + "  explainer: {containers: [{image: x}]}\n")
    assert plan is not None
    (problem,) = problems.all
    assert "explainers are not run here" in str(problem)
    assert problems.errors == ()


def test_workers_of_several_nodes_are_refused():
    plan, problems = planned(manifest().replace("  predictor:\n", "  predictor:\n    workerSpec: {size: 2}\n"))
    assert plan is None
    assert "several nodes cannot be run on one machine" in str(problems.errors[0])


def test_one_container_that_cannot_run_leaves_no_plan():
    text = manifest() + "      - {name: other, image: redis}\n"
    plan, problems = planned(text)
    assert plan is None
    assert "redis" in str(problems.errors[0])


def test_a_transformer_has_its_neighbours_and_takes_the_predictors_name():
    text = manifest(transformer=FEATURES).replace("  predictor:\n", "  predictor:\n    name: v7\n")
    text += "      " + container(name="beside")
    plan = plan_of(text)
    transformer = plan.stable.transformer
    assert transformer is not None
    assert [each.name for each in transformer.containers] == ["kserve-container", "beside"]
    assert (transformer.deployment, plan.stable.predictor.deployment) == ("fraud-v7-transformer", "fraud-v7-predictor")
    words = " ".join(transformer.containers[0].words)
    assert "--predictor_host fraud-v7-predictor.default" in words
    assert "--model_name" not in " ".join(transformer.containers[1].words), "the first alone is the transformer"


def test_a_variable_of_the_manifest_stands_before_the_injected_one():
    assert only(manifest()).env["INFERENCE_SERVICE_NAME"] == "fraud"
    text = manifest().replace("{name: PROTOCOL, value: v2}", "{name: INFERENCE_SERVICE_NAME, value: mine}")
    assert only(text).env["INFERENCE_SERVICE_NAME"] == "mine"


MLSERVER = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata: {name: kserve-mlserver}
spec:
  supportedModelFormats: [{name: sklearn, version: "1", autoSelect: true}]
  protocolVersions: [v2]
  containers:
    - name: kserve-container
      image: mlserver
      env: [{name: MLSERVER_MODEL_IMPLEMENTATION, value: "{{.Labels.modelClass}}"}, {name: MLSERVER_MODEL_URI, value: /mine}]
"""


def mlserver(model: str, labels: str = "") -> dict[str, str]:
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"
        f"metadata: {{name: fraud{labels}}}\nspec:\n  predictor:\n"
        f"    model: {{modelFormat: {{name: sklearn}}, runtime: kserve-mlserver, protocolVersion: v2{model}}}\n"
    )
    (found,) = plan_of(text, MLSERVER).stable.predictor.containers
    return {name: value for name, value in found.env.items() if name.startswith("MLSERVER")}


def test_mlserver_gets_its_variables_where_they_are_absent():
    assert mlserver(", storageUri: ./m") == {
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_sklearn.SKLearnModel",
        "MLSERVER_MODEL_NAME": "fraud",
        "MLSERVER_MODEL_URI": "/mnt/models",
    }
    assert mlserver(", storageUri: ./m, env: [{name: MLSERVER_MODEL_URI, value: /own}]")["MLSERVER_MODEL_URI"] == "/own"
    assert mlserver("") == {
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_sklearn.SKLearnModel",
        "MLSERVER_MODEL_URI": "/mine",
        "MLSERVER_LOAD_MODELS_AT_STARTUP": "false",
    }
    # The webhook writes over a label of the service; a format that MLServer has no class for takes scikit-learn's.
    found = mlserver("", ", labels: {modelClass: own.Class}")
    assert found["MLSERVER_MODEL_IMPLEMENTATION"] == "mlserver_sklearn.SKLearnModel"


def served(runtime: str, model: str = "", metadata: str = "", beside: str = "") -> list[ContainerPlan]:
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: fraud}\nspec:\n  predictor:\n"
        f"    model: {{modelFormat: {{name: any}}, runtime: {runtime}{model}}}\n{beside}"
    )
    runtimes = (
        "apiVersion: serving.kserve.io/v1alpha1\nkind: ClusterServingRuntime\n"
        f"metadata: {{name: {runtime}{metadata}}}\n"
        "spec:\n  supportedModelFormats: [{name: any}]\n  containers:\n"
        "    - {name: kserve-container, image: python, args: [a], env: [{name: E, value: '{{.Labels.serviceEnvelope}}'}]}\n"
    )
    if "transformer" in runtime:
        runtimes += "    - {name: transformer-container, image: python, args: ['--name={{.Name}}']}\n    - {name: side, image: python}\n"
    if "torchserve" not in runtime:
        runtimes = runtimes.replace("{{.Labels.serviceEnvelope}}", "x")
    return list(plan_of(text, runtimes).stable.predictor.containers)


TYPE = ", annotations: {serving.kserve.io/server-type: %s}"


@pytest.mark.parametrize(
    ("runtime", "metadata", "is_mlserver"),
    [
        ("kserve-mlserver", "", True),
        ("mine", TYPE % "mlserver", True),
        ("kserve-pmmlserver", "", False),
        ("my-mlserver", "", False),
        ("kserve-mlserver", TYPE % "other", False),
    ],
)
def test_a_server_is_known_by_its_annotation_or_its_exact_name(runtime: str, metadata: str, is_mlserver: bool):
    (found,) = served(runtime, metadata=metadata)
    assert ("MLSERVER_LOAD_MODELS_AT_STARTUP" in found.env) is is_mlserver


def test_triton_without_storage_waits_to_be_told_its_models():
    (found,) = served("kserve-tritonserver")
    assert found.words[-2:] == ("a", "--model-control-mode=explicit")
    (found,) = served("kserve-tritonserver", ", storageUri: ./m")
    assert found.words[-1] == "a"


@pytest.mark.parametrize(
    ("protocol", "envelope", "version"), [("", "kserve", "v1"), (", protocolVersion: v2", "kservev2", "v2")]
)
def test_torchserve_is_told_its_protocol(protocol: str, envelope: str, version: str):
    (found,) = served("kserve-torchserve", protocol)
    assert (found.env["E"], found.env["PROTOCOL_VERSION"]) == (envelope, version)


BESIDE = "    containers:\n    - {name: transformer-container, image: python, args: ['--port={{.Namespace}}']}\n    - {name: more, image: python}\n"


def test_a_transformer_beside_a_model_is_merged_once_and_its_placeholders_are_filled():
    model, transformer, side, more = served("with-transformer", beside=BESIDE)
    assert (model.name, transformer.name, side.name, more.name) == (
        "kserve-container",
        "transformer-container",
        "side",
        "more",
    )
    assert transformer.words[-2:] == ("--name=fraud", "--port=default")
    model, transformer, more = served("without", beside=BESIDE)
    assert transformer.words[-1] == "--port=default"


def test_a_container_reads_where_its_model_lies_and_not_where_it_came_from():
    text = manifest().replace("{name: PROTOCOL, value: v2}", "{name: STORAGE_URI, value: gs://bucket/m}")
    plan = plan_of(text).stable.predictor
    assert plan.containers[0].env["STORAGE_URI"] == "/mnt/models"
    assert [item.uri for item in plan.storage] == ["gs://bucket/m"]


def tie(first: str, second: str) -> str:
    text = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: a}\nspec: {predictor: {model: {modelFormat: {name: any}}}}\n"
    head = "---\napiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\n"
    runtimes = "".join(
        f"{head}metadata: {{name: {name}}}\nspec: {{supportedModelFormats: [{{name: any, autoSelect: true}}], {protocols}"
        f"containers: [{{name: kserve-container, image: python, args: [{name}]}}]}}\n"
        for name, protocols in (("a", first), ("b", second))
    )
    return plan_of(text, runtimes).stable.predictor.containers[0].words[-1]


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        ("protocolVersions: [v1, grpc-v1], ", "protocolVersions: [v1], ", "a"),
        ("protocolVersions: [grpc-v1, v1], ", "protocolVersions: [v1], ", "a"),
        ("", "protocolVersions: [v1, v2], ", "b"),
        ("", "", "a"),
    ],
)
def test_a_tie_goes_to_the_lowest_protocol_and_a_runtime_without_any_comes_last(first: str, second: str, chosen: str):
    assert tie(first, second) == chosen


def test_kserves_own_runtimes_are_served_by_our_images_where_they_serve_the_format():
    known = kserve_runtimes(["xgboost_server", "onnx_server"])
    triton = [runtime for runtime in known if runtime.name == "kserve-tritonserver"]
    assert [[entry.name for entry in runtime.formats] for runtime in triton] == [["onnx"]]
    problems = Problems()
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: a}\n"
        "spec: {predictor: {model: {modelFormat: {name: onnx}, runtime: %s, protocolVersion: v2}}}\n"
    )
    services = [
        parse_inference_service(load_text(text % name, "f")[0])
        for name in ("kserve-tritonserver", "kserve-openvino", "kserve-xgbserver")
    ]
    plans = [Planner(known, [], config_data([]), PlanOptions(), problems).plan(service) for service in services]
    assert [plan is not None for plan in plans] == [True, True, False]
    assert "kserve-xgbserver does not serve onnx" in problems.all[0].message


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (("value: v2}", "value: v1}"), False),
        (("cpu: 100m", "cpu: 200m"), True),
        (("--grpc_port=8081]", "--grpc_port=8082]"), False),
        (("name: kserve-container\n", "name: kserve-container\n        workingDir: /tmp\n"), False),
    ],
    ids=["environment", "resources", "command", "folder"],
)
def test_a_revision_is_what_makes_its_processes(change: tuple[str, str], same: bool):
    first, second = manifest(), manifest().replace(*change)
    assert first != second
    found = [plan_of(text).stable.predictor.digest for text in (first, second)]
    assert (found[0] == found[1]) is same


def test_the_canarys_policy_is_the_services_annotation():
    told = manifest(annotations="  annotations: {serinus.dev/canary-policy: steps=5/100}\n")
    assert plan_of(told).canary_policy == "steps=5/100"
    assert plan_of(manifest()).canary_policy == ""


IRIS = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: sklearn-iris}
spec:
  predictor:
    model:
      modelFormat: {name: sklearn}
      storageUri: gs://kfserving-examples/models/sklearn/1.0/model
      env: [{name: SERINUS_ALLOW_IMPLEMENTATION, value: pickle}]
"""
"""KServe's first example (its docs, "Deploy your first predictive inference service"), and the word that lets its joblib file be loaded."""


def test_kserves_first_example_is_served_by_sklearn_server():
    problems = Problems()
    known = kserve_runtimes(["xgboost_server", "lightgbm_server", "sklearn_server", "onnx_server"])
    document = load_text(IRIS, "isvc.yaml")[0]
    plan = Planner(known, [], config_data([]), PlanOptions(), problems).plan(parse_inference_service(document))
    assert plan is not None, problems.all
    (found,) = plan.stable.predictor.containers
    assert found.command.env["SERINUS_CLASS"] == "sklearn_server"
    assert found.env["SERINUS_ALLOW_IMPLEMENTATION"] == "pickle"


def test_a_model_of_mlflows_is_served_by_mlflow_server_for_kserves_mlserver():
    problems = Problems()
    known = kserve_runtimes(["xgboost_server", "sklearn_server", "mlflow_server"])
    document = load_text(
        IRIS.replace("modelFormat: {name: sklearn}", "modelFormat: {name: mlflow}\n      protocolVersion: v2"),
        "isvc.yaml",
    )[0]
    plan = Planner(known, [], config_data([]), PlanOptions(), problems).plan(parse_inference_service(document))
    assert plan is not None, problems.all
    (found,) = plan.stable.predictor.containers
    assert found.command.env["SERINUS_CLASS"] == "mlflow_server"
