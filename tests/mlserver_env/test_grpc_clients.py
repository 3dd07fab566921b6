"""MLServer's own gRPC stub, as its clients use it, asks serinus: every answer decodes, and no error looks like a success."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mlserver.codecs import NumpyCodec
from mlserver.grpc import converters
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest
from processes import OURS, Address

import grpc
from serinus.server.grpc.grpc_server import choose_engine
from serinus.settings import ServerSettings


@pytest.fixture
def stub(ours: Address) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(ours.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def request(name: str) -> Any:
    payload = InferenceRequest(inputs=[NumpyCodec.encode_input("x", np.ones((1, 2), np.float32))])
    return converters.ModelInferRequestConverter.from_types(payload, model_name=name, model_version=None)


def test_calls_are_served_by_the_native_engine_here_too():
    """Its package has no requirements that could meet MLServer's."""
    assert choose_engine(ServerSettings()) == "native"


@pytest.mark.parametrize("name", ["theirs", "ours"])
def test_metadata_decodes_with_the_parameters_as_mlserver_has_them(stub: GRPCInferenceServiceStub, name: str):
    message = stub.ModelMetadata(pb.ModelMetadataRequest(name=name), timeout=30)
    metadata = converters.ModelMetadataResponseConverter.to_types(message)
    assert metadata.name == name
    assert message.parameters["execution"].string_param
    assert {parameter.WhichOneof("parameter_choice") for parameter in message.parameters.values()} == {"string_param"}
    if name == "ours":
        assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs] == [
            ("x", "FP32", [-1, 2])
        ]
        assert message.parameters["long"].string_param.rstrip() == "l" * 300


def test_every_other_call_decodes_too(stub: GRPCInferenceServiceStub):
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=30).name == "serinus"
    assert stub.ModelReady(pb.ModelReadyRequest(name="ours"), timeout=30).ready
    index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=30)
    assert {model.name: model.state for model in index.models} == dict.fromkeys(OURS, "READY")
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="theirs"), timeout=30)
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="theirs"), timeout=30)
    for name in ("ours", "theirs"):
        answer = converters.ModelInferResponseConverter.to_types(stub.ModelInfer(request(name), timeout=30))
        assert answer.model_name == name


def test_a_model_that_is_not_there_ends_a_stream_with_its_status(stub: GRPCInferenceServiceStub):
    answers = stub.ModelStreamInfer(iter([request("nobody")]), timeout=30)
    with pytest.raises(grpc.RpcError, match="'nobody' is not known"):
        next(answers)
    assert answers.code() == grpc.StatusCode.NOT_FOUND


def test_an_error_in_the_place_of_a_response_of_tritons_is_an_error_for_mlservers_stub(empty: Address):
    with grpc.insecure_channel(empty.grpc) as channel:
        answers = GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request("nobody")]), timeout=30)
        with pytest.raises(grpc.RpcError):
            next(answers)
