"""A raw HTTP client and an application of four paths, for tests that send the same bytes to both transports."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from serinus.errors import SerinusError
from serinus.server.http.asgi import UvicornServer
from serinus.server.http.exchange import App, Exchange, HttpLimits
from serinus.server.http.thin import ThinServer

TRANSPORTS = {"thin": ThinServer, "uvicorn": UvicornServer}

HOST = b"Host: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
LAST = b"GET /last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


def post(body: bytes, *fields: bytes, path: bytes = b"/p", version: bytes = b"1.1") -> bytes:
    """A POST with these fields, none of which is added."""
    lines = [b"POST %b HTTP/%b" % (path, version), b"Host: x", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def sized(body: bytes, *fields: bytes) -> bytes:
    """A POST with its body's length."""
    return post(body, b"Content-Length: %d" % len(body), *fields)


class Probe:
    """Says on `/...` what it was sent; `/hold` answers when it is told to; `/big` with a megabyte; `/fast` is like `/`."""

    def __init__(self) -> None:
        self.held: list[Exchange] = []
        self.cancelled = 0
        self.seen = 0

    def __call__(self, exchange: Exchange) -> None:
        self.seen += 1
        if exchange.target == b"/hold":
            exchange.pending = self
            self.held.append(exchange)
        elif exchange.target == b"/big":
            exchange.respond(200, "application/octet-stream", [b"x" * 1_000_000])
        else:
            document = {
                "method": exchange.method.decode(),
                "target": exchange.target.decode("latin-1"),
                "body": exchange.body.decode("latin-1") if len(exchange.body) < 1000 else len(exchange.body),
            }
            exchange.respond(200, "application/json", [orjson.dumps(document)])

    def error_body(self, error: SerinusError) -> bytes:
        return orjson.dumps({"error": str(error)})

    def cancel(self) -> None:
        self.cancelled += 1

    def release(self) -> None:
        held, self.held = self.held, []
        for exchange in held:
            exchange.respond(200, "application/json", [b'"held"'])


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Raw:
    """A socket that speaks bytes, and reads answers with the framing of RFC 9112."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, **options: Any) -> Raw:
        return cls(*await asyncio.open_connection("127.0.0.1", port, **options))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, head_only: bool = False) -> Answer:
        """Read one answer; raises IncompleteReadError at the end of the stream."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        lines = head.decode("latin-1").split("\r\n")
        answer = Answer(int(lines[0].split(" ")[1]))
        for line in lines[1:-2]:
            name, _, value = line.partition(":")
            answer.headers[name.lower()] = value.strip()
        length = int(answer.headers.get("content-length", "0"))
        if length and not head_only:
            answer.body = await asyncio.wait_for(self.reader.readexactly(length), 20)
        return answer

    async def ended(self) -> bool:
        """Wait for the server to close; true when nothing came before that."""
        try:
            return await asyncio.wait_for(self.reader.read(), 20) == b""
        except ConnectionError:
            return True

    def end_input(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """Vanish with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.close()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class _Hurried:
    """asyncio, with a clock of its own for who sleeps."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(min(delay, 0.002))


def hurry(transport: str) -> None:
    """Let uvicorn look every 2 ms whether it is to stop, and not every 100 twice: the tests stop some two hundred of its servers."""
    if transport == "uvicorn":
        import uvicorn.server

        uvicorn.server.asyncio = _Hurried()  # type: ignore[attr-defined] # the module's own name


@contextlib.asynccontextmanager
async def serving(transport: str, app: App, **limits: Any) -> AsyncIterator[tuple[Any, int]]:
    """Run one transport on a free port; yields the server and the port."""
    hurry(transport)
    server = TRANSPORTS[transport](app, HttpLimits(**limits))
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    await server.listen(sock=sock)
    try:
        yield server, port
    finally:
        await server.close()


async def exchange_bytes(port: int, script: bytes, *, end_input: bool = True) -> list[Answer]:
    """Send all bytes at once and read answers until the server closes."""
    client = await Raw.open(port)
    await client.send(script)
    if end_input:
        client.end_input()
    answers: list[Answer] = []
    try:
        while True:
            answers.append(await client.answer())
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        await client.close()
    return answers


async def ask(client: Raw, request: bytes) -> Answer:
    """Send a request and read its answer."""
    await client.send(request)
    return await client.answer()


async def never_reads(port: int) -> Raw:
    """Connect a client that takes nothing of what is sent to it."""
    client = await Raw.open(port, limit=1024)
    client.writer.transport.pause_reading()
    return client


async def is_open(port: int) -> bool:
    """Whether anybody listens."""
    try:
        client = await Raw.open(port)
    except ConnectionError:
        return False
    await client.close()
    return True
