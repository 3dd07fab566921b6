"""`--workers N`: processes that share the ports, one set of models, one set of metrics, one readiness.

Theory of operation. The supervisor binds the REST socket and hands it to every worker, so that all of them accept from one queue
and a connection that waits there survives the death of any worker. gRPC servers cannot take a socket: each worker
binds the port itself with SO_REUSEPORT. A worker is this program again, with its number and a control socket in the environment
(not a fork: a forked copy of native threads and event loops is undefined). In the first round nobody opens the ports before
all workers have loaded their models, so the first answered request already has every worker behind it. A worker that dies loses only the
requests that it held and is replaced with exponential back-off; one that cannot even start in the first round ends the whole group with its exit
status, because its mistake is everybody's.

*Models.* A load or unload happens on all workers or on none, in two steps: each prepares it (loads the new versions beside the old ones), and only
when all have done so, with the same versions, each commits, which cannot fail. One that refuses, or dies before the second step, undoes it on all;
the record of what is present (`present_models`) is changed between the steps, so one that dies in the second comes back with the new
set. A worker that comes later is told the record, loads that and not what the disk has become, and opens its ports when it has it; one that cannot
is ended and tried again, rather than having two versions answer. Only where no other worker is left is what it has taken for the set.

*Signs of life.* Each worker's event loop answers a ping every second. One that has not for `worker_timeout_s` (a loop that is held, a deadlock), or that
was stopped by a signal for three seconds, is killed and replaced. While a worker loads, its loop has nothing to tell: there only a stop counts.

*Metrics.* Whichever worker is asked for /metrics asks the supervisor, which collects a snapshot from each and sends them all
back. What a dead worker had counted at its last snapshot is kept, so that counters never fall; one comes with its signs of life too, so that a
killed worker takes the counts of its last second with it, and no more.

*The end.* SIGTERM or SIGINT goes to all workers, which drain in parallel, each within its own bound (`exit_bound`); a second one kills them.
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
from ..exit_bound import CLOSING_S, ExitStatus, end_with
from ..file_watch import has_terminal
from ..port_checks import check_ports
from .present_models import Loaded, PresentModels
from .pulse import Pulse, is_stopped
from .worker_channel import Channel

__all__ = ["Supervisor", "bind", "supervise"]

_log = logging.getLogger("serinus.workers")

_COLLECT_TIMEOUT_S = 2.0
"""A worker that is busy longer than this is left out of one scrape; its last snapshot stands in for it."""
_BACKOFF_FIRST_S, _BACKOFF_MOST_S, _HEALTHY_S = 0.1, 10.0, 30.0
_KILL_MARGIN_S = 0.5
"""How long after a worker's own bound it is killed: it held the GIL, or its supervisor is late."""
_BEAT_S = 1.0
_STOPPED_S = 3.0
"""A stopped worker answers nobody, and every second connection may be its: three are longer than a debugger's short stop."""
_REASONS = ("ended", "silent", "memory", "models")


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
    ready: Loaded | None = None
    """What it had when it said so first."""
    admitted: bool = False
    """It was told to open the ports: it has the present set, and takes part in every change."""
    listening: bool = False
    waiting: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    last_snapshot: Any = None
    reason: str = "ended"
    """Why it ends: "ended" by itself, or what the supervisor ended it for."""


