"""A pod template bound to this machine: processes, once it is known which ports they get and where the model's files lie.

With three things changed for one machine: every process gets loopback ports of its own, `/mnt/models` becomes the folder
of the fetched model, and `--predictor_host` becomes an address of the gateway that leads to one predictor revision only.
A transformer is started once per predictor revision, so a request that the gateway has sent to the canary stays on it: KServe
forwards three headers only (x-request-id, x-b3-traceid, authorization), and no header has to be trusted this way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...manifests.containers import Hook, Probe
from ...manifests.fields import flag_value
from .container_environment import expand
from .deployment_plan import GRACE_S, ComponentPlan, ContainerPlan

__all__ = ["Ports", "ProcessPlan", "bind", "set_flag"]


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of one process."""

    http: int
    grpc: int
    metrics: int
    """For servers that want a third one (MLServer)."""


@dataclass(frozen=True, slots=True)
class ProcessPlan:
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
    startup: Probe | None = None
    pre_stop: Hook | None = None
    grace_s: float = GRACE_S
    """From the beginning of preStop to SIGKILL."""


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


_LOOPBACK = re.compile(r"\b(localhost|127\.0\.0\.1):(\d+)\b")


def bind(
    component: ComponentPlan,
    *,
    ports: Sequence[Ports],
    folders: Mapping[str, Path],
    revision: str,
    predictor: str | None = None,
) -> tuple[ProcessPlan, ...]:
    """The processes of one pod.

    Args:
        component: the template.
        ports: of each container, in order.
        folders: local folder by mount path (`/mnt/models`).
        revision: its name, which Knative tells the container as K_REVISION, and ours as SERINUS_REVISION.
        predictor: address of the predictor behind a transformer, `127.0.0.1:port`.
    """
    moved: dict[int, int] = {}
    for container, own in reversed(list(zip(component.containers, ports, strict=True))):
        moved.update({container.http_port: own.http, container.grpc_port: own.grpc})

    def local(text: str) -> str:
        for mount, folder in sorted(folders.items(), key=lambda item: -len(item[0])):
            text = re.sub(rf"(?<![\w.-]){re.escape(mount)}(?![\w.-])", str(folder).replace("\\", r"\\"), text)
        return _LOOPBACK.sub(lambda match: f"127.0.0.1:{moved.get(int(match[2]), int(match[2]))}", text)

    processes = []
    for container, own in zip(component.containers, ports, strict=True):
        # Folders and neighbours first; the process's own ports and its predictor after it, so that neither is moved twice.
        env = {name: local(value) for name, value in container.env.items()}
        words = tuple(local(word) for word in container.words)
        env.update(_port_environment(container, own))
        env.update(container.command.env)
        if component.knative:
            env |= {"K_SERVICE": component.deployment, "K_CONFIGURATION": component.deployment, "K_REVISION": revision}
        env["SERINUS_REVISION"] = revision  # also for a server of ours that a manifest starts by a command of its own
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
        hook = container.pre_stop
        if hook is not None:
            hook = replace(hook, command=tuple(expand(local(word), env) for word in hook.command))
        processes.append(
            ProcessPlan(
                name=container.name,
                argv=words,
                env=env,
                cwd=local(container.working_dir) if container.working_dir else None,
                ports=own,
                model_name=container.model_name,
                readiness=container.readiness,
                liveness=container.liveness,
                probe_ports=probes,
                startup=container.startup,
                pre_stop=hook,
                grace_s=component.grace_s,
            )
        )
    return tuple(processes)


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
