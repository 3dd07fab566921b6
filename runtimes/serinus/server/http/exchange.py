"""One request and its answer, as both transports hand them to the application.

Theory of operation. A transport reads a whole request, makes an `Exchange` of it and calls the application with it, once,
on the event loop's thread. The application calls `respond` exactly once, now or later, on the same thread. There is no
coroutine or task per request: what takes time takes a callback. Where the work can be stopped, the application leaves
something with a `cancel()` in `exchange.pending`; the transport calls it when the client has gone, and from then on `respond`
does nothing. Answers may come in any order; the transport puts them back in the order of the requests (RFC 9112, 9.3.2).

An answer whose length nobody knows yet is given in pieces instead: `begin`, `send` for each, `finish`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

from ...errors import Cancelled, NotSupported, SerinusError
from ...model import Cancellable
from ...protocol.raw import Buffer
from ..connections.unsent_answers import SEND_TIMEOUT_S

__all__ = [
    "App",
    "BadRequest",
    "CLIENT_LEFT",
    "Exchange",
    "HeaderFieldsTooLarge",
    "Headers",
    "HttpLimits",
    "LINGER_S",
    "Observer",
    "REASONS",
    "RawHeaders",
    "UriTooLong",
    "head_too_large",
    "too_many_fields",
    "header_pairs",
    "unknown_coding",
    "wrong_host",
]

REASONS: Final[dict[int, bytes]] = {status.value: status.phrase.encode() for status in HTTPStatus}
"""Status code to reason phrase (RFC 9110, 15)."""

RawHeaders = Sequence[tuple[bytes, bytes]]
"""Header fields as on the wire."""

LINGER_S: Final = 2.0
"""Seconds to read and drop after a refusal; nginx's lingering_timeout is 5, Apache's 2."""

CLIENT_LEFT: Final = Cancelled.http_status
"""What an observer is told in a status's place where the client has gone before there was one."""

