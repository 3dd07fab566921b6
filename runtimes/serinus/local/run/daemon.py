"""The supervisor as a process: state folder, control socket, watched manifests, signals.

Theory of operation. A lock on the state folder allows one supervisor. SIGINT and SIGTERM end it in good order (see
`LocalCluster.close`); a second one kills what is left at once. The paths given are read again when one of their files changes: a
manifest that has become wrong is told and changes nothing.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ...errors import ConfigError
from ...manifests.problems import Problem
from ..plan.deployment_plan import PlanOptions
from ..plan.plan_loader import fingerprint, load
from .control_socket import socket_path
from .local_cluster import LocalCluster
from .reconciler import RunOptions
from .running_service import RunningService

__all__ = ["Daemon", "DaemonOptions"]

_log = logging.getLogger("serinus.local")
WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """What `serinus up` was asked."""

    run: RunOptions
    plan: PlanOptions = field(default_factory=PlanOptions)
    paths: tuple[Path, ...] = ()
    runtimes: tuple[Path, ...] = ()
    watch: bool = True


class Daemon:
    """One `serinus up`.

    Args:
        options: what to run.
        show: gets every line of every process, with the process's name.
        say: gets lines about what happens.
        settled: called once, with the status, when everything first given is ready.
    """

    def __init__(
        self,
        options: DaemonOptions,
        *,
        show: Callable[[str, str], None],
        say: Callable[[str], None],
        settled: Callable[[dict[str, Any]], None],
    ) -> None:
        self._options = options
        self._say = say
        self._show = show
        self._settled = settled
        self._paths = list(options.paths)
        self._prints: dict[Path, Any] = {}
        self._cluster: LocalCluster | None = None
        self._stop = asyncio.Event()
        self._signals = 0
        self._applying = asyncio.Lock()

    async def run(self) -> None:
        """Run until a signal or `serinus down`.

        Raises:
            ConfigError: the manifests are wrong, the port is taken, or another supervisor runs here.
        """
        state = self._options.run.state
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
        with (state / "lock").open("w") as lock:
            _lock(lock, state)
            loaded = [(path, self._load(path)) for path in self._paths]
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._on_signal)
            cluster = self._cluster = LocalCluster(self._options.run, show=self._show, say=self._say)
            await cluster.start()
            control = socket_path(state)
            control.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(self._serve, str(control), limit=1 << 20)
            control.chmod(0o600)
            info = {"pid": os.getpid(), "port": cluster.gateway.port, "socket": str(control)}
            (state / "supervisor.json").write_text(json.dumps(info), encoding="utf-8")
            tasks = [asyncio.create_task(self._begin(loaded), name="first apply")]
            if self._options.watch:
                tasks.append(asyncio.create_task(self._watch(), name="watch"))
            try:
                await self._stop.wait()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._say("stopping")
                await cluster.close()
                server.close()
                control.unlink(missing_ok=True)
                (state / "supervisor.json").unlink(missing_ok=True)

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1 and self._cluster is not None:
            self._say("killing what is left")
            self._cluster.kill()

    def stop(self) -> None:
        """End it in good order."""
        self._stop.set()

    def _load(self, path: Path) -> list[Any]:
        """Plans of one path; warnings are said.

        Raises:
            ManifestsRefused: with every problem.
        """
        self._prints[path] = fingerprint(path)
        beside = [other for other in self._paths if other != path]
        loaded = load(path, self._options.runtimes, self._options.plan, beside)
        if loaded.errors:
            raise ManifestsRefused(loaded.errors)
        for problem in loaded.problems:
            self._say(f"{problem}")
        return list(loaded.services)

    async def _begin(self, loaded: Sequence[tuple[Path, list[Any]]]) -> None:
        """Apply what was given, one path after another: the same service twice is two revisions, in that order."""
        cluster = self._running
        async with self._applying:
            for _, plans in loaded:
                services = [cluster.apply(plan) for plan in plans]
                await asyncio.gather(*(service.settled.wait() for service in services))
        self._settled(self._status())

    async def _watch(self) -> None:
        cluster = self._running
        while True:
            await asyncio.sleep(WATCH_S)
            for path in list(self._paths):
                if await asyncio.to_thread(fingerprint, path) == self._prints.get(path):
                    continue
                self._say(f"{path}: changed")
                try:
                    async with self._applying:
                        for plan in await asyncio.to_thread(self._load, path):
                            cluster.apply(plan)
                except ConfigError as error:
                    self._say(f"{error}\nnothing was changed")

    def _status(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "state": str(self._options.run.state), **self._running.status()}

    @property
    def _running(self) -> LocalCluster:
        if self._cluster is None:
            raise RuntimeError("the supervisor has not been started")
        return self._cluster

    # The control socket ----------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if not line:
                return
            try:
                answer = {"ok": True, **await self._answer(json.loads(line))}
            except ManifestsRefused as error:
                problems = [problem.as_json() for problem in error.found]
                answer = {"ok": False, "error": str(error), "problems": problems}
            except (ConfigError, ValueError, KeyError, TypeError) as error:
                answer = {"ok": False, "error": str(error)}
            except Exception:  # noqa: BLE001 (edge of a request; the command gets an answer, the log the traceback)
                _log.exception("control request")
                answer = {"ok": False, "error": "an error of the supervisor; see its log"}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError):
            return
        finally:
            writer.close()

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        cluster = self._running
        op, wait_s = request.get("op"), float(request.get("wait_s") or 0)
        if op == "status":
            return self._status()
        if op == "apply":
            paths = [Path(path) for path in request["paths"]]
            loaded = [(path, await asyncio.to_thread(self._load, path)) for path in paths]
            services: list[RunningService] = []
            async with self._applying:
                for path, plans in loaded:
                    if path not in self._paths:
                        self._paths.append(path)
                    services = [cluster.apply(plan) for plan in plans]
                    await _wait(services, wait_s)
            return self._status()
        if op == "traffic":
            warm_s = float(request.get("warm_s") or 0)
            cluster.set_traffic(request["name"], request.get("percent"), request.get("canary") or "", warm_s=warm_s)
            await _wait([cluster.find(request["name"])], wait_s)
            return self._status()
        if op == "mirror":
            await cluster.mirror(request["name"], int(request["percent"]), request.get("canary") or "")
            return self._status()
        if op == "restart":
            return {"restarted": await cluster.restart(request["name"])}
        if op == "down":
            name = request.get("name") or ""
            if name:
                await cluster.down(name)
                return self._status()
            # The answer goes out first; what comes next closes this very socket.
            asyncio.get_running_loop().call_later(0.05, self._stop.set)
            return {"pid": os.getpid()}
        raise ConfigError(f"{op!r} is no operation; use status, apply, traffic, mirror, restart or down")


class ManifestsRefused(ConfigError):
    """Manifests with errors; `found` are the problems."""

    def __init__(self, found: Sequence[Problem]) -> None:
        super().__init__([str(problem) for problem in found])
        self.found = tuple(found)


async def _wait(services: Sequence[RunningService], wait_s: float) -> None:
    if services and wait_s > 0:
        waits = [asyncio.create_task(service.settled.wait()) for service in services]
        _, late = await asyncio.wait(waits, timeout=wait_s)
        for task in late:
            task.cancel()


def _lock(file: IO[str], state: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(
            f"another serinus up runs in {state}; give it PATHs with serinus up, end it with serinus down, "
            "or use another --state-dir"
        ) from None
