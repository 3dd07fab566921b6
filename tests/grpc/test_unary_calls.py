"""Each unary call's bytes are read as its own message, and those that are none are refused with its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dataplane_support import Doubler, serving
from serinus import ModelSettings
from serinus.errors import InvalidInput, NotFound
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.grpc.unary_calls import UnaryCalls

SERVICE = "/inference.GRPCInferenceService"
DAMAGED = b"\x0a\xff"
NAMES = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
)


def calls_of(plane: Any, *, ready: bool = True, repository: Any = None) -> Any:
    def model_ready(name: str, version: str) -> bool:
        return ready and plane.model_ready(name, version)

    readiness: Any = SimpleNamespace(server_live=lambda: True, server_ready=lambda: ready, model_ready=model_ready)
    return UnaryCalls(plane, readiness, repository, mlservers_metadata=False).by_path()


@pytest.mark.parametrize("name", NAMES)
async def test_bytes_that_are_no_such_message_are_refused_by_every_call(name: str):
    async with serving(Doubler) as plane:
        with pytest.raises(InvalidInput) as refused:
            await calls_of(plane)[f"{SERVICE}/{name}"](DAMAGED)
    assert str(refused.value) == f"the message is not a inference.{name}Request: 2 bytes do not decode"


@pytest.mark.parametrize("ready", [True, False])
async def test_a_server_says_that_it_lives_whether_it_is_ready_or_not(ready: bool):
    async with serving(Doubler) as plane:
        calls = calls_of(plane, ready=ready)
        assert pb.ServerLiveResponse.FromString(await calls[f"{SERVICE}/ServerLive"](b"")).live
        assert pb.ServerReadyResponse.FromString(await calls[f"{SERVICE}/ServerReady"](b"")).ready is ready
        asked = pb.ModelReadyRequest(name="m").SerializeToString()
        assert pb.ModelReadyResponse.FromString(await calls[f"{SERVICE}/ModelReady"](asked)).ready is ready


ASKED = {
    "ModelReady": pb.ModelReadyRequest,
    "ModelMetadata": pb.ModelMetadataRequest,
    "ModelConfig": pb.ModelConfigRequest,
    "ModelStatistics": pb.ModelStatisticsRequest,
}


@pytest.mark.parametrize("name", ASKED)
async def test_a_model_is_asked_for_by_its_name_and_version(name: str):
    async with serving(Doubler, ModelSettings(name="m", version="2")) as plane:
        call, kind = calls_of(plane)[f"{SERVICE}/{name}"], ASKED[name]
        for version in ("", "2"):
            assert await call(kind(name="m", version=version).SerializeToString())
        for fields in ({"name": "other"}, {"name": "m", "version": "3"}):
            with pytest.raises(NotFound):
                await call(kind(**fields).SerializeToString())


LOAD, UNLOAD = f"{SERVICE}/RepositoryModelLoad", f"{SERVICE}/RepositoryModelUnload"


async def test_models_are_loaded_and_unloaded_by_their_names():
    async with serving(Doubler) as plane:
        calls = calls_of(plane)
        old = plane.registry.find("m")
        answer = pb.RepositoryModelLoadResponse.FromString(
            await calls[LOAD](pb.RepositoryModelLoadRequest(model_name="m").SerializeToString())
        )
        assert (answer.model_name, answer.isLoaded) == ("m", True)
        assert plane.registry.find("m") is not old
        gone = pb.RepositoryModelUnloadResponse.FromString(
            await calls[UNLOAD](pb.RepositoryModelUnloadRequest(model_name="m").SerializeToString())
        )
        assert (gone.model_name, gone.isUnloaded) == ("m", True)
        with pytest.raises(NotFound):
            plane.registry.find("m")


async def test_where_several_workers_share_the_port_all_of_them_are_told():
    told: list[Any] = []

    async def repository(action: str, name: str, parameters: Any) -> None:
        told.append((action, name, dict(parameters)))

    async with serving(Doubler) as plane:
        old = plane.registry.find("m")
        calls = calls_of(plane, repository=repository)
        load = pb.RepositoryModelLoadRequest(model_name="m")
        load.parameters["config"].string_param = "{}"
        await calls[LOAD](load.SerializeToString())
        await calls[UNLOAD](pb.RepositoryModelUnloadRequest(model_name="m").SerializeToString())
        assert told == [("load", "m", {"config": "{}"}), ("unload", "m", {})]
        assert plane.registry.find("m") is old
