"""How a REST server comes up from its settings, what its ports for operators answer, and that a start that fails leaves nothing open."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from dataplane_support import Doubler, serving
from http_support import TRANSPORTS, Answer, Raw, hurry, is_open
from rest_support import wire
from serinus.dataplane.access.access_tokens import Tokens
from serinus.dataplane.access.repository_access import OPEN, RepositoryAccess
from serinus.dataplane.plane import Plane
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import ConfigError
from serinus.server.connections.unsent_answers import UnsentAnswers
from serinus.server.http.exchange import HttpLimits
from serinus.server.http.thin import ThinServer
from serinus.server.request_access import RequestAccess
from serinus.server.rest import rest_server
from serinus.server.rest.custom import CustomAnswer, CustomRequest
from serinus.server.rest.rest_server import RestServer, start_rest
from serinus.settings import ServerSettings

TOKEN = "a-token-of-a-person-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HOST = "127.0.0.1"


async def started(plane: Plane, *, http_port: int = 0, **fields: Any) -> RestServer:
    """A server with these settings, and what `start_rest` takes beside them."""
    hurry(fields.get("http", "thin"))
    own = {name: fields.pop(name) for name in ("sock", "request_access", "unsent", "metrics_page") if name in fields}
    settings = ServerSettings(**{"host": HOST, "http_port": http_port, **fields})
    return await start_rest(plane, settings, metrics=plane.metrics, **own)


@contextlib.asynccontextmanager
async def running(access: RepositoryAccess | None = None, **fields: Any) -> AsyncIterator[RestServer]:
    """One over a small model, closed at the end."""
    async with serving(Doubler, metrics=Metrics()) as plane:
        if access is not None:
            plane.access = access
        server = await started(plane, **fields)
        try:
            yield server
        finally:
            await server.close()


async def ask(port: int | None, path: str, headers: dict[str, str] | None = None) -> Answer:
    assert port is not None
    client = await Raw.open(port)
    try:
        await client.send(wire("GET", path, None, headers))
        return await client.answer()
    finally:
        await client.close()


def bound(port: int = 0) -> socket.socket:
    """A socket with a port, which does not listen."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    sock.setblocking(False)
    return sock


def taken() -> tuple[socket.socket, socket.socket]:
    """A socket whose port another one has taken meanwhile, so that it cannot listen; and that other one."""
    ours = bound()
    other = bound(ours.getsockname()[1])
    other.listen()
    return ours, other


# The port of requests


@pytest.mark.parametrize("http", TRANSPORTS)
async def test_a_socket_that_is_bound_already_is_listened_on(http: str):
    sock = bound()
    port = sock.getsockname()[1]
    async with running(sock=sock, http=http) as server:
        assert server.port == port
        assert (await ask(port, "/v2/health/live")).status == 200
        assert (server.metrics_port, server.health_port) == (None, None)
    assert not await is_open(port)


@pytest.mark.parametrize("http", TRANSPORTS)
async def test_one_that_another_listens_on_ends_the_start_and_is_closed(http: str):
    sock, other = taken()
    with other:
        async with serving(Doubler) as plane:
            with pytest.raises(OSError, match="in use"):
                await started(plane, sock=sock, http=http)
            assert sock.fileno() == -1


@pytest.mark.parametrize(("http", "said"), [("uvicorn", True), ("thin", False)])
async def test_a_transport_for_trusted_networks_is_said_to_be_one(
    http: str, said: bool, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "serinus.rest")
    async with running(http=http) as server:
        assert isinstance(server._server, ThinServer) is (http == "thin")
    lines = [line for line in caplog.messages if line.startswith("HTTP transport")]
    assert [line.partition(";")[0] for line in lines] == (["HTTP transport: uvicorn"] if said else [])
    assert all(line.endswith("keep strangers behind a gateway, or use --http thin") for line in lines)


