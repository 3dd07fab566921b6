"""ModelStreamInfer: Triton's bidirectional stream, one response for each request, in the order of the requests.

Theory of operation. Requests of one stream are submitted as they arrive, so that the plane can batch them, up to
`_WINDOW` unanswered ones; then the stream is not read any further, and HTTP/2 flow control holds the client back.
Responses wait their turn in a queue of futures. A failed request is answered in its place with `error_message`, and the
stream goes on (Triton, grpc_service.proto, ModelStreamInferResponse). When the client leaves, whatever is still
unanswered is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from google.protobuf.message import DecodeError

from ...protocol import _open_inference_pb2 as pb
from .service import Failure, Metadata, Service, Ticket

__all__ = ["infer_stream"]

_WINDOW = 64
"""Requests of one stream that may be unanswered: several batches' worth for one client, and a bound on what it can queue."""

_FINAL_RESPONSE = pb.ModelInferResponse(
    parameters={"triton_final_response": pb.InferParameter(bool_param=True)}
).SerializeToString()
"""Appended to each response: protobuf merges concatenated messages. tritonclient reads it to know that no more will come."""


class _Place:
    """One request's place in the order of responses; an `Answer`."""

    __slots__ = ("future", "message", "service", "ticket", "waiting")

    def __init__(self, message: bytes, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.message = message
        self.service = service
        self.waiting = True
        service.began()
        self.future: asyncio.Future[bytes | Failure] = loop.create_future()
        self.ticket: Ticket | None = None

    def respond(self, payload: bytes, metadata: Metadata | None) -> None:  # a stream has one initial metadata
        self._settle(payload)

    def fail(self, failure: Failure) -> None:
        self._settle(failure)

    def _settle(self, outcome: bytes | Failure) -> None:
        if self.waiting:
            self.waiting = False
            self.service.ended()
            if not self.future.done():
                self.future.set_result(outcome)

    def cancel(self) -> None:
        # The future says nothing: cancelling the task that awaits it has cancelled it too.
        if self.waiting:
            self.waiting = False
            self.service.ended()
            if self.ticket is not None:
                self.ticket.cancel()
        self.future.cancel()


async def infer_stream(
    service: Service, messages: AsyncIterator[bytes], headers: Mapping[str, str], deadline: float | None
) -> AsyncIterator[bytes]:
    """Answer a stream of serialized ModelInferRequest with serialized ModelStreamInferResponse.

    Args:
        service: takes the requests.
        messages: the client's; ends when it has closed its side.
        headers: the stream's metadata, given to every request.
        deadline: the stream's, `time.monotonic()`; None: none.
    """
    loop = asyncio.get_running_loop()
    places: asyncio.Queue[_Place | None] = asyncio.Queue(_WINDOW)

    async def read() -> None:
        try:
            async for message in messages:
                place = _Place(message, service, loop)
                place.ticket = service.infer(message, headers, deadline, place, stream=True)
                await places.put(place)
        finally:
            await places.put(None)

    reader = loop.create_task(read())
    place: _Place | None = None
    try:
        while (place := await places.get()) is not None:
            yield _stream_response(await place.future, place.message)
        await reader
    finally:
        reader.cancel()
        if place is not None:
            place.cancel()
        while not places.empty():
            left = places.get_nowait()
            if left is not None:
                left.cancel()


def _stream_response(outcome: bytes | Failure, message: bytes) -> bytes:
    if isinstance(outcome, Failure):
        response = pb.ModelStreamInferResponse(error_message=outcome.message)
        try:
            request = pb.ModelInferRequest.FromString(message)
        except DecodeError:
            pass
        else:
            response.infer_response.id = request.id
            response.infer_response.model_name = request.model_name
        return response.SerializeToString()
    payload = outcome + _FINAL_RESPONSE
    return b"\x12" + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
