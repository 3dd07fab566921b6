"""TLS of the native gRPC engine, over real sockets with certificates that openssl makes: who gets in, who is closed, and what no client can do to others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

import grpc
from certificate_support import Authority, Issued
from depth import draws
from grpc_support import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INFER,
    PREFACE,
    SETTINGS,
    SLOW,
    TLS,
    Running,
    authority,
    call_headers,
    channel_to,
    frame,
    message,
    run_on_server_loop,
    serving,
    settings_of,
    tls_context,
)
from serinus.server.certificates import Certificates, Loaded
from serinus.server.connections import tls_listener
from serinus.server.connections.idle_room import IdleRoom
from serinus.server.connections.tls_listener import TlsListener
from serinus.server.grpc import GrpcServer, start_grpc
from serinus.server.grpc.native_engine import NativeEngine
from waiting import wait_until

HELLO = bytes.fromhex("1603010200010001fc0303")
"""The beginning of a ClientHello of 512 bytes: the rest never comes."""
OPENED = PREFACE + frame(SETTINGS, 0, 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(TLS) as running:
        yield running


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "strangers")


def engine_of(server: Running | GrpcServer) -> NativeEngine:
    return (server.server if isinstance(server, Running) else server)._engine


def listener_of(server: Running) -> TlsListener:
    listener = engine_of(server)._listener
    assert isinstance(listener, TlsListener)
    return listener


def request_for(model: str) -> pb.ModelInferRequest:
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])
    return pb.ModelInferRequest(
        model_name=model, inputs=[entry], raw_input_contents=[np.ones((1, 3), np.float32).tobytes()]
    )


def call(stream: int, model: str) -> bytes:
    body = message(request_for(model).SerializeToString())
    return frame(HEADERS, END_HEADERS, stream, call_headers()) + frame(DATA, END_STREAM, stream, body)


def serves(server: Running) -> bool:
    with server.channel([("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = channel.unary_unary(INFER)(request_for("sum").SerializeToString(), timeout=20)
    return bool(pb.ModelInferResponse.FromString(answer).raw_output_contents)


# What clients do


def test_tritons_client_is_served_unary_and_in_streams_and_is_told_of_the_server(server: Running):
    with triton.InferenceServerClient(
        server.address, ssl=True, root_certificates=str(authority().certificate)
    ) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("sum")
        assert client.get_server_metadata().name == "serinus"
        x = triton.InferInput("x", [2, 3], "FP32")
        x.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
        assert client.infer("sum", [x]).as_numpy("y").tolist() == [[3.0], [12.0]]
        answers: list[float] = []
        client.start_stream(lambda result, error: answers.append(result.as_numpy("y")[0, 0] if error is None else -1))
        for _ in range(20):
            client.async_stream_infer("sum", [x])
        client.stop_stream()  # waits for the answers
    assert answers == [3.0] * 20


def test_health_and_reflection_go_through_to_the_engine_behind(server: Running):
    with server.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serves_now = health_pb2.HealthCheckResponse.SERVING
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == serves_now
        watched = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watched).status == serves_now
        watched.cancel()
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        told = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=10)
        names = {service.name for service in next(told).list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names


# ALPN (RFC 7301): gRPC's clients all offer h2


@pytest.mark.parametrize("engine", ["grpcio", TLS])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("offered", ["", "http/1.1"], ids=["no ALPN", "http/1.1 alone"])
def test_who_does_not_offer_h2_has_its_handshake_and_is_closed(engine: str, version: ssl.TLSVersion, offered: str):
    files = {name: str(getattr(settings_of(TLS), name)) for name in ("ssl_certfile", "ssl_keyfile")}
    context = ssl.create_default_context(cafile=str(authority().certificate))
    context.minimum_version = context.maximum_version = version
    if offered:
        context.set_alpn_protocols([offered])
    with (
        serving(engine, names=("sum",), **files) as server,
        socket.create_connection(("127.0.0.1", server.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
    ):
        assert client.getpeercert(), "a monitor of certificates sees when this one ends"
        assert client.selected_alpn_protocol() is None
        with contextlib.suppress(OSError):
            client.sendall(OPENED)
            assert client.recv(100) == b""


def test_who_was_closed_for_its_ALPN_and_stays_holds_nothing(server: Running):
    with (
        connected(server) as plain,
        tls_context("").wrap_socket(plain, server_hostname="127.0.0.1") as client,
    ):
        assert client.recv(100) == b""
        server.until(lambda: not engine_of(server).relays)
        assert serves(server)


# Client certificates


def test_with_client_cas_only_their_clients_get_in_and_are_answered_in_streams_too(stranger: Authority):
    good, expired = authority().issue("client"), authority().issue("old", begins_in_days=-3, ends_in_days=-1)
    bad: dict[str, Issued | None] = {"none": None, "a stranger's": stranger.issue("client"), "expired": expired}
    with serving(TLS, names=("sum",), ssl_ca_certs=str(authority().certificate)) as server:
        for case, shown in {**bad, "good": good}.items():
            pair = (None, None) if shown is None else (shown.key.read_bytes(), shown.certificate.read_bytes())
            credentials = grpc.ssl_channel_credentials(authority().certificate.read_bytes(), *pair)
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(server.address, credentials, options=options) as channel:
                infer = channel.unary_unary(INFER)
                request = request_for("sum").SerializeToString()
                if case == "good":
                    assert infer(request, timeout=10)
                    stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
                    assert len(list(stream(iter([request] * 3), timeout=10))) == 3
                    continue
                with pytest.raises(grpc.RpcError) as caught:
                    infer(request, timeout=10)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, case
        assert not engine_of(server).calls


# Exchange


def test_a_new_certificate_is_for_new_connections_and_open_ones_go_on(stranger: Authority, tmp_path: Path):
    first, second = authority().issue("first"), stranger.issue("second")
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def put(issued: Issued) -> None:
        chain.write_bytes(issued.certificate.read_bytes())
        key.write_bytes(issued.key.read_bytes())

    def shown(port: int) -> bytes:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", port), 10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            return client.getpeercert(True) or b""

    def der(issued: Issued) -> bytes:
        return ssl.PEM_cert_to_DER_cert(issued.certificate.read_text())

    put(first)
    certificates = Certificates(chain, key, None)
    with serving("native", names=("sum",)) as beside:
        chosen = settings_of("native", ssl_certfile=str(chain), ssl_keyfile=str(key))
        server = beside.run(start_grpc(beside.plane, chosen, metrics=beside.metrics, port=0, certificates=certificates))
        roots = authority().certificate.read_bytes()
        with grpc.secure_channel(f"127.0.0.1:{server.port}", grpc.ssl_channel_credentials(roots)) as channel:
            infer = channel.unary_unary(INFER)
            assert infer(request_for("sum").SerializeToString(), timeout=10)
            assert shown(server.port) == der(first)
            put(second)
            certificates.reload()
            wait_until(lambda: shown(server.port) == der(second))
            assert infer(request_for("sum").SerializeToString(), timeout=10), "what was open goes on"
            context = engine_of(server)._listener.context
            key.write_bytes(first.key.read_bytes())
            with pytest.raises(Exception, match="key values mismatch"):
                certificates.reload()
            assert engine_of(server)._listener.context is context
        beside.run(server.close())
        put(first)
        certificates.reload()  # nobody is told who has closed


def test_an_exchange_after_the_loop_has_closed_harms_nobody(tmp_path: Path):
    issued = authority().issue("late")
    told: list[Loaded] = []

    async def serve() -> NativeEngine:
        engine = object.__new__(NativeEngine)
        engine._loop = asyncio.get_running_loop()
        return engine

    engine = asyncio.run(serve())
    certificates = Certificates(issued.certificate, issued.key, None)
    certificates.on_change(engine._change)
    certificates.on_change(told.append)
    certificates.loaded = Loaded(b"", b"", None, 0.0, None)
    certificates.reload()
    assert len(told) == 1


# Handshakes


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 10)


def is_closed(client: socket.socket) -> bool:
    try:
        while client.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def test_past_the_most_handshakes_the_eldest_is_given_up_and_clients_are_served(
    server: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tls_listener, "HANDSHAKES", 5)
    halves = [connected(server) for _ in range(20)]
    for half in halves[::2]:
        half.sendall(HELLO)
    for half in halves[:15]:
        assert is_closed(half)
    assert listener_of(server).beginning == 5
    assert serves(server)
    for half in halves:
        half.close()
    server.until(lambda: not listener_of(server).beginning)


def test_a_handshake_that_takes_too_long_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tls_listener, "HANDSHAKE_S", 0.2)
    with connected(server) as half:
        half.sendall(HELLO)
        assert is_closed(half)
    assert serves(server)


def test_the_end_waits_for_no_handshake_and_says_nothing_of_it(caplog: pytest.LogCaptureFixture):
    with serving(TLS, names=("sum",)) as server, connected(server) as half:
        half.sendall(HELLO)
        server.until(lambda: listener_of(server).beginning == 1)
        server.run(asyncio.wait_for(server.server.drain(3600), 10))
        server.run(asyncio.wait_for(server.server.close(), 10))
        assert is_closed(half)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


NOT_TLS = {
    "HTTP/2 in the clear": OPENED + call(1, "sum"),
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "an alert": bytes.fromhex("15030300020250"),
    "data before any handshake": bytes.fromhex("1703030010") + bytes(16),
    "a record of more than may be": bytes.fromhex("160303ffff") + bytes(70_000),
    "a hello of no version": bytes.fromhex("16030000050100000100"),
    "nothing": b"",
}


@pytest.mark.parametrize("case", NOT_TLS)
def test_what_is_no_TLS_ends_its_connection_alone(server: Running, case: str):
    with connected(server) as client:
        with contextlib.suppress(ConnectionError):  # it may be closed before it has sent all
            client.sendall(NOT_TLS[case])
            client.shutdown(socket.SHUT_WR)
        assert is_closed(client)
    server.until(lambda: not listener_of(server).beginning)
    assert serves(server)


@pytest.mark.slow
def test_garbage_after_the_handshake_ends_its_connection_alone(server: Running):
    with connected(server) as plain:
        client = tls_context().wrap_socket(plain, server_hostname="127.0.0.1")
        client.sendall(OPENED)
        raw = client.detach()
    assert raw >= 0
    with socket.socket(fileno=raw) as below:
        below.settimeout(10)
        below.sendall(bytes.fromhex("1703030020") + b"\xa5" * 32)  # a record that decrypts to nothing
        assert is_closed(below)
    server.until(lambda: not engine_of(server).relays)
    assert serves(server)


@pytest.mark.slow
def test_renegotiation_is_refused(server: Running):
    """Each would cost the server a handshake (CVE-2011-1473)."""
    words = ["openssl", "s_client", "-connect", server.address, "-tls1_2", "-alpn", "h2"]

    def is_refused() -> bool:
        ended = subprocess.run(
            [*words, "-CAfile", str(authority().certificate)], input=b"R\n", capture_output=True, timeout=30
        )
        assert b"RENEGOTIATING" in ended.stdout + ended.stderr
        assert b":error:" in ended.stderr
        return b"no renegotiation" in ended.stderr  # else the server's first frames came in between

    wait_until(is_refused)
    assert serves(server)


# The end of a connection


def say_goodbye(client: ssl.SSLSocket) -> None:
    """Send close_notify, and wait for the server's."""
    try:
        client.unwrap()
    except OSError:  # what it had sent before is not read
        pass
    finally:
        client.close()


