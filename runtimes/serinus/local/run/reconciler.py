"""Brings services to what their plans say, through revisions that become ready before they get traffic.

Theory of operation. For each service one task reconciles: it starts the revisions that are missing, predictor
before transformer, waits until they are ready, moves the routes, and then retires what nobody refers to: marked
DRAINING at the gateway, waited for until it has no request in flight, then SIGTERM. A new plan cancels the task and
starts another; revisions that are under way belong to the reconciler, not to the task, so nothing is lost by it.
Revisions are found by the digest of their template: a plan that returns to an earlier template returns to its revision.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..plan.deployment_plan import ENTRY_FIRST, ComponentPlan, Track
from ..plan.rollout import Rollout, advance, shares
from ..plan.routing_table import GatewayTable, JoinedRevision, gateway_table
from .gateway import Gateway
from .pod_rotation import PodRotation
from .revision import Pod, Revision, Workshop
from .running_service import RunningService
from .storage import fetch

__all__ = ["Reconciler", "RunOptions"]

_log = logging.getLogger("serinus.local")

PATIENCE_S = 60.0
"""Longest wait for the gateway before what depends on it is told as a problem. It takes milliseconds; a busy machine takes seconds."""
_PAUSE_S = 0.2
RETRY_S, MOST_RETRY_S = 1.0, 30.0
"""Pause before what has failed is tried again: doubled each time, as a controller's queue does."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How this machine runs what the plans say."""

    state: Path
    """Folder of logs, gateway files and the control socket."""
    host: str = "127.0.0.1"
    port: int = 8080
    """The gateway's port; 0 takes a free one."""
    cache: Path = Path()
    pull: bool = False
    """Models that are in the cache are fetched again, once for each URI, before the first process that wants them starts."""
    drain_s: float = 30.0
    """Longest wait for requests in flight; Kubernetes's termination grace."""


