"""The life of a gRPC server, on both engines: deadlines, cancellation, limits, draining, TLS, and what it costs in memory."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import grpc
from depth import draws, only_deep
from grpc_support import ENGINES, GATE, INFER, SLOW, TLS, Running, channel_to, serving, settings_of
from representative import every
from serinus.errors import ConfigError
from serinus.server.grpc import start_grpc
from serinus.server.grpc.grpc_server import choose_engine
from serinus.server.rest.rest_server import start_rest
from serinus.settings import ServerSettings

KIB = 1024


@pytest.fixture(params=[*ENGINES, TLS])
def server(request):
    with serving(request.param) as running:
        yield running


@pytest.fixture
def channel(server: Running):
    with server.channel() as channel:
        yield channel


def request_for(model: str, array: np.ndarray | None = None, **fields) -> pb.ModelInferRequest:
    x = np.ones((1, 3), np.float32) if array is None else array
    names = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype=names[x.dtype.name], shape=x.shape)
    return pb.ModelInferRequest(model_name=model, inputs=[entry], raw_input_contents=[x.tobytes()], **fields)


def infer(channel):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer


# Deadlines and cancellation


def test_a_call_whose_deadline_passes_ends_there_and_its_neighbours_do_not(server, channel):
    call = infer(channel)
    late = [call.future(request_for("slow"), timeout=0.3) for _ in range(5)]
    patient = call.future(request_for("slow", id="patient"), timeout=30)
    for one in late:
        assert one.exception(timeout=10).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert call(request_for("sum"), timeout=10).raw_output_contents
    server.until(lambda: SLOW["slow"].cancelled == 5)
    assert not patient.done()
    server.loop.call_soon_threadsafe(SLOW["slow"].go.set)
    assert patient.result(timeout=10).id == "patient"


def test_a_call_that_its_client_cancels_leaves_the_model(server, channel):
    call = infer(channel)
    patient, leaving = call.future(request_for("slow", id="p")), call.future(request_for("slow"))
    server.until(lambda: SLOW["slow"].came == 2)
    leaving.cancel()
    server.until(lambda: SLOW["slow"].cancelled == 1)
    server.loop.call_soon_threadsafe(SLOW["slow"].go.set)
    assert patient.result(timeout=10).id == "p"


def test_calls_of_a_client_that_vanishes_leave_the_model(server):
    channel = server.channel()
    calls = [infer(channel).future(request_for("slow")) for _ in range(3)]
    server.until(lambda: SLOW["slow"].came == 3)
    channel.close()
    server.until(lambda: SLOW["slow"].cancelled == 3)
    assert all(call.done() for call in calls)


def test_a_stream_that_its_client_leaves_leaves_the_model(server, channel):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    stream = stub.ModelStreamInfer(iter([request_for("slow")] * 3))
    server.until(lambda: SLOW["slow"].came == 3)
    stream.cancel()
    server.until(lambda: SLOW["slow"].cancelled == 3)


def test_a_stream_whose_deadline_passes_ends_with_that_and_no_answer(channel):
    stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
    for _ in range(5):
        with pytest.raises(grpc.RpcError) as caught:
            list(stream(iter([request_for("sum"), request_for("slow")]), timeout=0.1))
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    late = request_for("slow", id="late")
    late.parameters["timeout"].int64_param = 100_000
    first, second = stream(iter([late, request_for("sum")]), timeout=30)
    assert "deadline" in first.error_message
    assert first.infer_response.id == "late"
    assert second.infer_response.raw_output_contents


def test_a_model_that_holds_a_thread_holds_up_nobody_and_its_call_ends_at_its_deadline(server, channel):
    """KServe's predict blocks its loop."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    late = infer(channel).future(request_for("gate"), timeout=0.2)
    assert GATE["gate"].entered.wait(10)
    for _ in range(20):
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
        assert infer(channel)(request_for("sum"), timeout=10).raw_output_contents
    assert late.exception(timeout=10).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=10).live
    GATE["gate"].open.set()
    assert infer(channel)(request_for("gate"), timeout=10).raw_output_contents


