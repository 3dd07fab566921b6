"""One process that is kept running: start, readiness, logs, restart with back-off, stop of its whole group.

Theory of operation. A process has a group of its own, so that workers go with it, dies with the supervisor (see `launcher`), and
is on the `reaper`'s list. `run` is one task for its life: start, wait for the end, back off, start again. Beside each life
a task asks its probes (`health_watch`). Every change calls `changed`, which publishes endpoints. A process whose ports somebody else has
taken while it was down is `blocked`: it cannot come back, and its pod is replaced.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ....manifests.containers import Hook
from ...plan.port_binding import ProcessPlan
from .cpu_weight import LESS, set_weight
from .crash_back_off import CrashBackOff
from .health_watch import watch_health
from .log_files import LogFile
from .ports import is_free
from .probe import Answer, run_hook
from .reaper_link import Reaper

__all__ = ["ManagedProcess"]

UNHEALTHY_GRACE_S = 5.0
"""From SIGTERM to SIGKILL of a process that failed its probes. The kubelet gives it the pod's whole grace; here somebody waits for its successor."""

AFTER_HOOK_S = 2.0
"""Least time between SIGTERM and SIGKILL where preStop has used up the grace (kuberuntime_container.go, minimumGracePeriodInSeconds)."""

State = Literal["starting", "ready", "unready", "waiting", "stopping", "stopped"]
_HERE = Path(__file__).parent


