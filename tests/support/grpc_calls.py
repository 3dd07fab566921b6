"""Calls on bytes, as a gRPC engine hands them to the service, and what the service tells of them."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

import numpy as np

from serinus.dataplane.plane import Plane
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.grpc.answers import Failure, Metadata, Responses
from serinus.server.grpc.deflate import DEFLATED
from serinus.server.grpc.service import (
    Service,
)
from serinus.settings import ServerSettings

TOKEN = "a-token-of-a-person-0123456789"


class Heard:
    """An `Answer` that notes what it is told."""

    def __init__(self) -> None:
        self.told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def respond(self, payload: bytes, metadata: Metadata | None) -> None:
        self.told.set_result((payload, metadata))

    def fail(self, failure: Failure) -> None:
        self.told.set_result(failure)

    def begin(self, responses: Responses) -> None:
        self.told.set_result(responses)

    async def failure(self) -> Failure:
        told = await asyncio.wait_for(self.told, 10)
        assert isinstance(told, Failure), told
        return told

    async def response(self) -> tuple[pb.ModelInferResponse, Metadata | None]:
        told = await asyncio.wait_for(self.told, 10)
        assert isinstance(told, tuple)
        assert not isinstance(told, Failure), told
        return pb.ModelInferResponse.FromString(told[0]), told[1]


def request(model: str = "m", *, version: str = "", rows: int = 1, value: float = 1.0, **fields: Any) -> bytes:
    """A request to `Doubler`, serialized."""
    return message_of(model, np.full((rows, 2), value, np.float32), version=version, **fields).SerializeToString()


def broken(model: str) -> bytes:
    """One whose data are not those of its shape."""
    message = message_of(model, np.ones((1, 2), np.float32))
    message.inputs[0].shape[0] = 3
    return message.SerializeToString()


def message_of(model: str, x: np.ndarray, *, version: str = "", name: str = "x", **fields: Any) -> Any:
    kind = {"float32": "FP32", "int64": "INT64"}[x.dtype.name]
    entry = pb.ModelInferRequest.InferInputTensor(name=name, datatype=kind, shape=x.shape)
    return pb.ModelInferRequest(
        model_name=model, model_version=version, inputs=[entry], raw_input_contents=[x.tobytes()], **fields
    )


def deflated(message: bytes) -> bytes:
    """As the size filter leaves one that grpc-core has deflated."""
    return DEFLATED + zlib.compress(message)[2:]


def service_of(plane: Plane, **fields: Any) -> Service:
    own = {name: fields.pop(name) for name in ("repository", "request_access", "unsent") if name in fields}
    return Service(plane, ServerSettings(**fields), metrics=plane.metrics, **own)


def refusals(plane: Plane) -> dict[int, int]:
    """Calls that no model's statistics hold, by status."""
    return {status: count for transport, status, count in plane.metrics.snapshot()["errors"] if transport == "grpc"}
