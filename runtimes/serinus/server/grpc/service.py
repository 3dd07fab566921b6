"""What each remote procedure call means, on bytes: both engines call this and differ only in how the bytes travel.

`Service.infer` is the hot path: it decodes, submits to the plane and returns; the answer comes by callback, on the loop's thread,
with no coroutine and no task. The other calls are rare and are coroutines from bytes to bytes, in `Service.unary`.
Errors leave here as `Failure`, made from errors.py alone, so that no engine maps a status by itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from google.protobuf.message import DecodeError

from ...dataplane.large_bodies import LARGE_BODY_BYTES, begin_aside, read_aside
from ...dataplane.plane import Plane
from ...dataplane.telemetry.metrics import Metrics
from ...errors import ClientError, InvalidInput, NotFound, NotReady, Overloaded, SerinusError, TooLarge
from ...model import Cancellable
from ...protocol import _open_inference_pb2 as pb
from ...protocol.proto_census import check_few_fields, check_message, is_laborious
from ...protocol.proto_codec import decode_request, encode_response
from ...protocol.types import NO_PARAMETERS, InferRequest, InferResponse
from ...settings import ServerSettings
from ...tracing.tracer import Tracer
from ..access_log import REVISION_FIELD
from ..connections.unsent_answers import LARGE_BYTES, UnsentAnswers
from ..request_access import RequestAccess, grpc_kind
from ..request_observer import observe_requests
from .answers import Answer, Failure, Metadata, Responses, StreamAnswer, failure_of, initial_metadata, too_long
from .calls_in_flight import CallsInFlight, IdleStreams
from .deflate import DEFLATED, HIDDEN_HEADER, inflate
from .health import Health
from .observed_calls import LeavingCall, ObservedAnswer, RecordedMetadata
from .unary_calls import SERVICE, UnaryCalls

__all__ = [
    "INFER",
    "INFER_STREAM",
    "SERVICE",
    "Answer",
    "Failure",
    "Metadata",
    "Responses",
    "Service",
    "StreamAnswer",
    "failure_of",
    "plain_headers",
]

INFER = f"/{SERVICE}/ModelInfer"
INFER_STREAM = f"/{SERVICE}/ModelStreamInfer"

_MODEL_NAME, _MODEL_VERSION = b"\x0a", b"\x12"
"""Tags of the first two fields of ModelInferRequest (open_inference_grpc.proto); who writes them in another order is read whole."""


def plain_headers(metadata: Sequence[tuple[str, str | bytes]]) -> Mapping[str, str]:
    """Turn invocation metadata into request headers: binary values are left out, repeated names joined by commas (RFC 9110, 5.2).

    Args:
        metadata: pairs as they came; gRPC's names are always in lower case.
    """
    headers: dict[str, Any] = dict(metadata)
    if len(headers) == len(metadata):
        binary = [name for name in headers if name.endswith("-bin")]
        for name in binary:
            del headers[name]
        headers.pop(HIDDEN_HEADER, None)
        return headers
    headers.clear()
    for name, value in metadata:
        if not name.endswith("-bin") and name != HIDDEN_HEADER:
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def _leading_name(message: bytes) -> str | None:
    """The model's name where a message begins with it, in up to 127 bytes, and with no version behind it."""
    if message[:1] != _MODEL_NAME or len(message) < 2 or message[1] > 127:
        return None
    end = 2 + message[1]
    return None if message[end : end + 1] == _MODEL_VERSION else message[2:end].decode("utf-8", "replace")


