"""What `serinus status` shows of a service, as JSON values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .deployment_plan import Track, service_hosts
from .routing_table import RoutedService

__all__ = ["ProcessStatus", "ServiceStatus", "service_document"]


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process of a revision, as it is now."""

    service: str
    """`namespace/name`."""
    component: str
    """`predictor`, `transformer` or `router`."""
    revision: str
    digest: str
    container: str
    pid: int | None
    http_port: int
    grpc_port: int
    state: str
    ready: bool
    restarts: int
    last_exit: str
    log: str
    crash_loop: bool = False
    """It ends again and again (kubelet: CrashLoopBackOff)."""
    last_lines: tuple[str, ...] = ()
    """The end of its log, of a process that is not ready."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service, as it is now."""

    routed: RoutedService
    settled: bool
    """Everything that the plan asks for is ready and routed."""
    problem: str
    percent: int | None
    """canaryTrafficPercent in force."""
    canary_percents: Mapping[str, int]
    warm: Track | None = None
    """What is kept running without traffic after a promotion."""


def service_document(
    service: ServiceStatus,
    processes: Sequence[ProcessStatus],
    *,
    names: Mapping[str, str],
    ready: Mapping[str, bool],
    port: int,
) -> dict[str, Any]:
    """Make one service's part of the status document.

    Args:
        service: the service.
        processes: of all services.
        names: every revision's name, by `namespace/name:digest`.
        ready: whether a revision can take requests now, by digest; absent: it does not run.
        port: the gateway's.
    """
    plan, chains = service.routed.plan, service.routed.chains
    percents: dict[str, int] = {}
    tags: dict[str, list[str]] = {}
    for share, track in chains:
        for digest in {track.entry.digest, track.predictor.digest}:
            percents[digest] = percents.get(digest, 0) + share.percent
            tags.setdefault(digest, []).append(share.tag)
    components = [
        {
            "component": process.component,
            "revision": process.revision,
            "container": process.container,
            "pid": process.pid,
            "http_port": process.http_port,
            "grpc_port": process.grpc_port,
            "state": process.state,
            "ready": process.ready,
            "restarts": process.restarts,
            "last_exit": process.last_exit,
            "traffic": percents.get(process.digest, 0),
            "tags": tags.get(process.digest, []),
            "log": process.log,
            "crash_loop": process.crash_loop,
            "last_lines": list(process.last_lines),
        }
        for process in processes
        if process.service == plan.key
    ]
    split = [
        {
            "revision": names[f"{plan.key}:{share.revision}"],
            "percent": share.percent,
            "tag": share.tag,
            "ready": ready.get(share.revision, False),
        }
        for share, _ in chains
    ]
    hosts = service_hosts(plan.name, plan.namespace, plan.domains)
    return {
        "kind": "InferenceGraph" if plan.is_graph else "InferenceService",
        "name": plan.name,
        "namespace": plan.namespace,
        "ready": service.settled and bool(split) and all(item["ready"] for item in split),
        "settled": service.settled,
        "problem": service.problem,
        "stopped": plan.stopped,
        "model": plan.stable.entry.model_name,
        "host": hosts[0],
        "hosts": list(hosts),
        "url": f"http://{hosts[0]}:{port}",
        "canary_percent": service.percent,
        "canary_policy": plan.canary_policy,
        "canaries": dict(service.canary_percents),
        "traffic": split,
        "affinity": str(plan.affinity or ""),
        "mirror": service.routed.mirror[1] if service.routed.mirror is not None else 0,
        "warm": names[f"{plan.key}:{service.warm.entry.digest}"] if service.warm is not None else "",
        "components": components,
    }
