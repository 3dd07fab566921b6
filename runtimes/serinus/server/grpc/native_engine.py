"""The native engine: HTTP/2 and gRPC in Rust threads outside the GIL (package pygrpc-native).

Theory of operation. The front hands over calls in batches. A thread waits for the first one with the GIL released and
wakes the loop once; from then on the loop itself takes whatever has arrived, once a turn and without waiting, so that
under load no thread is woken at all and requests that arrived together are submitted in one turn, which the plane
predicts together. When a turn finds nothing, the thread waits again. But while a model refuses, the loop looks by a timer: a
model that computes in Python wants the GIL all that time, and a thread that is woken for a call takes it from it twice.
No coroutine and no task exists for a ModelInfer: the answer's callback hands bytes to the front, by the call's number.
The front serves calls with one request message. Streams (ModelStreamInfer, Health.Watch, reflection) it passes on,
HTTP/2 frames and all, to a grpcio engine behind it.
Every connection reaches the front through a relay, which holds messages to their limit: `NativeRelays`, compiled code on a thread of its own that
takes no lock of the interpreter's, and a `Relay` on the loop for connections in which something wants judgement, for TLS, and where
there are no compiled kernels.

Why it may serve payments. pygrpc-native 0.5.0 (Apache-2.0; 2 700 lines of Rust over tonic, h2 and tokio, read whole) was held
to the same tests as grpcio, and to HTTP/2 abuse (tests/test_grpc_abuse.py):
  - Deadlines run in Rust from the arrival of the headers, end the call with DEADLINE_EXCEEDED and tell Python, as do RST_STREAM
    and a lost connection. Sound.
  - Flow control: windows of 4 MiB a stream; a client that does not read its answers holds those and nothing else. Sound.
  - Malformed HTTP/2, rapid reset (CVE-2023-44487), CONTINUATION, PING and SETTINGS floods: h2 answers or closes the connection
    (GOAWAY "too_many_resets", "too_many_continuations"). Sound. grpcio dies of a path that is no UTF-8; this does not.
  - Message size: no limit, neither for plain nor for inflated gzip messages. Unsound; mended in relays/size_filter.py.
  - Draining: none, only `close`. Mended here: the guard's listener closes, new calls are refused with UNAVAILABLE, and `close`,
    with its GOAWAY, waits until every answer is out.
  - Metadata over the limit, in several frames, closes the connection (GOAWAY) where grpcio ends the call alone. Left: the limit
    is above what Envoy lets through.
  - gzip is the only compression of requests. Deflate is mended in deflate.py for grpc-core's clients, and UNIMPLEMENTED, with what
    is accepted, for others. Answers are not compressed. Left.
  - TLS: none. It ends before the front, before the relay (TlsConnection); the front never sees it.
On paper, libnghttp2 bound to an asyncio protocol costs about the same CPU (72-124 us against 54-90 us a call in prototypes) and
brings its own limits, but the binding, and gRPC over it (framing, deadlines, compression, drain), would be ours to write and keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...model import Cancellable
from ...native.frames.frame_relay import Reported
from ...settings import ServerSettings
from ..certificates import Certificates, Loaded
from ..connections.acceptor import Acceptor
from ..connections.idle_room import Idle, IdleRoom
from ..connections.tls_connection import TlsConnections
from ..connections.unsent_answers import LARGE_BYTES, UnsentAnswers
from .grpcio_engine import GrpcioEngine, address
from .relays.native_relays import NativeRelay, NativeRelays, start_relays
from .relays.relay import ALPN, Relay
from .relays.size_filter import FrameGuard
from .service import INFER, Failure, Metadata, Service, failure_of, plain_headers

__all__ = ["NativeEngine"]

_log = logging.getLogger("serinus.grpc")

_BATCH = 256
"""Most calls taken in one turn; more wait for the next, so that a flood cannot keep the loop from its other work."""
_IO_THREADS = 1
"""Rust threads for HTTP/2: what they do for a call is little beside what Python does."""
_BACKLOG = 1024
"""Connections that may wait to be accepted; a restart of many clients brings them all at once."""
_STREAMS_PER_CONNECTION = 1024
"""Most calls at once on one connection: enough for a proxy that multiplexes a whole node's clients; what is more waits there."""
_METADATA_BYTES = 64 * 1024
_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
# The reasons for these two are beside their twins in grpcio_engine.
_FLUSH_S = 1.0
_LOOK_S = 0.01
_REFUSING_LOOK_S = 0.001
"""Between two looks while a model refuses: uvloop's shortest timer."""
_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""`sun_path` of sockaddr_un, less its closing zero (unix(7); macOS has four bytes fewer)."""
_EMPTY_LOOKS = 20
"""One after the other, until the thread waits again."""
_TOLD_BYTES = 1 << 20
"""Of answers that are not large, told to the account at a time: it costs a request nothing, and the account is out by so much at most."""
_FULL_S = 5.0
"""Without a refusal for so long, what waits is not too much any more: who was refused is told to come back in a second."""
_SILENT_S = 60.0
"""A connection with open calls that has said and been told nothing for so long may be closed for another where descriptors run out and all have open calls:
otherwise streams that wait for ever could keep everybody else out."""
_PROGRESS_S = 0.5
"""Between two looks at which connections something goes to, while large answers wait."""


class _Call:
    """One call that awaits its answer; an `Answer`."""

    __slots__ = ("engine", "number", "pending", "task")

    def __init__(self, engine: NativeEngine, number: int) -> None:
        self.engine = engine
        self.number = number
        self.pending: Cancellable | None = None
        self.task: asyncio.Task[None] | None = None

    def respond(self, payload: bytes, metadata: Metadata | None) -> None:
        engine = self.engine
        if engine.calls.pop(self.number, None) is not None:
            if engine.front.respond(
                self.number, payload, metadata
            ):  # else the client has just left, and nothing waits for it
                engine.given.add(len(payload))
            engine.service.ended()

    def fail(self, failure: Failure) -> None:
        engine = self.engine
        if engine.calls.pop(self.number, None) is not None:
            engine.front.fail(self.number, failure.code, failure.message, failure.trailing)
            engine.service.ended()

    def cancel(self) -> None:
        if self.pending is not None:
            self.pending.cancel()
        if self.task is not None:
            self.task.cancel()
        self.engine.service.ended()


class _Given:
    """Answers that the front has and clients have not: a `Reader`, for the front tells of all its calls together.

    A client that reads nothing holds its relay up, which is closed after `patience_s`; one that reads and lets HTTP/2's window stay shut shows
    nowhere, so where too much waits, connections to which nothing has gone for that long are closed. A client can have something go
    to it all the time, and take none of what waits (PING): so where too much has waited for `patience_s` without an end, the connection that took
    the least meanwhile is closed, one at a time, until there is room. One without calls loses nothing by that.
    """

    tells_pace = False

    def __init__(self, engine: NativeEngine, unsent: UnsentAnswers, patience_s: float) -> None:
        self._engine = engine
        self._unsent = unsent
        self._patience_s = patience_s
        self._bytes = 0
        """Of all answers given, less those that were seen to be over when none waited."""
        self._over = 0
        """What the front had counted by then."""
        self._largest = 0
        self._untold = 0
        """Of smaller answers that the account was not told of yet."""
        self._looked = float("-inf")
        self._full_at = self._closed_at = float("-inf")

    def add(self, size: int) -> None:
        """Count an answer; smaller ones are told together, for a client may leave any number of them unread."""
        self._bytes += size
        if size > self._largest:
            self._largest = size
        if size > LARGE_BYTES:
            self._unsent.add(self, size)
            return
        self._untold += size
        if self._untold > _TOLD_BYTES:
            self._unsent.add(self, self._untold)
            self._untold = 0
            self._unsent.tend()

    def unsent(self) -> int:
        """See `Reader.unsent`; at the most.

        The front counts an answer, whole, when it is out or its client has left; but not where the client left in the moment in which it was given. So
        what waits is no more than is not counted, and no more than as many answers as wait, each as large as the largest.
        """
        engine = self._engine
        now = time.monotonic()
        if now - self._looked > _PROGRESS_S:
            self._looked = now
            for relay in engine.relays:
                relay.note_progress(now)
        methods = list(engine.front.metrics()["methods"].values())
        over = sum(status["sent"]["sum"] for m in methods for status in m["status"].values())
        waiting = max(0, _unended(methods) - len(engine.calls))
        if not waiting:
            self._bytes = self._largest = 0
            self._over = over
        return min(max(0, self._bytes - (over - self._over)), waiting * self._largest)

    def give_up(self) -> bool:
        """See `Reader.give_up`."""
        now = time.monotonic()
        relays = self._engine.relays
        if now - self._full_at > _FULL_S:
            for relay in relays:
                relay.mark(now)
        self._full_at = now
        chosen = [relay for relay in relays if now - relay.moved_at > self._patience_s]
        known = [relay for relay in relays if now - relay.marked_at > self._patience_s]
        if not chosen and known and now - self._closed_at > _PROGRESS_S:
            self._closed_at = now
            chosen = [min(known, key=lambda relay: relay.pace(now))]
        for relay in chosen:
            relay.abort()
        return bool(chosen)


def _unended(methods: Sequence[Mapping[str, Any]]) -> int:
    """Calls whose status is not on its way yet, as the front counts."""
    return sum(m["started"] - sum(status["count"] for status in m["status"].values()) for m in methods)


class NativeEngine:
    """One front over a `Service`, and the grpcio engine behind it."""

    name = "native"

    def __init__(self, service: Service, settings: ServerSettings, room: IdleRoom | None = None) -> None:
        self.room = room or IdleRoom()
        """Who closes an idle connection where descriptors run out."""
        self.room.add(self._idlest, self._descriptors)
        self.service = service
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._paths = [INFER, *service.unary]
        self._streams = GrpcioEngine(service, settings)
        self._directory: Path | None = None
        self._thread: threading.Thread | None = None
        self._look_again = threading.Semaphore(0)
        """Released by the loop when it has found nothing, for the thread to wait again."""
        self._empty_looks = 0
        """Of the loop, one after the other, while a model refuses."""
        self._listener: Acceptor | None = None
        self.relays: set[Relay | NativeRelay] = set()
        self._native_relays: NativeRelays | None = None
        self.given = _Given(self, service.unsent, settings.send_timeout_s)
        self.front: Any = None
        self.calls: dict[int, _Call] = {}
        """Calls that have come and are not answered, by the front's number."""
        self.port = 0

    async def start(self, host: str, port: int, certificates: Certificates | None = None) -> None:
        """Listen on a TCP port.

        Args:
            host: an address of this machine.
            port: 0 picks a free one.
            certificates: for TLS, exchanged with them; None: none is spoken.

        Raises:
            OSError: there is no writable temporary directory for the sockets between guard, front and streams, or its path is too long.
            ConfigError: the address cannot be bound.
        """
        from pygrpc_native import NativeGrpcFront

        self._directory = Path(tempfile.mkdtemp(prefix="serinus-grpc-"))
        behind, front = self._directory / "streams.sock", self._directory / "front.sock"
        if (path_bytes := len(os.fsencode(behind))) > _SOCKET_PATH_BYTES:
            self._directory.rmdir()
            self._directory = None
            raise OSError(
                errno.ENAMETOOLONG,
                f"a socket in it has a path of {path_bytes} bytes, {_SOCKET_PATH_BYTES} are the most; name a shorter one",
            )
        await self._streams.start(f"unix:{behind}")
        self.front = NativeGrpcFront(
            f"unix:{front}",
            [(path, False) for path in self._paths],
            io_threads=_IO_THREADS,
            call_details=True,
            metrics=True,
            keepalive_time_ms=_KEEPALIVE_MS,
            keepalive_timeout_ms=_KEEPALIVE_TIMEOUT_MS,
            max_concurrent_streams=_STREAMS_PER_CONNECTION,
            max_metadata_size=_METADATA_BYTES,
        )
        self.front.set_fallback(str(behind))
        self.front.start()
        self._thread = threading.Thread(target=self._wait_for_calls, name="serinus-grpc", daemon=True)
        self._thread.start()
        limit, marker = self._settings.grpc_max_receive_message_length, self.service.too_large_marker
        try:
            sock = self._bind(host, port)
        except OSError as error:
            await self.close()
            raise ConfigError(
                f"cannot listen on {address(host, port)} for gRPC: {error.strerror}; is another server running?"
            ) from None

        def make() -> Relay:
            return relay(FrameGuard(limit, marker), counts_calls=self.room.is_scarce())

        def go_on(declined: Reported) -> Relay:
            guard = FrameGuard(limit, marker)
            if declined.has_begun:
                guard.go_on(declined.messages, has_data=declined.has_data)
            return relay(guard, declined=declined)

        timeout_s, full = self._settings.send_timeout_s, self.room.is_full
        relay = partial(Relay, str(front), relays=self.relays, send_timeout_s=timeout_s, on_stalled=self._closed_slow)
        relay = partial(relay, make_room=self.room.make)
        if certificates is not None:
            listen = partial(TlsConnections, context=certificates.context(ALPN))
            certificates.on_change(self._change)
        else:
            self._native_relays = start_relays(
                limit,
                timeout_s,
                str(front),
                self.relays,
                go_on=go_on,
                room=self.room,
                on_stalled=self._closed_slow,
            )
            listen = partial(Acceptor, take=self._native_relays.take) if self._native_relays is not None else Acceptor
        self._listener = listen(sock, make=make, backlog=_BACKLOG, make_room=self.room.make, is_full=full)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _change(self, loaded: Loaded) -> None:
        """Begin connections with another certificate; called on the thread that has read it."""
        context = loaded.context(ALPN)

        def take() -> None:
            if isinstance(self._listener, TlsConnections):
                self._listener.context = context

        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(take)

    def _bind(self, host: str, port: int) -> socket.socket:
        """Bind a socket, to the addresses that REST's has: one for "::" takes IPv4 too.

        Raises:
            OSError: the address is taken, or none of this machine's.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._settings.workers > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6 and host == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, port))
        except OSError:
            sock.close()
            raise
        return sock

    def _wait_for_calls(self) -> None:
        front, loop = self.front, self._loop
        while (events := front.recv_batch_details(_BATCH)) is not None:
            try:
                loop.call_soon_threadsafe(self._woken, events)
            except RuntimeError:  # the loop has closed
                return
            self._look_again.acquire()

    def _woken(self, events: Sequence[Any]) -> None:
        self._take(events)
        self._look_on()

    def _look_on(self) -> None:
        """Look again in the next turn of the loop; where calls are refused, after a moment, for more of them."""
        if self.service.is_refusing:
            self._loop.call_later(_REFUSING_LOOK_S, self._poll)
        else:
            self._loop.call_soon(self._poll)

    def _poll(self) -> None:
        events = self.front.recv_batch_details(_BATCH, 0)
        if events:
            self._empty_looks = 0
            self._take(events)
            self._look_on()
        elif self.service.is_refusing and self._empty_looks < _EMPTY_LOOKS:
            self._empty_looks += 1
            self._look_on()
        else:
            self._look_again.release()

    def _take(self, events: Sequence[Any]) -> None:
        """Begin every call of a batch; an event is (kind, number, method, message, client key, (metadata, peer, seconds left))."""
        now = time.monotonic()
        calls, infer, began = self.calls, self.service.infer, self.service.began
        for kind, number, method, message, _, details in events:
            if kind:  # EVENT_CANCEL: the client has left, or its deadline has passed and the front has said so
                call = calls.pop(number, None)
                if call is not None:
                    call.cancel()
                continue
            calls[number] = call = _Call(self, number)
            began()
            metadata, _, left = details
            try:
                if method:
                    work = self.service.call(self._paths[method], message, plain_headers(metadata), call)
                    call.task = self._loop.create_task(work)
                    continue
                call.pending = infer(message, plain_headers(metadata), None if left is None else now + left, call)
            except Exception as error:  # noqa: BLE001 # the edge of a request: the rest of the batch must not suffer
                call.fail(failure_of(error))

    @property
    def listeners(self) -> Sequence[Any]:
        """The sockets at which connections wait for the loop."""
        return self._listener.sockets if self._listener is not None else ()

    def stop_accepting(self) -> None:
        """Close the port and refuse new calls with UNAVAILABLE; those in flight go on."""
        self.service.drain()
        if self._listener is not None:
            self._listener.close()

    async def drain(self, timeout_s: float) -> None:
        """Wait until the calls in flight have ended and their answers are out, or the time is over."""
        self.stop_accepting()
        until = self._loop.time() + timeout_s
        await self.service.wait_idle(timeout_s)
        while self.unsent_calls() and self._loop.time() < until:  # noqa: ASYNC110 # the front tells nobody when all is sent
            await asyncio.sleep(_LOOK_S)

    def _idlest(self) -> Idle | None:
        """The connection that has been silent for longest: of those without a call so far, else of those known to have no open one.

        Where there is none, who has been silent for `_SILENT_S` goes, but after every idle connection of another transport.
        """
        relays = [relay for relay in self.relays if not relay.is_closing]
        chosen = [relay for relay in relays if not relay.has_called] or [r for r in relays if not r.is_at_work]
        now, is_idle = self._loop.time(), bool(chosen)
        if not is_idle:
            chosen = [relay for relay in relays if relay.heard_at < now - _SILENT_S]
        handshake = self._listener.idlest() if self._listener is not None else None
        if not chosen:
            return handshake
        longest = min(chosen, key=lambda relay: relay.heard_at)
        since = longest.heard_at if is_idle else now
        if handshake is not None and handshake[0] < since:
            return handshake
        return since, partial(self._close_idle, longest)

    def _close_idle(self, relay: Relay | NativeRelay) -> None:
        self.relays.discard(relay)
        relay.abort()

    def _descriptors(self) -> int:
        """Of each connection: the client's, the relay's to the front, and the front's."""
        beginning = self._listener.beginning if self._listener is not None else 0
        return 3 * (beginning + len(self.relays))

    def _closed_slow(self) -> None:
        self.service.unsent.closed += 1

    def unsent_calls(self) -> int:
        """Calls whose status is not on its way yet."""
        return _unended(list(self.front.metrics()["methods"].values()))

    async def close(self) -> None:
        """End what is left: GOAWAY to every client, UNAVAILABLE to calls still running."""
        self.stop_accepting()
        if self._listener is not None:
            await self._listener.wait_closed()
        await self._streams.close()
        if self.front is not None:
            await self._loop.run_in_executor(None, self.front.close)
        if self._thread is not None:
            self._look_again.release()
            await self._loop.run_in_executor(None, self._thread.join)
            self._thread = None
        until = self._loop.time() + _FLUSH_S
        while self.relays and self._loop.time() < until:  # noqa: ASYNC110 # once, at the end, and short
            await asyncio.sleep(_LOOK_S)
        for relay in list(self.relays):
            relay.abort()
        if self._native_relays is not None:
            await self._native_relays.close()
            self._native_relays = None
        for call in list(self.calls.values()):
            call.cancel()
        self.calls.clear()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
