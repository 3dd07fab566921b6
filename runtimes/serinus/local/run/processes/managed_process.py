"""One process that is kept running: start, readiness, logs, restart with back-off, stop of its whole group.

Theory of operation. A process has a group of its own, so that workers go with it, dies with the supervisor (see `launcher`), and
is on the `reaper`'s list. `run` is one task for its life: start, wait for the end, back off, start again. Beside it
a task asks for readiness once a second, faster while it starts. Every change calls `changed`, which publishes endpoints.
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

from ...plan.port_binding import ProcessPlan
from .log_files import LogFile
from .probe import answers_tcp, is_alive, is_ready

__all__ = ["ManagedProcess", "Reaper"]

FIRST_DELAY_S, MOST_DELAY_S = 0.5, 30.0
"""Back-off between restarts: doubled each time. The kubelet's 10 s and 5 min are for clusters, where nobody is waiting."""

STEADY_S = 20.0
"""A process that ran this long begins its back-off anew (kubelet: 10 min)."""

State = Literal["starting", "ready", "unready", "waiting", "stopping", "stopped"]
_HERE = Path(__file__).parent


class Reaper:
    """The process that ends our process groups if we are killed."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it in a session of its own, so that a terminal's Ctrl-C does not reach it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(_HERE / "reaper.py"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    def began(self, group: int) -> None:
        """Put a group on the list."""
        self._write(f"+{group}\n")

    def ended(self, group: int) -> None:
        """Take a group off the list."""
        self._write(f"-{group}\n")

    def _write(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(line.encode())

    async def close(self) -> None:
        """End it; it ends what is still on its list first."""
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            await self._process.wait()


class ManagedProcess:
    """One process of a pod, or the gateway."""

    def __init__(
        self, title: str, plan: ProcessPlan, log: LogFile, reaper: Reaper, changed: Callable[[], None]
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
        self._log = log
        self._reaper = reaper
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._ended = asyncio.Event()
        """Set when it is to stop; it ends a back-off. The task is not cancelled: a start under way would be lost."""
        self._process: asyncio.subprocess.Process | None = None

    def start(self) -> None:
        """Begin its life."""
        self._task = asyncio.create_task(self._run(), name=f"process {self.title}")

    @property
    def is_ready(self) -> bool:
        """Whether it may get requests now."""
        return self.state == "ready"

    def _set(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._changed()

    async def _run(self) -> None:
        delay = FIRST_DELAY_S
        while not self._stopping:
            began = time.monotonic()
            self._set("starting")
            await self._once()
            if self._stopping:
                break
            if time.monotonic() - began > STEADY_S:
                delay = FIRST_DELAY_S
            self.restarts += 1
            self._log.note(f"{self.last_exit}; starts again in {delay:.1f} s")
            self._set("waiting")
            try:
                await asyncio.wait_for(self._ended.wait(), delay)
            except asyncio.TimeoutError:
                pass
            delay = min(delay * 2, MOST_DELAY_S)
        self._set("stopped")

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
        self._reaper.began(process.pid)
        if self._stopping:
            self._signal(signal.SIGTERM)
        self._changed()
        watcher = asyncio.create_task(self._watch(), name=f"readiness of {self.title}")
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
                self._log.flush()
                return
            self._log.feed(chunk)

    async def _watch(self) -> None:
        """Ask for readiness and liveness until cancelled."""
        plan, pause = self.plan, 0.05
        port, began, failures = plan.ports.http, time.monotonic(), 0
        warned = False
        while True:
            ready = await is_ready(port, plan.model_name, plan.readiness, plan.probe_ports)
            if self._stopping:
                return
            if ready:
                self._set("ready")
                self.was_ready.set()
            elif self.state == "ready":
                self._set("unready")
            elif not warned and time.monotonic() - began > 30:
                warned = True
                listening = await answers_tcp(port, timeout_s=1.0)
                self._log.note(
                    "answers, but is not ready after 30 s"
                    if listening
                    else f"nothing listens on 127.0.0.1:{port} after 30 s; its port comes by --http_port or SERINUS_HTTP_PORT"
                )
            probe = plan.liveness
            if probe is not None and self.was_ready.is_set() and time.monotonic() - began > probe.initial_delay_s:
                failures = 0 if await is_alive(port, probe, plan.probe_ports) else failures + 1
                if failures >= probe.failures:
                    self._log.note(f"its livenessProbe failed {failures} times; it is ended and starts again")
                    self._signal(signal.SIGKILL)
                    return
            pause = 1.0 if self.state == "ready" else min(pause * 1.3, 0.5)
            await asyncio.sleep(pause)

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

    async def stop(self, grace_s: float) -> None:
        """End it and its group: SIGTERM, and SIGKILL when the grace is over."""
        self._stopping = True
        task = self._task
        if task is None:
            return
        self._set("stopping")
        self._ended.set()
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait({task}, timeout=grace_s)
        if not done:
            self._log.note(f"still there {grace_s:.0f} s after SIGTERM; it is killed")
            self._signal(signal.SIGKILL)
            await asyncio.wait({task}, timeout=5.0)
        self.state = "stopped"
        self._log.close()
