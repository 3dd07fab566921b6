"""Health (health.proto) and reflection (reflection.proto), on both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import grpc
from conformance_support import Server, server_here
from grpc_support import ENGINES
from serinus.protocol import _open_inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with server_here(engine=request.param) as running:
        yield running


@pytest.fixture
def channel(server: Server) -> grpc.Channel:
    return server.channel


@pytest.mark.parametrize("name", ["", SERVICE, "labels", "versioned", "versioned/2", "readiness", "liveness"])
def test_what_serves_is_serving(channel: grpc.Channel, name: str):
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("name", ["nobody", "versioned/3", "grpc.health.v1.Other"])
def test_the_health_of_what_is_not_there_is_not_found(channel: grpc.Channel, name: str):
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_watch_follows_a_model(server: Server, channel: grpc.Channel):
    health = health_pb2_grpc.HealthStub(channel)
    states = health.Watch(health_pb2.HealthCheckRequest(service="spare"), timeout=30)
    assert next(states).status == health_pb2.HealthCheckResponse.SERVING
    assert server.rpc("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="spare")).code == "OK"
    assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert server.rpc("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="spare")).code == "OK"
    assert next(states).status == health_pb2.HealthCheckResponse.SERVING
    states.cancel()
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="nope"), timeout=30)
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


def test_reflection_describes_the_service_to_its_own_client(channel: grpc.Channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    file = database.FindFileContainingSymbol(SERVICE)
    methods = {method.name for service in file.service for method in service.method}
    assert {"ModelInfer", "ModelStreamInfer", "ServerLive", "RepositoryIndex"} <= methods
    with pytest.raises(KeyError):
        database.FindFileContainingSymbol("no.such.Symbol")
    for name in database.get_services():
        file = database.FindFileContainingSymbol(name)
        assert name in {f"{file.package}.{service.name}" for service in file.service}
        assert database.FindFileByName(file.name) == file


@pytest.mark.parametrize(
    ("symbol", "found"),
    [
        (SERVICE, True),
        (f"{SERVICE}.ModelInfer", True),
        ("grpc.health.v1.Health.Check", True),
        ("inference.ModelInferRequest.InferInputTensor", True),
        ("inference.ModelInferRequest.id", True),
        (f"{SERVICE}.Nothing", False),
        ("ModelInfer", False),
    ],
)
def test_reflection_finds_the_file_of_every_kind_of_symbol(channel: grpc.Channel, symbol: str, found: bool):
    database = ProtoReflectionDescriptorDatabase(channel)
    if found:
        assert database.FindFileContainingSymbol(symbol).name
    else:
        with pytest.raises(KeyError):
            database.FindFileContainingSymbol(symbol)


def test_reflection_speaks_v1_too(channel: grpc.Channel):
    call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = reflection_pb2.ServerReflectionResponse.FromString(next(call(iter([ask.SerializeToString()]), timeout=10)))
    assert SERVICE in {service.name for service in answer.list_services_response.service}