@pytest.mark.parametrize(("revision", "said"), [("m-00007", "m-00007"), ("", None)])
async def test_every_answer_names_the_revision_where_there_is_one(revision: str, said: str | None):
    async with running(revision=revision) as server:
        assert (await ask(server.port, "/v2")).headers.get("x-serinus-revision") == said


async def own_route(request: CustomRequest) -> CustomAnswer:
    return 200, {}, b'{"own": true}'


async def test_routes_that_come_later_are_served_and_the_page_of_metrics_may_be_anothers():
    async def page() -> bytes:
        return b"# all of us\n"

    async with running(metrics_page=page) as server:
        assert (await ask(server.port, "/own")).status == 404
        server.add_custom([("GET", "/own", own_route)])
        assert (await ask(server.port, "/own")).json == {"own": True}
        assert (await ask(server.port, "/metrics")).body == b"# all of us\n"


@pytest.mark.parametrize("own", [False, True])
async def test_what_waits_for_slow_clients_is_counted_in_an_account_that_may_be_others_too(own: bool):
    account = UnsentAnswers()
    async with running(max_unsent_bytes=1000, send_timeout_s=7.0, **({} if own else {"unsent": account})) as server:
        found = server._server.unsent
        assert (found is account) is not own
        if own:
            assert (found._most_bytes, found._patience_s) == (1000, 7.0)


@pytest.mark.parametrize(
    ("access", "kinds", "secured"),
    [
        (OPEN, None, {}),
        (OPEN, {"metadata"}, {"/v2": True, "/v2/repository/models/{model}/load": False}),
        (
            *(RepositoryAccess(mode="token", tokens=Tokens([TOKEN])), None),
            {"/v2": False, "/v2/repository/models/{model}/load": True},
        ),
        (
            *(RepositoryAccess(mode="token", tokens=Tokens([TOKEN])), {"metadata"}),
            {"/v2": True, "/v2/repository/models/{model}/load": True, "/metrics": False},
        ),
        (RepositoryAccess(), None, {"/v2/repository/models/{model}/load": None}),
    ],
    ids=["open", "requests", "control", "both", "no control"],
)
async def test_the_document_says_what_this_server_asks_a_token_for(
    access: RepositoryAccess, kinds: set[str] | None, secured: dict[str, bool | None]
):
    asked = None if kinds is None else RequestAccess(Tokens([TOKEN]), frozenset(kinds))
    async with running(access, request_access=asked) as server:
        document = (await ask(server.port, "/openapi.json")).json
    found = {
        path: any("security" in operation for operation in item.values() if isinstance(operation, dict))
        for path, item in document["paths"].items()
    }
    assert {path: found.get(path) for path in secured} == secured
    assert any(found.values()) is any(secured.values())


@pytest.mark.parametrize(
    ("kinds", "offered", "says"),
    [(None, None, False), ({"inference"}, None, True), ({"metadata"}, True, False), (None, False, None)],
)
async def test_the_page_says_that_requests_need_a_token_where_those_to_models_do(
    kinds: set[str] | None, offered: bool | None, says: bool | None
):
    asked = None if kinds is None else RequestAccess(Tokens([TOKEN]), frozenset(kinds))
    async with running(request_access=asked, enable_docs_url=offered, revision="m-7") as server:
        answer = await ask(server.port, "/docs")
    assert answer.status == (404 if says is None else 200)
    if says is not None:
        page = answer.body.decode()
        assert ("Requests need a token" in page) is says
        assert ", revision m-7;" in page
        assert "http://localhost/v2/models/m/infer" in page


# The ports of operators


