"""The client for everybody, asked against a real server over both of its doors."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

import grpc
from conformance_support import Server, server_here, server_process
from deferred import Deferred
from depth import QUICK
from hosts_support import free_port
from predictor_support import Predictor, doubled, http
from serinus.client import AsyncClient, Client
from serinus.client.tensors import make_tensor, named_values
from serinus.errors import (
    ClientError,
    ConfigError,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    TimedOut,
    UpstreamFailed,
)
from serinus.protocol.datatypes import NUMPY_DTYPES
from serinus.protocol.types import TensorSpec
from waiting import wait_until

pandas = Deferred("pandas")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_here() if QUICK else server_process(tmp_path_factory.mktemp("client")) as running:
        yield running


@pytest.fixture(params=["http", "http as JSON", "grpc"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    over_grpc = request.param == "grpc"
    url = f"grpc://127.0.0.1:{server.grpc_port}" if over_grpc else f"http://127.0.0.1:{server.http_port}"
    with Client(url, binary=request.param != "http as JSON") as ours:
        yield ours


@pytest.mark.slow
def test_arrays_of_every_datatype_come_back_as_they_were_sent(client: Client):
    sent: dict[str, np.ndarray] = {}
    for name, dtype in NUMPY_DTYPES.items():
        if name not in ("BF16", "BYTES"):
            sent[name] = np.array([[0, 1], [1, 1]], dtype)
    sent["BYTES"] = np.array([["a", "ö"], ["", "b"]])
    answer = client.infer("typed", sent)
    for name, array in sent.items():
        back = answer[f"OUT_{name}"]
        if name == "BYTES":
            assert answer.text("OUT_BYTES").tolist() == array.tolist()
            assert back[0, 1] == "ö".encode()
        else:
            assert back.dtype == array.dtype
            np.testing.assert_array_equal(back, array)
    assert list(answer) == [tensor.name for tensor in answer.tensors]
    assert len(answer) == len(sent)


@pytest.mark.slow
def test_lists_and_numbers_become_what_the_model_takes(client: Client):
    answer = client.infer("simple", {"INPUT0": [[1, 2, 3, 4]], "INPUT1": [[1.0, 1.0, 1.0, 1.0]]})
    assert answer["OUTPUT0"].dtype == np.int32
    assert answer["OUTPUT0"].tolist() == [[2, 3, 4, 5]]


@pytest.mark.slow
def test_a_list_that_would_lose_by_the_models_datatype_is_refused_before_it_is_sent(client: Client):
    with pytest.raises(InvalidInput, match=r"'INPUT0'.*INT32, and not every value is one"):
        client.infer("simple", {"INPUT0": [[1, 2, 3, 4.5]], "INPUT1": [[1, 1, 1, 1]]})


@pytest.mark.slow
def test_what_a_call_says_reaches_the_model(client: Client):
    answer = client.infer(
        "asked", {"x": np.zeros((1, 1), np.float32)}, parameters={"color": "red"}, request_id="r-1", priority=2
    )
    assert answer.id == "r-1"
    assert "color='red'" in str(answer.parameters["parameters"])


@pytest.mark.slow
def test_wanted_outputs_and_the_answers_description(client: Client):
    answer = client.infer(
        "simple", {"INPUT0": np.ones((1, 4), np.int32), "INPUT1": np.ones((1, 4), np.int32)}, outputs=["OUTPUT1"]
    )
    assert list(answer) == ["OUTPUT1"]
    assert answer.model_name == "simple"
    assert repr(answer).startswith("<Answer of 'simple'")
    with pytest.raises(KeyError, match="'OUTPUT1'"):
        answer["OUTPUT0"]


@pytest.mark.slow
def test_metadata_of_server_and_model(client: Client):
    assert "binary_tensor_data" in client.server_metadata().extensions
    metadata = client.metadata("simple")
    assert metadata.inputs == (TensorSpec("INPUT0", "INT32", (-1, 4)), TensorSpec("INPUT1", "INT32", (-1, 4)))
    assert metadata.platform == "test_simple"
    assert client.is_live()
    assert client.is_ready()
    assert client.is_model_ready("simple")
    assert not client.is_model_ready("nobody")
    client.wait_until_ready("simple")


@pytest.mark.slow
def test_waiting_for_a_name_that_the_server_does_not_know_ends_with_the_servers_words(client: Client):
    with pytest.raises(
        TimedOut, match=r"'nobody' of the server .* is not ready after 1 s: .*model 'nobody' is not known"
    ):
        client.wait_until_ready("nobody", timeout_s=1)


@pytest.mark.slow
def test_errors_say_whose_they_are(client: Client):
    with pytest.raises(NotFound, match="nobody"):
        client.infer("nobody", {"x": np.zeros((1, 1), np.float32)})
    with pytest.raises(NotFound, match="nobody"):
        client.metadata("nobody")
    with pytest.raises(InvalidInput, match="INPUT0"):
        client.infer("simple", {"INPUT0": np.zeros((1, 3), np.int32), "INPUT1": np.zeros((1, 4), np.int32)})
    with pytest.raises(TimedOut):
        client.infer("slow", {"seconds": np.array([[5.0]], np.float32)}, timeout_s=0.3)


@pytest.mark.slow
def test_a_client_is_shared_by_threads(client: Client):
    def ask(number: int) -> int:
        answer = client.infer("identity", {"x": np.full((1, 3), number, np.int64)})
        return int(answer["x"][0, 0])

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(ask, range(200))) == list(range(200))


@pytest.mark.slow
def test_many_clients_over_grpc_in_one_process_do_not_disturb_one_another(server: Server):
    def ask(number: int) -> int:
        with Client(f"grpc://127.0.0.1:{server.grpc_port}") as ours:
            return int(ours.infer("identity", {"x": np.full((1, 1), number, np.int64)})["x"][0, 0])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(40))) == list(range(40))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_coroutines_ask_side_by_side(server: Server, scheme: str):
    port = server.http_port if scheme == "http" else server.grpc_port
    async with AsyncClient(f"{scheme}://127.0.0.1:{port}") as ours:
        answers = await asyncio.gather(*(ours.infer("identity", {"x": np.array([[number]])}) for number in range(50)))
    assert [int(answer["x"][0, 0]) for answer in answers] == list(range(50))


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the first loop is closed with its connection open
def test_a_client_of_coroutines_goes_on_in_the_next_event_loop(server: Server, scheme: str):
    port = server.grpc_port if scheme == "grpc" else server.http_port
    ours = AsyncClient(f"{scheme}://127.0.0.1:{port}")

    async def ask(close: bool) -> list[list[int]]:
        answer = await ours.infer("identity", {"x": np.array([[7]])})
        if close:
            await ours.close()
        return answer["x"].tolist()

    assert [asyncio.run(ask(close)) for close in (False, False, True, True)] == [[[7]]] * 4
    gc.collect()  # what the closed loops left is warned of here, not in another test


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_client_of_coroutines_is_refused_to_a_second_loop_while_the_first_runs(server: Server, scheme: str):
    port = server.grpc_port if scheme == "grpc" else server.http_port
    async with AsyncClient(f"{scheme}://127.0.0.1:{port}") as ours:
        assert await ours.is_ready()
        with pytest.raises(RuntimeError, match="make one for each loop"):
            await asyncio.to_thread(asyncio.run, ours.is_ready())
        assert await ours.is_ready()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_an_IPv6_address_goes_in_brackets(scheme: str):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    if scheme == "grpc":
        port = listening.getsockname()[1]
        listening.close()
        peer = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(_live)
        peer.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ServerLive": handler}),)
        )
        peer.add_insecure_port(f"[::1]:{port}")
        await peer.start()
        async with AsyncClient(f"grpc://[::1]:{port}") as ours:
            assert await ours.is_live()
        await peer.stop(None)
        return
    peer = Predictor(doubled)
    async with await asyncio.start_server(peer._accepted, sock=listening):
        port = listening.getsockname()[1]
        async with AsyncClient(f"http://[::1]:{port}") as ours:
            assert (await ours.infer("m", {"x": np.array([[1.5]])}))["y"].tolist() == [[3.0]]
    assert peer.requests[0][2]["host"] == f"[::1]:{port}"


async def _live(message: bytes, context: Any) -> bytes:
    return b"\x08\x01"  # ServerLiveResponse, live: true


async def test_a_name_that_none_can_be_is_said(server: Server):
    async with AsyncClient("http://a..b:1", retries=0) as ours:
        with pytest.raises(UpstreamFailed, match=r"'a\.\.b': it is no host's name"):
            await ours.infer("m", {"x": np.array([[1.0]])})
        assert not await ours.is_live()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_waiting_for_a_server_that_accepts_and_is_silent_ends_in_time(scheme: str, monkeypatch: pytest.MonkeyPatch):
    """A probe of its own would wait for longer than a test may take."""
    monkeypatch.setattr("serinus.client.async_client._PROBE_S", 3600.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url) as ours:
            with pytest.raises(TimedOut, match=r"is not ready after 0.3 s"):
                ours.wait_until_ready(timeout_s=0.3)
            with pytest.raises(TimedOut):
                ours.infer("m", {"x": np.array([[1.0]])}, timeout_s=0.3)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_server_that_goes_with_a_request_in_hand_is_told_and_not_asked_twice(scheme: str):
    asked = 0

    async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        if scheme == "grpc":
            await reader.readexactly(24)  # the preface of HTTP/2
            writer.write(b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\0\x04\x01\0\0\0\0")  # SETTINGS, and the other's acknowledged
            seen = b""
            while b"ModelInfer" not in seen and len(seen) < 200:  # its path may be Huffman-coded
                seen += await reader.read(65536)
        else:
            await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.transport.abort()

    async with await asyncio.start_server(gone, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with AsyncClient(f"{scheme}://127.0.0.1:{port}", retries=3) as ours:
            with pytest.raises((UpstreamFailed, NotReady), match="the server"):
                await ours.infer("m", {"x": np.array([[1.0]])}, timeout_s=5)
    assert asked == 1


def _ask_in_child(url: str, queue: Any) -> None:
    with Client(url) as ours:
        queue.put(ours.infer("identity", {"x": np.array([[7]])})["x"].tolist())


@pytest.mark.slow
def test_a_forked_child_makes_a_client_of_its_own(server: Server):
    url = f"http://127.0.0.1:{server.http_port}"
    with Client(url) as ours:
        ours.infer("identity", {"x": np.array([[1]])})
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_ask_in_child, args=(url, queue))
        child.start()
        assert queue.get(timeout=30) == [[7]]
        child.join(30)


async def test_the_gateways_host_the_token_and_the_headers_go_along():
    async with (
        Predictor(doubled).listening() as peer,
        AsyncClient(
            f"127.0.0.1:{peer.port}", host="fraud.default.example.com", token="t0k", headers={"X-Team": "risk"}
        ) as ours,
    ):
        answer = await ours.infer("m", {"x": np.array([[1.5]])}, headers={"X-Request-Id": "r9"})
    assert answer["y"].tolist() == [[3.0]]
    _, path, headers, _ = peer.requests[0]
    assert path == "/v2/models/m/infer"
    assert headers["host"] == "fraud.default.example.com"
    assert headers["authorization"] == "Bearer t0k"
    assert (headers["x-team"], headers["x-request-id"]) == ("risk", "r9")


async def test_a_request_is_sent_again_only_where_the_server_said_it_had_not_begun():
    async with (
        Predictor(http(503, b'{"error": "starting"}', retry_after="0"), doubled).listening() as peer,
        AsyncClient(f"127.0.0.1:{peer.port}") as ours,
    ):
        assert (await ours.infer("m", {"x": np.array([[1.0]])}))["y"].tolist() == [[2.0]]
    assert len(peer.requests) == 2
    async with (
        Predictor(http(500, b'{"error": "broke"}')).listening() as peer,
        AsyncClient(f"127.0.0.1:{peer.port}", retries=5) as ours,
    ):
        with pytest.raises(UpstreamFailed, match="the server answered 500: broke"):
            await ours.infer("m", {"x": np.array([[1.0]])})
    assert len(peer.requests) == 1
    async with (
        Predictor(http(429, b'{"error": "full"}', retry_after="30")).listening() as peer,
        AsyncClient(f"127.0.0.1:{peer.port}") as ours,
    ):
        with pytest.raises(Overloaded) as refused:
            await ours.infer("m", {"x": np.array([[1.0]])}, timeout_s=1.0)
    assert refused.value.retry_after_s == 30
    assert len(peer.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there_is_said_within_the_deadline(scheme: str):
    with Client(f"{scheme}://127.0.0.1:{free_port()}", retries=1) as ours:
        with pytest.raises((UpstreamFailed, TimedOut), match=r"the server.*127.0.0.1:\d+"):
            ours.infer("m", {"x": np.array([[1.0]])}, timeout_s=2.0)
        assert not ours.is_live()
        with pytest.raises(TimedOut, match=r"model 'm' of the server .* is not ready after 0.2 s"):
            ours.wait_until_ready("m", timeout_s=0.2)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[]", "no JSON object"),
        (b"<html>", "no JSON object"),
        (b'{"name": "m", "inputs": [{"name": "x"}]}', "not V2's"),
        (b'{"name": "m", "inputs": 7}', "not V2's"),
    ],
)
async def test_metadata_that_is_not_V2s_is_told(body: bytes, says: str):
    async with Predictor(http(200, body)).listening() as peer, AsyncClient(f"127.0.0.1:{peer.port}") as ours:
        with pytest.raises(UpstreamFailed, match=says):
            await ours.metadata("m")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://h:1", "expected http://"),
        ("http://h:1/prefix", "no path"),
        ("http://h:99999", "expected host and port"),
        ("http://h:x", "expected host and port"),
        ("http://[::1", r"as in .*\[::1\]"),
        ("http://::1:8080", "in brackets"),
        ("::1", "in brackets"),
        ("http://user:pw@h:1", "give headers or a token"),
        ("http://", "expected http://"),
        ("", "expected http://"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, says: str):
    with pytest.raises(ConfigError, match=says) as refused:
        AsyncClient(url)
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"timeout_s": 0}, "seconds above 0"),
        ({"retries": -1}, "0 or more"),
        ({"headers": {"X-A": "b\r\nc: d"}}, "line break"),
        ({"token": "a\nb"}, "line break"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        AsyncClient("http://h:1", **settings)


FP32, INT8, BOOL, TEXT = (TensorSpec("x", datatype, (-1,)) for datatype in ("FP32", "INT8", "BOOL", "BYTES"))


@pytest.mark.parametrize(
    ("values", "spec", "expected"),
    [
        ([1, 2], FP32, ("FP32", [1.0, 2.0])),
        ([1.0, 2.0], INT8, ("INT8", [1, 2])),
        ([0, 1], BOOL, ("BOOL", [False, True])),
        (["a", b"b"], TEXT, ("BYTES", [b"a", b"b"])),
        (np.array([1, 2], ">i4"), None, ("INT32", [1, 2])),
        (np.array([1, 2], np.int64), FP32, ("INT64", [1, 2])),
        (np.arange(6).reshape(2, 3).T, None, ("INT64", [[0, 3], [1, 4], [2, 5]])),
        (3, FP32, ("FP32", 3.0)),
        ([float("nan")], FP32, ("FP32", None)),
        ([1, True, 2.5], FP32, ("FP32", [1.0, 1.0, 2.5])),
    ],
)
def test_values_become_tensors(values: Any, spec: TensorSpec | None, expected: tuple[str, Any]):
    tensor = make_tensor("x", values, spec)
    assert tensor.datatype == expected[0]
    assert tensor.shape == tensor.data.shape
    if expected[1] is not None:
        assert tensor.data.tolist() == expected[1]


@pytest.mark.parametrize(
    ("values", "spec", "says"),
    [
        ([[1], [1, 2]], FP32, "rectangular"),
        ([300], INT8, "not every value is one"),
        ([2], BOOL, "not every value is one"),
        ([float("nan")], INT8, "not every value is one"),
        ([1], TEXT, "send text or bytes"),
        ("1,2", FP32, r"text came, such as '1,2', and the model takes FP32; send numbers"),
        (["a", "b"], BOOL, "text came, such as 'a'"),
        (np.array(["2024-01-01"], "datetime64[D]"), None, "no place in the protocol"),
        (np.array([1j]), None, "no place in the protocol"),
        ([None, "a"], TEXT, "element 0 is of type NoneType; it is missing, for which text has no word: fill it in"),
        (["1", None], FP32, "element 1 is of type NoneType; it is missing"),
        ([1, None], INT8, "element 0 is of type int; .*make one of numbers"),
        (np.array([1, 2.5], object), None, "element 0 is of type int; .*make one of numbers"),
    ],
)
def test_values_that_are_no_tensor_are_refused(values: Any, spec: TensorSpec | None, says: str):
    with pytest.raises(InvalidInput, match=says):
        make_tensor("x", values, spec)


def test_none_among_numbers_is_what_null_is_on_the_wire():
    tensor = make_tensor("x", [[1, None], [2.5, 3]], FP32)
    assert tensor.datatype == "FP32"
    np.testing.assert_array_equal(tensor.data, np.float32([[1, np.nan], [2.5, 3]]))


@pytest.mark.slow  # imports pandas
def test_a_data_frame_is_an_input_a_column():
    frame = pandas.DataFrame(
        {
            "age": [30, 40],
            "income": [1.5, None],
            "city": ["Bern", "Genf"],
            "plan": pandas.Series(["a", "b"], dtype="category"),
            "visits": pandas.array([1, None], dtype="Int64"),
            "counts": pandas.array([1, 2], dtype="Int64"),
            "is_new": [True, False],
        }
    )
    tensors = {name: make_tensor(name, values, None) for name, values in named_values(frame).items()}
    assert {name: tensor.datatype for name, tensor in tensors.items()} == {
        "age": "INT64",
        "income": "FP64",
        "city": "BYTES",
        "plan": "BYTES",
        "visits": "FP64",
        "counts": "INT64",
        "is_new": "BOOL",
    }
    np.testing.assert_array_equal(tensors["visits"].data, [1, np.nan])
    assert tensors["city"].data.tolist() == [b"Bern", b"Genf"]


@pytest.mark.slow
def test_a_data_frame_is_asked_column_by_column(client: Client):
    with pytest.raises(InvalidInput, match=r"input 'INT64': shape \[3\] has 1 dimensions, the model takes 2"):
        client.infer("typed", pandas.DataFrame({"INT64": range(3)}))
    answer = client.infer("identity", pandas.DataFrame({"x": ["a", "b"], "y": [0.5, 1]}))
    assert sorted(answer) == ["x", "y"]
    assert answer.text("x").tolist() == ["a", "b"]
    assert answer["y"].tolist() == [0.5, 1]


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [[[1, 2]], np.zeros((1, 2)), "x", None], ids=["list", "array", "text", "None"])
def test_inputs_without_names_are_refused_in_words(client: Client, inputs: Any):
    with pytest.raises(
        InvalidInput, match=f"a {type(inputs).__name__} came; arrays by their inputs' names were expected"
    ):
        client.infer("simple", inputs)


@pytest.mark.slow
@pytest.mark.parametrize("mutual", [False, True])
async def test_TLS_with_the_callers_own_authorities_and_certificate(certificate: tuple[Path, Path], mutual: bool):
    key, chain = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(chain)
    async with Predictor(doubled).listening(tls=context) as peer:
        url = f"https://localhost:{peer.port}"
        shown = {"certificate": chain, "key": key} if mutual else {}
        async with AsyncClient(url, authorities=chain, **shown) as ours:
            assert (await ours.infer("m", {"x": np.array([[1.0]])}))["y"].tolist() == [[2.0]]
        if mutual:
            async with AsyncClient(url, authorities=chain, timeout_s=5) as ours:
                with pytest.raises((UpstreamFailed, ClientError)):
                    await ours.infer("m", {"x": np.array([[1.0]])})
        with pytest.raises(ConfigError, match="cannot be"):
            await AsyncClient(url, certificate=Path("nowhere.pem")).infer("m", {"x": np.array([[1.0]])})


@pytest.mark.slow
def test_ctrl_c_ends_a_wait(server: Server):
    with Client(f"http://127.0.0.1:{server.http_port}") as ours:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        began, main = threading.Event(), threading.main_thread().ident or 0

        def interrupt() -> None:
            began.wait(10)
            wait_until(lambda: sys._current_frames()[main].f_code.co_name == "wait")  # for the answer
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        began.set()
        with pytest.raises(KeyboardInterrupt):
            ours.infer("slow", {"seconds": np.array([[3.0]], np.float32)})
        thread.join()
        assert ours.is_live()
