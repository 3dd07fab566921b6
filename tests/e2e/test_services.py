"""Every InferenceService of the project on a real cluster: applied, made into what the local runner runs, and ready."""

from __future__ import annotations

import json
import os
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from serinus.local.plan.deployment_plan import ComponentPlan, ContainerPlan, PlanOptions, ServicePlan
from serinus.local.plan.plan_loader import load
from serinus.manifests.conventions import deployment_mode

from .cluster import KNATIVE, Cluster, NotAllowed, is_control_plane_only, named, render

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(
    file.parent.relative_to(ROOT)
    for file in (ROOT / "inferenceservices").rglob("kustomization.yaml")
    # A graph's folder holds several services, a runtime's none; that the API server takes both is asked below.
    if not any(word in file.read_text() for word in ("kind: Component", "inferencegraph"))
    and file.parent.name != "runtime"
)
MANIFESTS = sorted(
    file.parent.relative_to(ROOT)
    for top in ("manifests", "inferenceservices")
    for file in (ROOT / top).rglob("kustomization.yaml")
    if "kind: Component" not in file.read_text()
)


def services(folder: Path) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(render(ROOT / folder)) if item and item["kind"] == "InferenceService"]


def runtime_containers(folder: Path, block: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The containers of a predictor's runtime, where it comes with the service; what `model` lays over them left out."""
    model = block.get("model", {})
    return [
        {key: value for key, value in container.items() if key not in model}
        for item in yaml.safe_load_all(render(ROOT / folder))
        if item and item["kind"] == "ServingRuntime" and item["metadata"]["name"] == model.get("runtime")
        for container in item["spec"]["containers"]
    ]


def mode(service: Mapping[str, Any]) -> str:
    return deployment_mode(service["metadata"].get("annotations", {}))


@pytest.mark.parametrize("folder", MANIFESTS, ids=str)
def test_the_api_server_takes_every_kustomization(cluster: Cluster, folder: Path) -> None:
    documents = [item for item in yaml.safe_load_all(render(ROOT / folder)) if item]
    placed = cluster.placed(documents)
    if not placed:
        pytest.skip(f"the cluster serves none of {sorted({item['kind'] for item in documents})}")
    try:
        assert cluster.dry_run(documents) == len(placed)
    except NotAllowed as refused:
        pytest.skip(str(refused))


@pytest.fixture(scope="module", params=FOLDERS, ids=str)
def applied(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder and its InferenceService, as it stands in the cluster when KServe has settled."""
    folder: Path = request.param
    (written,) = services(folder)
    if mode(written) == "Knative" and (reason := cluster.lacks_knative()):
        pytest.skip(reason)
    name = written["metadata"]["name"]
    try:
        cluster.apply(render(ROOT / folder))
        if mode(written) == "Knative" and is_control_plane_only() and cluster.runs_knative():
            # Its controllers wait for pods of revisions; KServe has done its part with the Knative Services.
            cluster.wait(f"a Knative Service of {name}", lambda: cluster.get(KNATIVE, f"{name}-predictor"))
            yield folder, cluster.get("inferenceservice", name) or {}
        else:
            yield folder, cluster.wait_settled(name)
    finally:
        cluster.remove(name)


def planned(folder: Path, cluster: Cluster) -> ServicePlan:
    # Images with CUDA are not run on one machine; what their containers are given is the same.
    gpu = {f"{name}_server-gpu": ("serve",) for name in ("tensorflow", "torch", "onnx")}
    with tempfile.TemporaryDirectory() as placed:
        # In the namespace where the cluster has it: a transformer's predictor has the namespace in its name.
        file = Path(placed) / "service.yaml"
        file.write_text(yaml.safe_dump_all(cluster.placed(yaml.safe_load_all(render(ROOT / folder)))))
        loaded = load(file, [ROOT / "manifests/overlays/local"], PlanOptions(images=gpu))
    assert loaded.errors == ()
    (plan,) = loaded.services
    return plan


def components(plan: ServicePlan) -> Iterator[ComponentPlan]:
    for track in (plan.stable, *plan.canaries):
        yield track.predictor
        if track.transformer is not None and track is plan.stable:
            yield track.transformer


def arguments(container: ContainerPlan) -> list[str]:
    """What the container is given after its image's command."""
    return list(container.words[len(container.command.words) :])


def pod_of(cluster: Cluster, component: ComponentPlan, *, knative: bool) -> dict[str, Any]:
    """The pod template that the controller made."""
    kind = KNATIVE if knative else "deployment"
    made = cluster.wait(f"{kind} {component.deployment}", lambda: cluster.get(kind, component.deployment))
    return made["spec"]["template"]["spec"]


def test_a_service_becomes_ready_and_nothing_that_was_written_is_lost(
    applied: tuple[Path, dict[str, Any]], cluster: Cluster
) -> None:
    folder, stored = applied
    (written,) = services(folder)
    missing = list(lost(written["spec"], stored["spec"], "spec"))
    assert missing == []
    # Status 1 is a difference, told on the standard output; more is an error. Both fail here.
    drift = cluster.kubectl("diff", "--server-side", "--force-conflicts", "-f", "-", text=render(ROOT / folder))
    assert drift == ""


def lost(written: Any, stored: Any, path: str) -> Iterator[str]:
    """Fields that were written and are not stored; lists are compared place by place."""
    if isinstance(written, dict):
        for key, value in written.items():
            if not isinstance(stored, dict) or key not in stored:
                if value not in (None, {}, [], ""):
                    yield f"{path}.{key}"
            else:
                yield from lost(value, stored[key], f"{path}.{key}")
    elif isinstance(written, list):
        for index, value in enumerate(written):
            if not isinstance(stored, list) or index >= len(stored):
                yield f"{path}[{index}]"
            else:
                yield from lost(value, stored[index], f"{path}[{index}]")
    elif written != stored and str(written) != str(stored):
        yield f"{path}: {written!r} became {stored!r}"


def test_the_controller_makes_the_containers_that_the_local_runner_runs(
    applied: tuple[Path, dict[str, Any]], cluster: Cluster
) -> None:
    folder, stored = applied
    for component in components(planned(folder, cluster)):
        pod = pod_of(cluster, component, knative=mode(stored) == "Knative")
        there = dict(named(pod["containers"]))
        for container in component.containers:
            made = there[container.name]
            assert made.get("args", []) == arguments(container), container.name
            values = {
                name: item.get("value", "") for name, item in named(made.get("env", [])) if "valueFrom" not in item
            }
            # The pod webhook, which Deployments do not pass, writes STORAGE_URI over; both come to /mnt/models in the container.
            wanted = {name: value for name, value in container.env.items() if name in values and name != "STORAGE_URI"}
            assert {name: values[name] for name in wanted} == wanted, container.name
            assert set(container.env) - set(values) <= {"INFERENCE_SERVICE_NAME"} | references(made), container.name


def references(container: Mapping[str, Any]) -> set[str]:
    """Variables whose values come from elsewhere."""
    return {name for name, item in named(container.get("env", [])) if "valueFrom" in item}


def test_probes_resources_and_nodes_of_the_pods_are_as_written(
    applied: tuple[Path, dict[str, Any]], cluster: Cluster
) -> None:
    folder, stored = applied
    (written,) = services(folder)
    plan = planned(folder, cluster)
    spec = written["spec"]
    blocks = [(plan.stable.predictor, spec["predictor"])]
    if plan.stable.transformer is not None:
        blocks.append((plan.stable.transformer, spec["transformer"]))
    by_name = {item["predictor"]["name"]: item["predictor"] for item in spec.get("canary", [])}
    blocks += [(track.predictor, by_name[track.name]) for track in plan.canaries]
    knative = mode(stored) == "Knative"
    for component, block in blocks:
        pod = pod_of(cluster, component, knative=knative)
        for key in ("nodeSelector", "tolerations"):
            if block.get(key):
                assert pod.get(key) == block[key], key
        there = dict(named(pod["containers"]))
        for container in [*block.get("containers", []), *runtime_containers(folder, block)]:
            name = (
                container["name"]
                if component.kind == "predictor" or len(block["containers"]) > 1
                else "kserve-container"
            )
            made = there[name]
            # Where `kubectl describe pod` reads why a container ended, such as for its memory. The API server writes the default into a
            # Deployment; a Knative Service is stored as it came, and its Deployment gets the default (Kubernetes' API, Container).
            default = "/dev/termination-log" if knative else None
            assert made.get("terminationMessagePath", default) == "/dev/termination-log"
            for key in ("readinessProbe", "livenessProbe", "startupProbe", "resources", "securityContext"):
                if container.get(key):
                    assert list(lost(container[key], made.get(key), key)) == [], (name, key)


def test_the_route_leads_rest_and_grpc_to_the_service(applied: tuple[Path, dict[str, Any]], cluster: Cluster) -> None:
    folder, stored = applied
    if mode(stored) != "Standard":
        pytest.skip("Knative has routes of its own")
    route = cluster.way_in(stored["metadata"]["name"])
    rules = route["spec"]["rules"]
    if route["kind"] == "HTTPRoute":
        targets = {ref["name"] for rule in rules for ref in rule.get("backendRefs", [])}
    else:
        targets = {path["backend"]["service"]["name"] for rule in rules for path in rule["http"]["paths"]}
    entry = planned(folder, cluster).stable.entry
    assert entry.deployment in targets
    service = cluster.get("service", entry.deployment)
    assert service is not None
    first = entry.containers[entry.entry]
    ports = {port["port"]: port["targetPort"] for port in service["spec"]["ports"]}
    assert str(ports[80]) in {
        str(first.http_port),
        *(name for name, number in first.port_names.items() if number == first.http_port),
    }


@pytest.mark.skipif(is_control_plane_only(), reason="there are no nodes to answer")
def test_fraud_answers_over_rest_and_grpc_as_the_local_runner_does(cluster: Cluster) -> None:
    ingress = os.environ.get("E2E_INGRESS")
    if not ingress:
        pytest.skip("set E2E_INGRESS to the gateway's address, such as http://127.0.0.1:8080")
    folder = ROOT / "inferenceservices/fraud/fused"
    (written,) = services(folder.relative_to(ROOT))
    name = written["metadata"]["name"]
    asked = json.loads((folder.parent / "request.json").read_bytes())
    wanted = json.loads((folder.parent / "response.json").read_bytes())
    cluster.apply(render(folder))
    try:
        host = cluster.wait_settled(name)["status"]["url"].partition("://")[2]
        assert_same(over_rest(ingress, host, name, asked), wanted)
        if mode(written) == "Standard":  # Knative gives a service one port
            assert_same(over_grpc(ingress.partition("://")[2], host, name, asked), wanted)
    finally:
        cluster.remove(name)


def assert_same(found: Mapping[str, list[Any]], wanted: Mapping[str, Any]) -> None:
    """The values of a recorded response, numbers to five digits."""
    for item in wanted["outputs"]:
        numbers = item["datatype"].startswith(("FP", "INT"))
        assert found[item["name"]] == (pytest.approx(item["data"], rel=1e-5) if numbers else item["data"]), item["name"]


def over_rest(ingress: str, host: str, name: str, asked: Mapping[str, Any]) -> dict[str, list[Any]]:
    headers = {"Host": host, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{ingress}/v2/models/{name}/infer", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return {item["name"]: item["data"] for item in json.loads(answer.read())["outputs"]}


def over_grpc(address: str, host: str, name: str, asked: Mapping[str, Any]) -> dict[str, list[Any]]:
    import numpy as np
    from tritonclient import grpc
    from tritonclient.utils import triton_to_np_dtype

    inputs = []
    for item in asked["inputs"]:
        text = item["datatype"] == "BYTES"
        values = [word.encode() for word in item["data"]] if text else item["data"]
        array = np.array(values, dtype=np.object_ if text else triton_to_np_dtype(item["datatype"])).reshape(
            item["shape"]
        )
        tensor = grpc.InferInput(item["name"], list(array.shape), item["datatype"])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with grpc.InferenceServerClient(address, channel_args=[("grpc.default_authority", host)]) as client:
        answer = client.infer(name, inputs)
    assert answer is not None
    found = {}
    for output in answer.get_response().outputs:
        array = answer.as_numpy(output.name)
        assert array is not None
        values = array.reshape(-1).tolist()
        found[output.name] = [word.decode() if isinstance(word, bytes) else word for word in values]
    return found
