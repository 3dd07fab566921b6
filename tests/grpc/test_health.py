"""Health (health.proto) and reflection (reflection.proto), on both engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import grpc
from conformance_support import Server, server_here
from grpc_support import ENGINES, Running, serving
from serinus.errors import Overloaded
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.grpc.calls_in_flight import SETTLED_S, IdleStreams
from serinus.server.grpc.health import Health
from serinus.server.grpc.service import Service

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


WATCH = f"/{HEALTH}/Watch"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def refusal(channel: grpc.Channel, path: str, message: bytes) -> str:
    """What a stream says to its first message, which is its client's fault."""
    with pytest.raises(grpc.RpcError) as caught:
        if path == WATCH:
            next(channel.unary_stream(path)(message, timeout=20))
        else:
            next(channel.stream_stream(path)(iter([message]), timeout=20))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(caught.value.details())


@pytest.mark.parametrize(
    "message",
    [b"\x0a\x80\x80\x40" + b"x" * (1 << 20), b"\x08\x01" * 2500, b"\x0a\x00" * 100_000],
    ids=["a name of a MiB", "2500 unknown fields", "100000 empty names"],
)
@pytest.mark.parametrize("path", [WATCH, REFLECT])
def test_streams_that_take_a_name_refuse_what_is_larger_before_it_is_decoded(
    channel: grpc.Channel, path: str, message: bytes
):
    assert "at most 4096 are taken" in refusal(channel, path, message)


@pytest.mark.parametrize("message", [b"\x0a\xff", b"\x0a\x02\xff\xfe"], ids=["cut off", "no UTF-8"])
@pytest.mark.parametrize("path", [WATCH, REFLECT])
def test_streams_refuse_what_does_not_decode(channel: grpc.Channel, path: str, message: bytes):
    if path == REFLECT:
        message = message.replace(b"\x0a", b"\x1a")  # file_by_filename
    assert "is not a" in refusal(channel, path, message)


@pytest.mark.parametrize("engine", ENGINES)
def test_many_watchers_are_bounded_share_one_look_and_give_their_places_back(
    engine: str, monkeypatch: pytest.MonkeyPatch
):
    with serving(engine) as running, grpc.insecure_channel(running.address) as client:
        service = service_of(running)
        monkeypatch.setattr(service.idle_streams, "_most", 30)
        watch = client.unary_stream(WATCH)
        watchers = [watch(b"", timeout=60) for _ in range(30)]
        for watcher in watchers:
            assert next(watcher) == health_pb2.HealthCheckResponse(status=1).SerializeToString()
        running.until(lambda: len(service.health._watched) == 1)
        assert len(service.health._watched["", 1]) == 30
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(b"", timeout=20))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("retry-after", "10") in list(caught.value.trailing_metadata() or ())
        with pytest.raises(grpc.RpcError):
            next(client.stream_stream(REFLECT)(iter([b"\x3a\x00"]), timeout=20))
        for watcher in watchers[:15]:
            watcher.cancel()
        running.until(lambda: service.idle_streams.open == 15)
        assert next(client.stream_stream(REFLECT)(iter([b"\x3a\x00"]), timeout=20))
        running.run(stop_ready(running))
        for watcher in watchers[15:]:
            assert next(watcher) == health_pb2.HealthCheckResponse(status=2).SerializeToString()
        for watcher in watchers[15:]:
            watcher.cancel()
        running.until(lambda: not service.idle_streams.open and service.health._looking is None)
        assert not service.health._watched


@pytest.mark.parametrize("engine", ENGINES)
def test_one_client_cannot_keep_all_places_of_streams_that_wait(engine: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serinus.server.grpc.calls_in_flight.SETTLED_S", 0)
    with (
        serving(engine) as running,
        grpc.insecure_channel(running.address) as greedy,
        grpc.insecure_channel(running.address, [("grpc.use_local_subchannel_pool", 1)]) as other,
    ):
        service = service_of(running)
        monkeypatch.setattr(service.idle_streams, "_most", 10)
        held = []
        for _ in range(10):
            held.append(greedy.unary_stream(WATCH)(b"", timeout=30))
            next(held[-1])
        watching = other.unary_stream(WATCH)(b"", timeout=20)
        assert next(watching)
        assert next(other.stream_stream(REFLECT)(iter([b"\x3a\x00"]), timeout=20))
        for stream in held[:2]:
            with pytest.raises(grpc.RpcError) as caught:
                next(stream)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "open it again" in str(caught.value.details())
        assert held[2].is_active()
        assert watching.is_active()
        running.until(lambda: service.idle_streams.open <= 10)


@pytest.mark.parametrize(
    ("held", "newcomer", "loser"),
    [("aab", "c", 0), ("abb", "c", 1), ("abb", "b", 1), ("aaa", "a", 0)],
)
async def test_the_eldest_stream_of_the_client_with_the_most_gives_its_place(held: str, newcomer: str, loser: int):
    now = 0.0
    streams = IdleStreams(len(held), lambda: now)
    with contextlib.ExitStack() as stack:
        places = []
        for client in held:
            now += 1
            places.append(stack.enter_context(streams.place(client)))
        with pytest.raises(Overloaded, match="come back later"):
            stack.enter_context(streams.place(newcomer))
        now += SETTLED_S
        stack.enter_context(streams.place(newcomer))
        assert [number for number, place in enumerate(places) if place.done()] == [loser]
        assert streams.open == len(held)
    assert not streams.open
    assert not streams._places


async def test_what_fails_at_the_look_of_one_name_ends_its_watchers_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serinus.server.grpc.health._POLL_S", 0.01)
    states: dict[str, bool | Exception] = {"good": True, "bad": True}

    class Models:
        def server_ready(self) -> bool:
            return True

        server_live = server_ready

        def model_ready(self, name: str, version: str = "") -> bool:
            state = states[name]
            if isinstance(state, Exception):
                raise state
            return state

    health = Health(Models())
    good, bad = (health.watch(health_pb2.HealthCheckRequest(service=name).SerializeToString()) for name in states)
    assert await anext(good)
    assert await anext(bad)
    next_of_good, next_of_bad = asyncio.ensure_future(anext(good)), asyncio.ensure_future(anext(bad))
    await asyncio.sleep(0)
    states["bad"] = RuntimeError("of the model's own")
    with pytest.raises(RuntimeError, match="of the model's own"):
        await asyncio.wait_for(next_of_bad, 20)
    states["good"] = False
    assert await asyncio.wait_for(next_of_good, 20) == health_pb2.HealthCheckResponse(status=2).SerializeToString()
    await good.aclose()


def service_of(running: Running) -> Service:
    """What both engines call."""
    engine = running.server._engine
    return engine._service if engine.name == "grpcio" else engine.service


async def stop_ready(running: Running) -> None:
    """Have the plane say that it is not ready, on its loop."""
    running.plane.stop_ready()
