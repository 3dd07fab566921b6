"""`FrameRelay`: the compiled relay (`frame_relay.c`) and what it reports. Knows no event loop.

`run` is for a thread of its own, which it holds without the GIL until the relay is stopped; all else is for one other thread, and takes microseconds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from ..kernel_library import Library

__all__ = ["Counters", "FrameRelay", "Outcome", "Reported"]

_MOST = 64
"""Reports taken at a time."""
_FOREVER_S = 1e9
"""Nanoseconds since the machine started are to fit 63 bits."""


class Counters(ctypes.Structure):
    """serinus_counters of frame_relay.h."""

    heard_ns: int
    sent: int
    has_data: int
    _fields_ = (("heard_ns", ctypes.c_int64), ("sent", ctypes.c_int64), ("has_data", ctypes.c_int32))


class Outcome(IntEnum):
    """Why a connection is the relay's no more."""

    OVER = 1
    STALLED = 2
    """The client took nothing of what waited for it for its time."""
    DECLINED = 3
    """It goes on, elsewhere."""


@dataclass(frozen=True)
class Reported:
    """A connection that the relay has done with; but for the first two, of one that is declined."""

    number: int
    outcome: Outcome
    client: int = -1
    """Descriptors, which are the taker's now."""
    front: int = -1
    has_begun: bool = False
    """HTTP/2's preface has passed."""
    has_data: bool = False
    """A DATA frame has."""
    messages: Sequence[tuple[int, int]] = ()
    """Streams that are within a plain message, and the bytes of it that are to come."""
    to_front: bytes = b""
    """What has been let through, and the front has not taken."""
    to_client: bytes = b""
    """What the front has said, and the client has not taken; at most 64 KiB."""
    tail: bytes = b""
    """What nobody has judged yet: from the beginning of a frame, or of the preface."""


class _Message(ctypes.Structure):
    """scan_message of frame_scan.h."""

    stream: int
    remaining: int
    _fields_ = (("stream", ctypes.c_uint32), ("remaining", ctypes.c_uint32))


class _Event(ctypes.Structure):
    """serinus_relay_event of frame_relay.h."""

    id: int
    state: int
    client: int
    front: int
    has_begun: int
    has_data: int
    message_count: int
    messages: ctypes.Array[_Message]
    to_front: int | None
    to_client: int | None
    tail: int | None
    to_front_bytes: int
    to_client_bytes: int
    tail_bytes: int
    _fields_ = (
        ("id", ctypes.c_int64),
        ("state", ctypes.c_int32),
        ("client", ctypes.c_int32),
        ("front", ctypes.c_int32),
        ("has_begun", ctypes.c_int32),
        ("has_data", ctypes.c_int32),
        ("message_count", ctypes.c_int32),
        ("messages", ctypes.POINTER(_Message)),
        ("to_front", ctypes.c_void_p),
        ("to_client", ctypes.c_void_p),
        ("tail", ctypes.c_void_p),
        ("to_front_bytes", ctypes.c_int64),
        ("to_client_bytes", ctypes.c_int64),
        ("tail_bytes", ctypes.c_int64),
    )

    def read(self) -> Reported:
        """Copy what it points at, which is there until the connection is released."""
        if self.state != Outcome.DECLINED:
            return Reported(self.id, Outcome(self.state))
        messages = [(one.stream, one.remaining) for one in self.messages[: self.message_count]]
        to_front, to_client, tail = (
            ctypes.string_at(at, size) if at is not None else b""
            for at, size in (
                (self.to_front, self.to_front_bytes),
                (self.to_client, self.to_client_bytes),
                (self.tail, self.tail_bytes),
            )
        )
        begun, data = bool(self.has_begun), bool(self.has_data)
        return Reported(
            self.id, Outcome.DECLINED, self.client, self.front, begun, data, messages, to_front, to_client, tail
        )


class FrameRelay:
    """A loop over connections between clients and the front.

    Args:
        library: the compiled kernels.
        limit: largest message that passes, bytes.
        send_timeout_s: how long a client may take nothing of what waits for it.

    Raises:
        OSError: there is no epoll here, or no descriptor or memory for it.
    """

    def __init__(self, library: Library, limit: int, send_timeout_s: float) -> None:
        quick, pointer = library.quick, ctypes.c_void_p
        quick.serinus_relay_make.argtypes, quick.serinus_relay_make.restype = (ctypes.c_int64, ctypes.c_int64), pointer
        self._add = quick.serinus_relay_add
        self._add.argtypes, self._add.restype = (pointer, ctypes.c_int64, ctypes.c_int32, ctypes.c_int32), pointer
        self._drop, self._release = quick.serinus_relay_drop, quick.serinus_relay_release
        self._stop, self._free = quick.serinus_relay_stop, quick.serinus_relay_free
        self._take = quick.serinus_relay_take
        self._take.argtypes, self._take.restype = (pointer, ctypes.POINTER(_Event), ctypes.c_int32), ctypes.c_int32
        quick.serinus_relay_told.argtypes, quick.serinus_relay_told.restype = (pointer,), ctypes.c_int32
        self._run = library.long.serinus_relay_run
        for function, count in ((self._drop, 2), (self._release, 2), (self._stop, 1), (self._free, 1), (self._run, 1)):
            function.argtypes, function.restype = (pointer,) * count, None
        self._handle = quick.serinus_relay_make(limit, int(min(send_timeout_s, _FOREVER_S) * 1e9))
        if self._handle is None:
            raise OSError("there is no relay outside the interpreter's lock here")
        self.told: int = quick.serinus_relay_told(self._handle)
        """A descriptor, the relay's, that may be read where there is something to `take`."""
        self._events = (_Event * _MOST)()

    def run(self) -> None:
        """Move bytes until the relay is stopped."""
        self._run(self._handle)

    def take(self) -> list[Reported]:
        """Take what is to be reported by now; when `run` has returned, all that ever is."""
        reported: list[Reported] = []
        while True:
            count = self._take(self._handle, self._events, _MOST)
            reported += [event.read() for event in self._events[:count]]
            if count < _MOST:
                return reported

    def add(self, number: int, client: int, front: int) -> int:
        """Take a client's socket and one to the front, both not blocking.

        Args:
            number: names the connection in what is reported.
            client: descriptor, the relay's from here on.
            front: as well.

        Returns:
            The connection's address, where its `Counters` are.

        Raises:
            MemoryError: there is none, and the descriptors stay the caller's.
        """
        address = self._add(self._handle, number, client, front)
        if address is None:
            raise MemoryError("no memory for a connection")
        return address

    def drop(self, address: int) -> None:
        """End a connection, which is reported as any other."""
        self._drop(self._handle, address)

    def release(self, address: int) -> None:
        """Free a connection that has been reported, with its counters."""
        self._release(self._handle, address)

    def stop(self) -> None:
        """Have `run` return, now and ever after."""
        self._stop(self._handle)

    def close(self) -> None:
        """Close and free every connection; nobody may be in `run`, and all addresses are void."""
        if self._handle is not None:
            self._free(self._handle)
            self._handle = None
