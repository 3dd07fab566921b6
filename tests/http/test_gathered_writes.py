"""Pieces written at once to the transport of each loop that this Python has, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvloop

from serinus.transports.gathered_writes import Pieces, gathering_writer
from waiting import until

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


class Writer(asyncio.Protocol):
    """Says whether it was told to stop writing, and whether its connection has ended."""

    paused = False
    lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)  # uvloop's is no subclass
        self.write: Callable[[Pieces], None] = gathering_writer(self.transport)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Writer, socket.socket]]:
    """A connection that is written to, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    transport, writer = await asyncio.get_running_loop().create_connection(Writer, sock=ours)
    try:
        yield writer, theirs
    finally:
        transport.abort()
        theirs.close()
        await until(lambda: writer.lost)


def run(loop: str, main: Callable[[], Any]) -> None:
    made = LOOPS[loop]()
    try:
        made.run_until_complete(asyncio.wait_for(main(), 30))
    finally:
        made.close()


PIECES: dict[str, list[bytes | bytearray | memoryview]] = {
    "bytes": [b"head", b"body"],
    "views": [b"head", memoryview(b"body"), bytearray(b"tail")],
    "an empty one at the end": [b"head", b""],
    "an empty one at the start": [b"", b"body"],
    "empty ones alone": [b"", b""],
    "none": [],
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
@pytest.mark.parametrize("loop", LOOPS)
def test_pieces_leave_in_order_and_the_connection_closes_behind_them(
    loop: str, pieces: list[bytes | bytearray | memoryview]
) -> None:
    async def main() -> None:
        async with connected() as (writer, theirs):
            writer.write(pieces)
            writer.transport.close()
            await until(lambda: writer.lost)
            got = bytearray()
            while part := await asyncio.get_running_loop().sock_recv(theirs, 65536):
                got += part
            assert bytes(got) == b"".join(pieces)

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_reader_that_takes_nothing_stops_the_writer_and_one_that_reads_again_lets_it_go_on(loop: str) -> None:
    async def main() -> None:
        async with connected() as (writer, theirs):
            writer.write([b"x" * 1_000_000, b"y" * 1_000_000])
            await until(lambda: writer.paused)
            while writer.paused:
                await asyncio.get_running_loop().sock_recv(theirs, 1_000_000)

    run(loop, main)
