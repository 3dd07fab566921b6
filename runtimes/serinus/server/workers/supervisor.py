"""`--workers N`: processes that share the ports, one set of metrics, one readiness.

Theory of operation. The supervisor binds the REST socket and hands it to every worker, so that all of them accept from one queue
and a connection that waits there survives the death of any worker. gRPC servers cannot take a socket: each worker
binds the port itself with SO_REUSEPORT. A worker is this program again, with its number and a control socket in the environment
(not a fork: a forked copy of native threads and event loops is undefined). In the first round nobody opens the ports before
all workers have loaded their models, so the first answered request already has every worker behind it; a worker that
replaces a dead one opens them as soon as it is ready. A worker that dies loses only the requests that it held and is
replaced with exponential back-off; one that cannot even start in the first round ends the whole group with its exit status,
because its mistake is everybody's.

Metrics: whichever worker is asked for /metrics asks the supervisor, which collects a snapshot from each and sends them all
back. What a dead worker had counted at its last scrape is kept, so that counters never fall. Repository requests (load,
unload) are applied to every worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...dataplane.telemetry.metrics import Metrics
from ...errors import ConfigError
from ...settings import ServerSettings
from ..port_checks import check_ports
from .worker_channel import Channel

__all__ = ["Supervisor", "bind", "supervise"]

_log = logging.getLogger("serinus.workers")

_COLLECT_TIMEOUT_S = 2.0
"""A worker that is busy longer than this is left out of one scrape; its last snapshot stands in for it."""
_BACKOFF_FIRST_S, _BACKOFF_MOST_S, _HEALTHY_S = 0.1, 10.0, 30.0
_KILL_MARGIN_S = 3.0


def bind(host: str, port: int, *, share: bool = False) -> socket.socket:
    """Bind, without listening, a TCP socket that children may inherit.

    Args:
        host: address or name.
        port: 0 picks a free one.
        share: set SO_REUSEPORT, so that others may bind the same port.

    Raises:
        ConfigError: the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; is another server running?"
        ) from None
    sock.setblocking(False)
    return sock


@dataclass(eq=False)
class _Worker:
    """One process, and what the supervisor knows of it."""

    index: int
    process: asyncio.subprocess.Process
    channel: Channel
    started: float
    ready: bool = False
    listening: bool = False
    waiting: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    last_snapshot: Any = None