@pytest.mark.parametrize("how", ["close_notify", "end without a word", "reset"])
def test_a_client_that_leaves_ends_its_calls_however_it_leaves(server: Running, how: str):
    slow = SLOW["slow"]
    before = slow.cancelled
    wire = server.wire()
    wire.send(call(1, "slow"))
    server.until(lambda: slow.came > slow.cancelled)
    assert isinstance(wire.socket, ssl.SSLSocket)
    if how == "close_notify":
        say_goodbye(wire.socket)
    elif how == "reset":
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wire.socket.close()
    else:
        wire.socket.close()
    server.until(lambda: slow.cancelled == before + 1)
    server.until(lambda: not engine_of(server).relays)


def test_a_connection_that_the_front_ends_is_over_at_once_for_who_says_no_goodbye(server: Running):
    """As gRPC's clients do not: a call on it would wait for its deadline."""
    wire = server.wire()
    wire.send(frame(SETTINGS, 0, 0, bytes(5)))  # RFC 9113, 6.5: FRAME_SIZE_ERROR
    assert not wire.ended(1)
    assert isinstance(wire.socket, ssl.SSLSocket)
    with socket.socket(fileno=wire.socket.detach()) as below:
        below.settimeout(10)
        assert is_closed(below)
    server.until(lambda: not engine_of(server).relays)


