"""ModelStreamInfer: Triton's bidirectional stream, answered in the order of the requests; and MLServer's.

Theory of operation. Requests of one stream are submitted as they arrive, so that the plane can batch them, up to
`_WINDOW` unanswered ones; then the stream is not read any further, and HTTP/2 flow control holds the client back.
Responses wait their turn in a queue of futures. A failed request is answered in its place with `error_message`, and the
stream goes on (Triton, grpc_service.proto, ModelStreamInferResponse). When the client leaves, whatever is still
unanswered is cancelled.

A model that answers in streams gives any number of responses in the place of one request (Triton, decoupled_models.md). The
last of them is only known when it has been sent, so none is marked as final; a client that asked for it gets an empty one at
the end.

MLServer's stream is another thing under the same name: the model takes all requests of the stream, gives any
number of responses, and each is a ModelInferResponse itself, which no client of Triton's can read, and the reverse. An error
ends it with a status. `Service.whole_stream` says which of the two a stream is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

from google.protobuf.message import DecodeError

from ...dataplane.large_bodies import LARGE_BODY_BYTES, read_aside
from ...dataplane.response_stream import closing
from ...errors import ClientError, GrpcStatus, TimedOut
from ...model import Cancellable
from ...protocol import _open_inference_pb2 as pb
from .answers import Failure, Metadata, Responses, failure_of
from .service import Service

__all__ = ["infer_stream"]

_WINDOW = 64
"""Requests of one stream that may be unanswered: several batches' worth for one client, and a bound on what it can queue."""

_TIMER_S = 0.01
"""A timer may fire this much early."""


def _marked(final: bool) -> bytes:
    parameter = pb.InferParameter(bool_param=final)
    return pb.ModelInferResponse(parameters={"triton_final_response": parameter}).SerializeToString()


_FINAL, _MORE = _marked(True), _marked(False)
"""Appended to each response: protobuf merges concatenated messages. tritonclient reads it to know whether more will come."""


_NO_TEXT = b"\xf8\x07\xff\x01"
"""An unknown field of a ModelInferResponse (127, a varint) that is no UTF-8: clients skip it. One of MLServer's reads a whole message of
Triton's as a ModelInferResponse, an error's text as the model's name, and this, in the place of the version, fails to decode: an error."""


class _Place:
    """One request's place in the order of responses; an `Answer`."""

    __slots__ = ("future", "message", "pending", "service", "waiting")

    def __init__(self, message: bytes, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.message = message
        self.service = service
        self.waiting = True
        service.began()
        self.future: asyncio.Future[bytes | Failure | Responses] = loop.create_future()
        self.pending: Cancellable | None = None

    def respond(self, payload: bytes, metadata: Metadata | None) -> None:  # a stream has one initial metadata
        self._settle(payload)

    def fail(self, failure: Failure) -> None:
        self._settle(failure)

    def begin(self, responses: Responses) -> None:
        if not self.future.done():
            self.future.set_result(responses)

    async def answers(self, deadline: float | None) -> AsyncIterator[bytes]:
        """Give what is answered in this place, as ModelStreamInferResponse.

        Args:
            deadline: the stream's.

        Raises:
            TimedOut: it has passed: that is the stream's end and no answer, also where the client's own clock is behind.
        """
        outcome = await self.future
        if isinstance(outcome, bytes):
            yield _response(outcome + _FINAL)
        elif isinstance(outcome, Failure):
            yield await self._error(_in_time(outcome, deadline))
        else:
            failure = None
            try:
                async for payload in outcome:
                    yield _response(payload + _MORE)
            except Exception as error:  # noqa: BLE001 # the edge of a request; failure_of logs what is not the client's
                failure = failure_of(error)
            if failure is not None:
                yield await self._error(_in_time(failure, deadline))
            elif outcome.final_wanted:
                request = outcome.request
                last = pb.ModelInferResponse(model_name=request.model_name, id=request.id or "")
                yield _response(last.SerializeToString() + _FINAL)
            self._settle(b"")

    async def _error(self, failure: Failure) -> bytes:
        response = pb.ModelStreamInferResponse(error_message=failure.message)
        try:
            service, message = self.service, self.message
            size = LARGE_BODY_BYTES + 1 if service.is_laborious(message) else 0
            request = await read_aside(size, lambda: service.parsed(message))
        except (DecodeError, ClientError):
            pass
        else:
            response.infer_response.id = request.id
            response.infer_response.model_name = request.model_name
        response.infer_response.parameters["triton_final_response"].bool_param = True
        payload = response.infer_response.SerializeToString() + _NO_TEXT
        response.ClearField("infer_response")
        return response.SerializeToString() + _response(payload)

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
            if self.pending is not None:
                self.pending.cancel()
        self.future.cancel()


async def infer_stream(
    service: Service, messages: AsyncIterator[bytes], headers: Mapping[str, str], deadline: float | None
) -> AsyncIterator[bytes]:
    """Answer a stream of serialized ModelInferRequest with serialized ModelStreamInferResponse, or MLServer's ModelInferResponse.

    Args:
        service: takes the requests.
        messages: the client's; ends when it has closed its side.
        headers: the stream's metadata, given to every request.
        deadline: the stream's, `time.monotonic()`; None: none.
    """
    messages = aiter(messages)
    first = await anext(messages, None)
    if first is None:
        return
    responses = await service.whole_stream(first, messages, headers, deadline)
    if responses is None:
        answers = _in_places(service, first, messages, headers, deadline)
    else:
        answers = _as_a_whole(service, responses)
    async with closing(answers):
        async for answer in answers:
            yield answer


async def _as_a_whole(service: Service, responses: Responses) -> AsyncIterator[bytes]:
    service.began()
    try:
        async for payload in responses:
            yield payload
    finally:
        responses.cancel()
        service.ended()


async def _in_places(
    service: Service, first: bytes, messages: AsyncIterator[bytes], headers: Mapping[str, str], deadline: float | None
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    places: asyncio.Queue[_Place | None] = asyncio.Queue(_WINDOW)

    async def submit(message: bytes) -> None:
        place = _Place(message, service, loop)
        place.pending = service.infer(message, headers, deadline, place, stream=True)
        try:
            await places.put(place)
        except asyncio.CancelledError:  # the client has left while there was no room
            place.cancel()
            raise

    async def read() -> None:
        try:
            await submit(first)
            async for message in messages:
                await submit(message)
        finally:
            await places.put(None)

    reader = loop.create_task(read())
    place: _Place | None = None
    try:
        while (place := await places.get()) is not None:
            async for answer in place.answers(deadline):
                yield answer
        await reader
    finally:
        reader.cancel()
        if place is not None:
            place.cancel()
        while not places.empty():
            left = places.get_nowait()
            if left is not None:
                left.cancel()


def _in_time(failure: Failure, deadline: float | None) -> Failure:
    late = deadline is not None and time.monotonic() > deadline - _TIMER_S
    if late and failure.code == GrpcStatus.DEADLINE_EXCEEDED:
        raise TimedOut(failure.message)
    return failure


def _response(payload: bytes) -> bytes:
    """Wrap a ModelInferResponse as ModelStreamInferResponse's field 2."""
    return b"\x12" + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
