"""The native engine's connections outside the interpreter's lock: a thread of compiled code moves their bytes (native/frames).

Theory of operation. For each client that is accepted a connection to the front is made at once, and both sockets go to the compiled relay: no
transport, no protocol and no task is made for them, and no call takes the event loop's time before it is a call. The loop is told by a descriptor
where a connection is over, or is *declined*: what the client sends wants judgement (a compressed message, one over the limit, padding,
no HTTP/2). Then a `Relay` goes on with it, with what was under way both ways, for the rest of its life. The thread itself never comes back to Python:
it would wait for the lock while a model computes, and all connections with it. What the engine asks of a `Relay` it asks
of a `NativeRelay`, which reads the compiled code's counters.

Not taken, and left to a `Relay` from the beginning: connections while descriptors are scarce, for then it is worth while to know which have open calls;
and those whose connection to the front cannot be made now, for it waits, or says why.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from ....native.frames.frame_relay import Counters, FrameRelay, Outcome, Reported
from ....native.kernel_library import library
from ...connections.idle_room import IdleRoom
from .pace import Paced
from .relay import Relay

__all__ = ["NativeRelay", "NativeRelays", "start_relays"]

_log = logging.getLogger("serinus.grpc")


class NativeRelay(Paced):
    """One client's connection; to the engine it is what a `Relay` is."""

    counts_calls = False
    is_at_work = True
    """Nobody counts its calls."""

    def __init__(self, frames: FrameRelay, address: int) -> None:
        self._frames = frames
        self._address = address
        self._counters = Counters.from_address(address)
        self.is_closing = False
        """Whether it is on its way out."""
        super().__init__()

    @property
    def _sent(self) -> int:  # type: ignore[override] # read where it is counted
        return self._counters.sent

    @property
    def heard_at(self) -> float:
        """Loop time at which either side last said something."""
        return self._counters.heard_ns * 1e-9

    @property
    def has_called(self) -> bool:
        """Whether anything of a message has come."""
        return bool(self._counters.has_data)

    def abort(self) -> None:
        """Drop the connection."""
        if self._address:
            self._frames.drop(self._address)
        self.is_closing = True

    def let_go(self, *, release: bool = True) -> None:
        """Read its counters no more; they stay as they are now.

        Args:
            release: free what the compiled code has of it, which has been reported.
        """
        if self._address:
            self._counters = Counters.from_buffer_copy(self._counters)
            if release:
                self._frames.release(self._address)
            self._address = 0


class NativeRelays:
    """Serves connections; on the running loop, and a thread of its own.

    Args:
        frames: the compiled relay, this one's alone.
        path: the front's Unix socket.
        relays: the set of all open ones; this adds and removes its own.
        go_on: makes the protocol that goes on with a declined connection.
        room: knows whether descriptors are scarce.
        on_stalled: told when one is closed because its client took nothing for its time.
    """

    def __init__(
        self,
        frames: FrameRelay,
        path: str,
        relays: set[Any],
        *,
        go_on: Callable[[Reported], Relay],
        room: IdleRoom,
        on_stalled: Callable[[], None] = lambda: None,
    ) -> None:
        self._frames = frames
        self._path = path
        self._relays = relays
        self._go_on = go_on
        self._room = room
        self._on_stalled = on_stalled
        self._loop = asyncio.get_running_loop()
        self._numbered: dict[int, NativeRelay] = {}
        self._newest = 0
        self._going_on: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=frames.run, name="serinus-grpc-relay", daemon=True)
        self._thread.start()
        self._loop.add_reader(frames.told, self._take_reported)

    def take(self, client: socket.socket) -> bool:
        """Serve an accepted connection; False: it stays the caller's."""
        if self._room.is_scarce():
            return False
        try:
            front = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            return False
        with front:
            try:
                front.setblocking(False)
                front.connect(self._path)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as asyncio's transports have it
                address = self._frames.add(self._newest + 1, client.fileno(), front.fileno())
            except (OSError, MemoryError):
                return False
            front.detach()
        client.detach()
        self._newest += 1
        relay = self._numbered[self._newest] = NativeRelay(self._frames, address)
        self._relays.add(relay)
        return True

    def _take_reported(self) -> None:
        for one in self._frames.take():
            relay = self._numbered.pop(one.number)
            relay.let_go()
            if one.outcome is Outcome.DECLINED:
                task = self._loop.create_task(self._hand_over(relay, one))
                self._going_on.add(task)
                task.add_done_callback(self._going_on.discard)
                continue
            relay.is_closing = True
            self._relays.discard(relay)
            if one.outcome is Outcome.STALLED:
                self._on_stalled()

    async def _hand_over(self, relay: NativeRelay, declined: Reported) -> None:
        """Have a `Relay` go on with a connection."""
        client = socket.socket(fileno=declined.client)
        next_relay = self._go_on(declined)
        try:
            await self._loop.connect_accepted_socket(lambda: next_relay, client)
        except OSError as error:  # the client has gone meanwhile
            _log.debug("a connection could not go on: %s", error)
            client.close()
            socket.close(declined.front)
        else:
            if relay.is_closing:
                next_relay.abort()
        finally:
            self._relays.discard(relay)

    async def close(self) -> None:
        """Close every connection that is left, and end the thread."""
        self._frames.stop()
        await self._loop.run_in_executor(None, self._thread.join)
        self._loop.remove_reader(self._frames.told)
        self._take_reported()
        if self._going_on:
            await asyncio.wait(self._going_on)
        for relay in self._numbered.values():
            relay.let_go(release=False)
            relay.is_closing = True
            self._relays.discard(relay)
        self._numbered.clear()
        self._frames.close()


def start_relays(
    limit: int,
    send_timeout_s: float,
    path: str,
    relays: set[Any],
    *,
    go_on: Callable[[Reported], Relay],
    room: IdleRoom,
    on_stalled: Callable[[], None],
) -> NativeRelays | None:
    """Start serving connections; None: there are no compiled kernels, or no epoll, and `Relay` serves them all.

    Args:
        limit: largest message that passes without judgement, bytes.
        send_timeout_s: how long a client may take nothing of what waits for it.
        path: see `NativeRelays`.
        relays: likewise.
        go_on: likewise.
        room: likewise.
        on_stalled: likewise.
    """
    kernels = library()
    if kernels is None:
        return None
    try:
        frames = FrameRelay(kernels, limit, send_timeout_s)
    except OSError as error:
        _log.debug("%s", error)
        return None
    return NativeRelays(frames, path, relays, go_on=go_on, room=room, on_stalled=on_stalled)
