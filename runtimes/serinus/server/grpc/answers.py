"""How calls are answered: what a transport is told, by whichever engine it came."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from ...dataplane.response_stream import ResponseStream
from ...dataplane.telemetry.request_records import REQUEST_ID
from ...errors import GrpcStatus, SerinusError, TooLarge
from ...protocol.proto_codec import encode_response
from ...protocol.types import NO_PARAMETERS, InferRequest, InferResponse
from ..refusals import refuse

__all__ = [
    "Answer",
    "Failure",
    "Metadata",
    "Responses",
    "StreamAnswer",
    "can_be_metadata",
    "failure_of",
    "initial_metadata",
    "too_long",
]

_log = logging.getLogger("serinus.grpc")

_MESSAGE_CHARACTERS = 4096
"""Longest status message: a client's header limit is 8 KiB in grpc-core, and percent-encoding may triple what is not ASCII."""
_TRANSPORT_HEADERS = frozenset(
    {
        "content-type",
        "content-length",
        "content-encoding",
        "transfer-encoding",
        "te",
        "connection",
        "keep-alive",
        "host",
    }
)

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


def failure_of(error: BaseException, headers: Mapping[str, str] = NO_PARAMETERS) -> Failure:
    """Map an error to a status; one that is not ours is logged with its traceback and told to nobody else.

    Args:
        error: what a call raised, or the plane answered.
        headers: the call's metadata.

    Returns:
        The failure; `retry-after` (seconds) trails where the server says when to come back, `www-authenticate` where it wants a token, and
        `x-request-id` where its log has a line of it.
    """
    refusal = refuse(error, lambda: "a gRPC call", log=_log, headers=headers)
    message = refusal.message
    if len(message) > _MESSAGE_CHARACTERS:
        message = message[: _MESSAGE_CHARACTERS - 3] + "..."
    trailing: list[tuple[str, str]] = []
    if refusal.retry_after_s is not None:
        trailing.append(("retry-after", str(refusal.retry_after_s)))
    if refusal.challenge:
        trailing.append(("www-authenticate", refusal.challenge))
    request_id = refusal.ids.get("request_id", "")
    if request_id and can_be_metadata(request_id):
        trailing.append((REQUEST_ID, request_id))
    return Failure(refusal.grpc_status, message, tuple(trailing))


def initial_metadata(response: InferResponse | None, headers: Mapping[str, str]) -> Metadata | None:
    """Metadata to send before the response: the model's own headers, and the request's x-request-id.

    What gRPC reserves or cannot carry is left out: names of the transport or starting with `grpc-` or `:`, and values outside
    printable ASCII.

    Args:
        response: its `headers` were set by the model; None: no model has answered.
        headers: the request's.

    Returns:
        None where there is nothing to send.
    """
    request_id = headers.get("x-request-id")
    if response is None or not response.headers:
        return None if request_id is None else (("x-request-id", request_id),)
    metadata: dict[str, str] = {} if request_id is None else {"x-request-id": request_id}
    for name, value in response.headers.items():
        name, value = name.lower(), str(value)
        known = name in _TRANSPORT_HEADERS or name.startswith(("grpc-", ":")) or name.endswith("-bin")
        legal = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        if not known and legal and value.isascii() and value.isprintable():
            metadata[name] = value
    return tuple(metadata.items())


def can_be_metadata(value: str) -> bool:
    """Whether gRPC can carry it (gRPC over HTTP/2, "ASCII-Value")."""
    return value.isascii() and value.isprintable()


def too_long(size: int, limit: int) -> TooLarge:
    """Refuse a response beyond what may be sent."""
    return TooLarge(
        f"the response message has {size} bytes, the limit is {limit} (grpc_max_send_message_length);"
        " ask for fewer rows or outputs"
    )
