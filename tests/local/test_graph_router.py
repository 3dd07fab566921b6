"""A graph's router over real sockets: bytes, headers, limits, disconnects, counters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serinus.local.router.header_propagation import HeaderFilter, canonical_name
from serinus.local.router.router_process import GraphRouter
from serinus.local.router.router_settings import RouterSettings
from serinus.manifests.graphs.inference_graph import RouterTimeouts, parse_nodes

INSIDE = "http://a.default.svc.cluster.local/v2/models/a/infer"


class Service:
    """A service that keeps the requests it got, and answers what it is told; it also stands for the gateway."""

    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []
        self.lines: list[str] = []
        self.bodies: list[bytes] = []
        self.answer = b'HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{"y": 1}'
        self.silent = False
        self.left = asyncio.Event()
        """Set when a client has closed its connection while it waited."""
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                self.lines.append(head[0])
                self.heads.append(fields)
                self.bodies.append(await reader.readexactly(int(fields["content-length"])))
                if self.silent:
                    await reader.read()
                    self.left.set()
                    return
                writer.write(self.answer)
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def routed(
    nodes: dict[str, Any] | None = None,
    timeouts: RouterTimeouts | None = None,
    *,
    propagate: tuple[str, ...] = (),
    body_bytes: int = 1 << 20,
) -> AsyncIterator[tuple[GraphRouter, int, Service]]:
    """A router before one service, which stands for the gateway."""
    service = Service()
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    written = nodes or {"root": {"routerType": "Sequence", "steps": [{"serviceUrl": INSIDE, "name": "only"}]}}
    text = json.dumps(written).replace("PORT", str(service.port))
    settings = RouterSettings("default/g", parse_nodes(json.loads(text)), timeouts or RouterTimeouts(), propagate)
    settings = RouterSettings.decode(settings.encode())
    router = GraphRouter(settings, ("127.0.0.1", service.port), body_bytes=body_bytes)
    port = await router.listen(0)
    try:
        yield router, port, service
    finally:
        server.close()
        await router.close()


async def ask(port: int, request: bytes, *, whole: bool = True) -> bytes:
    """Send bytes; everything that comes until the connection ends, or one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        if whole:
            return await asyncio.wait_for(reader.read(), 20)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head + await reader.readexactly(length)
    finally:
        writer.close()


