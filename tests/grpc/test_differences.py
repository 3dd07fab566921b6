"""Where gRPC answers otherwise than a peer on purpose (runtimes/serinus/DIFFERENCES.md), on both engines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

import grpc
from grpc_support import ENGINES, Running, serving

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
ENTRY = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[2, 3])


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving(request.param) as running:
        yield running


@pytest.fixture
def stub(server: Running) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


NOT_OFFERED = {
    "SystemSharedMemoryRegister": (lambda client: client.register_system_shared_memory("r", "/r", 64), "shared memory"),
    "SystemSharedMemoryStatus": (lambda client: client.get_system_shared_memory_status(), "shared memory"),
    "SystemSharedMemoryUnregister": (lambda client: client.unregister_system_shared_memory(), "shared memory"),
    "CudaSharedMemoryRegister": (
        lambda client: client.register_cuda_shared_memory("r", b"AA==", 0, 64),
        "shared memory",
    ),
    "CudaSharedMemoryStatus": (lambda client: client.get_cuda_shared_memory_status(), "shared memory"),
    "CudaSharedMemoryUnregister": (lambda client: client.unregister_cuda_shared_memory(), "shared memory"),
    "TraceSetting": (lambda client: client.get_trace_settings(), "trace"),
    "LogSettings": (lambda client: client.get_log_settings(), "logging"),
}


@pytest.mark.parametrize("method", NOT_OFFERED)
def test_an_extension_that_is_not_offered_is_refused_in_words(server: Running, method: str):
    call, words = NOT_OFFERED[method]
    with triton.InferenceServerClient(server.address) as client, pytest.raises(InferenceServerException) as refused:
        call(client)
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
    assert words in refused.value.message()
    assert "not offered" in refused.value.message()


def test_raw_outputs_need_no_size_beside_them_and_headers_come_first(stub):
    request = pb.ModelInferRequest(model_name="sum", inputs=[ENTRY], raw_input_contents=[X.tobytes()])
    response = stub.ModelInfer(request, timeout=20)
    assert len(response.raw_output_contents) == len(response.outputs) == 2
    assert [dict(output.parameters) for output in response.outputs] == [{}, {}]
    request = pb.ModelInferRequest(model_name="echo", inputs=[ENTRY], raw_input_contents=[X.tobytes()])
    _, call = stub.ModelInfer.with_call(request, timeout=20)
    assert ("x-model", "echo") in [(key, value) for key, value in call.initial_metadata()]
    assert "x-model" not in [key for key, _ in call.trailing_metadata() or ()]


def test_a_streams_request_for_an_unknown_model_is_answered_in_the_stream(stub):
    replies = list(stub.ModelStreamInfer(iter([pb.ModelInferRequest(model_name="nobody")]), timeout=20))
    assert ["model 'nobody' is not known" in reply.error_message for reply in replies] == [True]
