"""From an InferenceGraph to its plan: a router process, and the URL that each `serviceName` stands for. Pure.

Source: the InferenceGraph controller (`controller.go`) and GetPredictorEndpoint of KServe: protocol v1 is `/v1/models/NAME:predict`, v2 is
`/v2/models/NAME/infer`; a runtime named in the service says the protocol by the first of v1 and v2 in its list.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...manifests.containers import Probe
from ...manifests.conventions import TRANSFORMER_CONTAINER
from ...manifests.documents import Source
from ...manifests.fields import flag_value, listed, mapping
from ...manifests.graphs.inference_graph import GraphNode, GraphStep, InferenceGraph
from ...manifests.inference_service import InferenceService
from ...manifests.problems import Problems, nearest
from ...manifests.serving_runtimes import ServingRuntime
from ..router.header_propagation import HeaderFilter
from ..router.router_settings import SETTINGS_VARIABLE, RouterSettings
from .container_environment import ConfigData
from .deployment_plan import ComponentPlan, ContainerPlan, PlanOptions, ServicePlan, Track, service_hosts
from .image_commands import Command
from .planner import ROUTE_TIMEOUT_S

__all__ = ["GraphPlanner"]

_MOST_BYTES = 120_000
"""Of a graph, as the router is given it: Linux takes 128 KiB for one variable (MAX_ARG_STRLEN, execve(2))."""
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?|[0-9a-fA-F:.]+")
_INSIDE = (".svc.cluster.local", ".svc")


class GraphPlanner:
    """Plans graphs, all beside the same services.

    Args:
        services: InferenceServices that a step may name, by (namespace, name).
        graphs: `(namespace, name)` of every graph.
        runtimes: ServingRuntimes that services may name.
        data: ConfigMaps of the manifests; inferenceservice-config says which headers are passed on.
        options: the user's.
        problems: collects what cannot run here.
    """

    def __init__(
        self,
        services: Mapping[tuple[str, str], InferenceService],
        graphs: Sequence[tuple[str, str]],
        runtimes: Sequence[ServingRuntime],
        data: ConfigData,
        options: PlanOptions,
        problems: Problems,
    ) -> None:
        self._services = services
        self._runtimes = runtimes
        self._options = options
        self._problems = problems
        self._patterns = (*_configured_headers(data), *options.propagate)
        labels = [label for service in services.values() for label in _labels(service)]
        self._hosts = frozenset(
            host for namespace, label in (*labels, *graphs) for host in self._hosts_of(namespace, label)
        )

    def _hosts_of(self, namespace: str, label: str) -> tuple[str, ...]:
        return (*service_hosts(label, namespace, self._options.domains), f"{label}.{namespace}")

    def plan(self, graph: InferenceGraph) -> ServicePlan | None:
        """Plan one graph, as admission let it pass; None where a problem forbids it."""
        before = len(self._problems.errors)
        nodes = {
            name: GraphNode(node.kind, tuple(self._step(graph, name, i, step) for i, step in enumerate(node.steps)))
            for name, node in graph.nodes.items()
        }
        for name, node in graph.nodes.items():
            if not node.steps and node.kind in {"Sequence", "Splitter"}:
                at = ("spec", "nodes", name, "steps")
                self._problems.error(graph.document, at, f"node {name} leads nowhere", "add steps")
        try:
            HeaderFilter(self._patterns)
        except ValueError as error:
            mend = "mend router.headers.propagate of inferenceservice-config, or --propagate-header"
            self._problems.error(graph.document, ("metadata", "name"), str(error), mend)
        settings = RouterSettings(graph.key, nodes, graph.timeouts, self._patterns, self._hosts)
        text = settings.encode()
        if len(text.encode()) > _MOST_BYTES:
            message = f"the graph takes {len(text.encode())} bytes; a router takes {_MOST_BYTES} at most"
            self._problems.error(graph.document, ("spec", "nodes"), message, "make several graphs of it")
        if len(self._problems.errors) > before:
            return None
        component = self._component(graph, text)
        return ServicePlan(
            key=graph.key,
            name=graph.name,
            namespace=graph.namespace,
            stable=Track("", 0, component, None),
            canaries=(),
            canary_percent=None,
            domains=self._options.domains,
            stopped=graph.annotations.get("serving.kserve.io/stop", "").lower() == "true",
        )

    def _component(self, graph: InferenceGraph, settings: str) -> ComponentPlan:
        words = (sys.executable, "-m", "serinus.local.router.router_process", "--http_port", "8080")
        container = ContainerPlan(
            name="router",
            command=Command(words, {SETTINGS_VARIABLE: settings}, ours=False),
            words=words,
            env={},
            working_dir="",
            http_port=8080,
            grpc_port=8081,
            model_name=graph.name,
            readiness=Probe("http", "/readyz", 8080, (), 0, 1, 2, 3),
            liveness=None,
            port_names={},
        )
        digest = hashlib.sha256(json.dumps([graph.key, settings]).encode()).hexdigest()[:16]
        return ComponentPlan(
            kind="router",
            service=graph.key,
            deployment=graph.name,
            namespace=graph.namespace,
            containers=(container,),
            entry=0,
            storage=(),
            timeout_s=graph.timeout_s if graph.timeout_s is not None else ROUTE_TIMEOUT_S,
            replicas=max(1, min(graph.min_replicas, self._options.max_replicas)),
            knative=False,
            digest=digest,
            source=Source(((graph.document, ("spec",)),)),
        )

    # Where steps lead ------------------------------------------------------------------------------------------------

    def _step(self, graph: InferenceGraph, node: str, index: int, step: GraphStep) -> GraphStep:
        source = graph.step_source(node, index)
        if step.service:
            service = self._services.get((graph.namespace, step.service))
            if service is None:
                names = [name for namespace, name in self._services if namespace == graph.namespace]
                near = nearest(step.service, names)
                message = f"no InferenceService {step.service} is in namespace {graph.namespace} of these manifests"
                mend = f"did you mean {near}?" if near else "add its manifest to the folder, or give its path, too"
                self._problems.error_at(source, ("serviceName",), message, mend)
                return step
            return replace(step, url=self._service_url(service, source))
        if step.url:
            self._check_url(graph, source, step.url)
        return step

    def _service_url(self, service: InferenceService, source: Source) -> str:
        protocol = self._protocol(service)
        if protocol not in {"v1", "v2"}:
            message = f"{service.name} speaks {protocol or 'neither v1 nor v2'}; a graph calls V1 and V2 over HTTP"
            mend = "set protocolVersion: v2 (PROTOCOL of a custom container), which the server answers beside gRPC"
            self._problems.error_at(source, ("serviceName",), message, mend)
        name = _model_name(service)
        path = f"/v1/models/{name}:predict" if protocol == "v1" else f"/v2/models/{name}/infer"
        return f"http://{service.name}.{service.namespace}.svc.cluster.local{path}"

    def _protocol(self, service: InferenceService) -> str:
        if service.transformer is not None:
            return _container_protocol(service.transformer.containers)
        model = service.predictor.model
        if model is None:
            return _container_protocol(service.predictor.containers)
        named = next(
            (
                runtime
                for runtime in self._runtimes
                if runtime.name == model.runtime and runtime.namespace in {"", service.namespace}
            ),
            None,
        )
        if model.runtime and named is not None and named.protocols:
            return next((each for each in named.protocols if each in {"v1", "v2"}), "")
        return model.protocol or "v1"

    def _check_url(self, graph: InferenceGraph, source: Source, url: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host, _ = (parts.hostname or "").rstrip("."), parts.port
            sound = parts.scheme in {"http", "https"} and bool(_HOST.fullmatch(host)) and parts.username is None
        except ValueError:
            host, sound = "", False
        if not sound:
            mend = "write http://HOST[:PORT]/PATH; inside the cluster http://NAME.NAMESPACE.svc.cluster.local/PATH"
            self._problems.error_at(source, ("serviceUrl",), f"{url!r} is no URL that can be called", mend)
            return
        short = next((host.removesuffix(end) for end in _INSIDE if host.endswith(end)), host)
        if short in self._hosts_of(graph.namespace, graph.name):
            message = f"{url} leads back to this graph; no request would end"
            self._problems.error_at(source, ("serviceUrl",), message, "name another service, or a node by nodeName")
        elif host.endswith(_INSIDE) and short not in self._hosts:
            message = f"{host} is none of these manifests' services: the gateway answers 404 for it"
            mend = "add the service's manifest, or use an address outside of the cluster"
            document, path = source.parts[0]
            self._problems.warn(document, (*path, "serviceUrl"), message, mend)


def _labels(service: InferenceService) -> Iterator[tuple[str, str]]:
    """Namespace and first label of every host of a service."""
    yield service.namespace, service.name
    for component in (service.predictor, *(canary.predictor for canary in service.canaries)):
        yield service.namespace, f"{service.name}{f'-{component.name}' if component.name else ''}-predictor"
    yield service.namespace, f"{service.name}-predictor"
    yield service.namespace, f"{service.name}-transformer"


def _container_protocol(containers: Sequence[Mapping[str, object]]) -> str:
    """PROTOCOL of the container that requests come to; KServe takes v1 where there is none."""
    for container in (*(c for c in containers if c.get("name") == TRANSFORMER_CONTAINER), *containers[:1]):
        for variable in map(mapping, listed(container.get("env"))):
            if variable.get("name") == "PROTOCOL":
                return str(variable.get("value") or "")
        return "v1"
    return "v1"


def _model_name(service: InferenceService) -> str:
    """KServe's GetModelName: the transformer's argument, MLServer's variable, the predictor's argument, else the service's name."""
    blocks: list[Mapping[str, object]] = []
    if service.transformer is not None:
        blocks += service.transformer.containers[:1]
    model = service.predictor.model
    if model is not None:
        for variable in map(mapping, listed(model.container.get("env"))):
            if variable.get("name") == "MLSERVER_MODEL_NAME" and variable.get("value"):
                blocks.append({"args": ["--model_name", str(variable["value"])]})
        blocks.append(model.container)
    else:
        blocks += service.predictor.containers[:1]
    return next(
        (name for block in blocks if (name := flag_value(listed(block.get("args")), "model_name"))), service.name
    )


def _configured_headers(data: ConfigData) -> tuple[str, ...]:
    """`router.headers.propagate` of a ConfigMap inferenceservice-config among the manifests."""
    for (kind, _, name), entries in data.entries.items():
        if kind == "ConfigMap" and name == "inferenceservice-config":
            try:
                router = json.loads(entries.get("router", "{}"))
            except ValueError:
                return ()
            return tuple(str(each) for each in listed(mapping(mapping(router).get("headers")).get("propagate")))
    return ()
