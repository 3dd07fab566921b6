"""The supervisor as a process: state folder, control socket, watched manifests, signals.

Theory of operation. Signals are heard from the first moment on: SIGINT and SIGTERM end it in good order (see `LocalCluster.close`), also while it
starts; a second one kills what is left at once. The lock on the state folder allows one supervisor, which first ends what a killed one left.
The paths given are read again when one of their files changes: a manifest that has become wrong changes nothing, is told, and is in the status
until it is mended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..plan.deployment_plan import PlanOptions
from ..plan.plan_loader import Loaded
from .applied_manifests import AppliedManifests, ManifestsRefused, PathOptions
from .control_socket import is_own_peer, socket_path
from .local_cluster import LocalCluster
from .processes.process_record import identify
from .reconciler import RunOptions
from .running_service import RunningService
from .state_folder import SUPERVISOR_FILE, hold_state

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
        self._manifests = AppliedManifests(PathOptions(options.plan, options.runtimes, options.watch))
        self._cluster: LocalCluster | None = None
        self._stop = asyncio.Event()
        self._signals = 0
        self._applying = asyncio.Lock()

    async def run(self) -> None:
        """Run until a signal or `serinus down`.

        Raises:
            StateBusy: another supervisor runs here.
            ConfigError: the manifests are wrong, the port is taken, or the state folder cannot be written.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        state = self._options.run.state
        with hold_state(state) as left:
            if left:
                self._say(f"a supervisor that is gone left {len(left)} processes; they were ended")
            try:
                await self._run(state)
            except OSError as error:
                at = error.filename or state
                raise ConfigError(
                    f"{at}: {error.strerror or error}; make room or rights there, or give another --state-dir"
                ) from None

    async def _run(self, state: Path) -> None:
        loaded = await self._unless_stopped(asyncio.to_thread(self._manifests.read, self._options.paths))
        if loaded is None:
            return
        cluster = LocalCluster(self._options.run, show=self._show, say=self._say)
        if await self._unless_stopped(_done(cluster.start())) is None:
            await cluster.close()
            return
        self._cluster = cluster
        control = socket_path(state)
        tasks: list[asyncio.Task[None]] = []
        server: asyncio.Server | None = None
        try:
            server = await asyncio.start_unix_server(self._serve, str(control), limit=1 << 20)
            control.chmod(0o600)
            _write_supervisor(state, cluster.gateway.port, control)
            tasks.append(asyncio.create_task(self._begin(loaded), name="first apply"))
            tasks.append(asyncio.create_task(self._watch(), name="watch"))
            await self._stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._say("stopping")
            await cluster.close()
            if server is not None:
                server.close()
            for path in (control, state / SUPERVISOR_FILE):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    async def _unless_stopped(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of something, or None where a signal came first: then it is cancelled, and its error is nobody's any more."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not self._stop.is_set():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1 and self._cluster is not None:
            self._say("killing what is left")
            self._cluster.kill()

    def stop(self) -> None:
        """End it in good order."""
        self._stop.set()

    async def _begin(self, loaded: Sequence[tuple[Path, Loaded, PathOptions]]) -> None:
        """Apply what was given, one path after another: the same service twice is two revisions, in that order."""
        for one in loaded:
            services = await self._apply(one)
            await asyncio.gather(*(service.settled.wait() for service in services))
        self._settled(self._status())

    async def _read(
        self, paths: Sequence[Path], given: Mapping[str, Any] | None = None
    ) -> list[tuple[Path, Loaded, PathOptions]]:
        async with self._applying:
            return await asyncio.to_thread(self._manifests.read, paths, given)

    async def _apply(self, one: tuple[Path, Loaded, PathOptions]) -> list[RunningService]:
        path, loaded, options = one
        async with self._applying:
            self._manifests.take(path, loaded, options)
            for problem in loaded.problems:
                self._say(f"{problem}")
            return [self._running.apply(plan) for plan in loaded.services]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            for path in self._manifests.watched():
                if not await asyncio.to_thread(self._manifests.has_changed, path):
                    continue
                self._say(f"{path}: changed")
                try:
                    for one in await self._read([path]):
                        await self._apply(one)
                except ConfigError as error:
                    self._say(f"{error}\nnothing was changed")
                except Exception:  # noqa: BLE001 (edge of a task: the next change is looked at all the same)
                    _log.exception("reading %s", path)

    def _status(self) -> dict[str, Any]:
        refused = [{"path": str(path), "problems": list(told)} for path, told in self._manifests.refused.items()]
        told = {"pid": os.getpid(), "state": str(self._options.run.state), "refused": refused}
        return {**told, **self._running.status()}

    @property
    def _running(self) -> LocalCluster:
        if self._cluster is None:
            raise RuntimeError("the supervisor has not been started")
        return self._cluster

    # The control socket ----------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not is_own_peer(writer.get_extra_info("socket")):
                return
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
            given = self._take_options(request.get("options") or {})
            applied: list[RunningService] = []
            for one in await self._read([Path(path) for path in request["paths"]], given):
                services = await self._apply(one)
                await self._wait(services, wait_s)
                applied += services
            return {
                "applied": [f"{service.plan.namespace}/{service.plan.name}" for service in applied],
                **self._status(),
            }
        if op == "traffic":
            warm_s = float(request.get("warm_s") or 0)
            cluster.set_traffic(request["name"], request.get("percent"), request.get("canary") or "", warm_s=warm_s)
            await self._wait([cluster.find(request["name"])], wait_s)
            return self._status()
        if op == "mirror":
            await cluster.mirror(request["name"], int(request["percent"]), request.get("canary") or "")
            return self._status()
        if op == "restart":
            return {"restarted": await cluster.restart(request["name"])}
        if op == "down":
            name = request.get("name") or ""
            if name:
                plan = cluster.find(name).plan
                await cluster.down(name)
                self._manifests.forget(plan.namespace, plan.name)
                return self._status()
            # The answer goes out first; what comes next closes this very socket.
            asyncio.get_running_loop().call_later(0.05, self._stop.set)
            return {"pid": os.getpid()}
        raise ConfigError(f"{op!r} is no operation; use status, apply, traffic, mirror, restart or down")

    async def _wait(self, services: Sequence[RunningService], wait_s: float) -> None:
        """Wait until services are as asked; no longer than one of them has a problem or a process that cannot start."""
        end = time.monotonic() + wait_s
        waits = {asyncio.create_task(service.settled.wait()) for service in services}
        while waits and time.monotonic() < end and not any(map(self._running.is_failing, services)):
            _, waits = await asyncio.wait(waits, timeout=min(0.2, max(0.0, end - time.monotonic())))
        for task in waits:
            task.cancel()

    def _take_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a later `serinus up` for its paths, without those of the gateway, which cannot be changed.

        Raises:
            ConfigError: the gateway is elsewhere.
        """
        gateway, options = self._running.gateway, dict(given)
        port, host = options.pop("port", 0), options.pop("host", gateway.host)
        if port not in {0, gateway.port} or host != gateway.host:
            wanted = f"--host {host}" if host != gateway.host else f"--port {port}"
            raise ConfigError(
                f"{wanted}: the gateway runs at {gateway.host}:{gateway.port} and stays there; "
                "leave the option out, or begin anew: serinus down, serinus up"
            )
        return options


async def _done(work: Coroutine[Any, Any, None]) -> bool:
    await work
    return True


def _write_supervisor(state: Path, port: int, control: Path) -> None:
    own = identify(os.getpid(), "supervisor")
    info = {"pid": os.getpid(), "start": own.start if own else None, "port": port, "socket": str(control)}
    partial = state / f"{SUPERVISOR_FILE}.partial"
    partial.write_text(json.dumps(info), encoding="utf-8")
    partial.replace(state / SUPERVISOR_FILE)
