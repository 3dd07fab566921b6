"""What an InferenceGraph's router is run with, and which names its services and models go by."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from local_support import manifest
from serinus.local.plan.container_environment import config_data
from serinus.local.plan.deployment_plan import GRACE_S, PlanOptions, ServicePlan
from serinus.local.plan.graph_planner import _configured_headers, _container_protocol, _labels, _model_name
from serinus.local.plan.plan_loader import load
from serinus.manifests.containers import Probe
from serinus.manifests.documents import load_text
from serinus.manifests.inference_service import parse_inference_service


def planned(folder: Any, *, annotations: Any = None, options: PlanOptions | None = None, **spec: Any) -> ServicePlan:
    nodes = {"root": {"routerType": "Sequence", "steps": [{"serviceName": "a"}]}}
    value = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": "g", "annotations": annotations or {}},
        "spec": {"nodes": nodes, **spec},
    }
    (folder / "all.yaml").write_text(manifest(name="a") + "---\n" + yaml.safe_dump(value))
    loaded = load(folder / "all.yaml", (), options or PlanOptions(), ())
    assert not loaded.errors, loaded.errors
    return loaded.services[-1]


@pytest.mark.parametrize(
    ("written", "stopped"),
    [(None, False), ("true", True), ("True", True), ("false", False), ("yes", False), ("", False)],
)
def test_a_graph_is_stopped_by_its_annotation(written: str | None, stopped: bool, tmp_path: Any):
    annotations = {} if written is None else {"serving.kserve.io/stop": written}
    assert planned(tmp_path, annotations=annotations).stopped is stopped


def test_a_graph_is_one_router_that_is_asked_whether_it_is_ready(tmp_path: Any):
    plan = planned(tmp_path)
    component = plan.stable.entry
    (container,) = component.containers
    assert (plan.key, plan.name, plan.namespace, plan.canaries) == ("default/g", "g", "default", ())
    assert (plan.standard, plan.affinity, plan.canary_policy, plan.canary_percent) == (False, None, "", None)
    assert (component.kind, component.deployment, component.knative, component.storage) == ("router", "g", False, ())
    assert (component.timeout_s, component.replicas, component.grace_s) == (60.0, 1, 30.0)
    assert (container.http_port, container.grpc_port, container.name) == (8080, 8081, "router")
    assert container.words[-2:] == ("--http_port", "8080")
    assert container.readiness == Probe("http", "/readyz", 8080, (), 0, 1, 2, 3)
    assert container.liveness is None
    assert not container.command.ours
    assert GRACE_S == 30.0


@pytest.mark.parametrize(
    ("low", "most", "replicas"), [(None, 5, 1), (0, 5, 1), (1, 5, 1), (3, 5, 3), (7, 5, 5), (3, 1, 1)]
)
def test_it_has_as_many_routers_as_are_asked_for_and_fit_on_a_machine(
    low: int | None, most: int, replicas: int, tmp_path: Any
):
    spec = {} if low is None else {"minReplicas": low}
    assert planned(tmp_path, options=PlanOptions(max_replicas=most), **spec).stable.entry.replicas == replicas


def test_a_graph_is_one_and_a_service_is_none(tmp_path: Any):
    assert planned(tmp_path).is_graph
    (tmp_path / "one.yaml").write_text(manifest(name="a"))
    (service,) = load(tmp_path / "one.yaml", (), PlanOptions(), ()).services
    assert not service.is_graph
    assert service.stable.predictor.grace_s == 30.0


def test_secrets_of_containers_and_of_the_storage_are_in_no_text(tmp_path: Any):
    (container,) = planned(tmp_path).stable.entry.containers
    assert "hidden" not in repr(replace(container, env={"TOKEN": "hidden"}))
    assert "hidden" not in repr(PlanOptions(storage_config={"key": "hidden"}))
    assert PlanOptions().max_replicas == 1


# Names


def service_of(text: str) -> Any:
    (document,) = load_text(text, "a.yaml")
    return parse_inference_service(document)


def test_a_service_goes_by_its_name_and_by_those_of_its_components():
    service = service_of(manifest(name="a"))
    assert set(_labels(service)) == {("default", name) for name in ("a", "a-predictor", "a-transformer")}
    named = replace(service, predictor=replace(service.predictor, name="v2"))
    assert set(_labels(named)) == {
        ("default", name) for name in ("a", "a-v2-predictor", "a-predictor", "a-transformer")
    }


def model_of(*, args: list[str] | None = None, **env: str) -> Any:
    model = {
        "modelFormat": {"name": "tiny"},
        "args": args or [],
        "env": [{"name": name, "value": value} for name, value in env.items()],
    }
    value = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "a"},
        "spec": {"predictor": {"model": model}},
    }
    return service_of(yaml.safe_dump(value))


@pytest.mark.parametrize(
    ("args", "env", "name"),
    [
        ([], {}, "a"),
        (["--model_name=m"], {}, "m"),
        (["--model-name", "m"], {}, "m"),
        ([], {"MLSERVER_MODEL_NAME": "n"}, "n"),
        (["--model_name=m"], {"MLSERVER_MODEL_NAME": "n"}, "n"),
        ([], {"MLSERVER_MODEL_NAME": ""}, "a"),
        ([], {"MLSERVER_MODEL_NAME_TOO": "n", "A": "b", "Z": "c"}, "a"),
        (["--model_name=m"], {"Z": "n", "A": "b"}, "m"),
    ],
)
def test_a_models_name_is_MLServers_or_that_of_its_argument_or_the_services(
    args: list[str], env: dict[str, str], name: str
):
    assert _model_name(model_of(args=args, **env)) == name


PROPAGATED = json.dumps({"headers": {"propagate": ["Authorization", "X-A"]}})


def configured(name: str, kind: str = "ConfigMap", router: str | None = PROPAGATED) -> tuple[str, ...]:
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "another"}, "data": {"router": PROPAGATED}}
    data = {} if router is None else {"router": router}
    key = "stringData" if kind == "Secret" else "data"
    value = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, key: data}
    return _configured_headers(config_data(load_text(yaml.safe_dump_all([other, value]), "c.yaml")))


@pytest.mark.parametrize(
    ("name", "kind", "router", "headers"),
    [
        ("inferenceservice-config", "ConfigMap", PROPAGATED, ("Authorization", "X-A")),
        ("inferenceservice-config", "ConfigMap", None, ()),
        ("inferenceservice-config", "ConfigMap", "{", ()),
        ("inferenceservice-config", "ConfigMap", "[]", ()),
        ("inferenceservice-config", "ConfigMap", '{"headers": {"propagate": "X"}}', ()),
        ("inferenceservice-config", "Secret", PROPAGATED, ()),
        ("z-config", "ConfigMap", PROPAGATED, ()),
        ("a-config", "ConfigMap", PROPAGATED, ()),
    ],
)
def test_headers_are_those_of_KServes_own_config(name: str, kind: str, router: str | None, headers: tuple[str, ...]):
    assert configured(name, kind, router) == headers


@pytest.mark.parametrize(
    ("containers", "protocol"),
    [
        ([], "v1"),
        ([{}], "v1"),
        ([{"env": [{"name": "A", "value": "x"}, {"name": "Z", "value": "y"}]}], "v1"),
        ([{"env": [{"name": "A", "value": "x"}, {"name": "PROTOCOL", "value": "v2"}]}], "v2"),
        ([{"env": [{"name": "Z", "value": "x"}, {"name": "PROTOCOL", "value": "v2"}]}], "v2"),
        ([{"env": [{"name": "PROTOCOL"}]}], ""),
        ([{"name": "a"}, {"env": [{"name": "PROTOCOL", "value": "v2"}]}], "v1"),
        ([{"name": "a"}, {"name": "transformer-container", "env": [{"name": "PROTOCOL", "value": "v2"}]}], "v2"),
    ],
)
def test_the_protocol_is_that_of_the_container_that_requests_come_to(containers: Any, protocol: str):
    assert _container_protocol(containers) == protocol