@pytest.mark.slow
def test_thousands_of_calls_at_once_on_one_connection_are_all_answered(channel):
    call = infer(channel)
    for _ in range(2):
        burst = [call.future(request_for("sum", id=str(number)), timeout=60) for number in range(draws(3000, 1000))]
        assert [one.result().id for one in burst] == [str(number) for number in range(len(burst))]


def test_a_timeout_parameter_is_a_deadline_too(channel):
    request = request_for("slow")
    request.parameters["timeout"].int64_param = 200_000
    error = infer(channel).future(request, timeout=30).exception(timeout=10)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED


# Limits


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "compression", every(2, [None, grpc.Compression.Deflate, grpc.Compression.Gzip]), ids=["plain", "deflate", "gzip"]
)
def test_a_request_over_the_limit_is_refused_and_one_within_it_is_not(engine, compression):
    with (
        serving(engine, grpc_max_receive_message_length=512 * KIB) as server,
        server.channel() as channel,
    ):
        call = infer(channel)
        for columns in (600 * KIB, 40_000 * KIB):
            with pytest.raises(grpc.RpcError) as caught:
                call(request_for("echo", np.zeros((1, columns), np.uint8)), compression=compression, timeout=30)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        fits = request_for("echo", np.arange(500 * KIB, dtype=np.uint8).reshape(1, -1))
        answer = call(fits, compression=compression, timeout=30)
        assert answer.raw_output_contents[0] == fits.raw_input_contents[0]


def test_a_response_over_the_limit_is_refused():
    for engine in ENGINES:
        with (
            serving(engine, grpc_max_send_message_length=512 * KIB) as server,
            server.channel() as channel,
        ):
            with pytest.raises(grpc.RpcError) as caught:
                infer(channel)(request_for("big", np.array([600 * KIB])), timeout=30)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "grpc_max_send_message_length" in caught.value.details()
            answer = infer(channel)(request_for("big", np.array([500 * KIB])), timeout=30)
            assert len(answer.raw_output_contents[0]) == 500 * KIB


@pytest.mark.slow
def test_large_messages_go_both_ways_whole(server):
    options = [("grpc.max_receive_message_length", -1)]
    array = np.random.default_rng(1).integers(0, 256, (1, 12 * KIB * KIB), np.uint8)
    with server.channel(options) as channel:
        answers = [infer(channel).future(request_for("echo", array), timeout=60) for _ in range(2)]
        for answer in answers:
            assert answer.result().raw_output_contents[0] == array.tobytes()


