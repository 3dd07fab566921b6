"""V1 bodies inside the data plane: what comes, and how a model that speaks V2 alone is asked."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from ...errors import InvalidInput, ModelFailed, SerinusError
from ...model import Cancellable, V1Answer
from ...protocol import v1_codec
from ...protocol.documents.json_values import NotFinite
from ...protocol.json_codec import load_object, load_value
from ...protocol.peers import example_codec
from ...protocol.types import InferRequest, InferResponse, Limits, ModelMetadata, no_parameters
from ..large_bodies import LARGE_BODY_BYTES, begin_aside
from ..telemetry.request_records import error_ids

__all__ = ["V1Request", "ask_in_v2", "convert", "is_streamed", "read_document"]

_log = logging.getLogger("serinus.model")

_JSON_TYPES: Final = frozenset({"application/json", "application/cloudevents+json", "application/ld+json"})
"""KServe's dataplane has the same three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Request:
    """A body of V1, and what is to be done."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=no_parameters)
    version: str = ""
    """The one asked for; empty: the server chooses."""
    deadline: float | None = None
    explain: bool = False
    task: Literal["", "classify", "regress"] = ""
    """TensorFlow Serving's further verbs, whose bodies are examples."""
    limits: Limits = Limits()  # noqa: RUF009 # frozen
    not_finite: NotFinite = "null"
    """What stands for NaN and infinities in the answer."""


def convert(
    body: bytes,
    metadata: ModelMetadata,
    *,
    version: str = "",
    limits: Limits = Limits(),  # noqa: B008 # frozen
    not_finite: NotFinite = "null",
    task: Literal["", "classify", "regress"] = "",
) -> tuple[InferRequest, Callable[[InferResponse], bytes]]:
    """Make the V2 request that a V1 body stands for.

    Args:
        body: JSON.
        metadata: the model's.
        version: the one asked for.
        limits: of the body.
        not_finite: what stands for NaN and infinities in the answer.
        task: `V1Request.task`.

    Returns:
        The request, and what writes its response as the V1 answer.

    Raises:
        ClientError: the body is no V1 body, or does not fit the model.
    """
    if task:
        examples = example_codec.decode(body, limits)
        asked = example_codec.to_request(examples, metadata, task, version=version)
        return asked, lambda response: example_codec.encode(response, task, len(examples.rows))
    payload = v1_codec.decode(body, limits)
    request = v1_codec.to_request(payload, metadata, model_version=version, limits=limits)
    return request, lambda response: v1_codec.encode(response, payload, not_finite)


def ask_in_v2(
    infer_nowait: Callable[[InferRequest, Callable[[Any], None]], Cancellable],
    call: V1Request,
    metadata: ModelMetadata,
    on_complete: Callable[[V1Answer | SerinusError], None],
) -> Cancellable:
    """Answer a V1 body by a V2 request.

    Args:
        infer_nowait: the servable's.
        call: the body.
        metadata: the model's.
        on_complete: told the V1 answer, with the response's headers, or the error.

    Raises:
        SerinusError: the body or the request is refused; `on_complete` will not be called. That of a large body is told by it.
    """

    def read() -> tuple[InferRequest, Callable[[InferResponse], bytes]]:
        return convert(
            call.body, metadata, version=call.version, limits=call.limits, not_finite=call.not_finite, task=call.task
        )

    def begin(converted: tuple[InferRequest, Callable[[InferResponse], bytes]]) -> Cancellable:
        request, write = converted
        request.headers = call.headers
        request.deadline = call.deadline
        return infer_nowait(request, partial(answer, write))

    def failed(error: BaseException) -> None:
        if not isinstance(error, SerinusError):
            ids = error_ids(call.headers)
            _log.error("model '%s': a V1 body could not be read", metadata.name, exc_info=error, extra={"ids": ids})
            error = ModelFailed("the request could not be processed; the server's log has the details")
            error.request_id = ids["request_id"]
        on_complete(error)

    def answer(write: Callable[[InferResponse], bytes], outcome: InferResponse | SerinusError) -> None:
        if isinstance(outcome, SerinusError):
            on_complete(outcome)
            return
        try:
            result: V1Answer | SerinusError = V1Answer(write(outcome), outcome.headers)
        except SerinusError as error:
            result = error
        on_complete(result)

    if len(call.body) > LARGE_BODY_BYTES:
        return begin_aside(read, begin, failed)
    return begin(read())


def is_streamed(answer: Any) -> bool:
    """Tell an answer that comes piece by piece."""
    return isinstance(answer, V1Answer) and isinstance(answer.document, AsyncIterator)


def read_document(call: V1Request, *, takes_bytes: bool) -> Any:
    """Parse a V1 body for a model that speaks V1 itself.

    Args:
        call: the body.
        takes_bytes: as KServe does, take JSON that is no object, and give a body that neither is JSON nor claims to be as it came.

    Raises:
        InvalidInput: it is no JSON object.
    """
    try:
        load = load_value if takes_bytes else load_object
        return load(call.body, "the request body", call.limits)
    except InvalidInput:
        # An event says its data's type by an attribute, as KServe reads it: the message's own may be the client library's default.
        told = call.headers.get("ce-content-type") or call.headers.get("content-type", "")
        kind = told.partition(";")[0].strip().lower()
        if not (takes_bytes and call.body and kind) or kind in _JSON_TYPES:
            raise
        return call.body
