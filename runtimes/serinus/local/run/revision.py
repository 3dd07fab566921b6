"""A revision of a component: pods, each of one process per container, all of the same template."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ..plan.deployment_plan import ComponentPlan
from ..plan.envoy_config import Backend, Endpoint
from ..plan.port_binding import Ports, bind
from ..router.router_settings import GATEWAY_VARIABLE
from .processes.log_files import LogFile
from .processes.managed_process import ManagedProcess
from .processes.ports import PortBook
from .processes.reaper_link import Reaper

__all__ = ["Pod", "Revision", "Workshop", "inherited_environment"]

KEPT_SETTINGS = {"SERINUS_CACHE_DIR", "SERINUS_NATIVE", "SERINUS_PURE"}
"""Our variables that describe the machine, not a server."""

CONTAINER_ONLY = {"INFERENCE_SERVICE_NAME", "PORT", "PROTOCOL", "STORAGE_URI"}
"""Variables that mean something to a server and would leak in from this shell."""


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a process inherits: this machine's environment without settings of servers, which a container would not see."""
    return {
        name: value
        for name, value in environment.items()
        if name in KEPT_SETTINGS
        or not (name.startswith(("SERINUS_", "MLSERVER_", "KSERVE_", "K_")) or name in CONTAINER_ONLY)
    }


class Workshop:
    """What every revision needs to make processes."""

    def __init__(
        self,
        *,
        ports: PortBook,
        reaper: Reaper,
        logs: Path,
        show: Callable[[str, str], None],
        changed: Callable[[], None],
    ) -> None:
        self.ports = ports
        self.reaper = reaper
        self.logs = logs
        self.show = show
        self.changed = changed
        self.gateway = ""
        """Address of the gateway as this machine's processes reach it, `127.0.0.1:8080`."""


class Pod:
    """The processes of one copy; they live and are replaced together."""

    def __init__(self, workshop: Workshop, revision: Revision, predictor: str | None) -> None:
        self._ports = workshop.ports
        plan = revision.plan
        ports = [Ports(self._ports.take(), self._ports.take(), self._ports.take()) for _ in plan.containers]
        plans = bind(plan, ports=ports, folders=revision.folders, revision=revision.name, predictor=predictor)
        self.draining = False
        self.joined = False
        """Whether the gateway has been told of it: only once it has been ready."""
        self.is_reached = False
        """Whether the gateway has been told that it is ready now, and has found it so."""
        self.successor: Pod | None = None
        """What has taken its place before it was ready: whoever waits for it waits for that one."""
        self.processes: list[ManagedProcess] = []
        for process in plans:
            title = revision.name if len(plans) == 1 else f"{revision.name}/{process.name}"
            log = LogFile(workshop.logs / f"{title.replace('/', '.')}.log", title, workshop.show)
            whole = {**inherited_environment(os.environ), "PYTHONUNBUFFERED": "1", **process.env}
            if plan.kind == "router":
                whole[GATEWAY_VARIABLE] = workshop.gateway
            bound = replace(process, env=whole)
            self.processes.append(ManagedProcess(title, bound, log, workshop.reaper, workshop.changed, moves=True))
        self.entry = self.processes[plan.entry]

    def start(self, *, aside: bool = False) -> None:
        """Start every process.

        Args:
            aside: see `ManagedProcess.start`.
        """
        for process in self.processes:
            process.start(aside=aside)

    async def wait_ready(self) -> None:
        """Wait until every process has been ready once; it joins the gateway's endpoints then."""
        for process in self.processes:
            await process.was_ready.wait()
        if self.successor is not None:
            await self.successor.wait_ready()
        else:
            self.joined = True

    @property
    def latest(self) -> Pod:
        """The pod that stands in its place now; itself where none has."""
        return self if self.successor is None else self.successor.latest

    def give_way(self, successor: Pod) -> None:
        """Let another pod stand for this one, for those that wait, too."""
        self.successor = successor
        for process, new in zip(self.processes, successor.processes, strict=True):
            new.take_over(process)
            process.was_ready.set()

    @property
    def is_crash_looping(self) -> bool:
        """Whether a process of it ends again and again."""
        return any(process.is_crash_looping for process in self.processes)

    @property
    def is_blocked(self) -> bool:
        """Whether a process of it cannot come back, because its ports are taken."""
        return any(process.blocked for process in self.processes)

    @property
    def is_ready(self) -> bool:
        """Whether every process is ready now."""
        return all(process.is_ready for process in self.processes)

    @property
    def is_silent(self) -> bool:
        """Whether every process of it is ready or merely silent, and it is not leaving."""
        return not self.draining and all(process.is_ready or process.is_silent for process in self.processes)

    def endpoint(self) -> Endpoint:
        """What the gateway knows of it."""
        ports = self.entry.plan.ports
        health = "DRAINING" if self.draining else "HEALTHY" if self.is_ready else "UNHEALTHY"
        return Endpoint(ports.http, ports.grpc, health)

    @property
    def entry_ports(self) -> tuple[int, int]:
        """The ports at which requests arrive."""
        return (self.entry.plan.ports.http, self.entry.plan.ports.grpc)

    async def stop(self) -> None:
        """End the entry first, then the processes behind it."""
        behind = [process for process in self.processes if process is not self.entry]
        await self.entry.stop()
        await asyncio.gather(*(process.stop() for process in behind))
        for process in self.processes:
            ports = process.plan.ports
            self._ports.release(ports.http, ports.grpc, ports.metrics)


class Revision:
    """One template under one name, with the pods that run now."""

    def __init__(self, workshop: Workshop, name: str, plan: ComponentPlan, folders: Mapping[str, Path]) -> None:
        self.name = name
        self.plan = plan
        self.folders = folders
        self.pods: list[Pod] = []
        self.inner_port: int | None = None
        """Loopback port of the gateway that leads here; of predictors that a transformer calls."""
        self.was_reached = False
        """Whether the gateway has found it ready at some time."""
        self.predictor: Revision | None = None
        """The predictor revision that a transformer revision calls."""
        self._workshop = workshop

    def new_pod(self) -> Pod:
        """Make a pod; it is not started and not yet among `pods`."""
        address = f"127.0.0.1:{self.predictor.inner_port}" if self.predictor is not None else None
        return Pod(self._workshop, self, address)

    def start(self, *, aside: bool = False) -> None:
        """Start as many pods as the template asks for.

        Args:
            aside: see `ManagedProcess.start`.
        """
        while len(self.pods) < self.plan.replicas:
            pod = self.new_pod()
            self.pods.append(pod)
            pod.start(aside=aside)

    async def wait_ready(self) -> None:
        """Wait until a pod has been ready; the others join when they are."""
        await asyncio.gather(*(pod.wait_ready() for pod in self.pods))

    @property
    def is_ready(self) -> bool:
        """Whether some pod can take requests now, through the gateway."""
        return any(pod.is_ready and pod.is_reached and not pod.draining for pod in self.pods)

    @property
    def has_joined(self) -> bool:
        """Whether some pod is known to the gateway."""
        return any(pod.joined for pod in self.pods)

    def backend(self) -> Backend:
        """What the gateway knows of it."""
        endpoints = [pod.endpoint() for pod in self.pods if pod.joined]
        if not any(each.health == "HEALTHY" for each in endpoints):
            # On a busy machine the only one may be silent for a while. A request that waits for it beats one that is refused.
            silent = {pod.entry_ports for pod in self.pods if pod.is_silent}
            endpoints = [
                replace(each, health="UNKNOWN") if (each.http_port, each.grpc_port) in silent else each
                for each in endpoints
            ]
        return Backend(self.name, tuple(endpoints))