_OWN_HEADERS: Final = frozenset(
    (
        *(b"connection", b"content-encoding", b"content-length", b"content-type", b"date", b"keep-alive"),
        *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
"""Response headers that belong to the transport: framing and connection (RFC 9110, 7.6.1), and what describes the body."""

_HOST: Final = re.compile(rb"(\[[0-9A-Za-z:.%]+\]|[A-Za-z0-9._~!$&'()*+,;=%/|-]*)(:[0-9]*)?")
"""uri-host [ ":" port ] (RFC 9110, 7.2; RFC 3986, 3.2.2), and `/` and `|`: Envoy's health checks send their cluster's name unless told
otherwise (HealthCheck.HttpHealthCheck.host), such as `httproute/default/name/rule/0` or `outbound|80||name`."""
_SPECIAL: Final = frozenset((b"content-encoding", b"accept-encoding", b"x-request-id", b"ce-specversion"))


class BadRequest(SerinusError):
    """The framing of a request is unsound, so the connection cannot go on (RFC 9112, 2.2 and 6.3)."""

    http_status = 400
    reason = "invalid"


class UriTooLong(SerinusError):
    """The request target is longer than `HttpLimits.target_bytes` (RFC 9110, 15.5.15)."""

    http_status = 414
    reason = "invalid"


class HeaderFieldsTooLarge(SerinusError):
    """The header section is larger than `HttpLimits.head_bytes` or has too many fields (RFC 6585, 5)."""

    http_status = 431
    reason = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What one client may take of a transport."""

    body_bytes: int = 64 * 1024 * 1024
    """Largest body, as sent and after decompression; 413 above it."""
    head_bytes: int = 64 * 1024
    """Largest header section; 431 above it. uvicorn's h11 has the same; nginx 32 KiB, Node 16 KiB."""
    header_fields: int = 256
    """Most header fields in one request; Apache has 100, Envoy 100."""
    target_bytes: int = 16 * 1024
    """Longest request target; 414 above it. RFC 9112, 3 recommends at least 8000."""
    pipeline: int = 64
    """Requests of one connection that are worked on at a time; further ones wait, and reading stops."""
    request_timeout_s: float = 60.0
    """Seconds to send one whole request (408)."""
    send_timeout_s: float = SEND_TIMEOUT_S
    """Seconds in which a client takes nothing of an answer that waits to be read, until it is closed."""
    keep_alive_s: float = 65.0
    """Seconds that an idle connection is kept."""

    def are_worth_reading(self, headers: Headers) -> bool:
        """Whether a body that is refused is read and dropped, so that the connection lives on: it is not much too large."""
        length = headers.content_length
        return length is not None and headers.expect is None and length <= 2 * self.body_bytes + 65536


class Headers(Mapping[str, str]):
    """Header fields of a request: names in lower case, repeated fields joined by ", " (RFC 9110, 5.3).

    What every request is asked for is found once, at construction; the mapping is built when first looked into.
    Immutable, so a connection whose client sends the same fields again uses the same object again.
    """

    __slots__ = (
        "_map",
        "accept_encoding",
        "chunked",
        "cloud_event",
        "connection",
        "content_encoding",
        "content_length",
        "content_type",
        "expect",
        "hosts",
        "json_length",
        "plain",
        "raw",
        "request_id",
        "transfer_coding",
        "upgrade",
    )

    def __init__(self, raw: RawHeaders) -> None:
        self.raw = raw
        self._map: dict[str, str] | None = None
        self.content_length: int | None = None
        """None: chunked, or no body."""
        self.chunked = False
        self.transfer_coding: bytes = b""
        """Where there are others than `chunked`: all of them, in lower case."""
        self.expect: bytes | None = None
        self.connection = False
        self.upgrade = False
        self.hosts = 0
        """How many Host fields; -1: one of them is no host (RFC 9112, 3.2)."""
        self.content_type: bytes = b""
        self.content_encoding: bytes = b""
        self.accept_encoding: bytes = b""
        self.json_length: int | None = None
        """Inference-Header-Content-Length; -1 where it is not a number, or several that differ."""
        self.request_id: bytes | None = None
        """X-Request-Id, to be echoed."""
        self.cloud_event = False
        self.plain = True
        """The body is what it seems and the answer needs nothing special: no content coding, request id, CloudEvent."""
        for name, value in raw:
            key = name.lower()
            if key == b"content-length":
                if value.strip().isdigit():
                    self.content_length = int(value)
            elif key == b"content-type":
                self.content_type = value
                if b";" in value or b"cloudevents" in value:
                    self.plain = False
            elif key == b"host":
                if self.hosts >= 0:
                    self.hosts = self.hosts + 1 if _HOST.fullmatch(value.strip()) else -1
            elif key == b"connection":
                self.connection = True
            elif key == b"inference-header-content-length":
                digits = value.strip()
                length = int(digits) if digits.isdigit() and len(digits) < 20 else -1
                self.json_length = length if self.json_length in (None, length) else -1
            elif key == b"transfer-encoding":
                self.chunked = True
                codings = value.strip().lower()
                if self.transfer_coding or codings != b"chunked":
                    self.transfer_coding = self.transfer_coding + b"," + codings if self.transfer_coding else codings
            elif key == b"expect":
                self.expect = value.strip().lower()
            elif key == b"upgrade":
                self.upgrade = True
            elif key in _SPECIAL:
                self.plain = False
                if key == b"content-encoding":
                    self.content_encoding = self.content_encoding + b"," + value if self.content_encoding else value
                elif key == b"accept-encoding":
                    self.accept_encoding = self.accept_encoding + b"," + value if self.accept_encoding else value
                elif key == b"x-request-id":
                    self.request_id = value
                else:
                    self.cloud_event = True

    def request_id_back(self) -> list[tuple[bytes, bytes]]:
        """Make the field that tells the client its X-Request-Id again; empty where it sent none."""
        return [] if self.request_id is None else header_pairs({"X-Request-Id": self["x-request-id"]})

    def _fill(self) -> dict[str, str]:
        mapping: dict[str, str] = {}
        for name, value in self.raw:
            key = name.decode("latin-1").lower()
            text = value.decode("latin-1").strip()
            mapping[key] = f"{mapping[key]}, {text}" if key in mapping else text
        self._map = mapping
        return mapping

    def __getitem__(self, name: str) -> str:
        return (self._map or self._fill())[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._map or self._fill())

    def __len__(self) -> int:
        return len(self._map or self._fill())

    def __contains__(self, name: object) -> bool:
        return name in (self._map or self._fill())

    def __repr__(self) -> str:
        return f"Headers({dict(self)!r})"


class Exchange:
    """A complete request, and the way to answer it. Transports subclass it."""

    __slots__ = ("body", "gone", "headers", "method", "pending", "target")

    def __init__(self, method: bytes, target: bytes, headers: Headers, body: bytes) -> None:
        self.method = method
        self.target = target
        """As sent: percent-encoded, with the query."""
        self.headers = headers
        self.body = body
        """Without transfer coding; still in its content coding."""
        self.pending: Cancellable | None = None
        """Set by the application: cancelled when the client goes away."""
        self.gone = False
        """The client has gone away; `respond` does nothing."""

    def respond(
        self,
        status: int,
        content_type: str,
        chunks: Sequence[Buffer],
        headers: RawHeaders = (),
    ) -> None:
        """Answer the request; once.

        Args:
            status: HTTP status code, 200..599.
            content_type: the Content-Type field; empty for none (204).
            chunks: the body, in pieces; left out of the answer to HEAD, though counted.
            headers: further fields; not those of framing and connection, which the transport sets.
        """
        raise NotImplementedError

    def begin(self, status: int, content_type: str, headers: RawHeaders = ()) -> None:
        """Answer in pieces, in place of `respond`; the arguments are the same. The head leaves at once."""
        raise NotImplementedError

    def waited_s(self) -> float:
        """How long its last bytes had waited before this is asked, seconds; 0: nobody knows."""
        return 0.0

    async def send(self, piece: bytes) -> None:
        """Send a piece, not empty; waits while the client takes nothing, or the requests before this one are not answered."""
        raise NotImplementedError

    def finish(self, *, whole: bool = True) -> None:
        """End an answer in pieces. Not `whole`: the client must see that something is missing, so the connection ends."""
        raise NotImplementedError

    def leave(self) -> None:
        """Note that the client has gone, and cancel the work."""
        self.gone = True
        pending = self.pending
        if pending is not None:
            self.pending = None
            pending.cancel()


class App(Protocol):
    """What a transport serves."""

    def __call__(self, exchange: Exchange) -> None:
        """Take one complete request; call `exchange.respond` once, now or later. Never raises."""
        ...

    def error_body(self, error: SerinusError) -> bytes:
        """Render the JSON body of an error that the transport itself found."""
        ...


Observer = Callable[[Exchange, int, int], None]
"""Called with each exchange, its status and its body's bytes, when its answer is handed over (the access log)."""


def head_too_large(limits: HttpLimits) -> SerinusError:
    """Refuse a header section beyond the limits."""
    return HeaderFieldsTooLarge(
        f"the header section is too large; at most {limits.head_bytes} bytes and {limits.header_fields} fields are taken"
    )


def too_many_fields(raw: RawHeaders, limits: HttpLimits) -> SerinusError | None:
    """Refuse header fields that are too many, or together too large."""
    if len(raw) > limits.header_fields or sum(len(name) + len(value) + 4 for name, value in raw) > limits.head_bytes:
        return head_too_large(limits)
    return None


def wrong_host(headers: Headers) -> SerinusError | None:
    """Refuse an HTTP/1.1 request without exactly one Host that is one (RFC 9112, 3.2)."""
    if headers.hosts == 1:
        return None
    found = {0: "has none", -1: "has one that is no host"}.get(headers.hosts, f"has {headers.hosts}")
    return BadRequest(f"an HTTP/1.1 request has exactly one Host header; this one {found}")


def unknown_coding(headers: Headers) -> SerinusError | None:
    """Refuse a body that is coded otherwise before it is chunked (RFC 9112, 6.1: 501 for a coding that is not understood).

    Where `chunked` is not the last, it is for the parser to refuse: nobody knows where such a body ends (6.3).
    """
    codings = headers.transfer_coding
    if not codings or codings.rpartition(b",")[2].strip() != b"chunked":
        return None
    found = codings[:64].decode("latin-1")
    return NotSupported(f"the transfer coding {found!r} is not offered, only 'chunked'; compress by Content-Encoding")


def header_pairs(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Make wire fields of response headers that a model set.

    Framing and connection fields are dropped: they are the transport's. CR, LF and NUL become spaces (RFC 9110, 5.5), so
    that a value taken from a request cannot add fields or answers of its own; a name that is no token is dropped.
    """
    pairs: list[tuple[bytes, bytes]] = []
    for name, value in headers.items():
        field = str(name).encode("latin-1", "replace")
        if field.lower() in _OWN_HEADERS or not field or field.translate(None, _TOKEN):
            continue
        text = str(value).encode("latin-1", "replace").translate(_NO_CONTROLS)
        pairs.append((field, text))
    return pairs


_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # RFC 9110, 5.6.2
_NO_CONTROLS: Final = bytes(32 if (byte < 32 and byte != 9) or byte == 127 else byte for byte in range(256))