async def test_metrics_and_health_have_ports_of_their_own_that_answer_nothing_else():
    async with running(metrics_port=0, health_port=0, request_access=RequestAccess(Tokens([TOKEN]))) as server:
        assert len({server.port, server.metrics_port, server.health_port}) == 3
        assert None not in (server.port, server.metrics_port, server.health_port)
        ports = (server.metrics_port, server.health_port)
        found: dict[str, list[int]] = {}
        for path in ("/metrics", "/", "/v2/health/ready", "/v2/models/m/ready", "/v2", "/docs", "/openapi.json"):
            found[path] = [(await ask(port, path, BEARER)).status for port in ports]
        assert found == {
            "/metrics": [200, 404],
            **{path: [404, 200] for path in ("/", "/v2/health/ready", "/v2/models/m/ready")},
            **{path: [404, 404] for path in ("/v2", "/docs", "/openapi.json")},
        }
        without = [
            (await ask(port, path)).status
            for port in (server.metrics_port, server.health_port)
            for path in ("/metrics", "/v2", "/v2/health/live")
        ]
        assert without == [401, 401, 401, 404, 404, 200], "nothing of health needs a token"
    for port in ports:
        assert not await is_open(port or 0)


async def test_one_that_is_the_port_of_requests_is_no_other():
    sock = bound()
    async with running(sock=sock, metrics_port=sock.getsockname()[1]) as server:
        assert server.metrics_port is None
        assert (await ask(server.port, "/metrics")).status == 200
        assert (await ask(server.port, "/v2")).status == 200


async def test_a_port_that_is_taken_ends_the_start_by_its_name_and_nothing_stays_open():
    for setting in ("metrics_port", "health_port"):
        with bound() as other:
            other.listen()
            port = other.getsockname()[1]
            async with serving(Doubler) as plane:
                sock = bound()
                own = {"metrics_port": 0, setting: port}
                before = listening()
                with pytest.raises(
                    ConfigError, match=f"^{setting}: cannot listen on {HOST}:{port}: Address already in use; choose"
                ):
                    await started(plane, sock=sock, **own)
                assert sock.fileno() == -1
                await asyncio.sleep(0)
                assert listening() == before