def post(body: bytes = b"{}", *headers: str, path: str = "/", close: bool = True) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: g", f"content-length: {len(body)}", *headers]
    lines += ["connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + body


Scenario = Callable[[], Coroutine[Any, Any, None]]


def test_requests_of_the_cluster_go_to_the_gateway_with_the_service_s_host() -> None:
    async def main() -> None:
        async with routed() as (_, port, service):
            answer = await ask(port, post(b'{"inputs": []}', path="/any/path?x=1"))
            assert answer.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            assert answer.endswith(b'{"y": 1}')
            assert service.lines == ["POST /v2/models/a/infer HTTP/1.1"]
            assert service.heads[0]["host"] == "a.default.svc.cluster.local"
            assert service.bodies == [b'{"inputs": []}']

    asyncio.run(main())


def test_other_hosts_are_called_directly_with_their_own_host() -> None:
    async def main() -> None:
        steps = [{"serviceUrl": "http://localhost:PORT/x y/\u00fc%20:predict?q=1&r=a b"}]
        async with routed({"root": {"routerType": "Sequence", "steps": steps}}) as (_, port, service):
            await ask(port, post())
            assert service.lines == ["POST /x%20y/%C3%BC%20:predict?q=1&r=a%20b HTTP/1.1"]
            assert service.heads[0]["host"] == f"localhost:{service.port}"

    asyncio.run(main())


def test_trace_headers_go_on_and_others_only_where_a_pattern_says_so() -> None:
    sent = (
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: a=1",
        "x-request-id: r1",
        "authorization: Bearer x",
        "test-header-1: one",
        "content-type: application/special",
        "accept: */*",
    )

    async def seen(*patterns: str) -> dict[str, str]:
        async with routed(propagate=patterns) as (_, port, service):
            await ask(port, post(b"{}", *sent))
            return {key: value for key, value in service.heads[0].items() if key not in {"host", "content-length"}}

    always = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=1",
        "x-request-id": "r1",
        "content-type": "application/json",
    }
    assert asyncio.run(seen()) == always
    more = {"authorization": "bearer x", "test-header-1": "one"}
    assert asyncio.run(seen("Authorization", "Test-Header-*", ".*Trace-Id.*")) == always | more
    # Names are compared as Go writes them, upper and lower case apart: KServe would not find these either.
    assert asyncio.run(seen("authorization", "test-header")) == always
    assert asyncio.run(seen("Content-Type"))["content-type"] == "application/special"
    everything = asyncio.run(seen(".*"))
    assert everything.keys() == {*always, *more, "accept"}


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("x-request-id", "X-Request-Id"), ("TRACEPARENT", "Traceparent"), ("a--b", "A--B"), ("", "")],
)
def test_header_names_are_written_as_go_writes_them(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


def test_repeated_headers_are_joined_and_those_of_a_connection_stay() -> None:
    chosen = HeaderFilter([".*"]).select([("A", "1"), ("a", "2"), ("Transfer-Encoding", "chunked"), ("Host", "h")])
    assert chosen == {"a": "1, 2", "content-type": "application/json"}


def test_a_service_that_is_not_there_is_500_with_the_cause_as_kserve_writes_it() -> None:
    async def main() -> None:
        nodes = {
            "root": {"routerType": "Sequence", "steps": [{"serviceUrl": "http://127.0.0.1:1/x", "dependency": "Soft"}]}
        }
        async with routed(nodes) as (_, port, _service):
            answer = await ask(port, post())
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json")
            error = json.loads(body)
            assert error["error"] == "Failed to process request"
            assert error["cause"].startswith("Post http://127.0.0.1:1/x: no connection to the service 127.0.0.1:1")

    asyncio.run(main())


def test_a_step_s_status_and_text_come_back_as_they_are() -> None:
    async def main() -> None:
        async with routed() as (_, port, service):
            service.answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nno tensor"
            answer = await ask(port, post())
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n")
            assert answer.endswith(b"no tensor")

    asyncio.run(main())


def test_a_client_that_leaves_is_known_at_the_service() -> None:
    async def main() -> None:
        async with routed() as (_, port, service):
            service.silent = True
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(close=False))
            while not service.lines:
                await asyncio.sleep(0.01)  # the request has to be on its way first; nobody tells
            writer.close()
            await asyncio.wait_for(service.left.wait(), 20)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("timeouts", "status", "cause"),
    [
        (RouterTimeouts(service_client_s=0.2), 500, "the service did not answer within 0.2 s"),
        (RouterTimeouts(server_write_s=0.2), 503, "the graph did not answer within 0.2 s (routerTimeouts.serverWrite)"),
    ],
)
def test_a_service_that_never_answers_is_given_up_in_time(timeouts: RouterTimeouts, status: int, cause: str) -> None:
    async def main() -> None:
        async with routed(timeouts=timeouts) as (_, port, service):
            service.silent = True
            answer = await ask(port, post())
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert cause in json.loads(answer.partition(b"\r\n\r\n")[2])["cause"]
            await asyncio.wait_for(service.left.wait(), 20)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 1000\r\n\r\nabc", 408),
        (b"POST / HTTP/1.1\r\nhost", 408),
        (b"POST / HTTP/1.1\r\ncontent-length: 2000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n7d1\r\n" + b"x" * 2001, 413),
        (b"POST / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_a_request_beyond_its_bounds_is_refused_and_the_connection_closed(request_bytes: bytes, status: int) -> None:
    async def main() -> None:
        limits = RouterTimeouts(server_read_s=0.3)
        async with routed(timeouts=limits, body_bytes=1500) as (_, port, service):
            answer = await ask(port, request_bytes)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "Failed to process request"
            assert not service.lines

    asyncio.run(main())


def test_an_answer_beyond_its_bound_is_given_up() -> None:
    async def main() -> None:
        async with routed(body_bytes=1500) as (_, port, service):
            service.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n" + b"x" * 4000
            answer = await ask(port, post())
            assert answer.startswith(b"HTTP/1.1 500 ")
            assert b"the service's answer is larger than 1500 bytes" in answer

    asyncio.run(main())


def test_a_connection_is_used_again_also_for_requests_sent_ahead_and_closed_when_idle() -> None:
    async def main() -> None:
        async with routed(timeouts=RouterTimeouts(server_idle_s=0.3)) as (_, port, service):
            ahead = post(b"1", close=False) + post(b"2", close=False) + post(b"3", close=False)
            answer = await ask(port, ahead)  # until the router closes
            assert answer.count(b"HTTP/1.1 200 OK") == 3
            assert service.bodies == [b"1", b"2", b"3"]

    asyncio.run(main())


def test_bodies_in_chunks_and_expect_continue_are_read() -> None:
    async def main() -> None:
        async with routed() as (_, port, service):
            chunked = (
                b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
            )
            answer = await ask(port, chunked + b"2\r\n{}\r\n1\r\n \r\n0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
            assert service.bodies == [b"{} "]

    asyncio.run(main())


def test_readiness_and_counters_are_the_router_s_own_paths_and_gets_elsewhere_are_the_graph_s() -> None:
    async def main() -> None:
        async with routed() as (router, port, service):
            get = "GET {} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n"
            for path in ("/readyz", "/v2/health/ready", "/v2/health/live"):
                assert (await ask(port, get.format(path).encode())).startswith(b"HTTP/1.1 200 OK")
            assert not service.lines
            await ask(port, post())
            service.answer = b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\n{}"
            await ask(port, get.format("/v2/models/a").encode())  # as KServe's router: any method, any path
            assert len(service.lines) == 2
            page = (await ask(port, get.format("/metrics").encode())).decode()
            labels = '{graph="default/g",node="root",step="only"}'
            assert f"serinus_graph_step_requests_total{labels} 2\n" in page
            assert f"serinus_graph_step_errors_total{labels} 1\n" in page
            assert 'serinus_graph_node_requests_total{graph="default/g",node="root"} 2\n' in page
            assert 'serinus_graph_step_seconds_bucket{graph="default/g",node="root",step="only",le="+Inf"} 2\n' in page
            router.ready = False
            assert (await ask(port, get.format("/readyz").encode())).startswith(b"HTTP/1.1 503 ")

    asyncio.run(main())


def test_a_router_that_ends_answers_what_is_under_way_and_takes_nothing_more() -> None:
    async def main() -> None:
        async with routed() as (router, port, service):
            service.silent = True
            service.answer = b""
            waiting = asyncio.ensure_future(ask(port, post(close=False)))
            while not service.lines:
                await asyncio.sleep(0.01)  # the request has to be on its way first; nobody tells
            idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(router.close())
            assert await asyncio.wait_for(idle_reader.read(), 20) == b""
            assert not closing.done()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            waiting.cancel()
            await asyncio.wait_for(closing, 20)
            idle_writer.close()

    asyncio.run(main())
