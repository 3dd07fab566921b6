"""InferenceServices, runtimes and containers as values: each field read, defaulted as KServe and Kubernetes do, and led to its line."""

from __future__ import annotations

from typing import Any

import pytest

from serinus.manifests.containers import Port, parse_container
from serinus.manifests.conventions import deployment_mode, implementations
from serinus.manifests.documents import Source, load_text
from serinus.manifests.inference_service import InferenceService, ModelSpec, parse_inference_service
from serinus.manifests.serving_runtimes import (
    BUILT_IN,
    app_class,
    built_in_runtimes,
    image_name,
    kserve_runtimes,
    parse_runtime,
)

HEAD = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"


def service(spec: str, metadata: str = "{name: fraud}") -> InferenceService:
    (document,) = load_text(f"{HEAD}metadata: {metadata}\nspec:\n{spec}", "f.yaml")
    return parse_inference_service(document)


def predictor(block: str) -> Any:
    return service(f"  predictor: {block}\n").predictor


def model(block: str) -> ModelSpec:
    found = predictor(f"{{model: {block}}}").model
    assert found is not None
    return found


def test_a_service_is_known_by_its_namespace_and_name():
    plain = service("  predictor: {}\n")
    assert (plain.name, plain.namespace, plain.key) == ("fraud", "default", "default/fraud")
    assert (plain.labels, plain.annotations, plain.mode) == ({}, {}, "Knative")
    assert (plain.transformer, plain.canaries) == (None, ())
    full = service("  predictor: {}\n", "{name: a, namespace: team, labels: {x: 1}, annotations: {y: true}}")
    assert (full.key, full.labels, full.annotations) == ("team/a", {"x": "1"}, {"y": "True"})


@pytest.mark.parametrize(
    ("written", "mode", "counts"),
    [
        (None, "Knative", "Knative"),
        ("Standard", "Standard", "Standard"),
        ("RawDeployment", "Standard", "Standard"),
        ("Serverless", "Knative", "Knative"),
        ("Knative", "Knative", "Knative"),
        ("ModelMesh", "ModelMesh", "Knative"),
        ("", "Knative", "Knative"),
        ("Raw", "Raw", "Knative"),
    ],
)
def test_the_deployment_mode_is_the_renamed_one_and_knative_where_none_is_written(
    written: str | None, mode: str, counts: str
):
    key = "serving.kserve.io/deploymentMode"
    assert deployment_mode({} if written is None else {key: written}) == mode
    note = "" if written is None else f", annotations: {{{key}: '{written}'}}"
    assert service("  predictor: {}\n", f"{{name: a{note}}}").mode == counts


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ({}, []),
        ({"model": {}}, ["model"]),
        ({"model": None}, []),
        ({"sklearn": {}, "model": {}}, ["sklearn", "model"]),
        ({"containers": [{"name": "kserve-container"}]}, ["containers"]),
        ({"containers": [{"name": "any"}]}, ["containers"]),
        ({"containers": []}, []),
        ({"model": {}, "containers": [{"name": "side"}]}, ["model"]),
        ({"model": {}, "containers": [{"name": "side"}, {"name": "kserve-container"}]}, ["model", "containers"]),
    ],
    ids=str,
)
def test_each_implementation_that_a_predictor_names_is_found(block: dict[str, Any], found: list[str]):
    assert implementations(block) == found


def test_a_model_block_is_read_and_its_container_is_what_is_left():
    spec = model(
        "{modelFormat: {name: xgboost, version: 2}, runtime: r, protocolVersion: v2, runtimeVersion: 1.2, "
        "storageUri: gs://b, storage: {key: a}, confidential: {}, image: i, args: [a]}"
    )
    assert (spec.format.name, spec.format.version) == ("xgboost", "2")
    assert (spec.runtime, spec.protocol, spec.runtime_version) == ("r", "v2", "1.2")
    assert spec.container == {"image": "i", "args": ["a"]}
    assert spec.source.field("image") == "spec.predictor.model.image"
    empty = model("{modelFormat: {}}")
    assert (empty.format.name, empty.format.version, empty.runtime, empty.runtime_version) == ("", "", "", "")


