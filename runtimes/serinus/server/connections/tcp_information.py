"""What Linux tells of a TCP connection (tcp(7), TCP_INFO; linux/include/uapi/linux/tcp.h, `struct tcp_info`)."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Final

__all__ = ["is_closed", "silent_s"]

_CLOSE: Final = 7
"""TCP_CLOSE (linux/include/net/tcp_states.h): of `tcpi_state`, the first byte."""
_LAST_DATA_RECV: Final = 52
"""Where `tcpi_last_data_recv` begins, 32 bits: milliseconds."""


def is_closed(transport: asyncio.BaseTransport) -> bool:
    """Whether nobody is there any more; false where the kernel tells nothing."""
    info = _read(transport, 1)
    return bool(info) and info[0] == _CLOSE


def silent_s(transport: asyncio.BaseTransport) -> float:
    """Seconds since bytes came last, whether or not they have been read; 0 where the kernel tells nothing."""
    info = _read(transport, _LAST_DATA_RECV + 4)
    return int.from_bytes(info[_LAST_DATA_RECV:], sys.byteorder) / 1000 if len(info) == _LAST_DATA_RECV + 4 else 0.0


def _read(transport: asyncio.BaseTransport, size: int) -> bytes:
    """Read the first bytes of the structure; none where there is none."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None) or not hasattr(socket, "TCP_INFO"):
        return b""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    except OSError:
        return b""