class Service(CallsInFlight):
    """The calls of `inference.GRPCInferenceService` and `grpc.health.v1.Health` over one plane.

    Args:
        plane: the data plane.
        settings: the size limits.
        metrics: counts the errors that no model's statistics hold.
        repository: where several workers share the port: applies "load" or "unload" to all of them; None: to this plane.
        tracer: takes the spans of requests; None: they are not traced.
        request_access: which calls need a token; None: none does.
        unsent: what waits for slow clients, of REST too; None: an account of its own.
    """

    def __init__(
        self,
        plane: Plane,
        settings: ServerSettings,
        *,
        metrics: Metrics,
        repository: Callable[[str, str, dict[str, Any]], Awaitable[None]] | None = None,
        tracer: Tracer | None = None,
        request_access: RequestAccess | None = None,
        unsent: UnsentAnswers | None = None,
    ) -> None:
        self.unsent = unsent or UnsentAnswers(settings.max_unsent_bytes, patience_s=settings.send_timeout_s)
        """What waits for slow clients: asked here, told by the engines."""
        self._plane = plane
        self._request_access = request_access
        self._infer_nowait = plane.infer_nowait
        self._metrics = metrics
        self._receive_limit = settings.grpc_max_receive_message_length
        self._limits = replace(settings.limits, body_bytes=self._receive_limit)
        self._send_limit = settings.grpc_max_send_message_length
        self._stream_form = settings.grpc_stream_form
        # What is installed tells whose clients come: KServe and MLServer cannot share an environment.
        self._beside_mlserver = importlib.util.find_spec("mlserver") is not None
        form = settings.grpc_metadata_form
        self._mlservers_metadata = form == "mlserver" or (form == "auto" and self._beside_mlserver)
        self._observer = observe_requests(plane, settings, metrics, tracer)
        self._revision_pair = ((REVISION_FIELD.lower(), settings.revision),) if settings.revision else None
        self.too_large_marker = b"\xff" + os.urandom(11)
        """Stands for a message that the transport refused for its size; 0xff begins no protobuf message."""
        super().__init__()
        self._refused: tuple[Overloaded, Failure] | None = None
        """What was refused last, as a status."""
        self.health = Health(self)
        self.idle_streams = IdleStreams()
        calls = UnaryCalls(plane, self, repository, mlservers_metadata=self._mlservers_metadata)
        self.unary = {**calls.by_path(), "/grpc.health.v1.Health/Check": self.health.check}
        """Path to coroutine, for every call with one request and one response but ModelInfer."""
        self._changes = frozenset(f"/{SERVICE}/{name}" for name in ("RepositoryModelLoad", "RepositoryModelUnload"))

    def infer(
        self,
        message: bytes,
        headers: Mapping[str, str],
        deadline: float | None,
        answer: Answer,
        *,
        stream: bool = False,
    ) -> Cancellable | None:
        """Begin a ModelInfer, or a request of a ModelStreamInfer.

        Args:
            message: a serialized ModelInferRequest.
            headers: the call's metadata as headers.
            deadline: `time.monotonic()` at which the client gives up; None: never.
            answer: told the outcome.
            stream: the request came on a ModelStreamInfer; `answer` is a `StreamAnswer`.

        Returns:
            What to cancel when the client goes away; None where the request never reached the plane.
        """
        if self._observer is not None:
            answer, headers = self._observe(answer, INFER_STREAM if stream else INFER, headers)
        if self._request_access is not None:
            try:
                self.authenticate(INFER, headers)
            except SerinusError as error:
                answer.fail(self._uncounted(error, headers))
                return None
        if self._plane.full and not stream and self._is_refused_unread(message, answer):
            return None
        if self.is_laborious(message):

            def decode() -> tuple[InferRequest, bool]:
                try:
                    return self._decode(message, headers, deadline, stream=stream)
                except Exception as error:  # as below
                    raise self._model_first(message, error) from error

            return begin_aside(
                decode,
                lambda decoded: cast("Cancellable", self._begin(message, *decoded, answer, stream=stream)),
                lambda error: answer.fail(self._uncounted(cast("Exception", error), headers)),
            )
        try:
            request, final_wanted = self._decode(message, headers, deadline, stream=stream)
        except Exception as error:  # noqa: BLE001 # the edge of a request; failure_of logs what is not the client's fault
            answer.fail(self._uncounted(self._model_first(message, error), headers))
            return None
        return self._begin(message, request, final_wanted, answer, stream=stream)

    @property
    def is_refusing(self) -> bool:
        """Whether a model has let nobody in lately."""
        return bool(self._plane.full)

    def _is_refused_unread(self, message: bytes, answer: Answer) -> bool:
        """Refuse a call for a model that lets nobody in, by the name that its message begins with; whether it is refused."""
        name = _leading_name(message)
        error = None if name is None else self._plane.refuse_unread(name)
        if error is None:
            return False
        known = self._refused
        if known is None or known[0] is not error:
            self._refused = known = (error, self._failure_of(error, NO_PARAMETERS))
        answer.fail(known[1])
        return True

    def is_laborious(self, message: bytes) -> bool:
        """Whether a message is decoded in a thread: it takes a millisecond or more."""
        return message.startswith(DEFLATED) or (len(message) > LARGE_BODY_BYTES and is_laborious(message))

    def _begin(
        self, message: bytes, request: InferRequest, final_wanted: bool, answer: Answer, *, stream: bool
    ) -> Cancellable | None:
        headers = request.headers
        observed = answer if isinstance(answer, ObservedAnswer) else None
        try:
            if observed is not None:
                observed.model, observed.version = request.model_name, request.model_version
            if stream and self._plane.stream_kind(request.model_name, request.model_version):
                responses = self._responses(request, None, final_wanted=final_wanted)
                cast("StreamAnswer", answer).begin(responses)
                return responses
        except Exception as error:  # noqa: BLE001 # the edge of a request; failure_of logs what is not the client's fault
            answer.fail(self._uncounted(self._model_first(message, error), headers))
            return None

        revision = self._revision_pair

        def on_complete(result: InferResponse | SerinusError) -> None:
            if isinstance(result, InferResponse):
                try:
                    payload = encode_response(result, request)
                    if len(payload) > LARGE_BYTES:
                        self.unsent.check(len(payload))
                    if len(payload) > self._send_limit:
                        answer.fail(self._failure_of(too_long(len(payload), self._send_limit), headers))
                        return
                    metadata = initial_metadata(result, headers)
                    if revision is not None:
                        metadata = revision if metadata is None else (*metadata, *revision)
                except Exception as error:  # noqa: BLE001 # as above
                    answer.fail(self._failure_of(error, headers))
                else:
                    answer.respond(payload, metadata)
            elif isinstance(result, NotFound):
                answer.fail(self._uncounted(result, headers))
            else:
                answer.fail(self._failure_of(result, headers))

        pending = self._infer_nowait(request, on_complete)
        return pending if observed is None else LeavingCall(pending, observed)

    def _observe(
        self, answer: Answer, path: str, headers: Mapping[str, str]
    ) -> tuple[ObservedAnswer, Mapping[str, str]]:
        """Give a call its record: an answer that tells of it, and metadata that carries it."""
        assert self._observer is not None  # noqa: S101 # callers have looked
        record = self._observer.begin(headers, path[1:], {"rpc.method": path[1:]})
        return ObservedAnswer(answer, path, record, self._observer), RecordedMetadata(headers, record)

    async def whole_stream(
        self, first: bytes, further: AsyncIterator[bytes], headers: Mapping[str, str], deadline: float | None
    ) -> Responses | None:
        """Begin a stream that goes to its model as a whole; None: each request is for `infer`.

        So are those of a model that wants them that way, unless the server is told otherwise (`grpc_stream_form`), or the first
        request carries the parameter by which only a client of Triton's messages asks for the last of them.

        Args:
            first: the stream's first serialized ModelInferRequest.
            further: those that follow.
            headers: the stream's metadata.
            deadline: the stream's, `time.monotonic()`; None: none.

        Raises:
            NotFound: there is no such model, and MLServer is installed: its clients know an error by the stream's status alone.
            NotReady: it does not answer now; likewise.
        """
        if self._stream_form != "auto":
            return None
        try:
            request, final_wanted = await self._decode_aside(first, headers, deadline)
        except Exception:  # noqa: BLE001 # `infer` finds it again, and says so
            return None
        if self._beside_mlserver and not final_wanted:
            self._plane.check_served(request.model_name, request.model_version)
        if self._plane.stream_kind(request.model_name, request.model_version) != "whole" or final_wanted:
            return None

        async def requests() -> AsyncIterator[InferRequest]:
            async for message in further:
                following, _ = await self._decode_aside(message, headers, deadline)
                if (following.model_name, following.model_version) != (request.model_name, request.model_version):
                    raise InvalidInput(
                        f"a request for model '{following.model_name}' came on a stream of model '{request.model_name}', "
                        "which takes the stream as a whole; open another stream"
                    )
                yield following

        return self._responses(request, requests(), final_wanted=False)

    def _responses(
        self, request: InferRequest, further: AsyncIterator[InferRequest] | None, *, final_wanted: bool
    ) -> Responses:
        stream = self._plane.infer_stream(request, further)
        return Responses(stream, request, self._send_limit, final_wanted=final_wanted)

    async def _decode_aside(
        self, message: bytes, headers: Mapping[str, str], deadline: float | None
    ) -> tuple[InferRequest, bool]:
        """As `_decode` of a request of a stream, in a thread where it takes long."""
        decode = partial(self._decode, message, headers, deadline, stream=True)
        return await read_aside(LARGE_BODY_BYTES + 1, decode) if self.is_laborious(message) else decode()

    def _decode(
        self, message: bytes, headers: Mapping[str, str], deadline: float | None, *, stream: bool
    ) -> tuple[InferRequest, bool]:
        """Read a request; also whether it asks for an empty last response (a parameter that is not the model's)."""
        self._admit()
        request = decode_request(self.plain(message), limits=self._limits, headers=headers)
        request.deadline = deadline
        final_wanted = False
        if stream and _FINAL_RESPONSE_WANTED in request.parameters:
            final_wanted = bool(request.parameters[_FINAL_RESPONSE_WANTED])
            request.parameters = {k: v for k, v in request.parameters.items() if k != _FINAL_RESPONSE_WANTED}
        return request, final_wanted

    def authenticate(self, path: str, headers: Mapping[str, str]) -> None:
        """Ask a call for its token, where its kind needs one.

        Raises:
            Unauthenticated: it has none, or another.
        """
        if self._request_access is not None:
            self._request_access.check(grpc_kind(path), headers.get("authorization"))

    def parsed(self, message: bytes) -> Any:
        """Parse a ModelInferRequest for what it says of itself, whatever else is wrong with it.

        Raises:
            DecodeError: it is none.
            ClientError: it is damaged, or more than a server reads.
        """
        message = self.plain(message)
        check_message(message)
        return pb.ModelInferRequest.FromString(message)

    def plain(self, message: bytes) -> bytes:
        """Undo a coding that the native front does not know, which the size filter has left to be undone here; see deflate.py.

        Raises:
            TooLarge: it passes the limit of a request message.
            InvalidInput: it is damaged.
        """
        return inflate(message, self._receive_limit) if message.startswith(DEFLATED) else message

    async def call(self, path: str, message: bytes, headers: Mapping[str, str], answer: Answer) -> None:
        """Answer one of the `unary` calls.

        Args:
            path: its method.
            message: serialized.
            headers: the call's metadata.
            answer: told the outcome.
        """
        if self._observer is not None:
            answer, headers = self._observe(answer, path, headers)
        if message == self.too_large_marker:
            answer.fail(self._uncounted(self._too_large(), headers))
            return
        try:
            self.authenticate(path, headers)
            if path in self._changes:
                self._plane.access.check(headers.get("authorization"))
            if self.is_laborious(message):
                message = await read_aside(LARGE_BODY_BYTES + 1, lambda: self.plain(message))
                check_few_fields(message)
            response = await self.unary[path](self.plain(message))
        except Exception as error:  # noqa: BLE001 # the edge of a request; failure_of logs what is not the client's fault
            answer.fail(self._uncounted(error, headers))
        else:
            metadata = initial_metadata(None, headers) if self._observer is not None else None
            answer.respond(response, metadata)

    def _failure_of(self, error: BaseException, headers: Mapping[str, str]) -> Failure:
        failure = failure_of(error, headers)
        pair = self._revision_pair
        return failure if pair is None else failure._replace(trailing=(*failure.trailing, *pair))

    def _uncounted(self, error: Exception, headers: Mapping[str, str]) -> Failure:
        """Make a failure of an error that the plane has not counted."""
        failure = self._failure_of(error, headers)
        self._metrics.observe_error("grpc", failure.code)
        return failure

    def _model_first(self, message: bytes, error: Exception) -> Exception:
        """Say first that there is no such model, as REST does, where that is wrong with a request as well."""
        if message == self.too_large_marker:
            return self._too_large()
        if isinstance(error, ClientError):
            with contextlib.suppress(DecodeError, TooLarge, InvalidInput):
                request = self.parsed(message)
                if request.model_name:
                    try:
                        self._plane.check_served(request.model_name, request.model_version)
                    except SerinusError as other:
                        return other
        return error

    def _admit(self) -> None:
        if self.draining:
            raise NotReady("the server is draining and takes no new calls; try another replica")

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the request message is larger than {self._receive_limit} bytes (grpc_max_receive_message_length);"
            " send fewer rows"
        )

    def server_ready(self) -> bool:
        """Whether new requests would be taken."""
        return not self.draining and self._plane.ready()

    def server_live(self) -> bool:
        """Whether the process works at all."""
        return self._plane.live()

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether this model would take a request now.

        Raises:
            NotFound: no such model or version.
        """
        return not self.draining and self._plane.model_ready(name, version)


_FINAL_RESPONSE_WANTED = "triton_enable_empty_final_response"
"""Set by tritonclient's stream on request (Triton, extension_parameters.md and decoupled_models.md)."""
