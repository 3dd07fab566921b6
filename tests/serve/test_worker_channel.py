"""What a supervisor and a worker say to one another over a socket, and how either end is seen."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from serinus.server.workers import worker_channel
from serinus.server.workers.worker_channel import Channel


async def heard(channel: Channel) -> list[dict[str, Any]]:
    return [message async for message in channel.messages()]


async def joined() -> tuple[Channel, Channel]:
    ours, theirs = socket.socketpair()
    return await Channel.open(ours), await Channel.open(theirs)


MESSAGES: list[dict[str, Any]] = [
    {"type": "ping"},
    {"type": "apply", "id": 3, "name": "a", "parameters": {"config": '{"x": 1}\n'}},
    {"type": "done", "error": None, "text": "é\u2028\r\n", "many": list(range(50_000))},
]


async def test_messages_come_whole_and_in_order_in_both_directions_until_the_end():
    one, other = await joined()
    for message in MESSAGES:
        one.send(**message)
        other.send(**{**message, "back": True})
    closing = asyncio.gather(heard(one), heard(other))
    await asyncio.sleep(0)
    for each in (one, other):
        each._writer.write_eof()
    assert await closing == [[{**message, "back": True} for message in MESSAGES], MESSAGES]
    await one.close()
    await other.close()


async def test_a_message_is_one_line_without_spaces():
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    channel.send(type="ping", id=1, text="a b\n")
    await channel.close()
    with theirs:
        assert theirs.recv(100) == b'{"type":"ping","id":1,"text":"a b\\n"}\n'
        assert theirs.recv(100) == b"", "its end is closed"


@pytest.mark.parametrize(
    ("sent", "messages"),
    [
        (b"", []),
        (b'{"a":1}\n', [{"a": 1}]),
        (b'{"a":1}\n{"b":2}', [{"a": 1}]),
        (b'{"a":1}\n{"b', [{"a": 1}]),
    ],
)
async def test_a_message_that_is_cut_off_is_none(sent: bytes, messages: list[Any]):
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    theirs.sendall(sent)
    theirs.close()
    assert await heard(channel) == messages
    await channel.close()


async def test_a_peer_that_goes_without_having_read_is_the_end_and_what_is_sent_then_is_no_error(
    caplog: pytest.LogCaptureFixture,
):
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    channel.send(type="ping")
    await asyncio.sleep(0)
    theirs.close()  # the kernel tells of a reset where something was not read
    assert await heard(channel) == []
    for _ in range(3):
        channel.send(type="ping")
        await asyncio.sleep(0)
    await channel.close()
    for _ in range(10):
        channel.send(type="ping")
    assert caplog.records == [], "asyncio tells of the sixth that is written to nobody"


@pytest.mark.parametrize(("over", "count"), [(0, 1), (1, 0)])
async def test_a_line_has_a_most(over: int, count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_channel, "_LINE_BYTES", 100)
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    # The line's end does not count (asyncio.StreamReader, `limit`).
    theirs.sendall(b'{"a":"' + b"x" * (100 + over - 8) + b'"}\n')
    theirs.close()
    assert len(await heard(channel)) == count
    await channel.close()


def test_the_most_is_far_more_than_a_snapshot_of_thousands_of_series():
    assert worker_channel._LINE_BYTES == 64 << 20
