"""The local cluster: services brought to what their manifests say, through revisions that become ready before they get traffic.

Theory of operation. `apply` takes plans. For each service one task reconciles: it starts the revisions that are missing, predictor
before transformer, waits until they are ready, moves the routes, and then retires what nobody refers to: marked
DRAINING at the gateway, waited for until it has no request in flight, then SIGTERM. A new plan cancels the task and
starts another; revisions that are under way belong to the supervisor, not to the task, so nothing is lost by it.
Revisions are found by the digest of their template: a plan that returns to an earlier template returns to its revision.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..plan import envoy_config as envoy
from ..plan.planner import ComponentPlan, ServicePlan, Track, service_hosts
from ..plan.rollout import Rollout, Share, advance, shares, standard_shares
from .gateway import Gateway, GatewayTable
from .log_files import LogFile
from .managed_process import Guard
from .ports import PortBook
from .revision import Pod, Revision, Workshop
from .storage import fetch

__all__ = ["RunOptions", "Service", "Supervisor"]

_log = logging.getLogger("serinus.local")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How this machine runs what the plans say."""

    state: Path
    """Folder of logs, gateway files and the control socket."""
    host: str = "127.0.0.1"
    port: int = 8080
    """The gateway's port; 0 takes a free one."""
    mounts: Mapping[str, Path] = field(default_factory=dict)
    cache: Path = Path()
    drain_s: float = 30.0
    """Longest wait for requests in flight; Kubernetes's termination grace."""
    grace_s: float = 30.0
    """From SIGTERM to SIGKILL; Kubernetes's default."""


@dataclass(slots=True)
class Service:
    """One InferenceService as it runs."""

    plan: ServicePlan
    rollout: Rollout = field(default_factory=Rollout)
    chains: dict[str, Track] = field(default_factory=dict)
    """Every chain seen, by its entry's digest: a rollback finds the earlier one here."""
    ready_canaries: dict[str, str] = field(default_factory=dict)
    """Entry digest by name, of the canaries that are ready."""
    percent: int | None = None
    """canaryTrafficPercent in force: the manifest's, or what `set_traffic` put in its place."""
    canary_percents: dict[str, int] = field(default_factory=dict)
    """trafficPercent in force, by canary."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when everything that the plan asks for is ready and routed."""
    problem: str = ""
    """What keeps it from being settled, in words."""
    task: asyncio.Task[None] | None = None

    def split(self) -> tuple[Share, ...]:
        """The traffic now, by entry digest."""
        stable = shares(self.rollout, self.percent)
        canaries = [(name, digest, self.canary_percents.get(name, 0)) for name, digest in self.ready_canaries.items()]
        return standard_shares(stable, canaries) if stable else ()


