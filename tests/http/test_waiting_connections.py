"""Turns of the loop that connections in the kernel's queue are given at the end, and bytes that nobody has read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from serinus.server.connections import waiting_connections
from serinus.server.connections.waiting_connections import accept_waiting, unread_bytes

TURN_S = 0.0625
"""Of the test's own loop, by the test's own clock."""


class Turns:
    """What `asyncio` is to the module: turns that take their time, and in which the test does something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.then: dict[int, Callable[[], Any]] = {}
        loop = SimpleNamespace(time=lambda: 100 + self.count * TURN_S)
        own = SimpleNamespace(sleep=self.sleep, get_running_loop=lambda: loop)
        monkeypatch.setattr(waiting_connections, "asyncio", own)

    async def sleep(self, delay_s: float) -> None:
        assert delay_s == 0
        self.count += 1
        self.then.pop(self.count, lambda: None)()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    return Turns(monkeypatch)


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        yield made


@pytest.fixture
def connect(listeners: list[socket.socket]) -> Iterator[Callable[[int], None]]:
    with contextlib.ExitStack() as stack:
        yield lambda number: stack.enter_context(socket.create_connection(listeners[number].getsockname())) and None


def accept(listener: socket.socket) -> None:
    listener.accept()[0].close()


async def test_where_nobody_waits_a_connection_that_was_just_accepted_has_four_turns(
    turns: Turns, listeners: list[socket.socket]
):
    await accept_waiting(listeners)
    assert turns.count == 4
    await accept_waiting([])
    assert turns.count == 8


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("accepted_in", "taken"), [(1, 4), (2, 5), (3, 6), (30, 33)])
async def test_four_more_turns_follow_the_one_in_which_the_last_was_accepted(
    turns: Turns,
    listeners: list[socket.socket],
    connect: Callable[[int], None],
    number: int,
    accepted_in: int,
    taken: int,
):
    connect(number)
    turns.then[accepted_in] = lambda: accept(listeners[number])
    await accept_waiting(listeners, longest_s=1000)
    assert turns.count == taken


async def test_one_that_comes_meanwhile_has_its_turns_too(
    turns: Turns, listeners: list[socket.socket], connect: Callable[[int], None]
):
    turns.then = {3: lambda: connect(1), 5: lambda: accept(listeners[1])}
    await accept_waiting(listeners)
    assert turns.count == 8


@pytest.mark.parametrize(("longest_s", "taken"), [(0.0, 8), (0.25, 8), (0.5, 8), (0.5625, 9), (1.0, 16), (2.0, 32)])
async def test_those_that_keep_coming_have_an_end_and_eight_turns_at_least(
    turns: Turns, listeners: list[socket.socket], connect: Callable[[int], None], longest_s: float, taken: int
):
    connect(0)
    await accept_waiting(listeners, longest_s=longest_s)
    assert turns.count == taken


async def test_the_longest_is_a_second(turns: Turns, listeners: list[socket.socket], connect: Callable[[int], None]):
    connect(0)
    await accept_waiting(listeners)
    assert turns.count * TURN_S == 1.0


def transport(sock: Any) -> Any:
    return SimpleNamespace(get_extra_info=lambda name: sock if name == "socket" else None)


@pytest.mark.parametrize("count", [0, 1, 5, 255, 256, 70_000])
def test_what_waits_in_the_kernel_is_counted_and_not_read(count: int):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes(count))
        assert unread_bytes(transport(ours)) == unread_bytes(transport(ours)) == count
        if count:
            ours.recv(1)
            assert unread_bytes(transport(ours)) == count - 1


def test_a_connection_without_a_socket_or_with_one_that_tells_nothing_has_nothing_unread():
    ours, theirs = socket.socketpair()
    theirs.sendall(b"x")
    ours.close()
    theirs.close()
    assert unread_bytes(transport(ours)) == 0
    assert unread_bytes(transport(None)) == 0
    with open(os.devnull, "rb") as nothing:
        assert unread_bytes(transport(nothing)) == 0


@pytest.mark.parametrize(("descriptor", "count"), [(-1, 0), (0, 7), (1, 7), (1000, 7)])
def test_a_socket_that_is_closed_has_a_descriptor_below_0(descriptor: int, count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fcntl, "ioctl", lambda *asked: struct.pack("i", 7))
    assert unread_bytes(transport(SimpleNamespace(fileno=lambda: descriptor))) == count
