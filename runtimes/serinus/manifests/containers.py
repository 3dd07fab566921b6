"""A container of a pod as a frozen value: image, words, environment, ports, probes, what runs before it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .documents import Source
from .fields import listed, mapping

__all__ = ["Container", "EnvVar", "Hook", "Port", "Probe", "parse_container"]


@dataclass(frozen=True, slots=True)
class EnvVar:
    """One variable: a value, or a reference that the API server would resolve."""

    name: str
    value: str
    reference: Mapping[str, Any] | None
    """`valueFrom`, or None."""
    source: Source


@dataclass(frozen=True, slots=True)
class Port:
    """One containerPort."""

    number: int
    name: str

    @property
    def is_grpc(self) -> bool:
        """Whether KServe takes it for gRPC (service_reconciler.go 66-78)."""
        return "grpc" in self.name or "h2c" in self.name


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe; seconds as in Kubernetes, with its defaults."""

    kind: Literal["http", "tcp", "exec"]
    path: str
    port: int | str | None
    """Number or name of a containerPort."""
    command: tuple[str, ...]
    initial_delay_s: int
    period_s: int
    timeout_s: int
    failures: int


@dataclass(frozen=True, slots=True)
class Hook:
    """`lifecycle.preStop`: what the kubelet does before SIGTERM (core/v1 LifecycleHandler)."""

    kind: Literal["exec", "http", "sleep"]
    command: tuple[str, ...] = ()
    path: str = "/"
    port: int | str | None = None
    """Number or name of a containerPort; a host of its own is not looked at."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Container:
    """One container as the pod gets it."""

    name: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[EnvVar, ...]
    env_from: tuple[Mapping[str, Any], ...]
    ports: tuple[Port, ...]
    working_dir: str
    readiness: Probe | None
    liveness: Probe | None
    source: Source
    startup: Probe | None = None
    pre_stop: Hook | None = None


def _probe(value: Any) -> Probe | None:
    probe = mapping(value)
    if not probe:
        return None
    http, tcp = mapping(probe.get("httpGet")), mapping(probe.get("tcpSocket") or probe.get("grpc"))
    kind: Literal["http", "tcp", "exec"] = "http" if http else "tcp" if tcp else "exec"
    return Probe(
        kind=kind,
        path=str(http.get("path") or "/"),
        port=http.get("port") if http else tcp.get("port"),
        command=tuple(map(str, listed(mapping(probe.get("exec")).get("command")))),
        # Defaults: Kubernetes, core/v1 Probe.
        initial_delay_s=int(probe.get("initialDelaySeconds") or 0),
        period_s=max(1, int(probe.get("periodSeconds") or 10)),
        timeout_s=max(1, int(probe.get("timeoutSeconds") or 1)),
        failures=max(1, int(probe.get("failureThreshold") or 3)),
    )


def _hook(value: Any) -> Hook | None:
    """Read a handler; tcpSocket, which the kubelet does not run, is none."""
    handler = mapping(value)
    if "exec" in handler:
        return Hook("exec", tuple(map(str, listed(mapping(handler["exec"]).get("command")))))
    if "httpGet" in handler:
        http = mapping(handler["httpGet"])
        return Hook("http", path=str(http.get("path") or "/"), port=http.get("port"))
    if "sleep" in handler:
        return Hook("sleep", seconds=float(mapping(handler["sleep"]).get("seconds") or 0))
    return None


def parse_container(value: Mapping[str, Any], source: Source) -> Container:
    """Read a container whose shape has been checked."""
    env = tuple(
        EnvVar(
            name=str(item.get("name")),
            value=str(item.get("value") if item.get("value") is not None else ""),
            reference=item.get("valueFrom"),
            source=source.under("env", index),
        )
        for index, item in enumerate(map(mapping, listed(value.get("env"))))
    )
    ports = tuple(
        Port(int(item["containerPort"]), str(item.get("name") or ""))
        for item in map(mapping, listed(value.get("ports")))
    )
    return Container(
        name=str(value.get("name") or ""),
        image=str(value.get("image") or ""),
        command=tuple(map(str, listed(value.get("command")))),
        args=tuple(map(str, listed(value.get("args")))),
        env=env,
        env_from=tuple(map(mapping, listed(value.get("envFrom")))),
        ports=ports,
        working_dir=str(value.get("workingDir") or ""),
        readiness=_probe(value.get("readinessProbe")),
        liveness=_probe(value.get("livenessProbe")),
        source=source,
        startup=_probe(value.get("startupProbe")),
        pre_stop=_hook(mapping(value.get("lifecycle")).get("preStop")),
    )
