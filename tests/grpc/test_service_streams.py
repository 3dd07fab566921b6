"""Streams of requests and of answers on bytes, without a gRPC engine; and what the installed packages decide of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, serving
from grpc_calls import Heard, deflated, message_of, request, service_of
from serinus import ModelSettings
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import (
    InvalidInput,
    NotFound,
)
from serinus.model import Model
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.grpc.service import (
    Service,
)
from stream_support import Conversing, Counting

# Streams


async def one_after_the_other(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


def counting(model: str = "counting", count: int = 3, *, version: str = "", **parameters: bool) -> bytes:
    message = message_of(model, np.array([count], np.int64), name="count", version=version)
    for name, value in parameters.items():
        message.parameters[name].bool_param = value
    return message.SerializeToString()


STREAMING = {"counting": Counting, "conversing": Conversing, "m": Doubler}


def make(settings: ModelSettings) -> Model:
    return STREAMING[settings.name](settings)


def streaming(**fields: Any) -> Any:
    return serving(make, *(ModelSettings(name=name, warmup=False) for name in STREAMING), metrics=Metrics(), **fields)


@pytest.mark.parametrize(
    ("asked", "final"),
    [
        ({}, False),
        ({"triton_enable_empty_final_response": True}, True),
        ({"triton_enable_empty_final_response": False}, False),
    ],
)
async def test_a_model_that_streams_answers_a_request_of_a_stream_with_any_number(asked: Any, final: bool):
    async with streaming() as plane:
        heard = Heard()
        begun = service_of(plane).infer(counting(**asked), {}, None, heard, stream=True)
        responses = await heard.told
        assert responses is begun
        assert responses.final_wanted is final
        assert [pb.ModelInferResponse.FromString(each).model_name for each in [one async for one in responses]] == [
            "counting"
        ] * 3
        assert "triton_enable_empty_final_response" not in responses.request.parameters


async def test_a_model_that_does_not_stream_answers_one_of_a_stream_and_a_unary_call_leaves_the_parameter_alone():
    async with streaming() as plane:
        service = service_of(plane)
        heard = Heard()
        service.infer(request(), {}, None, heard, stream=True)
        await heard.response()
        message = message_of("m", np.ones((1, 2), np.float32))
        message.parameters["triton_enable_empty_final_response"].bool_param = True
        decoded, final = service._decode(message.SerializeToString(), {}, None, stream=False)
        assert (final, decoded.parameters) == (False, {"triton_enable_empty_final_response": True})
        message.parameters["other"].bool_param = True
        decoded, final = service._decode(message.SerializeToString(), {}, 5.0, stream=True)
        assert (final, decoded.parameters, decoded.deadline) == (True, {"other": True}, 5.0)


async def whole(service: Service, *messages: bytes) -> list[int] | None:
    """The numbers of a stream that goes to its model as a whole; None: it does not."""
    responses = await service.whole_stream(messages[0], one_after_the_other(*messages[1:]), {}, None)
    if responses is None:
        return None
    found = [pb.ModelInferResponse.FromString(each) async for each in responses]
    return [int(np.frombuffer(each.raw_output_contents[0], np.int64)[0]) for each in found]


async def test_a_stream_goes_to_its_model_as_a_whole_where_that_wants_it_so(monkeypatch: pytest.MonkeyPatch):
    async with streaming() as plane:
        service = service_of(plane)
        assert await whole(service, counting("conversing", 1), counting("conversing", 1)) is not None
        assert await whole(service, deflated(counting("conversing", 1))) is not None
        for first in (
            *(counting("counting"), request(), counting("none"), b"\xff"),
            counting("conversing", triton_enable_empty_final_response=True),
        ):
            assert await whole(service, first) is None
        assert await whole(service_of(plane, grpc_stream_form="triton"), counting("conversing")) is None


@pytest.mark.parametrize(("name", "version"), [("counting", ""), ("conversing", "2")])
async def test_a_stream_that_is_taken_as_a_whole_is_of_one_model(name: str, version: str):
    async with streaming() as plane:
        other = counting(name, 1, version=version)
        with pytest.raises(InvalidInput, match=f"a request for model '{name}' came on a stream of model 'conversing'"):
            await whole(service_of(plane), counting("conversing", 1), other)


@pytest.mark.parametrize("beside", [False, True])
async def test_beside_mlserver_a_stream_of_no_model_ends_with_a_status(beside: bool):
    async with streaming() as plane:
        service = service_of(plane)
        service._beside_mlserver = beside
        if beside:
            with pytest.raises(NotFound):
                await whole(service, counting("none"))
        else:
            assert await whole(service, counting("none")) is None
        assert await whole(service, counting("none", triton_enable_empty_final_response=True)) is None


@pytest.mark.parametrize(
    ("form", "beside", "mlservers"),
    [("auto", False, False), ("auto", True, True), ("mlserver", False, True), ("kserve", True, False)],
)
async def test_metadata_have_the_form_that_clients_here_read(
    form: str, beside: bool, mlservers: bool, monkeypatch: pytest.MonkeyPatch
):
    sought: list[str] = []
    monkeypatch.setattr(
        "serinus.server.grpc.service.importlib.util.find_spec",
        lambda name: sought.append(name) or (object() if beside else None),
    )
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane, grpc_metadata_form=form)
        assert sought == ["mlserver"]
        assert (service._beside_mlserver, service._mlservers_metadata) == (beside, mlservers)