def test_too_much_metadata_is_refused_and_usual_amounts_are_not(server, channel):
    call = infer(channel)
    call(request_for("sum"), metadata=[(f"x-{i}", "v" * 4000) for i in range(10)], timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        call(request_for("sum"), metadata=[(f"x-{i}", "v" * 4000) for i in range(40)], timeout=10)
    assert caught.value.code() != grpc.StatusCode.DEADLINE_EXCEEDED
    assert infer(channel)(request_for("sum"), timeout=10, wait_for_ready=True).raw_output_contents


def test_a_message_of_any_length_survives_the_status(server, channel):
    error = infer(channel).future(request_for("ü\n%" * 300), timeout=10).exception(timeout=10)
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert "ü\n%" in error.details()


# Draining


def test_a_draining_server_finishes_what_it_has_and_takes_no_more(server, channel):
    call = infer(channel)
    held = call.future(request_for("slow", id="held"), timeout=30)
    server.until(lambda: SLOW["slow"].came == 1)
    server.loop.call_soon_threadsafe(server.server.stop_accepting)
    draining = asyncio.run_coroutine_threadsafe(server.server.drain(20), server.loop)
    with server.channel() as other, pytest.raises(grpc.RpcError) as caught:
        infer(other)(request_for("sum"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    late = call.future(request_for("sum"), timeout=10).exception(timeout=10)
    assert late.code() == grpc.StatusCode.UNAVAILABLE
    assert not held.done()
    assert not draining.done()
    server.loop.call_soon_threadsafe(SLOW["slow"].go.set)
    assert held.result(timeout=10).id == "held"
    draining.result(timeout=10)


def test_draining_an_idle_server_is_over_at_once_and_may_be_repeated(server):
    for _ in range(2):  # of an hour that it has, it takes a moment
        server.run(asyncio.wait_for(server.server.drain(3600), 5))


def test_draining_gives_up_when_its_time_is_over(server, channel):
    held = infer(channel).future(request_for("slow"), timeout=30)
    server.until(lambda: SLOW["slow"].came == 1)
    server.run(server.server.drain(0.2))
    assert not held.done()
    server.run(server.server.close())
    assert held.exception(timeout=10).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_health_says_not_serving_while_the_plane_stops(server, channel):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    server.loop.call_soon_threadsafe(server.plane.stop_ready)
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    assert not stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert infer(channel)(request_for("sum"), timeout=10).raw_output_contents, "stop_ready answers on"


# Start


def test_a_taken_port_is_told_in_words(server):
    for engine in ENGINES:
        chosen = ServerSettings(host="127.0.0.1", grpc=engine)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            server.run(start_grpc(server.plane, chosen, metrics=server.metrics, port=server.port))


def test_workers_share_the_port():
    for engine in (*ENGINES, TLS):
        with serving(engine, workers=2) as first:
            chosen = settings_of(engine, workers=2)
            second = first.run(start_grpc(first.plane, chosen, metrics=first.metrics, port=first.port))
            assert second.port == first.port
            for _ in range(20):
                with first.channel([("grpc.use_local_subchannel_pool", 1)]) as channel:
                    assert infer(channel)(request_for("sum"), timeout=10).raw_output_contents
            first.run(second.close())


@pytest.mark.parametrize(
    ("wanted", "tls", "engine"),
    [("auto", False, "native"), ("auto", True, "native"), ("grpcio", True, "grpcio"), ("native", True, "native")],
)
def test_the_engine_is_chosen_by_setting_and_tls_and_said(wanted, tls, engine, caplog):
    caplog.set_level(logging.INFO)
    files = {"ssl_certfile": "c", "ssl_keyfile": "k"} if tls else {}
    assert choose_engine(ServerSettings(grpc=wanted, **files)) == engine
    if wanted == "auto":
        assert engine in caplog.text


def test_native_is_refused_where_it_cannot_serve(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"serinus\[grpc-native\]"):
        choose_engine(ServerSettings(grpc="native"))
    assert choose_engine(ServerSettings(grpc="auto")) == "grpcio"


@pytest.mark.parametrize(("wanted", "engine"), [("auto", "native"), ("grpcio", "grpcio")])
def test_TLS_is_served_with_an_RSA_key_too(wanted, engine, tmp_path: Path):
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*make.split(), "-keyout", key, "-out", chain], check=True, capture_output=True)
    with serving(wanted, ssl_certfile=str(chain), ssl_keyfile=str(key)) as server:
        assert server.server.engine == engine
        credentials = grpc.ssl_channel_credentials(chain.read_bytes())
        with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
            assert infer(channel)(request_for("sum"), timeout=20).raw_output_contents


def test_TLS_files_that_are_not_there_are_told():
    with (
        pytest.raises(ConfigError, match="nowhere"),
        serving("auto", ssl_certfile="nowhere.pem", ssl_keyfile="nowhere.pem"),
    ):
        pass


def test_the_access_log_has_a_line_for_each_call(caplog):
    caplog.set_level(logging.INFO, "serinus.access")
    for engine in ENGINES:
        caplog.clear()
        with serving(engine, access_log=True) as server, server.channel() as channel:
            infer(channel)(request_for("sum"), timeout=10)
            infer(channel).future(request_for("nope"), timeout=10).exception(timeout=10)
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=10)
        lines = [record.getMessage() for record in caplog.records if record.name == "serinus.access"]
        assert [(INFER in line, "status 0" in line, "status 5" in line) for line in lines] == [
            (True, True, False),
            (True, False, True),
            (False, True, False),
        ]


# REST and gRPC


@pytest.fixture(scope="module", params=ENGINES)
def both(request):
    """One plane behind both transports."""
    with serving(request.param) as running:
        chosen = ServerSettings(host="127.0.0.1", http_port=0)
        rest = running.run(start_rest(running.plane, chosen, metrics=running.metrics))
        with (
            grpc.insecure_channel(running.address) as channel,
            httpx.Client(base_url=f"http://127.0.0.1:{rest.port}") as http,
        ):
            yield channel, http
        running.run(rest.close())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=9,
    )
)
def test_REST_and_gRPC_answer_the_same_bits(both, rows):
    channel, http = both
    x = np.array(rows, np.float32)
    over_grpc = infer(channel)(request_for("sum", x), timeout=10).raw_output_contents
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": [float(v) for v in x.reshape(-1)]}
    body = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    answer = http.post("/v2/models/sum/infer", json=body)
    assert answer.status_code == 200, answer.text
    binary = answer.content[int(answer.headers["Inference-Header-Content-Length"]) :]
    assert binary == b"".join(over_grpc)