def listening() -> int:
    """Sockets of this process that listen."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            handle = os.dup(int(name))
            try:
                with socket.socket(fileno=handle) as sock:
                    count += sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            except OSError:
                os.close(handle)
    return count


async def test_a_port_that_another_listens_on_meanwhile_is_closed(monkeypatch: pytest.MonkeyPatch):
    ours, other = taken()
    bind = rest_server._bind
    # In the moment between binding and listening, which nobody else could meet.
    monkeypatch.setattr(
        rest_server,
        "_bind",
        lambda host, port, setting="http_port", *, share=False: (
            ours if setting == "health_port" else bind(host, port, setting, share=share)
        ),
    )
    with other:
        async with serving(Doubler) as plane:
            before = listening()
            with pytest.raises(OSError, match="in use"):
                await started(plane, metrics_port=0, health_port=0)
            assert ours.fileno() == -1
            await asyncio.sleep(0)
            assert listening() == before


async def test_operators_ports_are_shared_by_workers_that_share_the_other_one():
    """As SO_REUSEPORT has it: each worker binds them itself, while the port of requests is handed to it."""
    async with serving(Doubler) as plane:
        first = await started(plane, sock=bound(), metrics_port=0)
        second = await started(plane, sock=bound(), metrics_port=first.metrics_port)
        assert second.metrics_port == first.metrics_port
        alone = await started(plane, metrics_port=0)
        with pytest.raises(ConfigError, match="metrics_port"):
            await started(plane, sock=bound(), metrics_port=alone.metrics_port)
        for server in (first, second, alone):
            await server.close()


async def test_a_port_for_operators_keeps_few_connections():
    async with running(metrics_port=0, health_port=0) as server:
        assert [plain.server._most_connections for plain in server._plain] == [256, 256]
        assert server._server._most_connections is None  # type: ignore[union-attr] # the thin one


@pytest.mark.parametrize(
    ("http", "health", "asked"),
    [("thin", False, "rest"), ("thin", True, "health"), ("uvicorn", False, None), ("uvicorn", True, "health")],
)
async def test_liveness_is_answered_for_a_held_loop_where_the_probes_are(http: str, health: bool, asked: str | None):
    async with running(http=http, **({"health_port": 0} if health else {})) as server:
        stand_in = server.stand_in()
        assert (stand_in is None) is (asked is None)
        if stand_in is not None:
            port = server.health_port if asked == "health" else server.port
            assert stand_in._listener.getsockname()[1] == port
            assert sorted(stand_in._answers) == [b"GET / HTTP/1.", b"GET /v2/health/live HTTP/1."]


# The end


@pytest.mark.parametrize("http", TRANSPORTS)
async def test_a_server_that_stops_accepting_answers_operators_to_the_end(http: str):
    async with running(http=http, metrics_port=0) as server:
        client = await Raw.open(server.port)
        await server.take_waiting()
        server.stop_accepting()
        assert not await is_open(server.port)
        assert (await ask(server.metrics_port, "/metrics")).status == 200
        draining = asyncio.ensure_future(server.drain(10))
        await client.close()
        await asyncio.wait_for(draining, 5)
        assert (await ask(server.metrics_port, "/metrics")).status == 200
        await server.close()
        assert not await is_open(server.metrics_port or 0)


# Certificates that are exchanged


async def test_another_certificate_is_taken_up_on_the_loop_and_one_that_comes_after_its_end_by_nobody():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    loaded: Any = SimpleNamespace(context=lambda: context)
    taken_up: list[Any] = []

    class Server(ThinServer):
        """Notes what it is given."""

        async def change_certificate(self, ssl: Any) -> None:
            taken_up.append((ssl, asyncio.get_running_loop()))

    server = Server(lambda exchange: None, HttpLimits())  # type: ignore[arg-type] # no request comes
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(rest_server._change, loop, server, loaded)
    await asyncio.sleep(0)
    assert taken_up == [(context, loop)]
    closed = asyncio.new_event_loop()
    closed.close()
    rest_server._change(closed, server, loaded)
    gc.collect()  # a coroutine that nobody has awaited or closed would be told of here
    assert len(taken_up) == 1


# Binding


@pytest.mark.parametrize("share", [None, False, True])
def test_a_socket_is_bound_for_answers_without_delay_and_shared_where_that_is_asked_for(share: bool | None):
    with rest_server._bind(HOST, 0, **({} if share is None else {"share": share})) as sock:
        assert sock.family == socket.AF_INET
        assert sock.proto == socket.IPPROTO_TCP, "asyncio turns Nagle's algorithm off where it is said"
        assert not sock.getblocking()
        assert sock.getsockname()[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == int(share or False)


class Asking(socket.socket):
    """Notes what is asked of the kernel, for a system's own default may be the same."""

    asked: list[tuple[Any, ...]]

    def setsockopt(self, *words: Any) -> None:
        self.asked.append(words)
        super().setsockopt(*words)


@pytest.mark.parametrize(
    ("host", "family", "both"),
    [("::", socket.AF_INET6, True), ("::1", socket.AF_INET6, False), (HOST, socket.AF_INET, False)],
)
def test_only_the_address_of_all_takes_both_families(
    host: str, family: int, both: bool, monkeypatch: pytest.MonkeyPatch
):
    try:
        rest_server._bind(host, 0).close()
    except (ConfigError, OSError) as error:
        pytest.skip(f"this machine has no such address: {error}")
    Asking.asked = []
    monkeypatch.setattr(rest_server.socket, "socket", Asking)
    with rest_server._bind(host, 0) as sock:
        assert sock.family == family
    assert ((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0) in Asking.asked) is both


def test_an_address_that_cannot_be_had_is_said_with_its_setting_and_no_descriptor_stays():
    with bound() as other:
        other.listen()
        port = other.getsockname()[1]
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ConfigError) as refused:
            rest_server._bind(HOST, port)
        assert (
            str(refused.value)
            == f"http_port: cannot listen on {HOST}:{port}: Address already in use; choose another, or 0"
        )
        assert len(os.listdir("/proc/self/fd")) == before, "the error itself may be kept for long"