@pytest.mark.parametrize(
    ("block", "kind", "protocol"),
    [
        ("{model: {modelFormat: {name: triton}}}", "triton", "v2"),
        ("{model: {modelFormat: {name: vLLM}}}", "vLLM", "v2"),
        ("{model: {modelFormat: {name: onnx}}}", "onnx", ""),
        ("{model: {modelFormat: {name: triton}, protocolVersion: v1}}", "triton", "v1"),
        ("{triton: {}}", "triton", "v2"),
        ("{onnx: {}}", "onnx", "v2"),
        ("{huggingface: {}}", "huggingface", "v2"),
        ("{sklearn: {}}", "sklearn", ""),
        ("{xgboost: {protocolVersion: v2}}", "xgboost", "v2"),
    ],
)
def test_a_protocol_that_is_not_declared_is_the_formats(block: str, kind: str, protocol: str):
    found = predictor(block).model
    assert (found.format.name, found.format.version, found.protocol) == (kind, "", protocol)


def test_a_predictor_without_a_model_and_a_transformer_have_none():
    assert predictor("{containers: [{image: a}]}").model is None
    both = service("  predictor: {model: {}}\n  transformer: {model: {}, containers: [{image: b}]}\n")
    assert both.predictor.kind == "predictor"
    assert both.transformer is not None
    assert (both.transformer.kind, both.transformer.model) == ("transformer", None)
    assert both.transformer.containers == ({"image": "b"},)
    assert both.transformer.source.field("containers") == "spec.transformer.containers"


@pytest.mark.parametrize(
    ("block", "stored"),
    [
        ("{model: {storageUri: gs://a}}", [("gs://a", "/mnt/models", "model.storageUri")]),
        ("{sklearn: {storageUri: gs://a}}", [("gs://a", "/mnt/models", "sklearn.storageUri")]),
        ("{model: {}}", []),
        (
            "{storageUris: [{uri: gs://a, mountPath: /mnt/a/}, {uri: gs://b}]}",
            [("gs://a", "/mnt/a", "storageUris[0].uri"), ("gs://b", "/mnt/models", "storageUris[1].uri")],
        ),
        (
            "{containers: [{env: [{name: A, value: x}, {name: STORAGE_URI, value: gs://c}]}]}",
            [("gs://c", "/mnt/models", "containers[0].env[1].value")],
        ),
        ("{containers: [{name: any, env: [{name: STORAGE_URI, value: gs://c}]}]}",
         [("gs://c", "/mnt/models", "containers[0].env[0].value")]),
        ("{containers: [{name: side, env: [{name: STORAGE_URI, value: gs://c}]}, {name: kserve-container}]}", []),
        (
            "{containers: [{name: side}, {name: kserve-container, env: [{name: STORAGE_URI, value: gs://c}]}]}",
            [("gs://c", "/mnt/models", "containers[1].env[0].value")],
        ),
        ("{containers: [{env: [{name: STORAGE_URI, value: ''}]}]}", []),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_models_files_are_where_the_block_says(block: str, stored: list[tuple[str, str, str]]):
    found = predictor(block).storage
    assert [(uri.uri, uri.mount_path, uri.source.field()) for uri in found] == [
        (uri, mount, f"spec.predictor.{field}") for uri, mount, field in stored
    ]


def test_a_components_numbers_are_read_and_zero_is_one_of_them():
    full = predictor("{name: v1, timeout: 30, containerConcurrency: 0, minReplicas: 0, canaryTrafficPercent: 0}")
    assert (full.name, full.timeout_s, full.concurrency, full.min_replicas, full.canary_percent) == (
        "v1",
        30.0,
        0,
        0,
        0,
    )
    none = predictor("{}")
    assert (none.name, none.timeout_s, none.concurrency, none.min_replicas, none.canary_percent) == (
        "", None, None, 1, None,
    )  # fmt: skip
    assert predictor("{minReplicas: 3}").min_replicas == 3


def test_a_canary_is_the_stable_predictor_with_its_own_fields_over_it():
    found = service(
        "  predictor: {minReplicas: 2, canaryTrafficPercent: 5, model: {modelFormat: {name: a}, args: [x, y], env: [{name: A}]}}\n"
        "  canary:\n    - trafficPercent: 10\n      predictor: {name: v2, model: {modelFormat: {version: '2'}, args: [z]}}\n"
        "    - {trafficPercent: 20}\n"
    )
    first, second = found.canaries
    assert (first.percent, second.percent) == (10, 20)
    assert (first.predictor.name, first.predictor.min_replicas, first.predictor.canary_percent) == ("v2", 2, None)
    assert first.predictor.model is not None
    assert (first.predictor.model.format.name, first.predictor.model.format.version) == ("a", "2")
    assert first.predictor.model.container == {"args": ["z"], "env": [{"name": "A"}]}, "a list is replaced whole"
    assert first.predictor.source.field("name") == "spec.canary[0].predictor.name"
    assert first.predictor.source.field("minReplicas") == "spec.predictor.minReplicas"
    assert found.predictor.canary_percent == 5
    assert second.predictor.model is not None
    assert second.predictor.model.container == {"args": ["x", "y"], "env": [{"name": "A"}]}
    assert second.predictor.source.field("name") == "spec.canary[1].predictor.name"


# Containers


def container(text: str) -> Any:
    (document,) = load_text(f"kind: A\napiVersion: v1\nc: {text}\n", "f.yaml")
    return parse_container(document.value["c"], Source(((document, ("c",)),)))


def test_a_container_is_read_and_what_is_not_there_is_empty():
    full = container(
        "{name: a, image: i, command: [x, 1], args: [2], workingDir: /w, envFrom: [{configMapRef: {name: m}}], "
        "env: [{name: A, value: 0}, {name: B, valueFrom: {fieldRef: {}}}, {name: C}], "
        "ports: [{containerPort: 8080, name: h2c}, {containerPort: 9}]}"
    )
    assert (full.name, full.image, full.command, full.args, full.working_dir) == ("a", "i", ("x", "1"), ("2",), "/w")
    assert [(each.name, each.value, each.reference) for each in full.env] == [
        ("A", "0", None), ("B", "", {"fieldRef": {}}), ("C", "", None),
    ]  # fmt: skip
    assert [each.source.field() for each in full.env] == ["c.env[0]", "c.env[1]", "c.env[2]"]
    assert full.env_from == ({"configMapRef": {"name": "m"}},)
    assert full.ports == (Port(8080, "h2c"), Port(9, ""))
    none = container("{}")
    assert (none.name, none.image, none.command, none.args, none.env, none.env_from, none.ports) == (
        "", "", (), (), (), (), (),
    )  # fmt: skip
    assert (none.working_dir, none.readiness, none.liveness) == ("", None, None)


@pytest.mark.parametrize(
    ("name", "grpc"),
    [("grpc", True), ("my-grpc-v2", True), ("h2c", True), ("h2c-1", True), ("http1", False), ("", False)],
)
def test_a_port_is_grpc_by_its_name(name: str, grpc: bool):
    assert Port(1, name).is_grpc is grpc


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        ("{httpGet: {path: /a, port: http}}", ("http", "/a", "http", ())),
        ("{httpGet: {port: 8080}}", ("http", "/", 8080, ())),
        ("{tcpSocket: {port: 9}}", ("tcp", "/", 9, ())),
        ("{grpc: {port: 7}}", ("tcp", "/", 7, ())),
        ("{exec: {command: [cat, 1]}}", ("exec", "/", None, ("cat", "1"))),
    ],
)
def test_a_probe_is_of_its_kind(probe: str, told: tuple[Any, ...]):
    found = container(f"{{readinessProbe: {probe}}}").readiness
    assert (found.kind, found.path, found.port, found.command) == told
    assert container(f"{{livenessProbe: {probe}}}").liveness == found


