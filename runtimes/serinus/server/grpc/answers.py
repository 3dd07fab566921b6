"""How calls are answered: what a transport is told, by whichever engine it came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ...dataplane.response_stream import ResponseStream
from ...errors import GrpcStatus, SerinusError, TooLarge
from ...protocol.proto_codec import encode_response
from ...protocol.types import InferRequest, InferResponse

__all__ = ["Answer", "Failure", "Metadata", "Responses", "StreamAnswer", "can_be_metadata", "too_long"]

Metadata = Sequence[tuple[str, str]]
"""Names in lower case, values of printable ASCII (gRPC over HTTP/2, "Custom-Metadata")."""


class Failure(NamedTuple):
    """How a call ends that does not end well."""

    code: int
    """A `GrpcStatus`, never OK."""
    message: str
    trailing: Metadata = ()


class Answer(Protocol):
    """What `infer` answers to. Exactly one of the two is called, once, on the loop's thread, perhaps before `infer` returns."""

    def respond(self, payload: bytes, metadata: Metadata | None) -> None:
        """Send the response and OK; `metadata` is initial metadata."""

    def fail(self, failure: Failure) -> None:
        """End the call with a status."""


class StreamAnswer(Answer, Protocol):
    """What a request on a ModelStreamInfer answers to: one of the three is called."""

    def begin(self, responses: Responses) -> None:
        """Send any number of responses."""


class Responses:
    """What a model answers to one request of a stream, serialized as ModelInferResponse.

    Iterating raises the `SerinusError` that ends it. Read to the end, or `cancel`.
    """

    def __init__(
        self, stream: ResponseStream[InferResponse], request: InferRequest, limit: int, *, final_wanted: bool
    ) -> None:
        self._stream = stream
        self.request = request
        self.final_wanted = final_wanted
        """The client asks to be told when the last response has come."""
        self.on_end: Callable[[int, int], None] | None = None
        """Told the status and the bytes of all responses when the stream has ended."""
        self._limit = limit
        self._sent = 0

    def __aiter__(self) -> Responses:
        return self

    async def __anext__(self) -> bytes:
        try:
            payload = encode_response(await anext(self._stream), self.request)
            if len(payload) > self._limit:
                raise too_long(len(payload), self._limit)
        except StopAsyncIteration:
            self._end(GrpcStatus.OK)
            raise
        except SerinusError as error:
            self._end(error.grpc_status)
            raise
        self._sent += len(payload)
        return payload

    def cancel(self) -> None:
        """Stop the model: nobody reads on."""
        self._stream.cancel()
        self._end(GrpcStatus.CANCELLED)

    def _end(self, status: int) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(status, self._sent)


def can_be_metadata(value: str) -> bool:
    """Whether gRPC can carry it (gRPC over HTTP/2, "ASCII-Value")."""
    return value.isascii() and value.isprintable()


def too_long(size: int, limit: int) -> TooLarge:
    """Refuse a response beyond what may be sent."""
    return TooLarge(
        f"the response message has {size} bytes, the limit is {limit} (grpc_max_send_message_length);"
        " ask for fewer rows or outputs"
    )