class ManagedProcess:
    """One process of a pod, or the gateway.

    Args:
        title: its name in logs.
        plan: what to run.
        log: takes its output.
        reaper: told of its group.
        changed: called at each change of state.
        moves: whether it gives up its ports where somebody else has taken them; else it waits until they are free.
    """

    def __init__(
        self,
        title: str,
        plan: ProcessPlan,
        log: LogFile,
        reaper: Reaper,
        changed: Callable[[], None],
        *,
        moves: bool = False,
    ) -> None:
        self.title = title
        self.plan = plan
        self.state: State = "starting"
        self.pid: int | None = None
        self.restarts = 0
        self.last_exit: str = ""
        """How it ended last, in words; empty if it never did."""
        self.was_ready = asyncio.Event()
        """Set once it has been ready for the first time."""
        self.blocked = False
        """Whether another process has its ports, and it waits to be replaced."""
        self.log = log
        self._back_off = CrashBackOff()
        self._reaper = reaper
        self._changed = changed
        self._moves = moves
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._silent = False
        self._aside = False
        self._ended = asyncio.Event()
        """Set when it is to stop; it ends a back-off. The task is not cancelled: a start under way would be lost."""
        self._process: asyncio.subprocess.Process | None = None

    def start(self, *, aside: bool = False) -> None:
        """Begin its life.

        Args:
            aside: until it is ready for the first time, it takes less of the cores than what serves beside it.
        """
        self._aside = aside
        self._task = asyncio.create_task(self._run(), name=f"process {self.title}")

    @property
    def is_ready(self) -> bool:
        """Whether it may get requests now."""
        return self.state == "ready"

    @property
    def is_crash_looping(self) -> bool:
        """Whether it ended again and again and is not ready now (kubelet: CrashLoopBackOff)."""
        return self._back_off.is_loop and self.state in {"starting", "waiting", "unready"}

    @property
    def is_silent(self) -> bool:
        """Whether it was ready in this life and does not answer now: it hangs, or the machine is busy."""
        return self.state == "unready" and self._silent

    def take_over(self, other: ManagedProcess) -> None:
        """Go on with another's count of restarts and its back-off, in its place."""
        self.restarts, self.last_exit, self._back_off = other.restarts, other.last_exit, other._back_off

    def _set(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._changed()

    async def _run(self) -> None:
        while not self._stopping:
            began = time.monotonic()
            self._set("starting")
            await self._once()
            if self._stopping:
                break
            delay = self._back_off.ended(time.monotonic() - began)
            self.restarts += 1
            self.log.note(f"{self.last_exit}; starts again in {delay:.1f} s")
            self._set("waiting")
            try:
                await asyncio.wait_for(self._ended.wait(), delay)
            except asyncio.TimeoutError:
                pass
            await self._wait_for_ports()
        self._set("stopped")

    async def _wait_for_ports(self) -> None:
        """Before it starts again: somebody else may have taken its ports meanwhile."""
        taken = [port for port in (self.plan.ports.http, self.plan.ports.grpc) if port and not is_free(port)]
        if not taken or self._stopping or not self._moves:
            return
        self.log.note(f"port {taken[0]} is another process's by now; this one is replaced by one with other ports")
        self.blocked = True
        self._changed()
        await self._ended.wait()

    async def _once(self) -> None:
        """One life: from start to exit."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(_HERE / "launcher.py"),
                str(os.getpid()),
                *self.plan.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self.plan.cwd,
                env=dict(self.plan.env),
                start_new_session=True,
            )
        except OSError as error:
            self.last_exit = f"cannot be started: {error.strerror}: {error.filename}"
            return
        self._process = process
        self.pid = process.pid
        self._reaper.began(process.pid, self.title)
        if self._aside:
            set_weight(process.pid, LESS)
        if self._stopping:
            self._signal(signal.SIGTERM)
        self._changed()
        watcher = asyncio.create_task(self._watch(), name=f"health of {self.title}")
        reader = asyncio.create_task(self._read(process), name=f"log of {self.title}")
        try:
            code = await process.wait()
            self.last_exit = f"ended with exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
        finally:
            watcher.cancel()
            self._signal(signal.SIGKILL)  # workers that outlived their parent
            self._reaper.ended(process.pid)
            self.pid = None
            self._process = None
        try:
            # A pipe that some stray grandchild holds open does not keep us.
            await asyncio.wait_for(reader, 2.0)
        except asyncio.TimeoutError:
            reader.cancel()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        stream = process.stdout
        while stream is not None:
            chunk = await stream.read(65536)
            if not chunk:
                self.log.flush()
                return
            self.log.feed(chunk)

    async def _watch(self) -> None:
        """Follow one life's probes, and end it where they say so."""
        reason = await watch_health(self.plan, hear=self._hear, note=self.log.note)
        if self._stopping:
            return
        self.log.note(f"{reason}; it is ended and starts again")
        self._silent = False
        self._set("unready")
        self._terminate()
        await asyncio.sleep(UNHEALTHY_GRACE_S)
        self._signal(signal.SIGKILL)

    def _hear(self, answer: Answer) -> None:
        if self._stopping:
            return
        was_silent, self._silent = self._silent, answer == "silence"
        if answer == "yes":
            if self._aside and self.pid is not None:
                self._aside = not set_weight(self.pid, 0)  # else with the next answer, a second from now
            self._set("ready")
            self.was_ready.set()
        elif self.state == "ready":
            self._set("unready")
        elif was_silent != self._silent:
            self._changed()

    def _terminate(self) -> None:
        """Tell it to end; one that was stopped by a signal hears of it once it is woken."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = self._process.pid if self._process is not None else None
        if pid is not None:
            try:
                os.killpg(pid, number)
            except (ProcessLookupError, PermissionError):
                return

    def kill(self) -> None:
        """End its group at once."""
        self._stopping = True
        self._ended.set()
        self._signal(signal.SIGKILL)

    async def stop(self, grace_s: float | None = None) -> None:
        """End it and its group as the kubelet does: preStop, SIGTERM, and SIGKILL when the grace is over.

        Args:
            grace_s: of all of it together; None: as its plan says.
        """
        task, grace_s = self._task, self.plan.grace_s if grace_s is None else grace_s
        self._stopping = True
        if task is None:
            return
        end = time.monotonic() + grace_s
        self._set("stopping")
        self._ended.set()
        least_s = 0.0
        if self.plan.pre_stop is not None and self._process is not None:
            await self._pre_stop(self.plan.pre_stop, task, grace_s)
            least_s = AFTER_HOOK_S
        self._terminate()
        done, _ = await asyncio.wait({task}, timeout=max(least_s, end - time.monotonic()))
        if not done:
            self.log.note(f"still there {grace_s:.0f} s after it was told to stop; it is killed")
            self._signal(signal.SIGKILL)
            await asyncio.wait({task}, timeout=5.0)
        self.state = "stopped"
        self.log.close()

    async def _pre_stop(self, hook: Hook, task: asyncio.Task[None], grace_s: float) -> None:
        """Do what `lifecycle.preStop` says while the process still runs; the grace goes on meanwhile."""
        work = asyncio.create_task(run_hook(hook, self.plan), name=f"preStop of {self.title}")
        await asyncio.wait({work, task}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            trouble = work.result()
        else:
            trouble = "" if task.done() else f"not over after {grace_s:g} s"
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        if trouble:
            self.log.note(f"preStop: {trouble}; SIGTERM follows")
