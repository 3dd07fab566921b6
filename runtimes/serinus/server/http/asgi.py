"""The plain transport: the same application behind uvicorn, as an alternative and as the thin one's yardstick.

uvicorn owns the sockets, the parsing and the connections; this module turns one ASGI HTTP scope into one `Exchange`.
What uvicorn has no setting for is left as uvicorn does it: a header section is measured when it has come, pipelined
requests one at a time, half-closed clients taken for gone. tests/http/test_transports.py lists every difference that a client can see.
Connections are accepted by our `Acceptor`; what waits for slow clients is bounded, and what has waited in the kernel for too long refused, as on the thin
transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Awaitable, Callable, Generator, MutableMapping, Sequence
from typing import Any, Final, cast

from ...errors import ConfigError, Overloaded, RequestTimedOut, SerinusError, TooLarge
from ...protocol.raw import Buffer
from ..connections.acceptor import Acceptor
from ..connections.tcp_information import silent_s
from ..connections.tls_listener import TlsListener
from ..connections.unsent_answers import LARGE_BYTES, Reader, UnsentAnswers
from ..connections.waiting_connections import accept_waiting, unread_bytes
from .exchange import (
    CLIENT_LEFT,
    LINGER_S,
    App,
    BadRequest,
    Exchange,
    Headers,
    HttpLimits,
    Observer,
    RawHeaders,
    UriTooLong,
    too_many_fields,
    unknown_coding,
    wrong_host,
)

__all__ = ["AsgiApp", "UvicornServer"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]

_JSON: Final = "application/json"
_READER: Final = "serinus.reader"
"""Key of a scope: its connection, for whom answers wait."""


class _Gone(Exception):
    """The client went away while its request was being read."""


class _Exchange(Exchange):
    """A request in one ASGI call."""

    __slots__ = ("answered", "pieces", "reply", "transport")

    def __init__(self, method: bytes, target: bytes, headers: Headers, transport: asyncio.BaseTransport | None) -> None:
        super().__init__(method, target, headers, b"")
        self.transport = transport
        """Of its connection; None where the scope does not tell (an ASGI server that is not ours)."""
        self.answered = asyncio.Event()
        self.reply: tuple[int, str, Sequence[Buffer], RawHeaders] | None = None
        self.pieces: asyncio.Queue[bytes | None] | None = None
        """Of an answer in pieces: empty at its end, None where it has broken off."""

    def respond(
        self,
        status: int,
        content_type: str,
        chunks: Sequence[Buffer],
        headers: RawHeaders = (),
    ) -> None:
        """See `Exchange.respond`."""
        if self.gone or self.reply is not None:
            return
        self.pending = None
        self.reply = (status, content_type, chunks, headers)
        self.answered.set()

    def begin(self, status: int, content_type: str, headers: RawHeaders = ()) -> None:
        """See `Exchange.begin`."""
        if self.gone or self.reply is not None:
            return
        self.pieces = asyncio.Queue()
        self.reply = (status, content_type, (), headers)
        self.answered.set()

    def waited_s(self) -> float:
        """See `Exchange.waited_s`."""
        return 0.0 if self.transport is None else silent_s(self.transport)

    async def send(self, piece: bytes) -> None:
        """See `Exchange.send`."""
        if self.pieces is not None and not self.gone:
            self.pieces.put_nowait(piece)
            await self.pieces.join()

    def finish(self, *, whole: bool = True) -> None:
        """See `Exchange.finish`."""
        if self.pieces is not None:
            self.pending = None
            self.pieces.put_nowait(b"" if whole else None)


class AsgiApp:
    """An ASGI 3 application around an `App`: http scopes only."""

    def __init__(
        self,
        app: App,
        limits: HttpLimits,
        unsent: UnsentAnswers,
        *,
        observer: Observer | None = None,
        fields: RawHeaders = (),
    ) -> None:
        self._unsent = unsent
        self._app = app
        self._limits = limits
        self._observer = observer
        self._fields = fields
        self.closing = False
        """Answers carry `Connection: close`."""

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Serve one scope."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            return
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        headers = Headers(scope["headers"])
        reader = scope.get(_READER)
        exchange = _Exchange(scope["method"].encode(), target, headers, getattr(reader, "transport", None))
        try:
            self._check_head(scope, target, headers)
            exchange.body = await self._read_body(headers, receive)
        except SerinusError as error:
            if isinstance(error, TooLarge):
                await self._drop_body(headers, receive)
            extra = [(b"Connection", b"close"), *headers.request_id_back()]
            exchange.respond(error.http_status, _JSON, [self._app.error_body(error)], extra)
        except _Gone:
            return
        else:
            self._app(exchange)
            if exchange.reply is None:
                await self._wait(exchange, receive)
        if exchange.reply is None:
            if self._observer is not None:
                self._observer(exchange, CLIENT_LEFT, 0)
            return
        if exchange.pieces is not None:
            await self._send_pieces(exchange, exchange.reply, exchange.pieces, receive, send)
        else:
            await self._send(exchange, exchange.reply, send, reader)

    def _check_head(self, scope: _Message, target: bytes, headers: Headers) -> None:
        if len(target) > self._limits.target_bytes:
            raise UriTooLong(
                f"the request target has {len(target)} bytes; at most {self._limits.target_bytes} are taken"
            )
        refused = too_many_fields(headers.raw, self._limits)
        if refused is None and scope["http_version"] == "1.1":
            refused = wrong_host(headers)
        refused = refused or unknown_coding(headers)
        if refused is not None:
            raise refused
        if headers.content_length is not None and headers.content_length > self._limits.body_bytes:
            raise TooLarge(
                f"the body has {headers.content_length} bytes; at most {self._limits.body_bytes} are taken (max_body_bytes)"
            )

    async def _read_body(self, headers: Headers, receive: _Receive) -> bytes:
        if not headers.content_length and not headers.chunked:
            return b""
        parts: list[bytes] = []
        length = 0
        deadline = asyncio.get_running_loop().time() + self._limits.request_timeout_s
        while True:
            try:
                message = await asyncio.wait_for(receive(), deadline - asyncio.get_running_loop().time())
            except asyncio.TimeoutError:
                text = f"the request was not complete after {self._limits.request_timeout_s:g} seconds"
                raise RequestTimedOut(text) from None
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            length += len(part)
            if length > self._limits.body_bytes:
                raise TooLarge(
                    f"the body has more than {length} bytes; at most {self._limits.body_bytes} are taken (max_body_bytes)"
                )
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _drop_body(self, headers: Headers, receive: _Receive) -> None:
        """Read off a body that is not much too large: uvicorn resets the connection, and the answer is lost, if it closes before."""
        if not self._limits.are_worth_reading(headers):
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.request_timeout_s
        with contextlib.suppress(asyncio.TimeoutError):
            while (await asyncio.wait_for(receive(), min(LINGER_S, end - loop.time()))).get("more_body", False):
                pass

    async def _wait(self, exchange: _Exchange, receive: _Receive) -> None:
        """Wait for the answer, or for the client to go."""
        answered = asyncio.ensure_future(exchange.answered.wait())
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
            if exchange.reply is None:
                exchange.leave()
        except asyncio.CancelledError:
            exchange.leave()
            raise
        finally:
            for task in (answered, gone):
                task.cancel()

    async def _send(
        self,
        exchange: Exchange,
        reply: tuple[int, str, Sequence[Buffer], RawHeaders],
        send: _Send,
        reader: Reader | None,
    ) -> None:
        status, _, chunks, _ = reply
        body = b"" if exchange.method == b"HEAD" else b"".join(chunks)
        length = sum(len(memoryview(chunk).cast("B")) for chunk in chunks)
        is_large = len(body) > LARGE_BYTES and reader is not None
        if is_large:
            try:
                self._unsent.check(len(body))
            except Overloaded as error:
                is_large = False
                extra = [
                    *exchange.headers.request_id_back(),
                    (b"Retry-After", b"%d" % math.ceil(error.retry_after_s or 1)),
                ]
                status, body = error.http_status, self._app.error_body(error)
                reply, length = (status, _JSON, [body], extra), len(body)
        if self._observer is not None:
            self._observer(exchange, status, length)
        await send(self._start(reply, length))
        if is_large and reader is not None:
            self._unsent.add(reader, len(body))
        await send({"type": "http.response.body", "body": body})

    def _start(self, reply: tuple[int, str, Sequence[Buffer], RawHeaders], length: int | None) -> _Message:
        status, content_type, _, extra = reply
        fields = [(b"content-type", content_type.encode("latin-1"))] if content_type else []
        if length is not None and status not in (204, 304):
            fields.append((b"content-length", b"%d" % length))
        fields += self._fields
        fields += extra
        if self.closing and not any(name.lower() == b"connection" for name, _ in extra):
            fields.append((b"connection", b"close"))
        return {"type": "http.response.start", "status": status, "headers": fields}

    async def _send_pieces(
        self,
        exchange: _Exchange,
        reply: tuple[int, str, Sequence[Buffer], RawHeaders],
        pieces: asyncio.Queue[bytes | None],
        receive: _Receive,
        send: _Send,
    ) -> None:
        """Pass pieces on until the last, or until the client has gone. uvicorn makes chunks of them."""
        gone = asyncio.ensure_future(_disconnected(receive))
        gone.add_done_callback(lambda _: exchange.leave())
        sent = 0
        try:
            await send(self._start(reply, None))
            while not exchange.gone:
                following = asyncio.ensure_future(pieces.get())
                await asyncio.wait((following, gone), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    return
                piece = following.result()
                if piece is None:
                    return  # uvicorn closes the connection of an answer that has no end
                sent += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": bool(piece)})
                pieces.task_done()
                if not piece:
                    break
            if self._observer is not None:
                self._observer(exchange, reply[0], sent)
        finally:
            gone.cancel()
            exchange.leave()


def _listening(sock: socket.socket, ssl: Any, make: Callable[[], asyncio.Protocol], backlog: int) -> Acceptor:
    return Acceptor(sock, make, backlog=backlog) if ssl is None else TlsListener(sock, ssl, make, backlog=backlog)


async def _disconnected(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class UvicornServer:
    """uvicorn on a socket of ours, inside a running loop."""

    def __init__(
        self,
        app: App,
        limits: HttpLimits,
        *,
        observer: Observer | None = None,
        fields: RawHeaders = (),
        unsent: UnsentAnswers | None = None,
    ) -> None:
        account = UnsentAnswers(patience_s=limits.send_timeout_s) if unsent is None else unsent
        try:
            import uvicorn
            from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
        except ImportError as error:
            raise ConfigError("http=uvicorn needs the package 'uvicorn': install serinus[uvicorn]") from error

        class Protocol(HttpToolsProtocol):
            """One client's connection, and the `Reader` that its answers wait for."""

            tells_pace = True
            stalled: asyncio.TimerHandle | None = None

            def on_message_begin(self) -> None:
                super().on_message_begin()
                cast("_Message", self.scope)[_READER] = self

            def pause_writing(self) -> None:
                super().pause_writing()
                account.add(self, 0)
                self.await_reading(self.unsent())

            def resume_writing(self) -> None:
                super().resume_writing()
                self.stop_waiting()

            def connection_lost(self, exc: Exception | None) -> None:
                account.drop(self)
                super().connection_lost(exc)
                self.stop_waiting()

            def await_reading(self, before: int) -> None:
                """Close if the client takes nothing of what waits for it."""

                def look() -> None:
                    left = self.unsent()
                    if left < before:
                        self.await_reading(left)
                    else:
                        account.closed += not self.transport.is_closing()
                        self.transport.abort()

                self.stop_waiting()
                self.stalled = asyncio.get_running_loop().call_later(limits.send_timeout_s, look)

            def stop_waiting(self) -> None:
                if self.stalled is not None:
                    self.stalled.cancel()
                    self.stalled = None

            def unsent(self) -> int:
                return self.transport.get_write_buffer_size()

            def give_up(self) -> bool:
                self.transport.abort()
                account.drop(self)
                return True

            def send_400_response(self, msg: str) -> None:
                """Say in JSON what uvicorn says in text, and before any answer of its own to the same request."""
                body = app.error_body(BadRequest("malformed HTTP request"))
                fields = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                self.transport.write(STATUS_LINE[400] + fields % (len(body), body))
                self.transport.close()

        self._protocol = Protocol
        self._uvicorn = uvicorn
        self._limits = limits
        self._app = AsgiApp(app, limits, account, observer=observer, fields=fields)
        self._server: Any = None
        self._task: asyncio.Task[None] | None = None

    async def listen(self, *, sock: socket.socket, ssl: Any = None, backlog: int = 2048) -> None:
        """Accept connections on a bound socket."""
        config = self._uvicorn.Config(
            self._app,
            http=self._protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=backlog,
            timeout_keep_alive=math.ceil(self._limits.keep_alive_s),
        )
        config.load()
        config.ssl = ssl

        protocol = self._protocol

        class Server(self._uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await self.lifespan.startup()

                def make() -> asyncio.Protocol:  # as uvicorn's own
                    return protocol(config=config, server_state=self.server_state, app_state=self.lifespan.state)

                assert sockets is not None  # noqa: S101 # `serve` below gives one
                self.servers: list[Any] = [_listening(one, config.ssl, make, backlog) for one in sockets]
                self.started = True

            @contextlib.contextmanager
            def capture_signals(self) -> Generator[None, None, None]:
                yield  # signals belong to `serinus.server.lifecycle`

        sock.setblocking(False)
        self._server = Server(config)
        self._task = task = asyncio.ensure_future(self._server.serve(sockets=[sock]))
        while not self._server.started:
            if task.done():
                task.result()
                raise ConfigError("uvicorn stopped while starting; see its log")
            await asyncio.sleep(0.005)

    async def change_certificate(self, ssl: Any) -> None:
        """Begin connections with another TLS context; those that are open go on as they are."""
        if self._server is not None:
            for server in self._server.servers:
                if isinstance(server, TlsListener):
                    server.context = ssl

    async def take_waiting(self) -> None:
        """Accept the connections that the kernel has: closing the listening socket would reset them."""
        if self._server is not None:
            await accept_waiting(sock for server in self._server.servers for sock in server.sockets)

    def stop_accepting(self) -> None:
        """Close the listening socket; each answer from now on carries `Connection: close`."""
        self._app.closing = True
        if self._server is not None:
            for server in getattr(self._server, "servers", ()):
                server.close()

    async def drain(self, timeout_s: float) -> None:
        """Wait for what is in flight, and close what is idle."""
        until = asyncio.get_running_loop().time() + timeout_s
        if self._task is not None:
            # uvicorn closes each connection that has no request, also where one waits to be read.
            while self._has_unread() and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 # the kernel tells nobody that all is read
                await asyncio.sleep(0)
        await self._stop(max(0.05, until - asyncio.get_running_loop().time()))

    def _has_unread(self) -> bool:
        connections = self._server.server_state.connections
        return any(
            unread_bytes(each.transport) for each in connections if each.cycle is None or each.cycle.response_complete
        )

    async def close(self) -> None:
        """Close everything now."""
        await self._stop(0.05)

    async def _stop(self, timeout_s: float) -> None:
        self.stop_accepting()
        if self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = timeout_s
        self._server.should_exit = True
        await self._task
        self._task = None