def test_a_clients_goodbye_leaves_no_line_in_the_log(server: Running, caplog: pytest.LogCaptureFixture):
    wire = server.wire()
    wire.send(call(1, "sum"))
    assert wire.ended(1)
    assert isinstance(wire.socket, ssl.SSLSocket)
    say_goodbye(wire.socket)
    server.until(lambda: not engine_of(server).relays)
    assert caplog.records == []


# Descriptors


def test_a_handshake_gives_way_where_descriptors_run_out_whoever_needs_one(monkeypatch: pytest.MonkeyPatch):
    """Three are counted for each: without this 256 of them would hold 768, and REST's clients would wait until the last is given up."""
    with serving(TLS, names=("sum",)) as server, connected(server) as elder, connected(server) as younger:
        server.until(lambda: listener_of(server).beginning == 2)
        room: IdleRoom = engine_of(server).room

        async def make() -> bool:
            return room.make()

        assert server.run(make())
        assert is_closed(elder)
        assert listener_of(server).beginning == 1
        assert server.run(make())
        assert is_closed(younger)
        assert not server.run(make()), "nobody is left"


# Memory, of a process of its own, which no test beside it touches


class Apart:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        port, roots = self._out.readline().decode().split(maxsplit=1)
        self.port, self.roots = int(port), Path(roots.strip())

    def resident(self) -> int:
        """Bytes of memory, once what is free has gone back to the system."""
        self._in.write(b"\n")
        self._in.flush()
        return int(self._out.readline())

    def connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)


