"""What clients have sent and the loop has not taken yet: connections that wait to be accepted, bytes that wait to be read.

Theory of operation. A predict on the event loop keeps it from its sockets. When the loop learns meanwhile that the server is to stop, requests of before
that moment lie in the kernel: some on connections that nobody has accepted, which closing the listener resets; some on connections
that look idle. Both are taken before anything is closed. A connection that is accepted begins some turns of the loop later
(asyncio: a task, a callback, the reader), and closing the listener in between would lose it, so the loop is given those turns.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import struct
import termios
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["accept_waiting", "unread_bytes"]

_TURNS: Final = 4
"""From the connection in the kernel's queue to the first bytes read, on asyncio's own loop; uvloop takes fewer."""
_LONGEST_S: Final = 1.0
"""New connections may keep coming, and a predict of each hold the loop."""


async def accept_waiting(listeners: Iterable[Any], *, longest_s: float = _LONGEST_S) -> None:
    """Let the loop accept the connections that wait at listening sockets, and begin them.

    Args:
        listeners: sockets, or asyncio's stand-ins for them.
        longest_s: no longer than this, but for the turns that what waits now needs.
    """
    poller = select.poll()
    for listener in listeners:
        poller.register(listener.fileno(), select.POLLIN)
    loop = asyncio.get_running_loop()
    until = loop.time() + longest_s
    turns = quiet = 0
    while quiet < _TURNS and (turns < 2 * _TURNS or loop.time() < until):
        await asyncio.sleep(0)
        turns += 1
        quiet = 0 if poller.poll(0) else quiet + 1


def unread_bytes(transport: asyncio.BaseTransport) -> int:
    """How many bytes of a connection wait in the kernel; 0 where its socket is closed."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    try:
        return struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))[0]
    except OSError:
        return 0