def test_a_probes_seconds_are_kubernetes_defaults_unless_written_and_never_less_than_it_takes():
    times = lambda probe: (probe.initial_delay_s, probe.period_s, probe.timeout_s, probe.failures)  # noqa: E731
    assert times(container("{readinessProbe: {exec: {}}}").readiness) == (0, 10, 1, 3)
    written = "initialDelaySeconds: 5, periodSeconds: 2, timeoutSeconds: 4, failureThreshold: 1"
    assert times(container(f"{{readinessProbe: {{exec: {{}}, {written}}}}}").readiness) == (5, 2, 4, 1)
    low = "periodSeconds: -1, timeoutSeconds: -1, failureThreshold: -1"
    assert times(container(f"{{readinessProbe: {{exec: {{}}, {low}}}}}").readiness) == (0, 1, 1, 1)


# Runtimes


def test_a_runtime_is_read_and_one_for_the_cluster_has_no_namespace():
    text = (
        "apiVersion: serving.kserve.io/v1alpha1\nkind: {}\nmetadata: {{name: r, namespace: team, creationTimestamp: '2020'}}\n"
        "spec:\n  supportedModelFormats: [{{name: a, version: 2, autoSelect: true, priority: 3}}, {{name: b}}]\n"
        "  protocolVersions: [v1, v2]\n  disabled: true\n  multiModel: true\n  workerSpec: {{a: 1}}\n  containers: [{{image: i}}]\n"
    )
    own, cluster = (
        parse_runtime(load_text(text.format(kind), "f")[0]) for kind in ("ServingRuntime", "ClusterServingRuntime")
    )
    assert (own.name, own.namespace, cluster.namespace, own.created) == ("r", "team", "", "2020")
    assert [(each.name, each.version, each.auto_select, each.priority) for each in own.formats] == [
        ("a", "2", True, 3), ("b", "", False, None),
    ]  # fmt: skip
    assert (own.protocols, own.disabled, own.multi_model, own.has_workers) == (("v1", "v2"), True, True, True)
    assert own.containers == ({"image": "i"},)
    bare = parse_runtime(load_text("kind: ServingRuntime\napiVersion: v1\nmetadata: {name: r}\nspec: {}\n", "f")[0])
    assert (bare.formats, bare.protocols, bare.disabled, bare.multi_model, bare.has_workers, bare.created) == (
        (), (), False, False, False, "",
    )  # fmt: skip


