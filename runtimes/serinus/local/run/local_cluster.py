"""The local cluster: services, their gateway and their processes, for as long as `serinus up` runs.

Theory of operation. `apply` takes plans; the reconciler brings services to them. The cluster starts and ends what they share: the
reaper, the gateway, the ports.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from ...errors import ConfigError
from ..plan.deployment_plan import ENTRY_FIRST, ServicePlan
from ..plan.status_document import ProcessStatus, ServiceStatus, service_document
from .control_socket import reached_address
from .gateway import Gateway
from .processes.log_files import LogFile
from .processes.ports import PortBook
from .processes.process_record import ProcessRecord
from .processes.reaper_link import Reaper
from .reconciler import Reconciler, RunOptions
from .revision import Workshop
from .running_service import RunningService

__all__ = ["MOST_WARM_S", "LocalCluster"]

MOST_WARM_S = 7 * 86400.0
"""Longest time that an old version is kept: the default policy's longest rollout."""


class LocalCluster:
    """Runs services until it is closed.

    Args:
        options: ports, folders, graces.
        show: gets every line of every process, with the process's name.
        say: gets lines about what the cluster does.
    """

    def __init__(self, options: RunOptions, *, show: Callable[[str, str], None], say: Callable[[str], None]) -> None:
        self.options = options
        self._id = secrets.token_hex(8)
        """Of this run of the supervisor: the next one numbers revisions from 1 again."""
        self._dirty = asyncio.Event()
        self._reaper = Reaper(ProcessRecord(options.state, say))
        ports, logs = PortBook(), options.state / "logs"
        self._workshop = Workshop(ports=ports, reaper=self._reaper, logs=logs, show=show, changed=self._dirty.set)
        self.gateway = Gateway(
            options.state / "gateway",
            host=options.host,
            port=options.port,
            ports=ports,
            reaper=self._reaper,
            log=LogFile(logs / "gateway.log", "gateway", show),
            access_log=logs / "access.log",
        )
        self._workshop.gateway = reached_address(options.host, self.gateway.port)
        self._reconciler = Reconciler(options, self._workshop, self.gateway, say=say)

    @property
    def services(self) -> dict[str, RunningService]:
        """What runs, by `namespace/name`."""
        return self._reconciler.services

    async def start(self) -> None:
        """Start the reaper and the gateway.

        Raises:
            ConfigError: the gateway's port is taken, or Envoy is not there.
        """
        await self._reaper.start()
        try:
            await self.gateway.start()
        except BaseException:
            await self.gateway.stop(1.0)
            await self._reaper.close()
            raise
        self._reconciler.start(self._dirty)

    def apply(self, plan: ServicePlan) -> RunningService:
        """Take a new plan for a service; what it asks for is started, and gets traffic when it is ready."""
        service = self.services.get(plan.key)
        if service is None:
            service = self.services[plan.key] = RunningService(plan)
        service.plan = plan
        service.percent = plan.canary_percent
        service.mirror = None  # copies were for the canary that was there
        service.canary_percents = {track.name: track.percent for track in plan.canaries}
        self._reconciler.reconcile(service)
        return service

    def set_traffic(self, key: str, percent: int | None, canary: str = "", *, warm_s: float = 0.0) -> None:
        """Change a share without touching the manifest, as a patch of the InferenceService would.

        Args:
            key: `namespace/name`.
            percent: of the newest revision, or of the named canary; None (newest revision only): promoted.
            canary: a canary of `spec.canary`; empty: canaryTrafficPercent.
            warm_s: how long the version before is kept running where this is a promotion, so that going back is instant.

        Raises:
            ConfigError: no such service or canary, or no percentage.
        """
        service = self.find(key)
        if not 0 <= warm_s <= MOST_WARM_S:
            raise ConfigError(f"{warm_s:g} s is no time to keep a version warm; use 0 to {MOST_WARM_S:g}")
        if percent is not None and not 0 <= percent <= 100:
            raise ConfigError(f"{percent} is not a percentage; use 0 to 100")
        if canary:
            if canary not in service.canary_percents or percent is None:
                known = ", ".join(service.canary_percents) or "none"
                raise ConfigError(f"{service.plan.key}: canary {canary!r} with {percent} %: canaries are {known}")
            others = sum(value for name, value in service.canary_percents.items() if name != canary)
            if others + percent > 100:
                raise ConfigError(f"{service.plan.key}: the canaries would take {others + percent} % together")
            service.canary_percents[canary] = percent
        else:
            service.percent = percent
            if (percent is None or percent >= 100) and warm_s:
                self._reconciler.keep_warm(service, warm_s)
        service.mirror = None
        self._reconciler.reconcile(service)

    async def mirror(self, key: str, percent: int, canary: str = "") -> None:
        """Send a copy of some requests to a canary, and drop what it answers; any change of the traffic ends it.

        Args:
            key: `namespace/name`.
            percent: of the requests of the service's own host; 0 ends it.
            canary: a canary of `spec.canary`; empty: the newest revision.

        Raises:
            ConfigError: no such service or canary, no percentage, or the canary is not there.
        """
        service = self.find(key)
        if not 0 <= percent <= 100:
            raise ConfigError(f"{percent} is not a percentage; use 0 to 100")
        service.mirror = (canary, percent) if percent else None
        if percent and service.routed().mirror is None:
            service.mirror = None
            tags = ", ".join(share.tag for share in service.split()) or "none"
            raise ConfigError(
                f"{service.plan.key}: there is no canary {canary or 'beside the stable revision'} to send copies to; revisions are {tags}"
            )
        await self._reconciler.publish()

    def find(self, name: str) -> RunningService:
        """A service by `name` or `namespace/name`.

        Raises:
            ConfigError: none, or several, are called so.
        """
        found = [service for key, service in self.services.items() if name in {key, service.plan.name}]
        if len(found) != 1:
            known = ", ".join(self.services) or "none"
            raise ConfigError(
                f"{name}: {'several services are' if found else 'no service is'} called so; running: {known}"
            )
        return found[0]

    def is_failing(self, service: RunningService) -> bool:
        """Whether a service has a problem, or what its plan asks for a process that ends again and again (three times and more)."""
        tracks = (service.plan.stable, *service.plan.canaries)
        wanted = {component.digest for track in tracks for component in (track.predictor, track.entry)}
        processes = [
            process
            for digest, revision in self._reconciler.revisions.items()
            if digest in wanted
            for pod in revision.pods
            for process in pod.processes
        ]
        return bool(service.problem) or any(each.is_crash_looping and each.restarts >= 3 for each in processes)

    async def restart(self, name: str) -> list[str]:
        """Replace every process of a service by a new one, one pod after another, losing no request.

        Returns:
            Names of the revisions that were restarted.

        Raises:
            ConfigError: no such service.
        """
        service = self.find(name)
        digests: dict[str, None] = {}
        for track in [service.chains[share.revision] for share in service.split()]:
            digests[track.predictor.digest] = None
            digests[track.entry.digest] = None
        return await self._reconciler.roll(list(digests))

    async def down(self, name: str) -> None:
        """Take a service away: its routes, then its processes.

        Raises:
            ConfigError: no such service.
        """
        service = self.find(name)
        if service.task is not None:
            service.task.cancel()
        del self.services[service.plan.key]
        await self._reconciler.publish()
        await self._reconciler.retire_unused()

    def status(self) -> dict[str, Any]:
        """Everything that `serinus status` shows, as JSON values."""
        reconciler, process = self._reconciler, self.gateway.process
        processes = self._processes()
        ready = {digest: revision.is_ready for digest, revision in reconciler.revisions.items()}
        return {
            "id": self._id,
            "reaper": self._reaper.pid,
            "gateway": {
                "host": self.options.host,
                "port": self.gateway.port,
                "admin_port": self.gateway.admin_port,
                "pid": process.pid,
                "ready": process.is_ready,
                "restarts": process.restarts,
                "last_exit": process.last_exit,
                "crash_loop": process.is_crash_looping,
                "last_lines": [] if process.is_ready else list(process.log.last_lines),
            },
            "services": [
                service_document(
                    ServiceStatus(
                        routed=service.routed(),
                        settled=service.settled.is_set(),
                        problem=service.problem,
                        percent=service.percent,
                        canary_percents=service.canary_percents,
                        warm=service.warm(),
                    ),
                    processes,
                    names=reconciler.names,
                    ready=ready,
                    port=self.gateway.port,
                )
                for service in self.services.values()
            ],
        }

    def _processes(self) -> list[ProcessStatus]:
        return [
            ProcessStatus(
                service=revision.plan.service,
                component=revision.plan.kind,
                revision=revision.name,
                digest=revision.plan.digest,
                container=process.plan.name,
                pid=process.pid,
                http_port=process.plan.ports.http,
                grpc_port=process.plan.ports.grpc,
                state="draining" if pod.draining else process.state,
                ready=process.is_ready,
                restarts=process.restarts,
                last_exit=process.last_exit,
                log=str(process.log.path),
                crash_loop=process.is_crash_looping,
                last_lines=() if process.is_ready else tuple(process.log.last_lines),
            )
            for revision in self._reconciler.everything
            for pod in revision.pods
            for process in pod.processes
        ]

    async def close(self) -> None:
        """Stop taking connections, let requests end, stop every process, the gateway last."""
        await self._reconciler.cancel()
        await self.gateway.stop_accepting()
        for kind in ENTRY_FIRST:
            revisions = [revision for revision in self._reconciler.everything if revision.plan.kind == kind]
            pods = [pod for revision in revisions for pod in revision.pods]
            await asyncio.gather(*(pod.stop() for pod in pods))
        await self.gateway.stop(2.0)
        await self._reaper.close()

    def kill(self) -> None:
        """End every process at once; `close`, which is under way, finds them gone."""
        for revision in list(self._reconciler.everything):
            for pod in revision.pods:
                for process in pod.processes:
                    process.kill()
        self.gateway.process.kill()