@pytest.fixture
def apart() -> Iterator[Apart]:
    script = Path(__file__).parents[1] / "support/grpc_support.py"
    with subprocess.Popen([sys.executable, script, TLS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Apart(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.slow
def test_connections_that_come_and_go_leave_no_memory_behind(apart: Apart):
    context = ssl.create_default_context(cafile=str(apart.roots))
    context.set_alpn_protocols(["h2"])

    def come_and_go(count: int) -> None:
        for number in range(count):
            with apart.connected() as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
                client.sendall(OPENED + call(1, "sum"))
                if number % 3:
                    client.recv(4096)
                if number % 5 == 0:
                    with contextlib.suppress(OSError):
                        client.unwrap()

    come_and_go(300)
    before, rounds = apart.resident(), draws(4000, 400)
    come_and_go(rounds)
    grown = apart.resident() - before
    assert grown < 2_500_000 + 500 * rounds, f"{grown} bytes for {rounds} connections"


@pytest.mark.slow
def test_a_flood_of_half_handshakes_takes_bounded_memory_and_clients_are_served(apart: Apart):
    before = apart.resident()
    with contextlib.ExitStack() as halves:
        for _ in range(tls_listener.HANDSHAKES + 150):
            halves.enter_context(apart.connected()).sendall(HELLO)
        with channel_to(f"127.0.0.1:{apart.port}", apart.roots) as channel:
            assert channel.unary_unary(INFER)(request_for("sum").SerializeToString(), timeout=10, wait_for_ready=True)
        grown = apart.resident() - before
    assert grown < tls_listener.HANDSHAKES * (256 << 10), f"{grown} bytes"


def test_the_server_loop_is_uvloops():
    """What these tests hold is held of uvloop's transports; asyncio's are held by tests/grpc/test_back_pressure.py."""

    async def module() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run_on_server_loop(module()).startswith("uvloop")