class Reconciler:
    """Revisions, and the tasks that bring services to their plans.

    Args:
        options: cache, drain.
        workshop: makes processes.
        gateway: gets the routes.
        say: gets lines about what is done.
    """

    def __init__(
        self, options: RunOptions, workshop: Workshop, gateway: Gateway, *, say: Callable[[str], None]
    ) -> None:
        self.services: dict[str, RunningService] = {}
        """By `namespace/name`."""
        self.revisions: dict[str, Revision] = {}
        """By digest."""
        self.leaving: dict[str, Revision] = {}
        """Revisions that nobody refers to any more and that still drain, by name."""
        self.names: dict[str, str] = {}
        """Names of revisions by `namespace/name:digest`: the same template keeps its name."""
        self._options = options
        self._workshop = workshop
        self._gateway = gateway
        self._say = say
        self._counts: dict[str, int] = {}
        self._pulled: set[str] = set()
        """URIs fetched in this life."""
        self._rotation = PodRotation(publish=self.publish, drain=self._drain, say=say)
        self._publish_problem = ""
        self._dirty = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, dirty: asyncio.Event) -> None:
        """Begin to tell the gateway what processes do by themselves; `dirty` is set when one has done something."""
        self._dirty = dirty
        self._spawn(self._publish_changes(dirty), "publisher")

    async def cancel(self) -> None:
        """End every task; processes stay."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def everything(self) -> Iterator[Revision]:
        """Every revision that has processes."""
        yield from self.revisions.values()
        yield from self.leaving.values()

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def reconcile(self, service: RunningService) -> None:
        """Bring a service to its plan, in a task of its own; one that is under way is ended."""
        if service.task is not None:
            service.task.cancel()
        service.settled.clear()
        service.problem = ""
        service.task = self._spawn(self._settle(service), f"service {service.plan.key}")

    async def _settle(self, service: RunningService) -> None:
        """Bring one service to its plan; what fails is told once, kept for `status` and tried again: buckets and disks recover."""
        pause = RETRY_S
        while True:
            try:
                await self._converge(service)
                service.problem = ""
                service.settled.set()
                return
            except asyncio.CancelledError:
                raise
            except ConfigError as error:
                problem = str(error)
            except OSError as error:
                problem = f"{error.filename or 'the system'}: {error.strerror or error}"
            except Exception:  # noqa: BLE001 (edge of a task: one service's failure is told, the others go on)
                problem = "an error of the runner; see the supervisor's log"
                _log.exception("service %s", service.plan.key)
            if problem != service.problem:
                service.problem = problem
                self._say(f"{service.plan.key}: {problem}; tried again")
            await asyncio.sleep(pause)
            pause = min(pause * 2, MOST_RETRY_S)

    async def _converge(self, service: RunningService) -> None:
        plan = service.plan
        if plan.stopped:
            service.rollout, service.ready_canaries = Rollout(), {}
            await self.publish()
            await self.retire_unused()
            return
        wanted = {track.name: track for track in plan.canaries}
        for name in [name for name in service.ready_canaries if name not in wanted]:
            del service.ready_canaries[name]
        # Canaries do not wait for the stable track, nor it for them.
        await asyncio.gather(
            self._bring_stable(service, plan.stable), *(self._bring_canary(service, track) for track in plan.canaries)
        )
        await self.retire_unused()

    async def _bring_stable(self, service: RunningService, track: Track) -> None:
        digest = track.entry.digest
        service.chains[digest] = track
        await self._bring_up(track)
        rollout = advance(service.rollout, digest, service.percent)
        for share in shares(rollout, service.percent):
            await self._bring_up(service.chains[share.revision])  # a rollback's may have been retired
        before, service.rollout = service.rollout, rollout
        try:
            await self._publish_wholly()
        except ConfigError:
            service.rollout = before  # requests go there still: it is needed
            raise

    async def _bring_canary(self, service: RunningService, track: Track) -> None:
        service.chains[track.entry.digest] = track
        await self._bring_up(track)
        before = service.ready_canaries.get(track.name)
        service.ready_canaries[track.name] = track.entry.digest
        try:
            await self._publish_wholly()
        except ConfigError:
            if before is None:  # as above; the other canaries are brought at the same time, and stay as they are
                service.ready_canaries.pop(track.name, None)
            else:
                service.ready_canaries[track.name] = before
            raise

    async def _bring_up(self, track: Track) -> None:
        """Start a chain where it does not run yet, and wait until it is ready; the predictor first."""
        predictor = await self._revision(track.predictor)
        await predictor.wait_ready()
        if track.transformer is not None and predictor.inner_port is None:
            predictor.inner_port = self._workshop.ports.take()
        await self._publish_wholly(predictor)
        if track.transformer is not None:
            transformer = await self._revision(track.transformer, predictor)
            await transformer.wait_ready()
            await self._publish_wholly(transformer)

    async def _revision(self, plan: ComponentPlan, predictor: Revision | None = None) -> Revision:
        known = self.revisions.get(plan.digest)
        if known is not None:
            known.plan = plan  # what is no part of the digest: replicas, timeout
            self._scale(known)
            return known
        folders = await asyncio.to_thread(self._fetch, plan)
        known = self.revisions.get(plan.digest)  # another track may have started it meanwhile
        if known is not None:
            return known
        name = self._name(plan)
        revision = Revision(self._workshop, name, plan, folders)
        revision.predictor = predictor
        serves = any(other.plan.service == plan.service and other.is_ready for other in self.revisions.values())
        self.revisions[plan.digest] = revision
        revision.start(aside=serves)
        self._say(f"{name}: starting")
        self._spawn(self._tell_ready(revision), f"ready {name}")
        return revision

    def _scale(self, revision: Revision) -> None:
        """Bring a revision that runs to the number of pods that its plan asks for now."""
        revision.start()
        if len(revision.pods) > revision.plan.replicas:
            self._spawn(self._rotation.shrink(revision), f"scale {revision.name}")

    def _fetch(self, plan: ComponentPlan) -> dict[str, Path]:
        """The local folder of each of a component's mount paths."""
        folders = {}
        for storage in plan.storage:
            place = storage.source.place()
            base = Path(place.file).resolve().parent
            try:
                folders[storage.mount_path] = fetch(
                    storage.uri,
                    base=base,
                    cache=self._options.cache,
                    mounts={prefix: Path(folder) for prefix, folder in plan.mounts},
                    settings=dict(storage.settings),
                    pull=self._options.pull and storage.uri not in self._pulled,
                )
                self._pulled.add(storage.uri)
            except ConfigError as error:
                raise ConfigError(f"{place}:{storage.source.field()}: {error}") from None
        return folders

    def _name(self, plan: ComponentPlan) -> str:
        key = f"{plan.service}:{plan.digest}"
        if key not in self.names:
            count = self._counts[f"{plan.namespace}/{plan.deployment}"] = (
                self._counts.get(f"{plan.namespace}/{plan.deployment}", 0) + 1
            )
            prefix = "" if plan.namespace == "default" else f"{plan.namespace}."
            self.names[key] = f"{prefix}{plan.deployment}-{count:05d}"
        return self.names[key]

    async def _tell_ready(self, revision: Revision) -> None:
        began = time.monotonic()
        await revision.wait_ready()
        self._say(f"{revision.name}: ready after {time.monotonic() - began:.1f} s")

    def keep_warm(self, service: RunningService, seconds: float) -> None:
        """Keep the version before a promotion for so long; 0: let it go now."""
        service.warm_until = time.monotonic() + seconds
        self._spawn(self._let_go(service, seconds), f"warm {service.plan.key}")

    async def _let_go(self, service: RunningService, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if time.monotonic() >= service.warm_until:  # else it was kept for longer meanwhile
            await self.retire_unused()

    # What nobody needs any more --------------------------------------------------------------------------------------

    async def retire_unused(self) -> None:
        """Drain and stop every revision that no service refers to."""
        needed = set().union(*(service.needed() for service in self.services.values()))
        unused = [revision for digest, revision in self.revisions.items() if digest not in needed]
        # Routers and transformers first: until they have drained what they call still gets requests.
        for kind in ENTRY_FIRST:
            gone = [revision for revision in unused if revision.plan.kind == kind]
            for revision in gone:
                self.revisions.pop(revision.plan.digest, None)
                self.leaving[revision.name] = revision
            if gone:
                await asyncio.shield(self._spawn(self._retire(gone), "retire " + ", ".join(r.name for r in gone)))

    async def _retire(self, gone: Sequence[Revision]) -> None:
        for revision in gone:
            self._say(f"{revision.name}: draining")
        await self._drain([pod for revision in gone for pod in revision.pods])
        for revision in gone:
            self.leaving.pop(revision.name, None)
            if revision.inner_port is not None:
                self._workshop.ports.release(revision.inner_port)
            self._say(f"{revision.name}: stopped")
        await self.publish()

    async def _drain(self, pods: Sequence[Pod]) -> None:
        """Let pods finish what they have, then stop them."""
        for pod in pods:
            pod.draining = True
        told = await self.publish()
        ports = {port for pod in pods if pod.joined for port in pod.entry_ports}
        end = time.monotonic() + self._options.drain_s
        while ports and not told and time.monotonic() < end:
            told = await self.publish()  # the gateway may still send requests here
        quiet = 0
        # Twice in a row: a request may be between Envoy's choice of a host and its counter.
        while ports and quiet < 2 and time.monotonic() < end:
            active = await self._gateway.active_requests(ports)
            quiet = quiet + 1 if active == 0 else 0
            await asyncio.sleep(0.1)
        await asyncio.gather(*(pod.stop() for pod in pods))

    # What the gateway knows ------------------------------------------------------------------------------------------

    def _table(self) -> GatewayTable:
        # A template that returns while its last processes still drain is in both, under one name.
        joined = [
            JoinedRevision(
                backend=revision.backend(),
                digest=revision.plan.digest,
                timeout_s=revision.plan.timeout_s,
                inner_port=revision.inner_port,
                leaving=leaving,
            )
            for revisions, leaving in ((self.revisions, False), (self.leaving, True))
            for revision in revisions.values()
            if revision.has_joined
        ]
        return gateway_table([service.routed() for service in self.services.values()], joined)

    async def publish(self) -> bool:
        """Tell the gateway, and wait until it has taken it; what it does not take in time is told again soon.

        Returns:
            Whether it has: until then what was there before must stay.
        """
        ready = [pod for revision in self.everything for pod in revision.pods if pod.is_ready and pod.joined]
        taken = await self._gateway.apply(self._table)
        if not taken:
            asyncio.get_running_loop().call_later(RETRY_S, self._dirty.set)
        for pod in [pod for revision in self.everything for pod in revision.pods]:
            pod.is_reached = pod.is_ready and (pod.is_reached or (taken and pod in ready))
        for revision in self.everything:
            revision.was_reached = revision.was_reached or revision.is_ready
        return taken

    async def _publish_wholly(self, revision: Revision | None = None) -> None:
        """Tell the gateway before what goes on only when it has taken it.

        Args:
            revision: what it must have reached by then; one that was ready may have died since. One that dies later keeps no other from its traffic.

        Raises:
            ConfigError: it has not; tried again by whoever brings a service to its plan.
        """
        end = time.monotonic() + PATIENCE_S
        while not (await self.publish() and (revision is None or revision.was_reached)):
            if time.monotonic() > end:
                what = "taken the change" if revision is None else f"reached {revision.name}"
                raise ConfigError(f"the gateway has not {what} within {PATIENCE_S:.0f} s; see serinus logs gateway")
            await asyncio.sleep(_PAUSE_S)

    async def _publish_changes(self, dirty: asyncio.Event) -> None:
        """Tell the gateway what processes do by themselves: crash, come back, fail their probe."""
        while True:
            await dirty.wait()
            dirty.clear()
            for revision in list(self.revisions.values()):
                for pod in list(revision.pods):
                    pod.joined = pod.joined or pod.is_ready
                    if pod.is_blocked and not pod.draining:
                        self._replace(revision, pod)
            try:
                await self.publish()
            except Exception as error:  # noqa: BLE001 (edge of a task: a full disk may have room again)
                if not isinstance(error, OSError):
                    _log.exception("publishing the gateway's table")
                elif self._publish_problem != str(error):
                    self._say(f"the gateway cannot be told: {error}; tried again")
                self._publish_problem = str(error)
                await asyncio.sleep(RETRY_S)
                dirty.set()
            else:
                self._publish_problem = ""

    def _replace(self, revision: Revision, old: Pod) -> None:
        """Put a pod with other ports in the place of one that cannot come back."""
        new = revision.new_pod()
        revision.pods[revision.pods.index(old)] = new
        old.give_way(new)
        new.start()
        self._say(f"{revision.name}: its ports are taken; it is started with others")
        self._spawn(old.stop(), f"stop of a pod of {revision.name}")

    async def roll(self, digests: Sequence[str]) -> list[str]:
        """Replace every process of some revisions by a new one; see `PodRotation.roll`."""
        return await self._rotation.roll(digests, self.revisions.get)