def test_each_image_of_ours_stands_for_a_runtime_of_its_formats_and_others_for_none():
    found = built_in_runtimes([*BUILT_IN, "ensemble_server", "nobody"])
    assert [runtime.name for runtime in found] == [f"serinus-{app.replace('_', '-')}" for app in BUILT_IN]
    for runtime, (app, formats) in zip(found, BUILT_IN.items(), strict=True):
        assert (runtime.namespace, runtime.protocols, runtime.disabled) == ("", ("v1", "v2", "grpc-v2"), False)
        assert [(each.name, each.auto_select, each.priority) for each in runtime.formats] == [
            (name, True, 1) for name in formats
        ]
        (only,) = runtime.containers
        assert (only["name"], only["image"]) == ("kserve-container", app)
        assert only["args"] == ["--model_name={{.Name}}", "--model_dir=/mnt/models"]
        assert runtime.document.file == f"(built-in runtime {app})"


def test_the_image_of_all_classic_formats_is_a_runtime_that_is_chosen_by_name_alone():
    (found,) = built_in_runtimes(["classic_server"])
    assert found.name == "serinus-classic-server"
    assert {each.name for each in found.formats} == {"xgboost", "lightgbm", "sklearn", "catboost", "onnx"}
    assert not any(each.auto_select or each.priority for each in found.formats)
    assert kserve_runtimes(["classic_server"]) == []


def test_kserves_own_runtimes_come_once_for_each_image_of_ours_that_serves_some_of_their_formats():
    found = {
        (runtime.name, runtime.containers[0]["image"]): runtime
        for runtime in kserve_runtimes(["xgboost_server", "lightgbm_server", "sklearn_server", "onnx_server"])
    }
    assert {image for _, image in found} == {"xgboost_server", "lightgbm_server", "sklearn_server", "onnx_server"}
    triton = found["kserve-tritonserver", "onnx_server"]
    assert ("kserve-tritonserver", "xgboost_server") not in found
    assert (triton.protocols, triton.namespace) == (("v2", "grpc-v2"), "")
    assert [(each.name, each.version, each.auto_select, each.priority) for each in triton.formats] == [
        ("onnx", "1", True, 1)
    ]
    predictive = {
        image: [(each.name, each.version, each.auto_select, each.priority) for each in runtime.formats]
        for (name, image), runtime in found.items()
        if name == "kserve-predictiveserver"
    }
    assert predictive == {
        "xgboost_server": [("xgboost", "2", False, None)],
        "lightgbm_server": [("lightgbm", "4", False, None)],
        "sklearn_server": [("sklearn", "1", False, None)],
    }
    (alone,) = found["kserve-sklearnserver", "sklearn_server"].formats
    assert (alone.name, alone.version, alone.auto_select, alone.priority) == ("sklearn", "1", True, 1)
    assert triton.containers[0]["args"] == ["--model_name={{.Name}}", "--model_dir=/mnt/models"]
    assert triton.document.file == "(KServe's kserve-tritonserver by onnx_server)"
    assert kserve_runtimes([]) == kserve_runtimes(["ensemble_server"]) == []


@pytest.mark.parametrize(
    "image",
    ["a_b", "a_b:1", "registry:5000/team/a_b:1.2", "team/a_b@sha256:0", "registry:5000/team/a_b", "a_b:1@sha256:0"],
)
def test_an_images_name_is_its_last_part_without_tag_and_digest(image: str):
    assert image_name(image) == "a_b"


@pytest.mark.parametrize("name", ["json", "os", "no_such_app", "not-an-identifier", "", "serinus.model"])
def test_what_is_no_app_folder_has_no_class(name: str):
    assert app_class(name) is None


def test_an_apps_class_is_read_without_importing_it():
    assert app_class("xgboost_server")
    assert app_class("ensemble_server")
