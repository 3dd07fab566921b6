"""The Open Inference Protocol over gRPC, on both engines, by the clients of the field.

Sources: inference_grpc.md; Triton's grpc_service.proto and its extension documents; health.proto; reflection.proto.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

import grpc
from grpc_support import ENGINES, INFER, Running, serving

SERVICE = "inference.GRPCInferenceService"
X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


@pytest.fixture(scope="module", params=ENGINES)
def server(request):
    with serving(request.param) as running:
        yield running


@pytest.fixture
def client(server: Running):
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture
def channel(server: Running):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def sum_request(**fields) -> pb.ModelInferRequest:
    """A right request for the model `sum`, changed by `fields`."""
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[2, 3])
    base = {"model_name": "sum", "inputs": [entry], "raw_input_contents": [X.tobytes()]}
    return pb.ModelInferRequest(**{**base, **fields})


def failure(call, *arguments, **options) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=10, **options)
    return caught.value


# Health and metadata


def test_the_server_is_live_and_ready_and_says_what_it_is(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata.name == "serinus"
    assert metadata.version
    assert {"model_repository", "statistics", "schedule_policy", "parameters", "classification"} <= set(
        metadata.extensions
    )


def test_a_model_is_ready_and_describes_itself(client):
    assert client.is_model_ready("sum")
    metadata = client.get_model_metadata("sum")
    assert (metadata.name, metadata.platform) == ("sum", "serinus_test")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 3])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("y", "FP32", [-1, 1]),
        ("n", "INT64", [-1, 1]),
    ]


def test_a_models_configuration_says_how_it_is_batched(client):
    config = client.get_model_config("sum").config
    assert (config.name, config.max_batch_size) == ("sum", 4096)
    assert [(t.name, list(t.dims)) for t in config.input] == [("x", [3])]
    assert client.get_model_config("echo").config.max_batch_size == 0


def test_a_scalar_has_dims_that_tritons_own_messages_read(client):
    """service_pb2 and model_config_pb2 are tritonclient's: `reshape` is there, and empty."""
    told = client.get_model_config("scalars").config
    assert told.max_batch_size > 0
    for tensor in (*told.input, *told.output):
        assert list(tensor.dims) == [1]
        assert tensor.HasField("reshape")
        assert list(tensor.reshape.shape) == []
    wide = client.get_model_config("sum").config
    assert not any(tensor.HasField("reshape") for tensor in (*wide.input, *wide.output))


# Inference


def test_raw_in_gives_raw_out(stub):
    response = stub.ModelInfer(sum_request(id="7"))
    assert (response.model_name, response.model_version, response.id) == ("sum", "", "7")
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("y", "FP32", [2, 1]),
        ("n", "INT64", [2, 1]),
    ]
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [6, 15]
    assert not any(output.HasField("contents") for output in response.outputs)


def test_typed_in_gives_typed_out(stub):
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[2, 3])
    entry.contents.fp32_contents.extend(X.reshape(-1).tolist())
    response = stub.ModelInfer(pb.ModelInferRequest(model_name="sum", inputs=[entry]))
    assert list(response.outputs[0].contents.fp32_contents) == [6, 15]
    assert list(response.outputs[1].contents.int64_contents) == [3, 3]
    assert not response.raw_output_contents


