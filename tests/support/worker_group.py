"""A supervisor whose workers are processes that do nothing: what a worker would say, the test says, on the other end of the same socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from serinus.server.workers import supervisor as module
from serinus.server.workers.supervisor import Supervisor
from serinus.server.workers.worker_channel import Channel
from serinus.settings import ServerSettings
from waiting import until

__all__ = ["HOST", "IDLE", "LOADED", "Group", "Worker", "group"]

HOST = "127.0.0.1"
IDLE = ("sleep", "600")
LOADED = {"m": {"1": {"model.bin": "abc"}}}
"""What each worker of the first round has, unless told otherwise."""


class Worker:
    """One process, and the test in the place of its program."""

    def __init__(self, channel: Channel, known: Any) -> None:
        self.channel = channel
        self.known = known
        """What the supervisor knows of it."""
        self._messages = channel.messages()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.known.process.pid

    def say(self, **message: Any) -> None:
        """Tell the supervisor."""
        self.channel.send(**message)

    async def heard(self) -> dict[str, Any]:
        """The next message that asks for no sign of life."""
        while True:
            message = await asyncio.wait_for(anext(self._messages), 10)
            if message["type"] != "ping":
                return message

    async def answer(self, kind: str, answer: str, **fields: Any) -> dict[str, Any]:
        """Hear a question of this kind, and answer it with another; gives the question without its number."""
        question = await self.heard()
        assert question["type"] == kind
        self.say(type=answer, id=question["id"], **fields)
        return {key: value for key, value in question.items() if key not in ("type", "id")}

    async def comes_up(self, present: Any = None, loaded: Any = None) -> None:
        """Say that the models are loaded, as a worker does that was told so."""
        assert await self.heard() == {"type": "begin", "present": present}
        self.say(type="ready", loaded=LOADED if loaded is None else loaded)

    async def let_in(self) -> None:
        """Be told to open the ports, and say that they are open."""
        assert await self.heard() == {"type": "go"}
        self.say(type="listening", http_port=1, grpc_port=None)
        await until(lambda: self.known.listening)

    async def die(self) -> None:
        """End, with its end of the channel."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.hang_up()

    async def hang_up(self) -> None:
        """Close its end of the channel, as the end of the process does."""
        await self.channel.close()


class Group:
    """A supervisor that runs, and its workers as they come."""

    def __init__(self, supervisor: Supervisor, ends: asyncio.Queue[socket.socket]) -> None:
        self.supervisor = supervisor
        self.workers: list[Worker] = []
        self._ends = ends
        self.running: asyncio.Future[int] = asyncio.ensure_future(supervisor.run())

    async def started(self, index: int) -> Worker:
        """The worker that is started next, which has this number."""
        end = await asyncio.wait_for(self._ends.get(), 10)
        before = {id(worker.known) for worker in self.workers}

        def known() -> Any:
            found = self.supervisor._workers.get(index)
            return found if found is not None and id(found) not in before else None

        await until(known)
        worker = Worker(await Channel.open(end), known())
        self.workers.append(worker)
        return worker

    async def first_round(self, *loaded: Any) -> list[Worker]:
        """All workers, once they have said that they are ready; nothing else is heard of them."""
        workers = [await self.started(index) for index in range(self.supervisor._settings.workers)]
        for worker, own in zip(workers, loaded or [LOADED] * len(workers), strict=True):
            await worker.comes_up(loaded=own)
        return workers

    async def listening(self) -> list[Worker]:
        """All workers, once they listen."""
        workers = await self.first_round()
        for worker in workers:
            await worker.let_in()
        return workers

    async def next(self, index: int) -> Worker:
        """One that comes in another's place, once it listens."""
        worker = await self.started(index)
        present = self.supervisor._present.document()
        await worker.comes_up(present)
        assert await worker.answer("restore", "restored", loaded=LOADED, problems=[]) == {"present": present}
        await worker.let_in()
        return worker

    @property
    def ends(self) -> dict[str, int]:
        """How many workers were replaced, by reason; of those that there are."""
        return {reason: count for reason, count in self.supervisor._ends.items() if count}

    async def stopped(self) -> int:
        """The exit status, where every worker ends as it is told."""
        while not self.running.done():
            for worker in self.workers:
                if worker.known.process.returncode is not None:
                    await worker.hang_up()
            await asyncio.sleep(0.001)  # the processes end meanwhile
        return self.running.result()


@contextlib.asynccontextmanager
async def group(
    monkeypatch: pytest.MonkeyPatch, command: Sequence[str] = IDLE, **settings: Any
) -> AsyncIterator[Group]:
    """Two workers, unless told otherwise; at the end all are stopped."""
    ends: asyncio.Queue[socket.socket] = asyncio.Queue()
    make = socket.socketpair

    def pair() -> tuple[socket.socket, socket.socket]:
        ours, theirs = make()
        ends.put_nowait(theirs.dup())
        return ours, theirs

    monkeypatch.setattr(module.socket, "socketpair", pair)  # nobody else makes one meanwhile
    monkeypatch.setattr(module, "_BEAT_S", 0.005)  # workers are processes, so time is real; but it may be short
    monkeypatch.setattr(module, "_BACKOFF_FIRST_S", 0.005)
    chosen = {"workers": 2, "http_port": 0, "grpc_port": 0, "drain_timeout_s": 5.0, **settings}
    found = Group(Supervisor(ServerSettings(host=HOST, **chosen), command), ends)
    try:
        yield found
    finally:
        found.supervisor._stopping.set()
        for worker in found.workers:
            await worker.die()
        while not ends.empty():
            ends.get_nowait().close()
        with contextlib.suppress(Exception):  # what it raised, a test has looked at
            await asyncio.wait_for(found.running, 20)
