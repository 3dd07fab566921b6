"""uvicorn on a socket of ours: its start, its certificate, who still gets in at the end; and the application that it calls."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from http_support import Probe, Raw, hurry, serving
from serinus.errors import ConfigError
from serinus.server.connections.unsent_answers import UnsentAnswers
from serinus.server.http.asgi import AsgiApp, UvicornServer
from serinus.server.http.exchange import HttpLimits
from waiting import until

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


def bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    return sock


# Its start


async def test_what_fails_while_it_starts_is_told_as_it_is():
    server = UvicornServer(Probe(), HttpLimits())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(OSError, match="not supported"):
        await server.listen(sock=datagrams)


async def test_one_that_stops_while_it_starts_is_told_of(monkeypatch: pytest.MonkeyPatch):
    async def serve(self: Any, sockets: Any = None) -> None:
        """End at once."""

    monkeypatch.setattr(uvicorn.Server, "serve", serve)
    with bound() as sock, pytest.raises(ConfigError, match="uvicorn stopped while starting"):
        await UvicornServer(Probe(), HttpLimits()).listen(sock=sock)


async def test_one_that_has_not_begun_is_stopped_without_a_word():
    server = UvicornServer(Probe(), HttpLimits())
    await server.take_waiting()
    await server.change_certificate(object())
    server.stop_accepting()
    assert server._app.closing
    await server.drain(10)
    await server.close()


# Its certificate


@pytest.mark.parametrize("tls", [True, False])
async def test_a_new_certificate_is_for_what_listens_with_tls(tls: bool):
    hurry("uvicorn")
    server = UvicornServer(Probe(), HttpLimits())
    first: Any = "first"
    await server.listen(sock=bound(), ssl=first if tls else None)
    try:
        (listener,) = server._server.servers
        assert getattr(listener, "context", None) == ("first" if tls else None)
        await server.change_certificate("second")
        assert getattr(listener, "context", None) == ("second" if tls else None)
    finally:
        await server.close()


# Its end


async def test_who_has_connected_before_the_end_gets_in_and_who_comes_after_is_refused():
    probe = Probe()
    async with serving("uvicorn", probe) as (server, port):
        with socket.create_connection(("127.0.0.1", port)) as waiting:
            waiting.sendall(GET)
            await server.take_waiting()
            server.stop_accepting()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            await server.drain(10)
            waiting.settimeout(10)
            answer = b""
            while part := waiting.recv(4096):
                answer += part
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in answer.lower()
    assert probe.seen == 1


async def test_an_end_of_no_time_still_answers_what_has_been_read():
    probe = Probe()
    async with serving("uvicorn", probe) as (server, port):
        client = await Raw.open(port)
        await client.send(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: probe.held)
        ending = asyncio.ensure_future(server.drain(0))
        await asyncio.sleep(0)
        assert server._server.config.timeout_graceful_shutdown == 0.05
        probe.release()
        assert (await client.answer()).status == 200
        await ending
        await client.close()


@pytest.mark.parametrize(("keep_alive_s", "whole_s"), [(5.0, 5), (4.2, 5), (0.5, 1)])
async def test_an_idle_connection_is_kept_for_its_time_in_whole_seconds(keep_alive_s: float, whole_s: int):
    async with serving("uvicorn", Probe(), keep_alive_s=keep_alive_s) as (server, _):
        assert server._server.config.timeout_keep_alive == whole_s


# The application


class Call:
    """One call of an ASGI application: what it is sent, and what it sends."""

    def __init__(self, app: AsgiApp, *received: dict[str, Any]) -> None:
        self.app, self.received = app, list(received)
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if not self.received:
            await asyncio.get_running_loop().create_future()  # for ever
        return self.received.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def __call__(self, **scope: Any) -> Any:
        await self.app(scope, self.receive, self.send)
        return self.sent

    @property
    def status(self) -> int:
        return self.sent[0]["status"]


def http(path: bytes = b"/a", *fields: tuple[bytes, bytes], version: str = "1.1", **more: Any) -> dict[str, Any]:
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "raw_path": path,
        "query_string": b"",
        "http_version": version,
    }
    return {**scope, "headers": [(b"host", b"x"), *fields], **more}


def app(probe: Any = None, **options: Any) -> AsgiApp:
    limits = HttpLimits(**options.pop("limits", {}))
    return AsgiApp(probe or Probe(), limits, UnsentAnswers(), **options)


async def test_a_websocket_is_closed_and_other_scopes_are_nobodys():
    call = Call(app(), {"type": "websocket.connect"})
    assert await call(type="websocket") == [{"type": "websocket.close"}]
    assert call.received == []
    call = Call(app(), {"type": "lifespan.startup"})
    assert await call(type="lifespan") == []
    assert len(call.received) == 1


@pytest.mark.parametrize(("query", "target"), [(b"", b"/a"), (b"b=c", b"/a?b=c")])
@pytest.mark.parametrize(("most", "status"), [(6, 200), (5, None)])
async def test_a_target_has_its_query_and_a_most(query: bytes, target: bytes, most: int, status: int | None):
    call = Call(app(limits={"target_bytes": most}))
    await call(**http(query_string=query))
    assert call.status == (status or (414 if query else 200))
    if call.status == 200:
        assert b'"target":"%b"' % target in call.sent[1]["body"]


@pytest.mark.parametrize(
    ("parts", "status", "body"),
    [
        ([b"abcd"], 200, b"abcd"),
        ([b"ab", b"cd"], 200, b"abcd"),
        ([b"ab", b"", b"c"], 200, b"abc"),
        ([b"abcde"], 413, None),
        ([b"ab", b"cde"], 413, None),
    ],
)
async def test_a_body_is_gathered_up_to_its_most(parts: list[bytes], status: int, body: bytes | None):
    pieces = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    pieces[-1]["more_body"] = False
    call = Call(app(limits={"body_bytes": 4}), *pieces)
    await call(**http(b"/a", (b"transfer-encoding", b"chunked")))
    assert call.status == status
    assert body is None or b'"body":"%b"' % body in call.sent[1]["body"]


@pytest.mark.parametrize(("length", "status"), [(b"4", 200), (b"5", 413)])
async def test_a_body_too_large_is_refused_by_its_length(length: bytes, status: int):
    call = Call(app(limits={"body_bytes": 4}), {"type": "http.request", "body": b"abcd"})
    await call(**http(b"/a", (b"content-length", length)))
    assert call.status == status


@pytest.mark.parametrize(("version", "status"), [("1.1", 400), ("1.0", 200)])
async def test_only_a_request_of_http_1_1_must_name_its_host(version: str, status: int):
    call = Call(app())
    await call(**{**http(version=version), "headers": []})
    assert call.status == status


async def test_who_leaves_amid_its_body_is_answered_nothing():
    probe = Probe()
    call = Call(app(probe), {"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"})
    assert await call(**http(b"/a", (b"content-length", b"4"))) == []
    assert probe.seen == 0


async def test_who_leaves_before_its_answer_cancels_its_work_and_is_told_of():
    probe, observed = Probe(), []
    call = Call(
        app(probe, observer=lambda exchange, status, length: observed.append((status, length))),
        {"type": "http.disconnect"},
    )
    assert await call(**http(b"/hold")) == []
    assert (probe.cancelled, observed) == (1, [(499, 0)])


@pytest.mark.looptime
@pytest.mark.parametrize(("after_s", "status"), [(9.0, 200), (11.0, 408)])
async def test_a_body_has_its_time(after_s: float, status: int):
    call = Call(app(limits={"request_timeout_s": 10.0}))
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[Any] = asyncio.Queue()
    loop.call_later(after_s, came.put_nowait, {"type": "http.request", "body": b"abcd"})
    call.receive = came.get  # type: ignore[method-assign] # what comes, when it comes
    await call(**http(b"/a", (b"content-length", b"4")))
    assert call.status == status


@pytest.mark.parametrize("closing", [True, False])
async def test_while_it_closes_each_answer_says_so_once(closing: bool):
    served = app(fields=((b"x-own", b"1"),))
    served.closing = closing
    ordinary, refused = Call(served), Call(served)
    await ordinary(**http())
    await refused(**{**http(), "headers": []})
    for call, expected in ((ordinary, [b"close"] if closing else []), (refused, [b"close"])):
        fields = [(name.lower(), value) for name, value in call.sent[0]["headers"]]
        assert [value for name, value in fields if name == b"connection"] == expected
        assert (b"x-own", b"1") in fields