class Supervisor:
    """Runs services until it is closed.

    Args:
        options: ports, folders, graces.
        show: gets every line of every process, with the process's name.
        say: gets lines about what the supervisor does.
    """

    def __init__(self, options: RunOptions, *, show: Callable[[str, str], None], say: Callable[[str], None]) -> None:
        self.options = options
        self.services: dict[str, Service] = {}
        self._say = say
        self._revisions: dict[str, Revision] = {}
        self._leaving: dict[str, Revision] = {}
        """Revisions that nobody refers to any more and that still drain."""
        self._names: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._ports = PortBook()
        self._guard = Guard()
        self._dirty = asyncio.Event()
        self._rolling = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        logs = options.state / "logs"
        self._workshop = Workshop(ports=self._ports, guard=self._guard, logs=logs, show=show, changed=self._dirty.set)
        self.gateway = Gateway(
            options.state / "gateway",
            host=options.host,
            port=options.port,
            ports=self._ports,
            guard=self._guard,
            log=LogFile(logs / "gateway.log", "gateway", show),
            access_log=logs / "access.log",
        )

    async def start(self) -> None:
        """Start the guard and the gateway.

        Raises:
            ConfigError: the gateway's port is taken, or Envoy is not there.
        """
        await self._guard.start()
        try:
            await self.gateway.start()
        except BaseException:
            await self.gateway.stop(1.0)
            await self._guard.close()
            raise
        self._spawn(self._publish_changes(), "publisher")

    def _spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # What services should be -----------------------------------------------------------------------------------------

    def apply(self, plan: ServicePlan) -> Service:
        """Take a new plan for a service; what it asks for is started, and gets traffic when it is ready."""
        service = self.services.get(plan.key)
        if service is None:
            service = self.services[plan.key] = Service(plan)
        service.plan = plan
        service.percent = plan.canary_percent
        service.canary_percents = {track.name: track.percent for track in plan.canaries}
        self._reconcile(service)
        return service

    def set_traffic(self, key: str, percent: int | None, canary: str = "") -> None:
        """Change a share without touching the manifest, as a patch of the InferenceService would.

        Args:
            key: `namespace/name`.
            percent: of the newest revision, or of the named canary; None (newest revision only): promoted.
            canary: a canary of `spec.canary`; empty: canaryTrafficPercent.

        Raises:
            ConfigError: no such service or canary, or no percentage.
        """
        service = self.find(key)
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
        self._reconcile(service)

    def find(self, name: str) -> Service:
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

    def _reconcile(self, service: Service) -> None:
        if service.task is not None:
            service.task.cancel()
        service.settled.clear()
        service.problem = ""
        service.task = self._spawn(self._settle(service), f"service {service.plan.key}")

    async def _settle(self, service: Service) -> None:
        """Bring one service to its plan; errors are told once and kept for `status`."""
        try:
            await self._converge(service)
            service.settled.set()
        except asyncio.CancelledError:
            raise
        except ConfigError as error:
            service.problem = str(error)
            self._say(f"{service.plan.key}: {error}")
        except Exception:  # noqa: BLE001 (edge of a task: one service's failure is told, the others go on)
            service.problem = "an error of the runner; see the supervisor's log"
            _log.exception("service %s", service.plan.key)

    async def _converge(self, service: Service) -> None:
        plan = service.plan
        if plan.stopped:
            service.rollout, service.ready_canaries = Rollout(), {}
            await self._publish()
            await self._retire_unused()
            return
        wanted = {track.name: track for track in plan.canaries}
        for name in [name for name in service.ready_canaries if name not in wanted]:
            del service.ready_canaries[name]
        # Canaries do not wait for the stable track, nor it for them.
        await asyncio.gather(
            self._bring_stable(service, plan.stable), *(self._bring_canary(service, track) for track in plan.canaries)
        )
        await self._retire_unused()

    async def _bring_stable(self, service: Service, track: Track) -> None:
        digest = track.entry.digest
        service.chains[digest] = track
        await self._bring_up(track)
        rollout = advance(service.rollout, digest, service.percent)
        for share in shares(rollout, service.percent):
            await self._bring_up(service.chains[share.revision])  # a rollback's may have been retired
        service.rollout = rollout
        await self._publish()

    async def _bring_canary(self, service: Service, track: Track) -> None:
        service.chains[track.entry.digest] = track
        await self._bring_up(track)
        service.ready_canaries[track.name] = track.entry.digest
        await self._publish()

    async def _bring_up(self, track: Track) -> None:
        """Start a chain where it does not run yet, and wait until it is ready; the predictor first."""
        predictor = await self._revision(track.predictor)
        await predictor.wait_ready()
        if track.transformer is None:
            return
        if predictor.inner_port is None:
            predictor.inner_port = self._ports.take()
        await self._publish()
        transformer = await self._revision(track.transformer, predictor)
        await transformer.wait_ready()

    async def _revision(self, plan: ComponentPlan, predictor: Revision | None = None) -> Revision:
        known = self._revisions.get(plan.digest)
        if known is not None:
            return known
        folders = await asyncio.to_thread(self._fetch, plan)
        known = self._revisions.get(plan.digest)  # another track may have started it meanwhile
        if known is not None:
            return known
        name = self._name(plan)
        revision = Revision(self._workshop, name, plan, folders)
        revision.predictor = predictor
        self._revisions[plan.digest] = revision
        revision.start()
        self._say(f"{name}: starting")
        self._spawn(self._tell_ready(revision), f"ready {name}")
        return revision

    def _fetch(self, plan: ComponentPlan) -> dict[str, Path]:
        """The local folder of each of a component's mount paths."""
        folders = {}
        for storage in plan.storage:
            place = storage.source.place()
            base = Path(place.file).resolve().parent
            try:
                folders[storage.mount_path] = fetch(
                    storage.uri, base=base, cache=self.options.cache, mounts=self.options.mounts
                )
            except ConfigError as error:
                raise ConfigError(f"{place}:{storage.source.field()}: {error}") from None
        return folders

    def _name(self, plan: ComponentPlan) -> str:
        key = f"{plan.service}:{plan.digest}"
        if key not in self._names:
            count = self._counts[f"{plan.namespace}/{plan.deployment}"] = (
                self._counts.get(f"{plan.namespace}/{plan.deployment}", 0) + 1
            )
            prefix = "" if plan.namespace == "default" else f"{plan.namespace}."
            self._names[key] = f"{prefix}{plan.deployment}-{count:05d}"
        return self._names[key]

    async def _tell_ready(self, revision: Revision) -> None:
        began = time.monotonic()
        await revision.wait_ready()
        self._say(f"{revision.name}: ready after {time.monotonic() - began:.1f} s")

    # What nobody needs any more --------------------------------------------------------------------------------------

    def _needed(self) -> set[str]:
        """Digests of every revision that a service refers to, under way or running."""
        needed = set()
        for service in self.services.values():
            if service.plan.stopped:
                continue
            tracks = [service.plan.stable, *service.plan.canaries]
            tracks += [service.chains[share.revision] for share in shares(service.rollout, service.percent)]
            for track in tracks:
                needed |= {track.predictor.digest, track.entry.digest}
        return needed

    async def _retire_unused(self) -> None:
        needed = self._needed()
        unused = [revision for digest, revision in self._revisions.items() if digest not in needed]
        # Transformers first: until they have drained their predictors still get requests.
        for kind in ("transformer", "predictor"):
            gone = [revision for revision in unused if revision.plan.kind == kind]
            for revision in gone:
                self._revisions.pop(revision.plan.digest, None)
                self._leaving[revision.name] = revision
            if gone:
                await asyncio.shield(self._spawn(self._retire(gone), "retire " + ", ".join(r.name for r in gone)))

    async def _retire(self, gone: Sequence[Revision]) -> None:
        for revision in gone:
            self._say(f"{revision.name}: draining")
        await self._drain([pod for revision in gone for pod in revision.pods])
        for revision in gone:
            self._leaving.pop(revision.name, None)
            if revision.inner_port is not None:
                self._ports.release(revision.inner_port)
            self._say(f"{revision.name}: stopped")
        await self._publish()

    async def _drain(self, pods: Sequence[Pod]) -> None:
        """Let pods finish what they have, then stop them."""
        for pod in pods:
            pod.draining = True
        await self._publish()
        ports = {port for pod in pods if pod.joined for port in pod.entry_ports}
        end = time.monotonic() + self.options.drain_s
        quiet = 0
        # Twice in a row: a request may be between Envoy's choice of a host and its counter.
        while ports and quiet < 2 and time.monotonic() < end:
            active = await self.gateway.active_requests(ports)
            quiet = quiet + 1 if not active else 0
            await asyncio.sleep(0.1)
        await asyncio.gather(*(pod.stop(self.options.grace_s) for pod in pods))

    # What the gateway knows ------------------------------------------------------------------------------------------

    @property
    def _everything(self) -> Iterator[Revision]:
        yield from self._revisions.values()
        yield from self._leaving.values()

    def _table(self) -> GatewayTable:
        joined = [revision for revision in self._everything if revision.has_joined]
        hosts: list[envoy.Host] = []
        taken: set[str] = set()
        for service in self.services.values():
            for host in self._hosts(service):
                domains = tuple(domain for domain in host.domains if domain not in taken)
                taken.update(domains)
                if domains:
                    hosts.append(envoy.Host(host.name, domains, host.arms, host.timeout_s))
        inner = tuple(
            envoy.InnerListener(revision.inner_port, revision.name, revision.plan.timeout_s)
            for revision in joined
            if revision.inner_port is not None
        )
        return GatewayTable(tuple(revision.backend() for revision in joined), tuple(hosts), inner)

    def _hosts(self, service: Service) -> Iterator[envoy.Host]:
        """Virtual hosts of a service: itself, its components, its tags."""
        plan = service.plan
        split = service.split()
        chains = [(share, service.chains[share.revision]) for share in split]

        def host(name: str, label: str, parts: Sequence[tuple[ComponentPlan, int]]) -> envoy.Host:
            weights: dict[str, int] = {}
            for component, percent in parts:
                revision = self._revisions.get(component.digest)
                if revision is not None and revision.has_joined:
                    weights[revision.name] = weights.get(revision.name, 0) + percent
            timeout = max((component.timeout_s for component, _ in parts), default=60.0)
            inside = (f"{label}.{plan.namespace}", f"{label}.{plan.namespace}.svc.cluster.local")
            domains = (*service_hosts(label, plan.namespace, plan.domains), *inside)
            return envoy.Host(name, domains, tuple(envoy.Arm(*item) for item in weights.items()), timeout)

        entry = [(track.entry, share.percent) for share, track in chains]
        yield host(f"service:{plan.key}", plan.name, entry or [(plan.stable.entry, 0)])
        predictors = [(track.predictor, share.percent) for share, track in chains]
        yield host(f"predictor:{plan.key}", f"{plan.name}-predictor", predictors)
        if plan.stable.transformer is not None:
            yield host(f"transformer:{plan.key}", f"{plan.name}-transformer", entry)
        for share, track in chains:
            for label, component in (
                (f"{share.tag}-{plan.name}", track.entry),
                (f"{share.tag}-{plan.name}-predictor", track.predictor),
                (track.predictor.deployment, track.predictor),
            ):
                yield host(f"{share.tag}:{label}", label, [(component, 100)])

    async def _publish(self) -> None:
        await self.gateway.apply(self._table)

    async def _publish_changes(self) -> None:
        """Tell the gateway what processes do by themselves: crash, come back, fail their probe."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            for revision in list(self._revisions.values()):
                for pod in revision.pods:
                    pod.joined = pod.joined or pod.is_ready
            try:
                await self._publish()
            except Exception:  # noqa: BLE001 (edge of a task: the next change is published all the same)
                _log.exception("publishing the gateway's table")

    # What operators ask for ------------------------------------------------------------------------------------------

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
        done = []
        async with self._rolling:
            for digest in digests:
                revision = self._revisions.get(digest)
                if revision is not None:
                    await self._roll(revision)
                    done.append(revision.name)
        return done

    async def _roll(self, revision: Revision) -> None:
        self._say(f"{revision.name}: rolling restart")
        for old in list(revision.pods):
            new = revision.new_pod()
            revision.pods.append(new)
            new.start()
            try:
                await new.wait_ready()
                await self._publish()
            except asyncio.CancelledError:
                revision.pods.remove(new)
                await new.stop(self.options.grace_s)
                raise
            await self._drain([old])
            revision.pods.remove(old)
            await self._publish()
        self._say(f"{revision.name}: restarted")

    async def down(self, name: str) -> None:
        """Take a service away: its routes, then its processes.

        Raises:
            ConfigError: no such service.
        """
        service = self.find(name)
        if service.task is not None:
            service.task.cancel()
        del self.services[service.plan.key]
        await self._publish()
        await self._retire_unused()

    def status(self) -> dict[str, Any]:
        """Everything that `serinus status` shows, as JSON values."""
        return {
            "gateway": {
                "host": self.options.host,
                "port": self.gateway.port,
                "admin_port": self.gateway.admin_port,
                "pid": self.gateway.process.pid,
                "ready": self.gateway.process.is_ready,
                "restarts": self.gateway.process.restarts,
            },
            "services": [self._service_status(service) for service in self.services.values()],
        }

    def _service_status(self, service: Service) -> dict[str, Any]:
        plan = service.plan
        percents: dict[str, int] = {}
        tags: dict[str, list[str]] = {}
        for share in service.split():
            track = service.chains[share.revision]
            for digest in {track.entry.digest, track.predictor.digest}:
                percents[digest] = percents.get(digest, 0) + share.percent
                tags.setdefault(digest, []).append(share.tag)
        components = []
        for revision in self._everything:
            if revision.plan.service != plan.key:
                continue
            for pod in revision.pods:
                for process in pod.processes:
                    ports = process.launch.ports
                    components.append(
                        {
                            "component": revision.plan.kind,
                            "revision": revision.name,
                            "container": process.launch.name,
                            "pid": process.pid,
                            "http_port": ports.http,
                            "grpc_port": ports.grpc,
                            "state": "draining" if pod.draining else process.state,
                            "ready": process.is_ready,
                            "restarts": process.restarts,
                            "last_exit": process.last_exit,
                            "traffic": percents.get(revision.plan.digest, 0),
                            "tags": tags.get(revision.plan.digest, []),
                            "log": str(self._workshop.logs / f"{process.title.replace('/', '.')}.log"),
                        }
                    )
        split = [
            {
                "revision": self._names[f"{plan.key}:{share.revision}"],
                "percent": share.percent,
                "tag": share.tag,
                "ready": share.revision in self._revisions and self._revisions[share.revision].is_ready,
            }
            for share in service.split()
        ]
        host = service_hosts(plan.name, plan.namespace, plan.domains)[0]
        return {
            "name": plan.name,
            "namespace": plan.namespace,
            "ready": service.settled.is_set() and bool(split) and all(item["ready"] for item in split),
            "settled": service.settled.is_set(),
            "problem": service.problem,
            "stopped": plan.stopped,
            "model": plan.stable.entry.model_name,
            "host": host,
            "hosts": list(service_hosts(plan.name, plan.namespace, plan.domains)),
            "url": f"http://{host}:{self.gateway.port}",
            "canary_percent": service.percent,
            "canaries": dict(service.canary_percents),
            "traffic": split,
            "components": components,
        }

    async def close(self) -> None:
        """Stop taking connections, let requests end, stop every process, the gateway last."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.gateway.stop_accepting()
        for kind in ("transformer", "predictor"):
            pods = [pod for revision in self._everything if revision.plan.kind == kind for pod in revision.pods]
            await asyncio.gather(*(pod.stop(self.options.grace_s) for pod in pods))
        await self.gateway.stop(2.0)
        await self._guard.close()

    def kill(self) -> None:
        """End every process at once; `close`, which is under way, finds them gone."""
        for revision in list(self._everything):
            for pod in revision.pods:
                for process in pod.processes:
                    process.kill()
        self.gateway.process.kill()