class Supervisor:
    """Keeps N workers running until a signal comes.

    Args:
        settings: host, ports, workers and drain times are used.
        command: what starts one worker.
    """

    def __init__(self, settings: ServerSettings, command: Sequence[str]) -> None:
        self._settings = settings
        self._command = list(command)
        self._workers: dict[int, _Worker] = {}
        self._ids = itertools.count(1)
        self._stopping = asyncio.Event()
        self._first_round = True
        self._exit_status = 0
        self._lost: Any = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._applying = asyncio.Lock()

    async def run(self) -> int:
        """Start everybody, replace the dead, stop on SIGTERM or SIGINT.

        Returns:
            The exit status for the shell.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        check_ports(self._settings, only_metrics=True)
        http = bind(self._settings.host, self._settings.http_port)
        # Holding the gRPC port, bound but not listening, fixes its number for all workers when 0 was asked for.
        grpc = bind(self._settings.host, self._settings.grpc_port, share=True) if self._settings.enable_grpc else None
        try:
            for index in range(self._settings.workers):
                self._spawn(self._keep(index, http, grpc))
            await self._stopping.wait()
            await self._stop()
        finally:
            http.close()
            if grpc is not None:
                grpc.close()
        return self._exit_status

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, index: int, http: socket.socket, grpc: socket.socket | None) -> None:
        """Start worker `index`, again and again, until told to stop."""
        loop = asyncio.get_running_loop()
        backoff_s = _BACKOFF_FIRST_S
        while not self._stopping.is_set():
            worker = await self._start(index, http, grpc)
            listener = asyncio.ensure_future(self._listen(worker))
            status = await worker.process.wait()
            await listener
            del self._workers[index]
            for future in worker.waiting.values():
                if not future.done():
                    future.set_result(None)
            if worker.last_snapshot is not None:
                kept = Metrics.retire(worker.last_snapshot)
                self._lost = kept if self._lost is None else Metrics.merge([self._lost, kept])
            if self._stopping.is_set():
                return
            if self._first_round:
                self._exit_status = status if status > 0 else 1
                self._stopping.set()
                return
            if loop.time() - worker.started > _HEALTHY_S:
                backoff_s = _BACKOFF_FIRST_S
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            _log.error(
                "worker %d (pid %d) ended with %s; the next starts in %.1f s", index, worker.process.pid, how, backoff_s
            )
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
            backoff_s = min(backoff_s * 2, _BACKOFF_MOST_S)

    async def _start(self, index: int, http: socket.socket, grpc: socket.socket | None) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = dict(os.environ)
        environment["SERINUS_WORKER"] = str(index)
        environment["SERINUS_CONTROL_FD"] = str(theirs.fileno())
        environment["SERINUS_HTTP_FD"] = str(http.fileno())
        if grpc is not None:
            environment["SERINUS_GRPC_BOUND_PORT"] = str(grpc.getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            *self._command, env=environment, pass_fds=(theirs.fileno(), http.fileno()), start_new_session=True
        )
        theirs.close()
        worker = _Worker(index, process, await Channel.open(ours), asyncio.get_running_loop().time())
        self._workers[index] = worker
        return worker

    async def _listen(self, worker: _Worker) -> None:
        async for message in worker.channel.messages():
            kind = message["type"]
            if kind == "ready":
                worker.ready = True
                if not self._first_round:
                    worker.channel.send(type="go")
                elif len(self._workers) == self._settings.workers and all(w.ready for w in self._workers.values()):
                    self._first_round = False
                    for each in self._workers.values():
                        each.channel.send(type="go")
            elif kind == "listening":
                worker.listening = True
                _log.info("worker %d (pid %d) listens", worker.index, worker.process.pid)
            elif kind in {"snapshot", "applied"}:
                future = worker.waiting.pop(message["id"], None)
                if future is not None and not future.done():
                    future.set_result(message)
            elif kind == "metrics":
                self._spawn(self._answer_metrics(worker, message["id"]))
            elif kind == "apply":
                self._spawn(self._answer_apply(worker, message))
        await worker.channel.close()

    async def _ask(self, worker: _Worker, timeout_s: float | None, **message: Any) -> dict[str, Any] | None:
        """Send one question; None when the worker died or did not answer in time."""
        number = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        worker.waiting[number] = future
        worker.channel.send(id=number, **message)
        try:
            return await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError:
            worker.waiting.pop(number, None)
            return None

    async def _answer_metrics(self, asker: _Worker, number: int) -> None:
        workers = list(self._workers.values())
        answers = await asyncio.gather(*(self._ask(w, _COLLECT_TIMEOUT_S, type="collect") for w in workers))
        for worker, answer in zip(workers, answers, strict=True):
            if answer is not None:
                worker.last_snapshot = answer["data"]
        alive = [worker.last_snapshot for worker in workers if worker.last_snapshot is not None]
        asker.channel.send(type="merged", id=number, snapshots=alive if self._lost is None else [*alive, self._lost])

    async def _answer_apply(self, asker: _Worker, message: dict[str, Any]) -> None:
        """Apply one repository request everywhere, one at a time so that all workers see the same order."""
        async with self._applying:
            request = {key: message[key] for key in ("action", "name", "parameters")}
            answers = await asyncio.gather(
                *(self._ask(worker, None, type="do", **request) for worker in list(self._workers.values()))
            )
        errors = [answer["error"] for answer in answers if answer is not None and answer["error"] is not None]
        asker.channel.send(type="done", id=message["id"], error=errors[0] if errors else None)

    async def _stop(self) -> None:
        workers = list(self._workers.values())
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGTERM)
        limit = self._settings.drain_delay_s + self._settings.drain_timeout_s + _KILL_MARGIN_S
        waits = [asyncio.ensure_future(worker.process.wait()) for worker in workers]
        if waits:
            _, late = await asyncio.wait(waits, timeout=limit)
            if late:
                for worker in workers:
                    if worker.process.returncode is None:
                        _log.error(
                            "worker %d (pid %d) did not stop in %.0f s: killed", worker.index, worker.process.pid, limit
                        )
                        worker.process.kill()
                await asyncio.wait(late)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)


_START = "import sys; sys.path.remove(''); from serinus.cli.main import main; sys.exit(main())"
"""`-c` puts the current folder first, under the name ''."""


def supervise(settings: ServerSettings, arguments: Sequence[str]) -> int:
    """Run `serinus serve` with these arguments in `settings.workers` processes.

    Returns:
        The exit status.
    """
    # As `-m` would, but the folder that the command was given in is searched for modules only where this process does so: it may be a
    # model's, and what lies there is no code of ours.
    in_place = sys.path[:1] in ([""], [os.getcwd()])
    start = ["-m", "serinus.cli"] if in_place else ["-c", _START]
    command = [sys.executable, *start, "serve", *arguments]

    async def run() -> int:
        return await Supervisor(settings, command).run()

    return asyncio.run(run())
