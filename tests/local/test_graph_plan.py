"""What would run for an InferenceGraph: which URL each step gets, and what is refused. No process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from local_support import manifest
from serinus.local.plan.deployment_plan import PlanOptions, ServicePlan
from serinus.local.plan.plan_loader import load
from serinus.local.router.router_settings import SETTINGS_VARIABLE, RouterSettings

SERVICE = manifest(name="a")


def graph(steps: str, more: str = "", name: str = "g") -> str:
    return (
        "---\napiVersion: serving.kserve.io/v1alpha1\nkind: InferenceGraph\n"
        f"metadata: {{name: {name}}}\nspec:\n  nodes: {{root: {{routerType: Sequence, steps: [{steps}]}}}}\n{more}"
    )


def planned(
    folder: Path, *texts: str, options: PlanOptions | None = None, beside: tuple[Path, ...] = ()
) -> tuple[ServicePlan, RouterSettings, list[str]]:
    loaded = _load(folder, *texts, options=options, beside=beside)
    assert not loaded.errors, loaded.errors
    plan = loaded.services[-1]
    settings = RouterSettings.decode(plan.stable.entry.containers[0].command.env[SETTINGS_VARIABLE])
    return plan, settings, [str(problem) for problem in loaded.problems]


def _load(folder: Path, *texts: str, options: PlanOptions | None = None, beside: tuple[Path, ...] = ()) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "all.yaml").write_text("---\n".join(texts))
    return load(folder / "all.yaml", (), options or PlanOptions(), beside)


RUNTIME = (
    "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {{name: r}}\nspec:\n"
    "  supportedModelFormats: [{{name: tiny, version: '1', autoSelect: true}}]\n  protocolVersions: [{}]\n"
    "  containers: [{{name: kserve-container, image: x, command: [sleep, '1']}}]\n"
)
MODEL = (
    "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {{name: a}}\n"
    "spec: {{predictor: {{model: {{modelFormat: {{name: tiny}}, {}}}}}}}\n"
)


@pytest.mark.parametrize(
    ("manifests", "path"),
    [
        ([SERVICE], "/v2/models/a/infer"),
        ([SERVICE.replace("value: v2", "value: v1")], "/v1/models/a:predict"),
        ([SERVICE.replace("name: PROTOCOL, value: v2", "name: X, value: y")], "/v1/models/a:predict"),
        ([manifest("--model_name=other", name="a")], "/v2/models/other/infer"),
        ([manifest("--model_name", "other", name="a")], "/v2/models/other/infer"),
        # A transformer's protocol and model name are what count, as in KServe.
        (
            [
                manifest("--model_name=other", name="a", transformer=["--predictor_protocol=v2"]).replace(
                    "v2}]", "v1}]", 1
                )
            ],
            "/v2/models/other/infer",
        ),
        ([manifest("--model_name=b", name="a", transformer=["--model_name=t"])], "/v2/models/t/infer"),
        # A runtime that the service names says the protocol, by the first of v1 and v2.
        ([RUNTIME.format("grpc-v2, v2, v1"), MODEL.format("runtime: r, protocolVersion: v2")], "/v2/models/a/infer"),
        ([RUNTIME.format("v1, v2"), MODEL.format("runtime: r, protocolVersion: v2")], "/v1/models/a:predict"),
        ([RUNTIME.format("v1, v2"), MODEL.format("protocolVersion: v2")], "/v2/models/a/infer"),
        ([RUNTIME.format("v1, v2"), MODEL.format("args: [--model_name=m]")], "/v1/models/m:predict"),
        # One that says none leaves it to the model.
        ([RUNTIME.format(""), MODEL.format("runtime: r, protocolVersion: v2")], "/v2/models/a/infer"),
        ([RUNTIME.format(""), MODEL.format("runtime: r")], "/v1/models/a:predict"),
        # Another that comes before it does not.
        (
            [
                RUNTIME.format("v1").replace("{name: r}", "{name: another, namespace: default}"),
                RUNTIME.format("v2").replace("{name: r}", "{name: r, namespace: default}"),
                MODEL.format("runtime: r"),
            ],
            "/v2/models/a/infer",
        ),
    ],
)
def test_a_service_s_name_becomes_its_url_by_its_protocol(tmp_path: Path, manifests: list[str], path: str) -> None:
    plan, settings, _ = planned(tmp_path, *manifests, graph("{serviceName: a}"))
    assert settings.nodes["root"].steps[0].url == f"http://a.default.svc.cluster.local{path}"
    assert (plan.is_graph, plan.stable.entry.deployment, plan.stable.entry.model_name) == (True, "g", "g")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("{serviceName: aa}", "no InferenceService aa is in namespace default of these manifests: did you mean a?"),
        ("{serviceName: zzzzz}", "add its manifest to the folder, or give its path, too"),
        ("{serviceUrl: 'ftp://x/y'}", "is no URL that can be called"),
        ("{serviceUrl: '//x/y'}", "is no URL that can be called"),
        ("{serviceUrl: 'http://a.default.{$your-domain}/switch'}", "is no URL that can be called"),
        ("{serviceUrl: 'http://x:99999/'}", "is no URL that can be called"),
        ("{serviceUrl: 'http://u:p@x/'}", "is no URL that can be called"),
        ("{serviceUrl: 'http://g.default.svc.cluster.local/'}", "leads back to this graph"),
        ("{serviceUrl: 'http://g.default.localhost:8080/'}", "leads back to this graph"),
        ("", "node root leads nowhere"),
    ],
)
def test_a_step_that_cannot_be_called_is_refused_with_its_place(tmp_path: Path, steps: str, said: str) -> None:
    loaded = _load(tmp_path, SERVICE, graph(steps))
    (problem,) = loaded.errors
    assert said in str(problem)
    assert "all.yaml:" in str(problem)


def test_a_service_that_speaks_grpc_alone_cannot_be_a_step(tmp_path: Path) -> None:
    texts = (RUNTIME.format("grpc-v2"), MODEL.format("runtime: r, protocolVersion: grpc-v2"))
    (problem,) = _load(tmp_path, *texts, graph("{serviceName: a}")).errors
    assert "a graph calls V1 and V2 over HTTP" in str(problem)


def test_a_service_and_a_graph_of_one_name_are_refused(tmp_path: Path) -> None:
    (problem,) = _load(tmp_path, SERVICE, graph("{serviceName: a}", name="a")).errors
    assert "InferenceGraph a is also at" in str(problem)


def test_a_graph_names_services_of_the_other_paths_that_are_run(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SERVICE)
    text = graph("{serviceName: a}")
    assert _load(tmp_path / "one", text).errors
    _, settings, _ = planned(tmp_path / "two", text, beside=(tmp_path / "a.yaml",))
    assert settings.nodes["root"].steps[0].url.endswith("/v2/models/a/infer")


def test_hosts_of_services_go_through_the_gateway_and_unknown_ones_of_the_cluster_are_told(tmp_path: Path) -> None:
    steps = "{serviceUrl: 'http://a-predictor.default.svc.cluster.local/x'}, {serviceUrl: 'http://c.default.svc/x'}"
    _, settings, said = planned(tmp_path, SERVICE, graph(steps))
    for host in ("a.default", "a.default.localhost", "a-default.example.com", "g.default.localhost", "x.y.svc"):
        assert settings.is_inside(host), host
    for host in ("localhost", "127.0.0.1", "example.com", "a", "models.example.org"):
        assert not settings.is_inside(host), host
    assert sum("the gateway answers 404" in line for line in said) == 1
    assert any("c.default.svc is none of these manifests' services" in line for line in said)


def test_timeouts_replicas_and_headers_come_from_the_manifests_and_the_options(tmp_path: Path) -> None:
    router = json.dumps({"headers": {"propagate": ["Authorization", "^X-Tenant"]}})
    config = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: inferenceservice-config, namespace: kserve}}\ndata: {{router: '{router}'}}\n"
    more = "  timeout: 7\n  minReplicas: 3\n  routerTimeouts: {serverRead: 1, serviceClient: 2}\n"
    options = PlanOptions(max_replicas=2, propagate=("X-More",))
    plan, settings, _ = planned(tmp_path, SERVICE, config, graph("{serviceName: a}", more), options=options)
    assert (plan.stable.entry.timeout_s, plan.stable.entry.replicas) == (7.0, 2)
    timeouts = settings.timeouts
    assert (timeouts.server_read_s, timeouts.server_write_s, timeouts.server_idle_s) == (1, 60, 180)
    assert timeouts.service_client_s == 2
    assert settings.propagate == ("Authorization", "^X-Tenant", "X-More")
    (problem,) = _load(tmp_path, SERVICE, graph("{serviceName: a}"), options=PlanOptions(propagate=("(",))).errors
    assert "'(' is no regular expression" in str(problem)


def test_the_identity_of_a_graph_changes_with_what_it_does_and_with_nothing_else(tmp_path: Path) -> None:
    def digest(*texts: str) -> str:
        return planned(tmp_path, *texts)[0].stable.entry.digest

    first = digest(SERVICE, graph("{serviceName: a}"))
    assert digest(manifest("--tag=2", name="a"), graph("{serviceName: a}")) == first
    assert digest(SERVICE, graph("{serviceName: a, dependency: Hard}")) != first
    assert digest(SERVICE.replace("value: v2", "value: v1"), graph("{serviceName: a}")) != first


def test_a_graph_too_large_for_a_variable_is_refused(tmp_path: Path) -> None:
    steps = ", ".join(f"{{serviceUrl: 'http://example.com/{'x' * 900}{number}'}}" for number in range(150))
    (problem,) = _load(tmp_path, SERVICE, graph(steps)).errors
    assert "a router takes 120000 at most" in str(problem)