ARRAYS = {
    "BOOL": np.array([True, False]),
    **{f"{kind.upper()}{bits}": np.array([np.iinfo(f"{kind}{bits}").min, np.iinfo(f"{kind}{bits}").max], f"{kind}{bits}")
       for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "FP16": np.array([-0.0, 65504], np.float16),
    "FP32": np.array([np.nan, 1e-45], np.float32),
    "FP64": np.array([-np.inf, 5e-324]),
    "BYTES": np.array([b"", b"\x00\xff\xc3("], object),
}  # fmt: skip


@pytest.mark.parametrize("datatype", ARRAYS)
def test_every_datatype_goes_and_comes_back_bit_for_bit(client, datatype):
    array = ARRAYS[datatype]
    back = client.infer("echo", [tensor("a", array, datatype)]).as_numpy("a")
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes() if datatype != "BYTES" else back.tolist() == array.tolist()


def test_BF16_goes_and_comes_back_raw(stub):
    raw = np.array([0x3F80, 0xFF80, 0x7FC0], np.uint16).tobytes()
    entry = pb.ModelInferRequest.InferInputTensor(name="a", datatype="BF16", shape=[3])
    response = stub.ModelInfer(pb.ModelInferRequest(model_name="echo", inputs=[entry], raw_input_contents=[raw]))
    assert (response.outputs[0].datatype, response.raw_output_contents[0]) == ("BF16", raw)


def in_a_process_of_its_own(script: str, *arguments: str) -> str:
    """Run a client apart: KServe's and Triton's messages cannot share a process, nor can grpc.aio serve two event loops."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_async_client_is_answered_many_at_a_time(server):
    script = """if 1:
        import asyncio, sys, numpy as np
        from tritonclient.grpc import InferInput, aio
        async def main():
            async with aio.InferenceServerClient(sys.argv[1]) as client:
                async def one(i):
                    x = InferInput("x", [1, 3], "FP32")
                    x.set_data_from_numpy(np.full((1, 3), i, np.float32))
                    result = await client.infer("sum", [x], request_id=str(i))
                    assert result.get_response().id == str(i)
                    return float(result.as_numpy("y")[0, 0])
                assert await asyncio.gather(*(one(i) for i in range(200))) == [3 * i for i in range(200)]
            print("answered")
        asyncio.run(main())
    """
    assert in_a_process_of_its_own(script, server.address) == "answered"


@pytest.mark.slow
def test_kserves_own_client_is_answered_by_each_engine():
    script = """if 1:
        import asyncio, sys, numpy as np
        from kserve import InferenceGRPCClient, InferInput, InferRequest
        async def main(address):
            client = InferenceGRPCClient(address)
            assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("sum")
            for raw in (True, False):
                x = InferInput("x", [2, 3], "FP32")
                x.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3), binary_data=raw)
                answer = await client.infer(InferRequest(model_name="sum", infer_inputs=[x], request_id="k1"))
                assert answer.outputs[0].as_numpy().tolist() == [[3.0], [12.0]], answer
                assert answer.id == "k1"
            await client.close()
            print("answered")
        for address in sys.argv[1:]:
            asyncio.run(main(address))
    """
    with contextlib.ExitStack() as running:
        servers = [running.enter_context(serving(engine)) for engine in ENGINES]
        said = in_a_process_of_its_own(script, *(each.address for each in servers))
    assert said.splitlines()[-len(ENGINES) :] == ["answered"] * len(ENGINES)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_is_accepted(client, algorithm):
    for x in (np.zeros((50_000, 3), np.float32), np.random.default_rng(1).random((1, 3), np.float32)):
        result = client.infer("sum", [tensor("x", x, "FP32")], compression_algorithm=algorithm)
        np.testing.assert_allclose(result.as_numpy("y"), x.sum(axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=["gzip", "deflate"])
def test_a_channel_may_compress_all_it_sends(server, compression):
    with grpc.insecure_channel(server.address, compression=compression) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[2_000, 3])
        large = sum_request(inputs=[entry], raw_input_contents=[bytes(24_000)])
        assert len(stub.ModelInfer(large).raw_output_contents[0]) == 8_000
        assert stub.ModelInfer(sum_request(), compression=grpc.Compression.NoCompression).raw_output_contents
        bad = sum_request(id="bad", inputs=[entry], raw_input_contents=[bytes(23_999)])
        streamed = list(stub.ModelStreamInfer(iter([large, bad, sum_request()])))
        assert [bool(answer.error_message) for answer in streamed] == [False, True, False]
        assert streamed[1].infer_response.id == "bad"
        unknown = sum_request(model_name="nobody", inputs=[entry], raw_input_contents=[bytes(23_999)])
        assert failure(stub.ModelInfer, unknown).code() == grpc.StatusCode.NOT_FOUND
        load = pb.RepositoryModelLoadRequest(model_name="sum")
        load.parameters["config"].string_param = "{" + " " * 5_000 + "}"
        stub.RepositoryModelLoad(load)
        entry = pb.ModelInferRequest.InferInputTensor(name="a", datatype="UINT8", shape=[5_000])
        request = pb.ModelInferRequest(model_name="echo", inputs=[entry], raw_input_contents=[bytes(5_000)])
        saw = stub.ModelInfer(request).parameters["saw"].string_param.split(",")
        assert not any("codec" in name for name in saw), saw


# Metadata


def test_metadata_reaches_the_model_as_headers_without_the_binary_ones(stub):
    metadata = (("tenant", "acme"), ("tenant", "two"), ("x-request-id", "r-1"), ("blob-bin", b"\x00\xff"))
    entry = pb.ModelInferRequest.InferInputTensor(name="a", datatype="UINT8", shape=[1])
    request = pb.ModelInferRequest(model_name="echo", inputs=[entry], raw_input_contents=[b"\x01"])
    response, call = stub.ModelInfer.with_call(request, metadata=metadata)
    saw = response.parameters["saw"].string_param.split(",")
    assert {"tenant", "x-request-id", "user-agent"} <= set(saw)
    assert not any(
        name.endswith("-bin") or name.startswith(("grpc-", ":")) or name in {"te", "content-type"} for name in saw
    )
    assert response.parameters["tenant"].string_param == "acme,two"
    sent = dict(call.initial_metadata())
    assert sent["x-request-id"] == "r-1"
    assert sent["x-model"] == "echo"
    assert "x-umlaut" not in sent
    assert "grpc-reserved" not in sent
    assert "text/plain" not in sent.values()


def test_a_request_id_is_echoed_only_where_there_is_one(stub):
    _, call = stub.ModelInfer.with_call(sum_request())
    assert "x-request-id" not in dict(call.initial_metadata())


def test_errors_that_no_model_holds_are_counted(server, channel):
    failure(channel.unary_unary(INFER), b"\xff")
    page = server.metrics.render().decode()
    assert any("grpc" in line and '"3"' in line for line in page.splitlines() if not line.startswith("#")), page[:2000]


# Streams


def streamed(client: triton.InferenceServerClient, requests) -> list:
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=20)
    for name, x, number in requests:
        client.async_stream_infer(name, [tensor("x", x, "FP32")], request_id=number)
    got = [answers.get(timeout=20) for _ in requests]
    client.stop_stream()
    return got


def test_a_stream_is_answered_in_order_and_survives_a_bad_request(client):
    requests = [("sum" if i != 50 else "nope", np.full((1, 3), i, np.float32), str(i)) for i in range(100)]
    for i, (result, error) in enumerate(streamed(client, requests)):
        if i == 50:
            assert isinstance(error, InferenceServerException)
            assert "nope" in error.message()
        else:
            assert error is None
            assert result.get_response().id == str(i)
            assert result.as_numpy("y").tolist() == [[3.0 * i]]
            assert result.get_response().parameters["triton_final_response"].bool_param


def test_a_streams_error_says_which_request_it_is_for(stub):
    requests = iter([sum_request(model_name="nope", id="a"), sum_request(id="b")])
    first, second = list(stub.ModelStreamInfer(requests, timeout=20))
    assert (first.infer_response.id, second.infer_response.id) == ("a", "b")
    assert "nope" in first.error_message
    assert second.error_message == ""


# Repository and statistics


def test_models_are_listed_unloaded_and_loaded(client):
    listed = {model.name: model.state for model in client.get_model_repository_index().models}
    assert listed["big"] == "READY"
    client.unload_model("big")
    assert {m.name: m.state for m in client.get_model_repository_index().models}["big"] == "UNAVAILABLE"
    assert not client.is_model_ready("big")
    with pytest.raises(InferenceServerException, match="big") as caught:
        client.infer("big", [tensor("x", X, "FP32")])
    assert "NOT_FOUND" in caught.value.status()
    client.load_model("big")
    assert client.is_model_ready("big")


def test_loading_what_is_not_there_is_not_found(stub):
    assert (
        failure(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="nope")).code()
        == grpc.StatusCode.NOT_FOUND
    )


def test_statistics_count_every_inference(client):
    def count() -> int:
        return client.get_inference_statistics("sum").model_stats[0].inference_count

    before = count()
    client.infer("sum", [tensor("x", X, "FP32")])
    stats = client.get_inference_statistics("sum").model_stats[0]
    assert stats.inference_count > before
    assert stats.inference_stats.success.ns >= stats.inference_stats.compute_infer.ns > 0
