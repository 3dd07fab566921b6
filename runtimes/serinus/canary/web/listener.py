"""A small HTTP server for pages and decisions: a thread a connection, bounded in number, time and bytes; on loopback unless told otherwise.

A web page of another origin that a browser has open must neither read nor write here. So requests whose Host may be a name of anybody's are
refused (a rebound DNS name; see `host_names`), and those whose Origin is not this server's.
"""

from __future__ import annotations

import http.server
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from ...errors import ConfigError
from .host_names import HostNames

__all__ = ["Answer", "Listener", "Request", "as_json", "parse_address"]

_LOG: Final = logging.getLogger(__name__)
_MOST_CONNECTIONS: Final = 64
_MOST_BODY_BYTES: Final = 8 << 20
"""Some thousand looks."""
_MOST_S: Final = 30.0
"""Of a connection: Argo Rollouts and Flagger wait 10 s for an answer unless told otherwise."""
_POLL_S: Final = 0.05
"""Between two looks at whether to end: what a command that ends waits for it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked."""

    method: str
    path: str
    query: Mapping[str, str]
    """The last value of each name."""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(status: int, value: Any) -> Answer:
    """Answer a JSON value."""
    return Answer(status, json.dumps(value).encode() + b"\n")


def parse_address(text: str, option: str) -> tuple[str, int]:
    """Read `[HOST:]PORT`; without a host it is loopback's.

    Raises:
        ConfigError: it is something else.
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (colon and not host):
        raise ConfigError(
            f"{option} {text}: a port was expected, or HOST:PORT, such as 8090, 0.0.0.0:8090 or [::1]:8090 (0: any free port)"
        )
    return host or "127.0.0.1", int(port)


class Listener:
    """A server that runs beside what uses it.

    Args:
        host: an address or name of this machine.
        port: 0: any free one.
        answer: gives the answer to a request; called from several threads.
        allowed_hosts: names by which it may be asked, beside its own.

    Raises:
        ConfigError: it cannot listen there, or what is allowed is no name.
    """

    def __init__(
        self, host: str, port: int, answer: Callable[[Request], Answer], *, allowed_hosts: Iterable[str] = ()
    ) -> None:
        try:
            self._server = _Server(host, port, answer, tuple(allowed_hosts))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"{host}:{port} cannot be listened on: {getattr(error, 'strerror', None) or error}"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """End; connections that are open get no answer any more."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = _MOST_CONNECTIONS  # socketserver's 5: of twenty clients at once some try again after a second
    block_on_close = False

    def __init__(
        self, host: str, port: int, answer: Callable[[Request], Answer], allowed_hosts: tuple[str, ...]
    ) -> None:
        HostNames(host, allowed_hosts)  # before it listens
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answer = answer
        self.places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__((host, port), _Handler)
        self.names = HostNames(str(self.server_address[0]), allowed_hosts)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.places.acquire(blocking=False):
            self.shutdown_request(request)  # a full house; whoever asks comes again
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # A client that sends a byte now and then would keep its place for ever.
        deadline = threading.Timer(_MOST_S, _cut, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nobody's trouble."""


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


class _Handler(http.server.BaseHTTPRequestHandler):
    server_version = "serinus"
    sys_version = ""
    timeout = 10.0

    @property
    def _own(self) -> _Server:
        assert isinstance(self.server, _Server)  # noqa: S101 # nobody else makes handlers
        return self.server

    def do_GET(self) -> None:
        self._serve(b"")

    def do_HEAD(self) -> None:
        self._serve(b"")

    def do_DELETE(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            return self._send(as_json(411, {"error": "Content-Length is missing; a body of known size was expected"}))
        if len(length) > len(str(_MOST_BODY_BYTES)) or int(length) > _MOST_BODY_BYTES:
            words = f"the body has {length[:20]} bytes, {_MOST_BODY_BYTES} at most were expected; post fewer looks at a time"
            return self._send(as_json(413, {"error": words}))
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return self._send(as_json(400, {"error": f"the body ended after {len(body)} of {length} bytes"}))
        return self._serve(body)

    def _serve(self, body: bytes) -> None:
        refused = self._refusal()
        if refused:
            self._send(as_json(403, {"error": refused}))
            return
        try:
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query, max_num_fields=32).items()}
        except ValueError as error:
            self._send(as_json(400, {"error": f"the address makes no sense: {error}"}))
            return
        method = "GET" if self.command == "HEAD" else self.command
        try:
            answer = self._own.answer(Request(method, parts.path, query, body))
        except Exception:  # noqa: BLE001 (edge of a request; whoever asks gets an answer, the log the traceback)
            _LOG.exception("%s %s failed", method, parts.path)
            answer = as_json(500, {"error": "this is a fault of serinus; its log says more"})
        self._send(answer)

    def _refusal(self) -> str:
        host = self.headers.get("Host", "")
        if refused := self._own.names.refusal(host):
            return refused
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return f"pages of another origin ({origin[:100]!r}) may not ask here"
        return ""

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        headers = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
            **answer.headers,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # the base class names it so
        """Requests are not logged: a page asks every two seconds."""