# Under load


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_many_clients_at_once_each_get_their_own_answer(engine):
    wrong: list[object] = []

    def client(address: str, base: int) -> None:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            calls = [
                (
                    i,
                    infer(channel).future(
                        request_for("sum", np.full((1, 3), base + i, np.float32), id=str(i)), timeout=60
                    ),
                )
                for i in range(100)
            ]
            for i, call in calls:
                answer = call.result()
                value = np.frombuffer(answer.raw_output_contents[0], np.float32)[0]
                if answer.id != str(i) or value != 3 * (base + i):
                    wrong.append((base, i, answer))

    with serving(engine) as server:
        clients = [threading.Thread(target=client, args=(server.address, base)) for base in range(0, 5000, 1000)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
    assert not wrong


@pytest.mark.slow  # the memory is that of a process of its own, which no test beside it touches
@pytest.mark.parametrize("engine", [*ENGINES, pytest.param(TLS, marks=only_deep("the case native"))])
def test_thousands_of_calls_good_bad_and_cancelled_leave_no_memory_behind(engine):
    script = Path(__file__).parents[1] / "support/grpc_support.py"
    process = subprocess.Popen(
        [sys.executable, script, engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        port, roots = process.stdout.readline().split(maxsplit=1)

        def resident() -> int:
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        with channel_to(f"127.0.0.1:{port}", Path(roots.strip()) if engine == TLS else None) as channel:
            call = infer(channel)
            good, unknown = request_for("sum", np.ones((100, 3), np.float32)), request_for("nope")
            slow = request_for("slow")
            raw = channel.unary_unary(INFER)

            part = draws(200, 100)

            def round_of_calls() -> None:
                calls = [call.future(good, timeout=60) for _ in range(6 * part)]
                calls += [call.future(unknown, timeout=60) for _ in range(2 * part)]
                calls += [raw.future(b"\xff" * 100, timeout=60) for _ in range(2 * part)]
                leaving = [call.future(slow) for _ in range(part)]
                for one in leaving:
                    one.cancel()
                for one in calls:
                    one.exception()

            for _ in range(2):
                round_of_calls()
            before = resident()
            rounds = draws(4, 2)
            for _ in range(rounds):
                round_of_calls()
            grown = resident() - before
        calls = 11 * part * rounds
        assert grown < 950 * calls, f"{grown / KIB:.0f} KiB for {calls} calls"
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0
        if process.stdout is not None:
            process.stdout.close()


def test_without_a_writable_temporary_directory_grpcio_serves_and_native_alone_says_why(monkeypatch, caplog):
    def refuse(*_: object, **__: object) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("serinus.server.grpc.native_engine.tempfile.mkdtemp", refuse)
    with serving("auto", names=("sum",)) as running:
        assert running.server.engine == "grpcio"
        assert "Read-only file system" in caplog.text
        insisting = ServerSettings(host="127.0.0.1", grpc="native")
        with pytest.raises(ConfigError, match="writable temporary directory"):
            running.run(start_grpc(running.plane, insisting, metrics=running.metrics, port=0))


def test_in_a_temporary_directory_too_deep_for_sockets_grpcio_serves_and_native_alone_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr("serinus.server.grpc.native_engine.tempfile.tempdir", str(deep))
    with serving("auto", names=("sum",)) as running:
        assert running.server.engine == "grpcio"
        assert "107 are the most; name a shorter one" in caplog.text
        insisting = ServerSettings(host="127.0.0.1", grpc="native")
        with pytest.raises(ConfigError, match=r"directory \(TMPDIR\) for its sockets: a socket in it has a path of"):
            running.run(start_grpc(running.plane, insisting, metrics=running.metrics, port=0))
    assert list(deep.iterdir()) == []
