"""The clients of the field, unchanged: tritonclient and KServe's, over REST, against both transports; and TLS."""

from __future__ import annotations

import socket
import ssl
import subprocess

import httpx
import numpy as np
import pytest

from http_support import Raw
from rest_support import X, rest, rest_in_thread, wire

BOTH = pytest.mark.parametrize("http", ["thin", "uvicorn"])


@BOTH
def test_tritonclient_is_at_home(http):
    http_client = pytest.importorskip("tritonclient.http")
    with rest_in_thread("simple", "row", "echo", http=http) as server:
        client = http_client.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4)
        try:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("row", "2")
            assert not client.is_model_ready("nobody")
            assert client.get_server_metadata()["name"] == "serinus"
            assert client.get_model_metadata("simple")["inputs"][0]["shape"] == [-1, 16]
            assert client.get_model_config("simple")["input"][0]["data_type"] == "TYPE_INT32"
            left = np.arange(16, dtype=np.int32).reshape(1, 16)
            right = np.ones((1, 16), dtype=np.int32)
            for binary in (True, False):
                inputs = [http_client.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in range(2)]
                inputs[0].set_data_from_numpy(left, binary_data=binary)
                inputs[1].set_data_from_numpy(right, binary_data=not binary)
                outputs = [
                    http_client.InferRequestedOutput("OUTPUT0", binary_data=binary),
                    http_client.InferRequestedOutput("OUTPUT1", binary_data=not binary),
                ]
                for coding in (None, "gzip", "deflate"):
                    result = client.infer(
                        "simple",
                        inputs,
                        outputs=outputs,
                        request_id="id-7",
                        request_compression_algorithm=coding,
                        response_compression_algorithm=coding,
                    )
                    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), left + right)
                    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), left - right)
                    assert result.get_response()["id"] == "id-7"
            pending = [client.async_infer("simple", inputs) for _ in range(20)]
            for one in pending:
                np.testing.assert_array_equal(one.get_result().as_numpy("OUTPUT0"), left + right)
            words = np.array([b"a\xff", b"", "é".encode()], dtype=np.object_)
            text = http_client.InferInput("t", [3], "BYTES")
            text.set_data_from_numpy(words)
            assert list(client.infer("echo", [text]).as_numpy("t")) == list(words)
            half = http_client.InferInput("h", [2], "FP16")
            half.set_data_from_numpy(np.array([1.5, -2], dtype=np.float16))
            assert client.infer("echo", [half]).as_numpy("h").dtype == np.float16
            stats = client.get_inference_statistics("simple")["model_stats"][0]
            assert stats["inference_stats"]["success"]["count"] >= 26
            client.unload_model("row")
            assert not client.is_model_ready("row")
            client.load_model("row")
            assert client.is_model_ready("row")
            states = {model["name"]: model["state"] for model in client.get_model_repository_index()}
            assert states["row"] == "READY"
            wrong = http_client.InferInput("INPUT0", [1, 15], "INT32")
            wrong.set_data_from_numpy(left[:, :15])
            with pytest.raises(http_client.InferenceServerException, match="INPUT"):
                client.infer("simple", [wrong, inputs[1]])
        finally:
            client.close()