class Supervisor:
    """Keeps N workers running until a signal comes.

    Args:
        settings: host, ports, workers, drain times and `worker_timeout_s` are used.
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
        self._ends: dict[str, int] = dict.fromkeys(_REASONS, 0)
        self._present = PresentModels()
        self._pulse = Pulse(_BEAT_S)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._applying = asyncio.Lock()
        self._retiring = asyncio.Lock()

    async def run(self) -> int:
        """Start everybody, replace the dead, stop on SIGTERM or SIGINT.

        Returns:
            The exit status for the shell.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        had_terminal = has_terminal()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._hang_up(had_terminal))
        check_ports(self._settings, only_metrics=True)
        with contextlib.ExitStack() as ports:
            http = ports.enter_context(bind(self._settings.host, self._settings.http_port))
            grpc = None
            if self._settings.enable_grpc:
                # Bound but not listening, it fixes the port's number for all workers when 0 was asked for.
                grpc = ports.enter_context(bind(self._settings.host, self._settings.grpc_port, share=True))
            beat = asyncio.ensure_future(self._beat())
            try:
                for index in range(self._settings.workers):
                    self._spawn(self._keep(index, http, grpc))
                await self._stopping.wait()
                await self._stop()
            finally:
                beat.cancel()
        return self._exit_status

    def _signalled(self, number: int) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            return
        for worker in self._workers.values():
            _kill(worker)
        end_with(128 + number, f"{signal.Signals(number).name} came again: the workers are killed")

    def _hang_up(self, had_terminal: bool) -> None:
        """Pass SIGHUP on, for each worker to read its certificates and tokens again; the end of our terminal is a wish to stop."""
        if had_terminal and not has_terminal():
            self._stopping.set()
            return
        for worker in self._workers.values():
            if worker.ready is not None:  # one that is not may take no signal yet, and reads what is new anyway
                _signal(worker, signal.SIGHUP)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # One worker's life

    async def _keep(self, index: int, http: socket.socket, grpc: socket.socket | None) -> None:
        """Start worker `index`, again and again, until told to stop."""
        loop = asyncio.get_running_loop()
        backoff_s = _BACKOFF_FIRST_S
        while not self._stopping.is_set():
            worker = await self._start(index, http, grpc)
            listener = asyncio.ensure_future(self._listen(worker))
            status = await worker.process.wait()
            await listener
            self._forget(worker)
            if self._stopping.is_set():
                self._exit_status = max(self._exit_status, status)
                return
            if self._first_round:
                self._exit_status = status if status > 0 else 1
                self._stopping.set()
                return
            self._ends[worker.reason] += 1
            if loop.time() - worker.started > _HEALTHY_S or worker.reason == "memory":
                backoff_s = _BACKOFF_FIRST_S
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            _log.error(
                "worker %d (pid %d) ended with %s; the next starts in %.1f s", index, worker.process.pid, how, backoff_s
            )
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
            backoff_s = min(backoff_s * 2, _BACKOFF_MOST_S)

    def _forget(self, worker: _Worker) -> None:
        """Take a worker out that has ended; what it had counted is kept, once."""
        del self._workers[worker.index]
        self._pulse.forget(worker.index)
        snapshot, worker.last_snapshot = worker.last_snapshot, None
        if snapshot is not None:
            kept = Metrics.retire(snapshot)
            self._lost = kept if self._lost is None else Metrics.merge([self._lost, kept])
        for future in worker.waiting.values():
            if not future.done():
                future.set_result(None)

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
        now = asyncio.get_running_loop().time()
        worker = _Worker(index, process, await Channel.open(ours), now)
        self._workers[index] = worker
        self._pulse.hear(index, now)
        worker.channel.send(type="begin", present=None if self._first_round else self._present.document())
        if self._stopping.is_set():  # while it was being started: `_stop` has not seen it
            _signal(worker, signal.SIGTERM)
        return worker

    async def _listen(self, worker: _Worker) -> None:
        async for message in worker.channel.messages():
            kind = message["type"]
            if kind == "pong":
                self._pulse.hear(worker.index, asyncio.get_running_loop().time())
                worker.last_snapshot = message["data"] or worker.last_snapshot
            elif kind == "ready":
                worker.ready = message["loaded"]
                self._spawn(self._admit(worker) if not self._first_round else self._admit_all())
            elif kind == "listening":
                worker.listening = True
                _log.info("worker %d (pid %d) listens", worker.index, worker.process.pid)
            elif kind in {"snapshot", "prepared", "committed", "restored"}:
                future = worker.waiting.pop(message["id"], None)
                if future is not None and not future.done():
                    future.set_result(message)
            elif kind == "metrics":
                self._spawn(self._answer_metrics(worker, message["id"]))
            elif kind == "memory":
                self._spawn(self._retire(worker, message["reason"]))
            elif kind == "apply":
                self._spawn(self._answer_apply(worker, message))
        await worker.channel.close()

    async def _ask(self, worker: _Worker, timeout_s: float | None, **message: Any) -> dict[str, Any] | None:
        """Send one question; None when the worker died or did not answer in time."""
        if self._workers.get(worker.index) is not worker:  # forgotten, with all that was asked of it
            return None
        number = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        worker.waiting[number] = future
        worker.channel.send(id=number, **message)
        try:
            return await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError:
            worker.waiting.pop(number, None)
            return None

    # Signs of life

    async def _beat(self) -> None:
        """Ask each worker for a sign of life, every second, and end those that give none."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_BEAT_S)
            silent = self._pulse.look(loop.time())
            for worker in list(self._workers.values()):
                stopped = is_stopped(worker.process.pid)
                if not worker.listening and not stopped:
                    self._pulse.hear(worker.index, loop.time())
                limit_s = (
                    min(_STOPPED_S, self._settings.worker_timeout_s) if stopped else self._settings.worker_timeout_s
                )
                silent_s = silent.get(worker.index, 0.0)
                if self._settings.worker_timeout_s and silent_s > limit_s and not self._stopping.is_set():
                    what = "was stopped by a signal" if stopped else "has given no sign of life"
                    _log.error(
                        "worker %d (pid %d) %s for %.0f s: it is killed, and replaced",
                        worker.index,
                        worker.process.pid,
                        what,
                        silent_s,
                    )
                    worker.reason = "silent"
                    _kill(worker)
                elif worker.listening:
                    worker.channel.send(type="ping")

    async def _retire(self, worker: _Worker, reason: str) -> None:
        """Have a worker drain and end, once all others listen, and wait for the one that replaces it."""
        async with self._retiring:
            index = worker.index
            while not self._stopping.is_set() and not self._all_listen():  # noqa: ASYNC110 # rare, and not in a hurry
                await asyncio.sleep(_BEAT_S)
            if self._stopping.is_set() or self._workers.get(index) is not worker:
                return
            _log.error("worker %d (pid %d): %s", index, worker.process.pid, reason)
            worker.reason = "memory"
            worker.channel.send(type="retire")
            while not self._stopping.is_set() and self._workers.get(index) is worker:  # noqa: ASYNC110 # as above
                await asyncio.sleep(_BEAT_S)

    def _all_listen(self) -> bool:
        return len(self._workers) == self._settings.workers and all(one.listening for one in self._workers.values())

    # Models

    async def _admit_all(self) -> None:
        """Once the first round has loaded, agree on what all of it has, and open the ports."""
        async with self._applying:
            workers = list(self._workers.values())
            loaded = [worker.ready for worker in workers if worker.ready is not None]
            if not self._first_round or len(loaded) < self._settings.workers:
                return
            self._present.settle(loaded)
            odd = [worker for worker in workers if worker.ready is not None and self._present.differs(worker.ready)]
            if odd:
                _log.error("the workers have loaded different models: what one of them lacks is unloaded on all")
            document = self._present.document()
            await asyncio.gather(*(self._ask(worker, None, type="restore", present=document) for worker in odd))
            self._first_round = False
            for worker in workers:
                self._let_in(worker)

    async def _admit(self, worker: _Worker) -> None:
        """Let a worker that came later in, if it has the present set; nothing is changed meanwhile."""
        async with self._applying:
            answer = await self._ask(worker, None, type="restore", present=self._present.document())
            if answer is None:
                return
            problems = answer["problems"]
            if problems and any(other.admitted for other in self._workers.values() if other is not worker):
                _log.error(
                    "worker %d (pid %d) cannot have the models of the others, and ends: %s",
                    worker.index,
                    worker.process.pid,
                    "; ".join(problems),
                )
                worker.reason = "models"
                _kill(worker)
                return
            if problems:
                _log.error("no worker has these models any more: %s", "; ".join(problems))
                self._present.settle([answer["loaded"]])
            self._let_in(worker)

    def _let_in(self, worker: _Worker) -> None:
        worker.admitted = True
        worker.channel.send(type="go")

    async def _answer_apply(self, asker: _Worker, message: dict[str, Any]) -> None:
        """Apply one repository request on all workers or on none, one at a time so that all see the same order."""
        async with self._applying:
            error = await self._agree(message["action"], message["name"], message["parameters"])
        asker.channel.send(type="done", id=message["id"], error=error)

    async def _agree(self, action: str, name: str, parameters: dict[str, Any]) -> list[str] | None:
        workers = [worker for worker in self._workers.values() if worker.admitted]
        question = {"type": "prepare", "action": action, "name": name, "parameters": parameters}
        answers = await asyncio.gather(*(self._ask(worker, None, **question) for worker in workers))
        error = _disagreement(name, answers)
        if error is not None:
            await asyncio.gather(*(self._ask(worker, None, type="discard") for worker in workers))
            return error
        versions = next(answer["versions"] for answer in answers if answer is not None)
        change = self._present.change(name, versions, parameters)
        answers = await asyncio.gather(*(self._ask(worker, None, type="commit", change=change) for worker in workers))
        for worker, answer in zip(workers, answers, strict=True):
            if answer is not None and answer["error"] is not None:
                _log.error("worker %d did not take over model '%s': %s", worker.index, name, answer["error"][1])
                worker.reason = "models"
                _kill(worker)
        return None

    # Metrics

    async def _collect(self, worker: _Worker) -> Any:
        """Ask for a snapshot; the last one stands in for a worker that is busy, and is nobody's when it has ended."""
        answer = await self._ask(worker, _COLLECT_TIMEOUT_S, type="collect")
        if answer is not None and self._workers.get(worker.index) is worker:
            worker.last_snapshot = answer["data"]

    async def _answer_metrics(self, asker: _Worker, number: int) -> None:
        workers = list(self._workers.values())
        await asyncio.gather(*(self._collect(worker) for worker in workers if worker.listening))
        # Looked at after the last answer: one that ended meanwhile is among the lost.
        snapshots = [worker.last_snapshot for worker in workers if worker.last_snapshot is not None]
        snapshots += [] if self._lost is None else [self._lost]
        asker.channel.send(type="merged", id=number, snapshots=[*snapshots, self._own_snapshot()])

    def _own_snapshot(self) -> dict[str, Any]:
        samples = [[{"reason": reason}, count] for reason, count in self._ends.items()]
        text = "Workers that were replaced: ended by themselves, silent or stopped, for their memory, or without the others' models."
        families = [["serinus_worker_restarts_total", text, "counter", samples]]
        return {"models": [], "errors": [], "families": families, "process": {}, "revision": self._settings.revision}

    # The end

    async def _stop(self) -> None:
        workers = list(self._workers.values())
        for worker in workers:
            _signal(worker, signal.SIGTERM)
        limit = self._settings.drain_delay_s + self._settings.drain_timeout_s + CLOSING_S + _KILL_MARGIN_S
        waits = [asyncio.ensure_future(worker.process.wait()) for worker in workers]
        if waits:
            _, late = await asyncio.wait(waits, timeout=limit)
            if late:
                for worker in workers:
                    if worker.process.returncode is None:
                        _log.error(
                            "worker %d (pid %d) did not stop in %.0f s: killed", worker.index, worker.process.pid, limit
                        )
                        _kill(worker)
                        self._exit_status = ExitStatus.CUT
                await asyncio.wait(late)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)


def _signal(worker: _Worker, number: int) -> None:
    # Not by `send_signal`, which looks first whether the process has ended: where it has, asyncio, which waits for it, is left with 255 for its status.
    if worker.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.process.pid, number)


def _kill(worker: _Worker) -> None:
    """End a worker whatever it does, and what it has started: it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)


def _disagreement(name: str, answers: Sequence[dict[str, Any] | None]) -> list[str] | None:
    """Say why a change that workers have prepared must not happen: [kind, message]; None: it may."""
    told = [answer for answer in answers if answer is not None]
    for answer in told:
        if answer["error"] is not None:
            return answer["error"]
    if len(told) < len(answers) or not told:
        return ["NotReady", f"a worker ended while it prepared model '{name}': nothing was changed; try again"]
    if any(answer["versions"] != told[0]["versions"] for answer in told):
        return ["Conflict", f"the workers found different files of model '{name}': nothing was changed; try again"]
    return None


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
