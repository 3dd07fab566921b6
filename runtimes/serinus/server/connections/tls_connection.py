"""TLS over the loop's plain transport, by `ssl.SSLObject`: what is written is encrypted at once, and `close` ends the connection.

Theory of operation. asyncio's own (`sslproto`; uvloop's is a copy) keeps a buffer of 256 KiB for each connection and another before the socket's, whose bytes
nobody is told of, and it ends a connection only when the peer has said goodbye too, for which it waits for half a minute. gRPC's clients do not: they wait
for the end of TCP, and a call on a connection that its server had closed waited with them. Here nothing lies between TLS and the socket: the plain
transport's buffer, flow control and end are the connection's. `close` says goodbye (close_notify; RFC 8446, 6.1: each side closes its own
direction) and closes once all of it has gone out. A peer that says goodbye, or ends TCP without, has sent its last: the protocol says whether
that is the end.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from .tls_listener import TlsListener

__all__ = ["TlsConnection", "TlsConnections"]

_log = logging.getLogger("serinus.connections")

_RECORD_BYTES: Final = 16384
"""TLSPlaintext.length's most (RFC 8446, 5.1): no read gives more."""
_MOST_UNSENT: Final = 4 << 20
"""A peer that reads nothing may make TLS itself answer (KeyUpdate, RFC 8446, 4.6.3); flow control stops all else long before."""


class TlsConnection(asyncio.Protocol, asyncio.Transport):
    """The server's end of one connection: the protocol of the plain transport below, the transport of the protocol above.

    Args:
        context: whose certificate is shown.
        make: makes the protocol above, which is told of its connection after the handshake.
    """

    def __init__(self, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> None:
        super().__init__()
        self.handshaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake is over; ssl.SSLError or ConnectionError: it failed."""
        self._make = make
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._below: asyncio.Transport = cast("asyncio.Transport", None)
        self._above: asyncio.Protocol | None = None
        """None until the handshake is over."""
        self._is_held = False
        """The protocol above was told that the peer takes nothing more."""
        self._has_ended = False
        """The peer has sent its last."""
        self._is_closing = False

    # The protocol of what is below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the peer's ClientHello."""
        self._below = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Decrypt, and pass on."""
        if self._has_ended or self._is_closing:
            return
        self._incoming.write(data)
        if self._above is not None or self._shake_hands():
            self._read()

    def eof_received(self) -> bool:
        """Tell of the end; without a goodbye too, since HTTP/2 knows by itself what is cut short."""
        if self._above is None:
            return False
        if not self._has_ended:
            self._tell_end()
        return not self._is_closing

    def pause_writing(self) -> None:
        """Tell that the peer takes nothing more."""
        if self._above is not None:
            self._is_held = True
            self._above.pause_writing()

    def resume_writing(self) -> None:
        """Tell that it does again."""
        if self._above is not None and self._is_held:
            self._is_held = False
            self._above.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell of it."""
        self._is_closing = True
        if not self.handshaken.done():
            self.handshaken.set_exception(exc or ConnectionResetError("the client has left during its handshake"))
        if self._above is not None:
            self._above.connection_lost(exc)

    def _shake_hands(self) -> bool:
        """Go on with the handshake; whether it is over."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._is_closing = True
            self._below.close()
            if not self.handshaken.done():
                self.handshaken.set_exception(error)
            return False
        self._flush()
        if self.handshaken.done():  # it was given up in this very turn
            return False
        self.handshaken.set_result(None)
        self._above = self._make()
        self._above.connection_made(self)
        return not self._is_closing

    def _read(self) -> None:
        """Decrypt all that has come, and pass it on in one piece."""
        pieces: list[bytes] = []
        incoming, tls, is_end, failure = self._incoming, self._tls, False, None
        try:
            # To ask for more than there is costs an exception.
            while incoming.pending or tls.pending():
                piece = tls.read(_RECORD_BYTES)
                if not piece:
                    is_end = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:  # a part of a record
            pass
        except ssl.SSLZeroReturnError:
            is_end = True
        except ssl.SSLError as error:
            failure = error
        self._flush()  # what TLS itself has to say
        above = self._above
        if pieces and above is not None:
            above.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if failure is not None:
            _log.debug("a TLS connection is closed: %s", failure)
            self.abort()
        elif is_end and not self._is_closing:
            self._tell_end()
        elif self._below.get_write_buffer_size() > _MOST_UNSENT:
            _log.debug("a TLS connection is closed: its client makes TLS answer, and reads nothing")
            self.abort()

    def _tell_end(self) -> None:
        self._has_ended = True
        if self._above is not None and not self._above.eof_received():
            self.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._below.write(self._outgoing.read())

    # The transport of what is above

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Give what the plain transport knows, and `ssl_object`."""
        return self._tls if name == "ssl_object" else self._below.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether it is on its way out."""
        return self._is_closing or self._below.is_closing()

    def pause_reading(self) -> None:
        """Read nothing more; what has come is passed on still, as uvloop's plain transport may do once."""
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._below.resume_reading()

    def get_write_buffer_size(self) -> int:
        """How many bytes wait for the peer, encrypted."""
        return self._below.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if self._is_closing or not data:
            return
        left = memoryview(data)
        try:
            while left:
                left = left[self._tls.write(left) :]
        except ssl.SSLError as error:
            _log.debug("a TLS connection is closed: %s", error)
            self.abort()
            return
        self._below.write(self._outgoing.read())

    def close(self) -> None:
        """Say goodbye, and close when all has gone out."""
        if self._is_closing:
            return
        self._is_closing = True
        try:
            self._tls.unwrap()
        except ssl.SSLError:  # the peer's own goodbye is not waited for
            pass
        self._flush()
        self._below.close()

    def abort(self) -> None:
        """Close now, whatever waits."""
        self._is_closing = True
        if self._below is not None:
            self._below.abort()


class TlsConnections(TlsListener):
    """A `TlsListener` whose connections are `TlsConnection`s."""

    async def _connect(self, connection: socket.socket, handshake_s: float) -> None:
        tls = TlsConnection(self.context, self._make)
        try:
            await self._loop.connect_accepted_socket(lambda: tls, connection)
            await asyncio.wait_for(tls.handshaken, handshake_s)
        except BaseException:
            tls.abort()
            raise