def test_the_configuration_of_scalars_is_one_that_tritons_clients_take():
    """model_config.proto: `dims` are never empty; a scalar has [1] and `reshape { shape: [] }`. pytriton's client refuses others.

    A client that asks by the configuration (perf_analyzer, pytriton) and one that asks by the metadata are answered alike.
    """
    http_client = pytest.importorskip("tritonclient.http")
    with rest_in_thread("numbers", "one", "row", "simple") as server:
        client = http_client.InferenceServerClient(f"127.0.0.1:{server.port}")
        try:
            for name in ("numbers", "one", "row", "simple"):
                config, metadata = client.get_model_config(name), client.get_model_metadata(name)
                batched = config["max_batch_size"] > 0
                assert batched == (name != "one")
                for key in ("input", "output"):
                    for told, spec in zip(config[key], metadata[f"{key}s"], strict=True):
                        assert told["name"] == spec["name"]
                        assert told["dims"]
                        inner = told["reshape"]["shape"] if "reshape" in told else told["dims"]
                        assert ([-1] if batched else []) + inner == spec["shape"]
            for name, shapes in (("numbers", ([3], [3, 1])), ("one", ([], [1]))):
                for shape in shapes:
                    given = http_client.InferInput("x", shape, "FP32")
                    given.set_data_from_numpy(np.full(shape, 4, np.float32))
                    answer = client.infer(name, [given])
                    assert answer.as_numpy("y").tolist() == np.full(shapes[0], 8).tolist()
        finally:
            client.close()


@BOTH
@pytest.mark.slow
async def test_kserves_client_is_at_home(http):
    kserve = pytest.importorskip("kserve")
    async with rest("row", http=http) as server:
        base = f"http://127.0.0.1:{server.port}"
        two = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
        assert await two.is_server_live(base)
        assert await two.is_server_ready(base)
        assert await two.is_model_ready(base, "row")
        assert not await two.is_model_ready(base, "nobody")
        tensor = kserve.InferInput("x", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.float32([[1, 2, 3]]), binary_data=True)
        request = kserve.InferRequest("row", [tensor], request_id="r", parameters={"binary_data_output": True})
        response = await two.infer(base, request, model_name="row")
        assert response.id == "r"
        np.testing.assert_array_equal(response.outputs[0].as_numpy(), np.float32([[-5, 6]]))
        await two.close()
        one = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1"))
        assert await one.is_server_live(base)
        assert await one.is_model_ready(base, "row")
        assert await one.infer(base, {"instances": [[1, 2, 3]]}, model_name="row") == {"predictions": [[-5.0, 6.0]]}
        server.plane.stop_ready()
        assert not await one.is_model_ready(base, "row")
        await one.close()


@BOTH
async def test_httpx_keeps_its_connection_over_errors(http):
    """Departure 9 of KServe's: an error reset the connection."""
    async with rest("row", "broken", http=http) as server, httpx.AsyncClient() as client:
        base = f"http://127.0.0.1:{server.port}"
        ports = set()
        for path, body in (
            ("row/infer", X),
            ("row/infer", {}),
            ("broken/infer", X),
            ("nobody/infer", X),
            ("row/infer", X),
        ):
            async with client.stream("POST", f"{base}/v2/models/{path}", json=body) as answer:
                await answer.aread()
                ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
        assert len(ports) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += [
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return str(cert), str(key)


@BOTH
async def test_tls(http, certificate):
    cert, key = certificate
    context = ssl.create_default_context(cafile=cert)
    async with rest("row", http=http, ssl_certfile=cert, ssl_keyfile=key) as server:
        client = await Raw.open(server.port, ssl=context)
        for _ in range(2):
            assert (await server.ask_on(client, "POST", "/v2/models/row/infer", X)).status == 200
        await client.send(wire("GET", "/v2") + b"GET /v2 HTTP/1.1\r\nHost : x\r\n\r\n")
        statuses = [(await client.answer()).status]
        if http == "thin":
            statuses.append((await client.answer()).status)
        assert statuses[-1] == 400
        await client.close()
        async with httpx.AsyncClient(verify=context) as modern:
            assert (await modern.get(f"https://127.0.0.1:{server.port}/v2")).json()["name"] == "serinus"


async def test_an_answer_of_two_writes_does_not_wait_for_an_acknowledgement():
    """uvicorn writes the head and then the body; with Nagle's algorithm the body waits 40 ms for the client's delayed ACK."""
    async with rest("row", http="uvicorn") as server:
        client = await Raw.open(server.port)
        assert (await server.ask_on(client, "GET", "/v2")).status == 200
        (connection,) = server.server._server._server.server_state.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await client.close()
