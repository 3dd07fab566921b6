"""Several pieces of bytes given to an asyncio transport at once.

Theory of operation. uvloop's `writelines` hands the pieces to one system call, without a copy, and that is what our connections are made for. asyncio's
own does so since Python 3.12, in `asyncio.selector_events`, and is not sound: up to 3.12.8 and 3.13.1 it never calls `pause_writing`, so that a client
that does not read fills the memory (CVE-2024-12254, gh-127655); and a last piece without a byte stays in its queue for good (seen on 3.12.1 and
3.13.0), so that the loop writes nothing over and over and the connection never closes. Up to Python 3.11 it joined the pieces and called `write`, which
is right in every version: its transports are written to in that way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

__all__ = ["Pieces", "gathering_writer"]

Pieces = Sequence[bytes | bytearray | memoryview]
"""Whole pieces, in order; each may be empty."""


def gathering_writer(transport: asyncio.WriteTransport) -> Callable[[Pieces], None]:
    """What writes pieces to this transport, in order: its own `writelines`, or one `write` where that is asyncio's."""
    if not type(transport).__module__.startswith("asyncio."):
        return transport.writelines
    write = transport.write

    def write_joined(pieces: Pieces) -> None:
        write(b"".join(pieces))

    return write_joined
