"""The life of one of several workers, in this process; the test is its supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dataplane_support import Doubler
from http_support import Raw
from lifecycle_support import Life, ask, launch_of, note_collections, reasons_of
from rest_support import wire
from serinus.dataplane.access.repository_access import OPEN
from serinus.server import lifecycle
from serinus.server.exit_bound import ExitStatus
from serinus.server.lifecycle import Launch
from serinus.server.workers.worker_channel import Channel
from waiting import turns

TOKEN = "a-token-of-a-person-0123456789"


@pytest.fixture(autouse=True)
def collected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return note_collections(monkeypatch)


@contextlib.asynccontextmanager
async def working(
    monkeypatch: pytest.MonkeyPatch, launch: Callable[..., Launch] = launch_of, **fields: Any
) -> AsyncIterator[Any]:
    """A worker, with what its supervisor says and hears."""
    bound_to: list[str] = []
    monkeypatch.setattr(lifecycle, "end_with_parent", lambda: bound_to.append("parent"))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    channel = await Channel.open(theirs)
    opened: list[Channel] = []

    class Noted(Channel):
        """Closed by this test, as the end of the process does."""

        @classmethod
        async def open(cls, sock: socket.socket) -> Channel:
            opened.append(await super().open(sock))
            return opened[-1]

    monkeypatch.setattr(lifecycle, "Channel", Noted)
    life = Life(launch(control=ours, **fields))
    messages = channel.messages()

    async def heard() -> Any:
        return await asyncio.wait_for(anext(messages), 20)

    try:
        yield SimpleNamespace(life=life, say=channel.send, heard=heard, bound_to=bound_to)
    finally:
        await channel.close()
        await life.ended()
        for each in opened:
            await each.close()


async def test_a_worker_opens_its_ports_when_it_is_told_so_and_says_which(monkeypatch: pytest.MonkeyPatch):
    async with working(monkeypatch) as worker:
        assert worker.life.status.done() is False
        worker.say(type="begin", present=None)
        assert await worker.heard() == {"type": "ready", "loaded": {"m": {"": {}}}}
        assert worker.bound_to == ["parent"]
        await turns()
        assert not worker.life.ports.done()
        worker.say(type="go")
        listening = await worker.heard()
        ports = await worker.life.announced()
        assert listening == {"type": "listening", "http_port": ports[0], "grpc_port": ports[1]}
        asking = asyncio.ensure_future(ask(ports[0], "/metrics"))
        question = await worker.heard()
        assert question["type"] == "metrics"
        worker.say(type="merged", id=question["id"], snapshots=[])
        assert b'model="m"' not in (await asking).body, "it tells what the supervisor has, and nobody has anything"
        worker.say(type="retire")
        assert await asyncio.wait_for(worker.life.status, 20) == ExitStatus.CLEAN
        assert worker.life.bound.done == ["listen", "begin", ExitStatus.CLEAN]


async def test_a_change_that_a_worker_is_asked_for_is_asked_of_all(monkeypatch: pytest.MonkeyPatch):
    async with working(monkeypatch, access=OPEN) as worker:
        worker.say(type="begin", present=None)
        await worker.heard()
        worker.say(type="go")
        port = (await worker.heard())["http_port"]
        client = await Raw.open(port)
        await client.send(wire("POST", "/v2/repository/models/m/unload", {}))
        question = await worker.heard()
        assert (question["type"], question["action"], question["name"]) == ("apply", "unload", "m")
        worker.say(type="done", id=question["id"], error=None)
        assert (await client.answer()).status == 200
        await client.send(wire("GET", "/v2/models/m/stats"))
        question = await worker.heard()
        assert question["type"] == "metrics", "statistics are those of all"
        worker.say(type="merged", id=question["id"], snapshots=[])
        await client.answer()
        await client.close()


async def test_a_worker_that_is_to_end_before_it_may_open_its_ports_does(monkeypatch: pytest.MonkeyPatch):
    left: list[str] = []

    class Leaving(Doubler):
        def unload(self) -> None:
            left.append(self.name)

    async with working(monkeypatch, factory=Leaving) as worker:
        worker.say(type="begin", present=None)
        await worker.heard()
        assert await worker.life.ended() == ExitStatus.CLEAN
        assert left == ["m"]
        assert not worker.life.ports.done()


async def test_a_worker_that_comes_later_has_what_the_others_have(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def launch(**fields: Any) -> Launch:
        return launch_of("m", "n", spared=["n"], broken={"odd": "unreadable"}, **fields)

    one = {"versions": {"": {}}, "parameters": {}, "change": 0}
    async with working(monkeypatch, launch) as worker:
        worker.say(type="begin", present={"m": one, "none": {**one, "change": 1}})
        assert await worker.heard() == {"type": "ready", "loaded": {"m": {"": {}}}}
        assert any(line.startswith("model 'none': ") for line in caplog.messages)
        worker.say(type="go")
        port = (await worker.heard())["http_port"]
        reasons = await reasons_of(port)
        assert "it did not load when the server started" in reasons["n"]
        assert "unreadable" in reasons["odd"]
