"""What runs for an InferenceService: components, processes, arguments and environment. Pure: no file, no process, no socket.

Theory of operation. `plan_service` turns a service into tracks: the stable one, and one for each entry of `spec.canary`.
A track is a chain,
predictor and perhaps a transformer before it. A `ComponentPlan` is a pod template; its digest is its identity: the
same digest is the same revision, whatever track it is on, so that promoting a canary by renaming starts nothing anew.
`bind` turns a template into processes, once it is known which ports they get and where the model's files lie.

The arguments and variables are those that KServe's controller injects (transformer_custom.go 93-115, predictor.go 152-157),
with three things changed for one machine: every process gets loopback ports of its own, `/mnt/models` becomes the folder
of the fetched model, and `--predictor_host` becomes an address of the gateway that leads to one predictor revision only.
A transformer is started once per predictor revision, so a request that the gateway has sent to the canary stays on it: KServe
forwards three headers only (x-request-id, x-b3-traceid, authorization), and no header has to be trusted this way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ...manifests.containers import Container, Probe, parse_container
from ...manifests.conventions import KSERVE_CONTAINER, TRANSFORMER_CONTAINER
from ...manifests.documents import Source
from ...manifests.fields import flag_value
from ...manifests.inference_service import (
    Component,
    InferenceService,
    StorageUri,
)
from ...manifests.problems import Problems
from ...manifests.runtime_selection import runtime_containers, select_runtime
from ...manifests.serving_runtimes import ServingRuntime
from .container_environment import ConfigData, expand, resolve_environment
from .image_commands import Command, resolve_image

__all__ = [
    "ComponentPlan",
    "ContainerPlan",
    "Launch",
    "PlanOptions",
    "Ports",
    "ServicePlan",
    "Track",
    "bind",
    "plan_service",
    "service_hosts",
    "set_flag",
]

LOCAL_STORAGE = "serinus.dev/local-storage-uri"
"""Annotation of an InferenceService: what `serinus up` takes instead of its predictor's storageUri, relative to the manifest: a
folder, or URI=FOLDER for every URI (canaries' too) that begins so."""

DOMAINS = ("{{.Name}}.{{.Namespace}}.localhost", "{{.Name}}-{{.Namespace}}.example.com")
"""Hosts of a service. The first is ours (every resolver leads *.localhost to this machine); the second KServe's default."""

ROUTE_TIMEOUT_S = 60.0
"""httproute_reconciler.go 49: a route without a component timeout."""

MLSERVER_CLASSES = {
    "sklearn": "mlserver_sklearn.SKLearnModel",
    "xgboost": "mlserver_xgboost.XGBoostModel",
    "lightgbm": "mlserver_lightgbm.LightGBMModel",
    "mlflow": "mlserver_mlflow.MLflowRuntime",
}
"""The label modelClass that the webhook adds for MLServer (defaults.go 412-453)."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the user of this machine decides, not the manifest."""

    images: Mapping[str, Sequence[str]] = field(default_factory=dict)
    domains: tuple[str, ...] = DOMAINS
    max_replicas: int = 1
    """minReplicas above it is lowered: a laptop is no cluster."""


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """One process of a pod, before it has ports."""

    name: str
    command: Command
    words: tuple[str, ...]
    """The command's words and the args, `$(VAR)` not yet replaced."""
    env: Mapping[str, str]
    working_dir: str
    http_port: int
    grpc_port: int
    """The ports that the manifest gives it in its pod."""
    model_name: str
    readiness: Probe | None
    liveness: Probe | None
    port_names: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ComponentPlan:
    """A pod template: predictor or transformer."""

    kind: Literal["predictor", "transformer"]
    service: str
    """`namespace/name`."""
    deployment: str
    """As KServe names it: `fraud-predictor`, `fraud-v2-predictor`."""
    namespace: str
    containers: tuple[ContainerPlan, ...]
    entry: int
    """Which container requests go to: the collocated transformer, else kserve-container."""
    storage: tuple[StorageUri, ...]
    timeout_s: float
    replicas: int
    knative: bool
    digest: str
    source: Source

    @property
    def model_name(self) -> str:
        """Name of the model in URLs."""
        return self.containers[self.entry].model_name


@dataclass(frozen=True, slots=True)
class Track:
    """A chain that can get traffic: the stable one (empty name), or a canary of Standard mode."""

    name: str
    percent: int
    """Share of a canary track. The stable track takes what is left."""
    predictor: ComponentPlan
    transformer: ComponentPlan | None

    @property
    def entry(self) -> ComponentPlan:
        """The component that the gateway sends requests to."""
        return self.transformer or self.predictor


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """Everything that runs for one InferenceService."""

    key: str
    name: str
    namespace: str
    stable: Track
    canaries: tuple[Track, ...]
    canary_percent: int | None
    """Share of the newest stable revision (Knative mode); None: all of it."""
    domains: tuple[str, ...]
    stopped: bool
    """Annotation serving.kserve.io/stop."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of one process."""

    http: int
    grpc: int
    metrics: int
    """For servers that want a third one (MLServer)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One process, ready to be started."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    ports: Ports
    model_name: str
    readiness: Probe | None
    liveness: Probe | None
    probe_ports: Mapping[str | int, int]
    """Where a probe's port (number or name) is on this machine."""


def service_hosts(name: str, namespace: str, domains: Sequence[str]) -> tuple[str, ...]:
    """Hosts of a service or component, in the order of the templates (KServe: `domainTemplate`)."""
    found = []
    for template in domains:
        host = re.sub(r"\{\{\s*\.Name\s*\}\}", name, template)
        found.append(re.sub(r"\{\{\s*\.Namespace\s*\}\}", namespace, host).lower())
    return tuple(found)


def set_flag(words: Sequence[str], names: Sequence[str], value: str) -> tuple[tuple[str, ...], bool]:
    """Give `--name` (dashes and underscores alike) another value; tells whether the flag was there."""
    wanted = {name.replace("_", "-") for name in names}
    out = list(words)
    found = False
    for index, word in enumerate(words):
        if not word.startswith("--"):
            continue
        flag, equals, _ = word[2:].partition("=")
        if flag.replace("_", "-") not in wanted:
            continue
        found = True
        if equals:
            out[index] = f"--{flag}={value}"
        elif index + 1 < len(out):
            out[index + 1] = value
    return tuple(out), found


def plan_service(
    service: InferenceService,
    runtimes: Sequence[ServingRuntime],
    built_in: Sequence[ServingRuntime],
    data: ConfigData,
    options: PlanOptions,
    problems: Problems,
) -> ServicePlan | None:
    """Plan one service; None where a problem forbids it.

    Args:
        service: as admission let it pass.
        runtimes: ServingRuntimes of the manifests.
        built_in: ours.
        data: ConfigMaps and Secrets of the manifests.
        options: the user's.
        problems: collects what cannot run here.
    """
    before = len(problems.errors)
    if service.document.get(("spec", "explainer")) is not None:
        problems.warn(service.document, ("spec", "explainer"), "explainers are not run here", "it works in the cluster")
    if service.document.get(("spec", "predictor", "workerSpec")) is not None:
        at = ("spec", "predictor", "workerSpec")
        problems.error(service.document, at, "several nodes cannot be run on one machine", "use a predictor without it")
    stable = _track(service, service.predictor, "", 0, runtimes, built_in, data, options, problems)
    canaries = [
        _track(
            service,
            canary.predictor,
            canary.predictor.name,
            canary.percent,
            runtimes,
            built_in,
            data,
            options,
            problems,
        )
        for canary in service.canaries
    ]
    if stable is None or None in canaries or len(problems.errors) > before:
        return None
    percent = service.predictor.canary_percent
    if percent is None and service.transformer is not None:
        percent = service.transformer.canary_percent
    return ServicePlan(
        key=service.key,
        name=service.name,
        namespace=service.namespace,
        stable=stable,
        canaries=tuple(track for track in canaries if track is not None),
        canary_percent=percent if service.mode == "Knative" else None,
        domains=options.domains,
        stopped=service.annotations.get("serving.kserve.io/stop", "").lower() == "true",
    )


def _track(
    service: InferenceService,
    predictor: Component,
    name: str,
    percent: int,
    runtimes: Sequence[ServingRuntime],
    built_in: Sequence[ServingRuntime],
    data: ConfigData,
    options: PlanOptions,
    problems: Problems,
) -> Track | None:
    containers = _predictor_containers(service, predictor, runtimes, built_in, problems)
    if not containers:
        return None
    planned = _component(service, predictor, containers, data, options, problems, chain="")
    if planned is None or service.transformer is None:
        return Track(name, percent, planned, None) if planned else None
    source = service.transformer.source
    first, *others = (
        parse_container(value, source.under("containers", index))
        for index, value in enumerate(service.transformer.containers)
    )
    first = _inject(service, replace(first, name=KSERVE_CONTAINER), service.transformer, predictor)
    transformer = _component(
        service,
        replace(service.transformer, name=predictor.name),
        [first, *others],
        data,
        options,
        problems,
        chain=planned.digest,
    )
    return Track(name, percent, planned, transformer) if transformer else None


def _predictor_containers(
    service: InferenceService,
    predictor: Component,
    runtimes: Sequence[ServingRuntime],
    built_in: Sequence[ServingRuntime],
    problems: Problems,
) -> list[Container]:
    own = [
        parse_container(value, predictor.source.under("containers", index))
        for index, value in enumerate(predictor.containers)
    ]
    model = predictor.model
    if model is None:
        if len(own) == 1 or (own and not own[0].name):
            own[0] = replace(own[0], name=KSERVE_CONTAINER)  # predictor_custom.go 65-73
        return own
    runtime = select_runtime(service, model, runtimes, built_in, problems)
    if runtime is None:
        return []
    mlserver = "mlserver" in runtime.name
    if mlserver and "modelClass" not in service.labels:
        labels = {**service.labels, "modelClass": MLSERVER_CLASSES.get(model.format.name, "")}
        service = replace(service, labels=labels)
    found = runtime_containers(service, model, runtime, problems)
    if mlserver and found:
        extra = {"MLSERVER_MODEL_NAME": service.name, "MLSERVER_MODEL_URI": "/mnt/models"}
        if not predictor.storage:
            extra = {"MLSERVER_LOAD_MODELS_AT_STARTUP": "false"}
        wanted = [{"name": key, "value": value} for key, value in extra.items()]
        names = {variable.name for variable in found[0].env}
        added = parse_container({"env": [item for item in wanted if item["name"] not in names]}, found[0].source)
        found[0] = replace(found[0], env=(*found[0].env, *added.env))
    collocated = [container for container in own if container.name == TRANSFORMER_CONTAINER]
    return [*found, *collocated, *(container for container in own if container.name != TRANSFORMER_CONTAINER)]


def _inject(service: InferenceService, container: Container, component: Component, predictor: Component) -> Container:
    """Add the arguments that KServe gives a transformer, each only where it is absent (transformer_custom.go 93-115)."""
    middle = f"-{predictor.name}" if predictor.name else ""
    wanted = {
        "model_name": service.name,
        "predictor_host": f"{service.name}{middle}-predictor.{service.namespace}",
        "http_port": "8080",
    }
    if component.concurrency is not None:
        wanted["workers"] = str(component.concurrency)
    args = list(container.args)
    for name, value in wanted.items():
        if flag_value([*container.command, *args], name) is None:
            args += [f"--{name}", value]
    return replace(container, args=tuple(args))


def _component(
    service: InferenceService,
    component: Component,
    containers: Sequence[Container],
    data: ConfigData,
    options: PlanOptions,
    problems: Problems,
    *,
    chain: str,
) -> ComponentPlan | None:
    planned = []
    for container in containers:
        command = resolve_image(container, options.images, problems)
        if command is None:
            continue
        env = resolve_environment(service, container, data, problems)
        env.setdefault("INFERENCE_SERVICE_NAME", service.name)
        planned.append(_container(service, container, command, env))
    if len(planned) < len(containers):
        return None
    names = [container.name for container in planned]
    collocated = component.kind == "predictor" and TRANSFORMER_CONTAINER in names
    middle = f"-{component.name}" if component.name else ""
    storage = _local_storage(service, component)
    written = json.dumps(
        [
            service.key,
            component.kind,
            component.name,
            chain,
            [
                [item.name, item.command.words, dict(item.command.env), item.words, dict(item.env), item.working_dir]
                for item in planned
            ],
            [[item.uri, item.mount_path] for item in storage],
        ],
        sort_keys=True,
    )
    return ComponentPlan(
        kind=component.kind,
        service=service.key,
        deployment=f"{service.name}{middle}-{component.kind}",
        namespace=service.namespace,
        containers=tuple(planned),
        entry=names.index(TRANSFORMER_CONTAINER) if collocated else 0,
        storage=storage,
        timeout_s=component.timeout_s if component.timeout_s is not None else ROUTE_TIMEOUT_S,
        replicas=max(1, min(component.min_replicas, options.max_replicas)),
        knative=service.mode == "Knative",
        digest=hashlib.sha256(written.encode()).hexdigest()[:16],
        source=component.source,
    )


def _local_storage(service: InferenceService, component: Component) -> tuple[StorageUri, ...]:
    """The component's storage, or what the annotation says for this machine."""
    local = service.annotations.get(LOCAL_STORAGE)
    if not local or not component.storage or component.kind != "predictor":
        return component.storage
    first = component.storage[0]
    prefix, equals, folder = local.rpartition("=")
    if equals and "://" in prefix:
        # Speaks for every URI below the prefix, canaries' as well.
        prefix = prefix.rstrip("/")
        if first.uri != prefix and not first.uri.startswith(prefix + "/"):
            return component.storage
        local = folder.rstrip("/") + first.uri[len(prefix) :]
        at = Source(((service.document, ("metadata", "annotations", LOCAL_STORAGE)),))
        return (StorageUri(local, first.mount_path, at), *component.storage[1:])
    # The annotation speaks for the stable predictor's URI; a canary that names a URI of its own keeps it.
    if service.predictor.storage and first.uri != service.predictor.storage[0].uri:
        return component.storage
    at = Source(((service.document, ("metadata", "annotations", LOCAL_STORAGE)),))
    return (StorageUri(local, first.mount_path, at), *component.storage[1:])


def _container(
    service: InferenceService, container: Container, command: Command, env: Mapping[str, str]
) -> ContainerPlan:
    words = (*command.words, *container.args)
    plain = [port for port in container.ports if not port.is_grpc]
    grpc = [port for port in container.ports if port.is_grpc]
    if len(plain) > 1 and not grpc and plain[1].number in {8081, 9000}:
        grpc, plain = plain[1:2], plain[:1]

    def declared(flag: str, ports: Sequence[int], default: int) -> int:
        written = flag_value(words, flag) or env.get(f"SERINUS_{flag.upper()}") or env.get(f"MLSERVER_{flag.upper()}")
        if written and written.isdecimal():
            return int(written)
        return ports[0] if ports else default

    return ContainerPlan(
        name=container.name,
        command=command,
        words=words,
        env=env,
        working_dir=container.working_dir,
        http_port=declared("http_port", [port.number for port in plain], 8080),
        grpc_port=declared("grpc_port", [port.number for port in grpc], 8081),
        model_name=flag_value(words, "model_name")
        or env.get("SERINUS_MODEL_NAME")
        or env.get("MLSERVER_MODEL_NAME")
        or service.name,
        readiness=container.readiness,
        liveness=container.liveness,
        port_names={port.name: port.number for port in container.ports if port.name},
    )


_LOOPBACK = re.compile(r"\b(localhost|127\.0\.0\.1):(\d+)\b")


def bind(
    component: ComponentPlan,
    *,
    ports: Sequence[Ports],
    folders: Mapping[str, Path],
    revision: str,
    predictor: str | None = None,
) -> tuple[Launch, ...]:
    """The processes of one pod.

    Args:
        component: the template.
        ports: of each container, in order.
        folders: local folder by mount path (`/mnt/models`).
        revision: its name, which Knative tells the container as K_REVISION.
        predictor: address of the predictor behind a transformer, `127.0.0.1:port`.
    """
    moved: dict[int, int] = {}
    for container, own in reversed(list(zip(component.containers, ports, strict=True))):
        moved.update({container.http_port: own.http, container.grpc_port: own.grpc})

    def local(text: str) -> str:
        for mount, folder in sorted(folders.items(), key=lambda item: -len(item[0])):
            text = re.sub(rf"(?<![\w.-]){re.escape(mount)}(?![\w.-])", str(folder).replace("\\", r"\\"), text)
        return _LOOPBACK.sub(lambda match: f"127.0.0.1:{moved.get(int(match[2]), int(match[2]))}", text)

    launches = []
    for container, own in zip(component.containers, ports, strict=True):
        # Folders and neighbours first; the process's own ports and its predictor after it, so that neither is moved twice.
        env = {name: local(value) for name, value in container.env.items()}
        words = tuple(local(word) for word in container.words)
        env.update(_port_environment(container, own))
        env.update(container.command.env)
        if component.knative:
            env |= {"K_SERVICE": component.deployment, "K_CONFIGURATION": component.deployment, "K_REVISION": revision}
        words, _ = set_flag(words, ("http_port",), str(own.http))
        words, _ = set_flag(words, ("grpc_port",), str(own.grpc))
        if container.command.ours:
            # A manifest says 0.0.0.0, for its pod; what this machine tries out is nobody else's.
            words, _ = set_flag(words, ("host",), "127.0.0.1")
        if predictor is not None:
            words = _point_at(words, component, predictor)
        folder = folders.get("/mnt/models")
        if folder is not None and container.command.ours and flag_value(words, "model_dir", "model_uri") is None:
            env.setdefault("SERINUS_MODEL_DIR", str(folder))
        words = tuple(expand(word, env) for word in words)
        probes: dict[str | int, int] = {container.http_port: own.http, container.grpc_port: own.grpc}
        probes |= {name: probes[number] for name, number in container.port_names.items() if number in probes}
        launches.append(
            Launch(
                name=container.name,
                argv=words,
                env=env,
                cwd=local(container.working_dir) if container.working_dir else None,
                ports=own,
                model_name=container.model_name,
                readiness=container.readiness,
                liveness=container.liveness,
                probe_ports=probes,
            )
        )
    return tuple(launches)


def _port_environment(container: ContainerPlan, own: Ports) -> dict[str, str]:
    """Variables that tell a process its ports; MLServer's only where it is MLServer that runs."""
    env = {"SERINUS_HOST": "127.0.0.1", "SERINUS_HTTP_PORT": str(own.http), "SERINUS_GRPC_PORT": str(own.grpc)}
    if container.command.ours:
        # The delay lets endpoints propagate in a cluster; here the gateway has stopped sending before SIGTERM comes.
        return {**env, "SERINUS_DRAIN_DELAY_S": "0"}
    env["PORT"] = str(own.grpc if container.env.get("PORT") == str(container.grpc_port) else own.http)
    env |= {"HTTP_PORT": str(own.http), "GRPC_PORT": str(own.grpc)}
    if any("mlserver" in word for word in container.command.words):
        env |= {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": str(own.http),
            "MLSERVER_GRPC_PORT": str(own.grpc),
            "MLSERVER_METRICS_PORT": str(own.metrics),
        }
    return env


def _point_at(words: tuple[str, ...], component: ComponentPlan, predictor: str) -> tuple[str, ...]:
    """Lead `--predictor_host` to the predictor of this chain, if it names this service's predictor at all."""
    written = flag_value(words, "predictor_host")
    if written is None:
        return (*words, "--predictor_host", predictor)
    host = written.split("://", 1)[-1].split(":", 1)[0].split("/", 1)[0]
    name = component.deployment.removesuffix("transformer") + "predictor"
    plain = component.service.split("/", 1)[1] + "-predictor"
    own = {name, plain}
    if host in own or any(host.startswith(f"{each}.{component.namespace}") for each in own):
        words, _ = set_flag(words, ("predictor_host",), predictor)
    return words
