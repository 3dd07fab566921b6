"""The way from a transformer to its predictor, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from pathlib import Path

import grpc.aio
import numpy as np
import orjson
import pytest

import grpc
from hosts_support import free_port
from predictor_support import Predictor, Servicer, client, doubled, http, question
from serinus.client.predictor_client import FORWARDED_HEADERS, PredictorClient, forwarded, split_host
from serinus.errors import (
    ClientError,
    ConfigError,
    InvalidInput,
    NotReady,
    Overloaded,
    TimedOut,
    UpstreamFailed,
)
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import PredictorSettings


@pytest.mark.parametrize(
    ("host", "use_ssl", "expected"),
    [
        ("fraud-predictor.ns", False, ("fraud-predictor.ns", 80)),
        ("fraud-predictor.ns", True, ("fraud-predictor.ns", 443)),
        ("10.0.0.1:8081", False, ("10.0.0.1", 8081)),
        ("[::1]:9000", False, ("::1", 9000)),
        ("[::1]", False, ("::1", 80)),
        ("fe80::1", True, ("fe80::1", 443)),
    ],
)
def test_a_host_without_port_means_80_or_443_as_in_kserve(host: str, use_ssl: bool, expected: tuple[str, int]):
    assert split_host(host, use_ssl) == expected


@pytest.mark.parametrize("host", ["http://a", "a:b", "a:0", "a:70000", ":80", "a/b"])
def test_what_is_no_host_is_refused(host: str):
    with pytest.raises(ConfigError, match="host or host:port"):
        split_host(host, False)


async def test_tensors_travel_raw_both_ways_on_one_connection():
    async with Predictor(doubled).listening() as predictor:
        ours = client(predictor.port)
        for index in range(3):
            response = await ours.infer(question(id=str(index)))
            assert response.outputs[0].data.tolist() == [[3.0, 5.0]]
            assert response.id == str(index)
        await ours.close()
    assert predictor.connections == 1
    assert predictor.requests[0][1] == "/v2/models/m/infer"
    assert predictor.requests[0][2]["content-type"] == "application/octet-stream"


async def test_concurrent_requests_get_their_own_answers():
    async with Predictor(doubled).listening() as predictor:
        ours = client(predictor.port)
        questions = [InferRequest("m", [Tensor.of("x", np.full((1, 2), i, np.float32))]) for i in range(20)]
        answers = await asyncio.gather(*map(ours.infer, questions))
        await ours.close()
    assert [answer.outputs[0].data[0, 0] for answer in answers] == [2.0 * i for i in range(20)]


async def test_trace_and_request_headers_go_along_and_others_do_not():
    async with Predictor(doubled).listening() as predictor:
        ours = client(predictor.port)
        sent = dict.fromkeys(FORWARDED_HEADERS, "v1")
        await ours.infer(question(headers={**sent, "cookie": "secret", "content-length": "999", "host": "evil"}))
        await ours.close()
    headers = predictor.requests[0][2]
    assert {name: headers.get(name) for name in sent} == sent
    assert "cookie" not in headers
    assert headers["host"] == f"127.0.0.1:{predictor.port}"


def test_forwarding_keeps_what_kserve_forwards_and_what_it_loses():
    kept = forwarded({"x-request-id": "1", "x-b3-traceid": "2", "authorization": "3", "traceparent": "4", "x": "5"})
    assert kept == {"x-request-id": "1", "x-b3-traceid": "2", "authorization": "3", "traceparent": "4"}


async def test_the_deadline_goes_along_in_microseconds_and_ends_the_call():
    async with Predictor(doubled).listening() as predictor:
        ours = client(predictor.port)
        await ours.infer(question(deadline=time.monotonic() + 5))
        await ours.close()
        length = int(predictor.requests[0][2]["inference-header-content-length"])
        assert 4_000_000 < orjson.loads(predictor.requests[0][3][:length])["parameters"]["timeout"] <= 5_000_000
    async with Predictor(lambda _: b"").listening() as silent:
        ours = client(silent.port)
        with pytest.raises(TimedOut, match="did not answer"):
            await ours.infer(question(deadline=time.monotonic() + 0.05))
        with pytest.raises(TimedOut, match="before the predictor was asked"):
            await ours.infer(question(deadline=time.monotonic() - 1))
        await ours.close()
    assert len(silent.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "expected", "message"),
    [
        (400, b'{"error": "input \'x\': wrong"}', InvalidInput, "^input 'x': wrong$"),
        (422, b'{"detail": "bad"}', InvalidInput, "bad"),
        (404, b'{"error": "no model m"}', UpstreamFailed, "answered 404: no model m"),
        (429, b"{}", Overloaded, "429"),
        (500, b"<html>", UpstreamFailed, "500: <html>"),
        (503, b"{}", NotReady, "503"),
        (504, b"{}", TimedOut, "504"),
    ],
)
async def test_a_status_of_the_predictor_becomes_the_right_error(
    status: int, body: bytes, expected: type, message: str
):
    async with Predictor(http(status, body)).listening() as predictor:
        ours = client(predictor.port, retries=3)
        with pytest.raises(expected, match=message):
            await ours.infer(question())
        await ours.close()
    assert len(predictor.requests) == 1


@pytest.mark.parametrize(("status", "grpc_status"), [(401, 16), (403, 7)])
async def test_a_predictor_that_refuses_the_clients_credentials_says_so_to_the_client(status: int, grpc_status: int):
    codes = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}
    async with Predictor(http(status)).listening() as predictor, Servicer("a", codes[status]).listening() as port:
        for ours in (client(predictor.port), client(port, protocol="grpc-v2")):
            with pytest.raises(ClientError, match="the predictor answered") as caught:
                await ours.infer(question(headers={"authorization": "Bearer x"}))
            assert (caught.value.http_status, caught.value.grpc_status) == (status, grpc_status)
            await ours.close()


async def test_a_request_that_was_sent_is_never_sent_again():
    async with Predictor(lambda _: None).listening() as predictor:
        ours = client(predictor.port, retries=5)
        with pytest.raises(UpstreamFailed, match="closed the connection"):
            await ours.infer(question())
        await ours.close()
    assert len(predictor.requests) == 1


@pytest.mark.parametrize("loop_was_busy", [True, False])
async def test_a_connection_that_the_predictor_closed_while_it_was_idle_is_not_used_again(loop_was_busy: bool):
    """Also where its end lies unread, since the loop had other work: nothing is written to it, so a POST is sent once."""
    connections = socket.create_server(("127.0.0.1", 0))
    closed = threading.Event()
    seen: list[int] = []

    def answer() -> None:
        for count in range(2):
            peer, _ = connections.accept()
            with peer:
                seen.append(len(peer.recv(65536)))
                body = (
                    b'{"model_name": "m", "outputs": [{"name": "y", "datatype": "INT64", "shape": [1], "data": [7]}]}'
                )
                peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                if count == 0:
                    assert go_on.wait(10)
            closed.set()

    go_on = threading.Event()
    thread = threading.Thread(target=answer)
    thread.start()
    ours = client(connections.getsockname()[1], timeout_s=10)
    await ours.infer(question())
    go_on.set()
    if loop_was_busy:
        assert closed.wait(10)  # the loop stands still, as under a model's own work
    else:
        await asyncio.to_thread(closed.wait, 10)
    assert (await ours.infer(question())).outputs[0].data.tolist() == [7]
    await ours.close()
    thread.join(10)
    connections.close()
    assert len(seen) == 2
    assert all(seen), "each connection was asked once"


async def test_a_GET_that_an_idle_connection_leaves_unanswered_is_sent_once_more_and_a_POST_is_not():
    ready = http(200)
    async with Predictor(ready, lambda _: None, ready, lambda _: None, ready).listening() as predictor:
        ours = client(predictor.port, retries=0)
        assert await ours.server_ready()
        assert await ours.server_ready()
        assert (len(predictor.requests), predictor.connections) == (3, 2)
        with pytest.raises(UpstreamFailed, match="closed the connection"):
            await ours.infer(question())
        assert len(predictor.requests) == 4
        assert await ours.server_ready()
        await ours.close()


async def test_a_refusal_with_retry_after_is_tried_again_within_the_deadline():
    async with Predictor(http(503, retry_after="0"), doubled).listening() as predictor:
        ours = client(predictor.port, retries=1)
        assert (await ours.infer(question())).outputs[0].data.tolist() == [[3.0, 5.0]]
        await ours.close()
    assert len(predictor.requests) == 2
    async with Predictor(http(503, retry_after="30")).listening() as predictor:
        ours = client(predictor.port, retries=1)
        with pytest.raises(NotReady):
            await ours.infer(question(deadline=time.monotonic() + 5))
        await ours.close()
    assert len(predictor.requests) == 1


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2", "v1"])
async def test_a_predictor_that_is_not_there_yet_is_tried_again_and_without_retries_is_not(protocol: str):
    port = free_port()
    ours = client(port, protocol=protocol)
    with pytest.raises(UpstreamFailed, match="no connection"):
        await ours.infer(question())
    await ours.close()


async def test_a_connection_refused_at_first_is_retried():
    port = free_port()
    ours = client(port, retries=4)
    asking = asyncio.ensure_future(ours.infer(question()))
    await asyncio.sleep(0.05)  # the first attempt is refused
    predictor = Predictor(doubled)
    server = await asyncio.start_server(predictor._accepted, "127.0.0.1", port)
    assert (await asking).outputs[0].data.tolist() == [[3.0, 5.0]]
    await ours.close()
    server.close()


async def test_an_answer_that_is_no_http_or_no_inference_is_the_predictors_fault():
    for answer in (lambda _: b"SSH-2.0-x\r\n\r\n", http(200, b"[]"), http(200, b'{"outputs": 3}')):
        async with Predictor(answer).listening() as predictor:
            ours = client(predictor.port)
            with pytest.raises(UpstreamFailed):
                await ours.infer(question())
            await ours.close()


async def test_cancelling_a_call_closes_its_connection_and_the_next_call_works():
    async with Predictor(lambda _: b"", doubled).listening() as predictor:
        ours = client(predictor.port)
        asking = asyncio.ensure_future(ours.infer(question()))
        while not predictor.requests:
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (await ours.infer(question())).outputs[0].data.tolist() == [[3.0, 5.0]]
        await ours.close()
    assert predictor.connections == 2


async def test_a_chunked_answer_and_a_closed_connection_are_read():
    body = orjson.dumps({"model_name": "m", "outputs": [{"name": "y", "datatype": "INT64", "shape": [1], "data": [7]}]})
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:10], body[10:])) + b"0\r\n\r\n"
    async with Predictor(lambda _: head + chunks).listening() as predictor:
        ours = client(predictor.port)
        for _ in range(2):
            assert (await ours.infer(question())).outputs[0].data.tolist() == [7]
        await ours.close()
    assert predictor.connections == 2


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"]
)
async def test_an_interim_response_in_the_same_segment_is_passed_over(interim: bytes):
    async with Predictor(lambda predictor: interim + doubled(predictor)).listening() as predictor:
        ours = client(predictor.port, timeout_s=5)
        for _ in range(2):
            assert (await ours.infer(question())).outputs[0].data.tolist() == [[3.0, 5.0]]
        await ours.close()
    assert predictor.connections == 1


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_without_a_length_ends_with_its_connection(version: bytes):
    body = orjson.dumps({"model_name": "m", "outputs": [{"name": "y", "datatype": "INT64", "shape": [1], "data": [7]}]})

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/" + version + b" 200 OK\r\ncontent-type: application/json\r\n\r\n" + body[:9])
        await writer.drain()
        writer.write(body[9:])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        ours = client(server.sockets[0].getsockname()[1], timeout_s=5)
        for _ in range(2):
            assert (await ours.infer(question())).outputs[0].data.tolist() == [7]
        await ours.close()


async def test_an_answer_cut_short_is_the_predictors_fault():
    whole = http(200, b'{"model_name": "m"}')
    for cut in (5, 20, -3):

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: int = cut) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(whole(Predictor())[:cut])
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            ours = client(server.sockets[0].getsockname()[1], timeout_s=5)
            with pytest.raises(UpstreamFailed, match="before it had answered"):
                await ours.infer(question())
            await ours.close()


async def test_v1_rows_go_out_and_predictions_come_back():
    async with Predictor(http(200, b'{"predictions": [[1, 2]]}')).listening() as predictor:
        ours = client(predictor.port, protocol="v1")
        assert (await ours.infer(question())).outputs[0].data.tolist() == [[1, 2]]
        words = np.array([b"a", b"b"], dtype=object)
        two = InferRequest("m", [Tensor.of("n", np.array([1, 2])), Tensor.of("s", words)])
        await ours.infer(two)
        await ours.close()
    assert predictor.requests[0][1] == "/v1/models/m:predict"
    assert orjson.loads(predictor.requests[0][3]) == {"instances": [[1.5, 2.5]]}
    assert orjson.loads(predictor.requests[1][3]) == {"instances": [{"n": 1, "s": "a"}, {"n": 2, "s": "b"}]}


@pytest.mark.parametrize("trusted", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", ""])
@pytest.mark.parametrize("protocol", ["v2", "v1", "grpc-v2"])
async def test_a_predictor_over_TLS_is_asked_where_its_certificate_is_trusted(
    protocol: str, trusted: str, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    key, chain = certificate
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
        monkeypatch.delenv(name, raising=False)
    if trusted:
        monkeypatch.setenv(trusted, str(chain))
    answer = http(200, b'{"predictions": [[3.0, 5.0]]}') if protocol == "v1" else doubled
    async with contextlib.AsyncExitStack() as stack:
        if protocol == "grpc-v2":
            port = await stack.enter_async_context(Servicer("a").listening(tls=(key.read_bytes(), chain.read_bytes())))
        else:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(chain, key)
            port = (await stack.enter_async_context(Predictor(answer).listening(tls=tls))).port
        settings = PredictorSettings(host=f"localhost:{port}", protocol=protocol, use_ssl=True, timeout_s=10)
        ours = PredictorClient(settings)
        stack.push_async_callback(ours.close)
        if trusted:
            assert (await ours.infer(question())).outputs[0].data.tolist() == [[3.0, 5.0]]
        else:
            with pytest.raises(UpstreamFailed, match=r"certificate|SSL|handshake"):
                await ours.infer(question())


def test_a_client_needs_a_host():
    with pytest.raises(ConfigError, match="--predictor_host"):
        PredictorClient(PredictorSettings())
