"""From an InferenceService to its plan, as KServe's controller would deploy it. Pure: no file, no process, no socket.

The arguments and variables are those that KServe's controller injects (transformer_custom.go 93-115, predictor.go 152-157).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...manifests.containers import Container, parse_container
from ...manifests.conventions import KSERVE_CONTAINER, TRANSFORMER_CONTAINER
from ...manifests.fields import flag_value
from ...manifests.inference_service import Component, InferenceService, StorageUri
from ...manifests.problems import Problems
from ...manifests.runtime_selection import runtime_containers, select_runtime
from ...manifests.serving_runtimes import ServingRuntime
from .arm_choice import affinity_of
from .container_environment import ConfigData, resolve_environment
from .deployment_plan import GRACE_S, ComponentPlan, ContainerPlan, PlanOptions, ServicePlan, Track
from .image_commands import Command, local_class, resolve_image
from .server_defaults import is_cluster_host, server_type, with_server_defaults, with_tracing
from .storage_spec import local_storage, with_storage_spec

__all__ = ["Planner"]

ROUTE_TIMEOUT_S = 60.0
"""httproute_reconciler.go 49: a route without a component timeout."""

_STORAGE_VARIABLE, _MODELS = "STORAGE_URI", "/mnt/models"
"""The pod webhook downloads what STORAGE_URI names, and writes over it where that lies; seen on a real control plane."""


class Planner:
    """Plans services, all with the same runtimes, data and options.

    Args:
        runtimes: ServingRuntimes of the manifests.
        built_in: ours.
        data: ConfigMaps and Secrets of the manifests.
        options: the user's.
        problems: collects what cannot run here.
    """

    def __init__(
        self,
        runtimes: Sequence[ServingRuntime],
        built_in: Sequence[ServingRuntime],
        data: ConfigData,
        options: PlanOptions,
        problems: Problems,
    ) -> None:
        self._runtimes = runtimes
        self._built_in = built_in
        self._data = data
        self._options = options
        self._problems = problems

    def plan(self, service: InferenceService) -> ServicePlan | None:
        """Plan one service, as admission let it pass; None where a problem forbids it."""
        before = len(self._problems.errors)
        self._refuse_what_needs_a_cluster(service)
        stable = self._track(service, service.predictor, "", 0)
        canaries = [
            self._track(service, canary.predictor, canary.predictor.name, canary.percent) for canary in service.canaries
        ]
        affinity = affinity_of(service, self._problems)
        if stable is None or None in canaries or len(self._problems.errors) > before:
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
            domains=self._options.domains,
            stopped=service.annotations.get("serving.kserve.io/stop", "").lower() == "true",
            canary_policy=service.annotations.get("serinus.dev/canary-policy", ""),
            standard=service.mode == "Standard",
            affinity=affinity,
        )

    def _refuse_what_needs_a_cluster(self, service: InferenceService) -> None:
        document = service.document
        if document.get(("spec", "explainer")) is not None:
            at = ("spec", "explainer")
            self._problems.warn(document, at, "explainers are not run here", "it works in the cluster")
        if document.get(("spec", "predictor", "workerSpec")) is not None:
            at = ("spec", "predictor", "workerSpec")
            mend = "use a predictor without it"
            self._problems.error(document, at, "several nodes cannot be run on one machine", mend)
        if service.tracing is not None and not self._options.collector and is_cluster_host(service.tracing.endpoint):
            at = ("spec", "tracing")
            message = f"spans go to {service.tracing.endpoint}, a name of the cluster's that this machine may not know"
            mend = "OTEL_EXPORTER_OTLP_ENDPOINT in the environment of serinus up says where a collector is here"
            self._problems.warn(document, at, message, mend)

    def _track(self, service: InferenceService, predictor: Component, name: str, percent: int) -> Track | None:
        predictor = with_storage_spec(service, predictor, self._data, self._options.storage_config, self._problems)
        containers, server = self._predictor_containers(service, predictor)
        if not containers:
            return None
        containers = [
            self._traced(service, container, component="", variant=name, server=server) for container in containers
        ]
        planned = self._component(service, predictor, containers, chain="")
        if planned is None or service.transformer is None:
            return Track(name, percent, planned, None) if planned else None
        source = service.transformer.source
        first, *others = (
            parse_container(value, source.under("containers", index))
            for index, value in enumerate(service.transformer.containers)
        )
        first = _inject(service, replace(first, name=KSERVE_CONTAINER), service.transformer, predictor)
        first = self._traced(service, first, component="transformer")
        component = replace(service.transformer, name=predictor.name)
        transformer = self._component(service, component, [first, *others], chain=planned.digest)
        return Track(name, percent, planned, transformer) if transformer else None

    def _traced(
        self, service: InferenceService, container: Container, *, component: str, variant: str = "", server: str = ""
    ) -> Container:
        collector = self._options.collector
        return with_tracing(
            service, container, component=component, variant=variant, server=server, collector=collector
        )

    def _predictor_containers(self, service: InferenceService, predictor: Component) -> tuple[list[Container], str]:
        """The containers of a predictor's pod, and the type of its server."""
        own = [
            parse_container(value, predictor.source.under("containers", index))
            for index, value in enumerate(predictor.containers)
        ]
        model = predictor.model
        if model is None:
            if len(own) == 1 or (own and not own[0].name):
                own[0] = replace(own[0], name=KSERVE_CONTAINER)  # predictor_custom.go 65-73
            return own, ""
        runtime = select_runtime(service, model, self._runtimes, self._built_in, self._problems)
        if runtime is None:
            return [], ""
        service, model = with_server_defaults(service, model, runtime, has_storage=bool(predictor.storage))
        beside = next(
            (
                (value, predictor.source.under("containers", index))
                for index, value in enumerate(predictor.containers)
                if value.get("name") == TRANSFORMER_CONTAINER
            ),
            None,
        )
        found = runtime_containers(service, model, runtime, self._problems, transformer=beside)
        others = (container for container in own if container.name != TRANSFORMER_CONTAINER)
        return [*found, *others], server_type(runtime)

    def _component(
        self, service: InferenceService, component: Component, containers: Sequence[Container], *, chain: str
    ) -> ComponentPlan | None:
        """Plan a pod template.

        Args:
            service: it belongs to.
            component: its block.
            containers: as the pod gets them.
            chain: digest of the predictor behind a transformer: each predictor revision has a transformer of its own.
        """
        planned = []
        for container in containers:
            own = local_class(service) if component.kind == "predictor" and container.name == KSERVE_CONTAINER else None
            command = own or resolve_image(container, self._options.images, self._problems)
            if command is None:
                continue
            env = resolve_environment(service, container, self._data, self._problems)
            env.setdefault("INFERENCE_SERVICE_NAME", service.name)
            if _STORAGE_VARIABLE in env and component.storage and container.name == KSERVE_CONTAINER:
                env[_STORAGE_VARIABLE] = _MODELS
            planned.append(_container(service, container, command, env))
        if len(planned) < len(containers):
            return None
        names = [container.name for container in planned]
        collocated = component.kind == "predictor" and TRANSFORMER_CONTAINER in names
        middle = f"-{component.name}" if component.name else ""
        storage = local_storage(service, component)
        grace = self._grace(component)
        mounts = tuple(
            (prefix, folder)
            for prefix, folder in sorted(self._options.mounts.items())
            if any(each.uri == prefix or each.uri.startswith(prefix.rstrip("/") + "/") for each in storage)
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
            replicas=max(1, min(component.min_replicas, self._options.max_replicas)),
            knative=service.mode == "Knative",
            digest=_digest(service, component, planned, storage, [chain, grace, mounts]),
            source=component.source,
            grace_s=grace,
            mounts=mounts,
        )

    def _grace(self, component: Component) -> float:
        for document, path in component.source.parts:
            written = document.get((*path, "terminationGracePeriodSeconds"))
            if isinstance(written, int) and written > 0:
                return float(written)
        return GRACE_S


def _digest(
    service: InferenceService,
    component: Component,
    containers: Sequence[ContainerPlan],
    storage: Sequence[StorageUri],
    more: Sequence[Any],
) -> str:
    """The identity of a template: everything that makes its processes what they are, and nothing about traffic."""
    written = json.dumps(
        [
            service.key,
            component.kind,
            component.name,
            more,
            [
                [
                    [
                        item.name,
                        item.command.words,
                        dict(item.command.env),
                        item.words,
                        dict(item.env),
                        item.working_dir,
                    ],
                    [repr(each) for each in (item.startup, item.readiness, item.liveness, item.pre_stop)],
                ]
                for item in containers
            ],
            [[item.uri, item.mount_path] for item in storage],
        ],
        sort_keys=True,
    )
    return hashlib.sha256(written.encode()).hexdigest()[:16]


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
        startup=container.startup,
        pre_stop=container.pre_stop,
    )
