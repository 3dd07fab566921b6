"""A model that answers whole requests: hosts of other frameworks' classes, pipelines, models that stream or speak V1 themselves.

Theory of operation. Requests, V1 bodies and streams wait in one queue, bounded and with deadlines like any other; each has a task of
its own, up to as many at a time as the model's `max_concurrency` says. A model that has `request_batching` is given the requests
of one key together, by callback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

from ...errors import InvalidInput, ModelFailed, NotSupported, SerinusError
from ...model import Call, Cancellable, RequestModel, V1Answer
from ...protocol.types import InferRequest, InferResponse
from ...settings import BatchSettings
from ..batching.adaptive_limit import AdaptiveLimit
from ..batching.deadlines import Deadlines
from ..batching.pending_request import DONE, RUNNING, Batch, BatchKey, Outcome, PendingRequest, held_bytes
from ..execution.request_executor import RequestExecutor
from ..large_bodies import LARGE_BODY_BYTES, read_aside
from ..response_stream import ResponseStream, closing
from ..telemetry.request_records import error_ids
from ..telemetry.statistics import ModelStatistics
from .checks import RequestChecks
from .response_rows import select_outputs
from .servable import Servable, StreamKind
from .v1_requests import V1Request, ask_in_v2, is_streamed, read_document

__all__ = ["RequestServable"]

_log = logging.getLogger("serinus.model")

_HEALTH_INTERVAL_S: Final = 1.0
_CALL: Final = Call()
_ALONE: Final = BatchKey(None, (), _CALL)
_TOGETHER: Final = ("requests",)
"""`BatchKey.names` of requests that are joined; those of all others are empty."""


class RequestServable(Servable):
    """A `RequestModel` that takes requests; see `Servable` for the arguments."""

    def __init__(
        self,
        model: RequestModel,
        *,
        settings: BatchSettings,
        max_concurrency: int,
        statistics: ModelStatistics,
        deadlines: Deadlines,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._requests = model
        self._batching = batching = model.request_batching
        if batching is not None:
            settings = replace(settings, max_batch_rows=batching.max_rows, max_delay_s=batching.max_delay_s)
        super().__init__(
            model,
            RequestExecutor(model, max_concurrency, loop=loop, clock=clock),
            execution="async",
            settings=settings,
            solo=batching is None,
            statistics=statistics,
            deadlines=deadlines,
            loop=loop,
            clock=clock,
            # How long a stream takes is its client's and its engine's business, and says nothing of a queue.
            limit=AdaptiveLimit("inside", is_fixed=settings.max_queue_rows is not None or model.streams),
            is_of_a_member=batching.is_of_a_member if batching is not None else lambda error: True,  # noqa: ARG005
        )
        self._checks = RequestChecks(model)
        self._speaks_v1 = type(model).predict_v1 is not RequestModel.predict_v1
        self._healthy = True
        self._watcher: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """See `Servable.healthy`."""
        return self.at_work and self._healthy and all(servable.healthy for servable in self.behind)

    def is_open_ended(self, batch: Batch) -> bool:
        """See `Servable.is_open_ended`: a stream of V2, or an answer to a V1 body that has begun to come in pieces."""
        task = batch.members[0].task
        call = getattr(task, "__self__", None)
        return task is not None and not (isinstance(call, _V1Call) and not call.is_streamed)

    @property
    def stream_kind(self) -> StreamKind:
        """See `Servable.stream_kind`."""
        model = self._requests
        return ("whole" if model.whole_streams else "each") if model.streams else ""

    @property
    def has_generate(self) -> bool:
        """See `Servable.has_generate`."""
        return self._requests.has_generate

    def infer_nowait(self, request: InferRequest, on_complete: Outcome, now: float | None = None) -> PendingRequest:
        """See `Servable.infer_nowait`."""
        together = self._batching.key(request) if self._batching is not None else None
        if together is not None:
            value, rows = together
            return self._add(request, on_complete, BatchKey(value, _TOGETHER, _CALL), rows, now=now)
        _, _, rows = self._checks.admit(request)
        return self._add(request, on_complete, self._key_alone(), rows, now=now)

    def infer_stream(
        self, request: InferRequest, further: AsyncIterator[InferRequest] | None = None
    ) -> ResponseStream[InferResponse]:
        """See `Servable.infer_stream`."""
        if not self._requests.streams:
            return super().infer_stream(request, further)
        self._checks.admit(request)
        stream: ResponseStream[InferResponse] = ResponseStream()
        task = partial(self._stream, request, further, stream)
        stream.source = self._add(request, stream.end_with_request, self._key_alone(), 1, task=task)
        return stream

    def v1_nowait(self, call: V1Request, on_complete: Callable[[V1Answer | SerinusError], None]) -> Cancellable:
        """See `Servable.v1_nowait`: asked in V1 where the model speaks it, else, or where it would rather, in V2."""
        model = self._requests
        if call.task or (not call.explain and not self._speaks_v1):
            return ask_in_v2(self.infer_nowait, call, self.metadata(), on_complete)
        ask = model.explain_v1 if call.explain else model.predict_v1
        if len(call.body) <= LARGE_BODY_BYTES:
            return _V1Call(self, call, on_complete, partial(ask, read_document(call, takes_bytes=model.takes_bytes)))

        async def read_and_ask(headers: Mapping[str, str]) -> Any:
            document = await read_aside(len(call.body), lambda: read_document(call, takes_bytes=model.takes_bytes))
            return await ask(document, headers)

        return _V1Call(self, call, on_complete, read_and_ask)

    def begin_task(
        self, request: InferRequest, on_complete: Outcome, task: Callable[[], Awaitable[Any]], size: int = 0
    ) -> PendingRequest:
        """Queue work that is no inference request; `on_complete` is told what it returns.

        Args:
            request: its headers, deadline and priority.
            on_complete: as `infer_nowait`'s.
            task: makes the coroutine when its turn comes.
            size: bytes that the work holds until it is done.
        """
        return self._add(request, on_complete, self._key_alone(), 1, task=task, size=size)

    def read_loosely(self, body: bytes, headers: Mapping[str, str], version: str) -> InferRequest | None:
        """See `Servable.read_loosely`."""
        return self._requests.loose_request(body, headers, version)

    async def watch(self) -> None:
        """Ask a model that overrides `is_ready` once, and then every second until `close`."""
        for servable in self.behind:
            await servable.watch()
        if type(self._requests).is_ready is not RequestModel.is_ready:
            self._healthy = await self._is_ready()
            self._watcher = self._loop.create_task(self._ask_again())

    def close(self) -> None:
        """See `Servable.close`."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        super().close()

    def _key_alone(self) -> BatchKey:
        return _ALONE if self._batching is None else BatchKey(object(), (), _CALL)

    def _add(
        self,
        request: InferRequest,
        on_complete: Outcome,
        key: BatchKey,
        rows: int,
        *,
        now: float | None = None,
        task: Callable[[], Awaitable[Any]] | None = None,
        size: int = 0,
    ) -> PendingRequest:
        if now is None:
            now = self._clock()
        deadline = request.deadline
        level = self._default_level
        if request.parameters or request.priority:
            deadline, level = self._policy(request, now)
        if deadline is None and self._default_timeout_s is not None:
            deadline = now + self._default_timeout_s
        for tensor in request.inputs:
            size += held_bytes(tensor.data)
        pending = PendingRequest(request, on_complete, now, deadline, self.batcher, key, (), rows, level, task, size)
        self.batcher.add(pending)
        if deadline is not None:
            self._deadlines.add(pending, deadline)
        return pending

    def _answer(self, batch: Batch) -> BaseException | None:
        members = batch.members
        if members[0].task is not None:
            return self._answer_one(batch, batch.outputs)
        if not members[0].key.names:
            response = batch.outputs
            if not isinstance(response, InferResponse):
                return ModelFailed(f"model '{self.name}' did not answer with a response")
            return self._answer_one(batch, response)
        if len(batch.outputs) != len(members):
            return ModelFailed(
                f"model '{self.name}' gave {len(batch.outputs)} responses to {len(members)} requests of one batch"
            )
        # As in the general way, but without a call for each: such requests ask for no outputs by name.
        self.statistics.answered(batch, self._clock())
        responses: Any = batch.outputs
        if self._score is not None:
            self._score.observe_responses(cast("Iterable[InferResponse]", responses))
        for pending, response in zip(members, responses, strict=True):
            if pending.state == RUNNING:
                pending.state = DONE
                if self.version and not response.model_version:
                    response = replace(response, model_version=self.version)
                self._tell(pending.on_complete, response)
        return None

    def _answer_one(self, batch: Batch, answer: Any) -> BaseException | None:
        pending = batch.members[0]
        if pending.state != RUNNING:
            return None
        if pending.task is None:
            try:
                answer = self._complete(answer, pending.request)
            except SerinusError as error:
                return error
        self.statistics.answered(batch, self._clock())
        if self._score is not None and isinstance(batch.outputs, InferResponse):
            self._score.observe_responses((batch.outputs,))
        pending.state = DONE
        self._tell(pending.on_complete, answer)
        return None

    def _complete(self, response: InferResponse, request: InferRequest) -> InferResponse:
        """Make what the model answered the client's response: its name, version and id, the outputs that were asked for.

        Raises:
            InvalidInput: an output that was asked for is not there, or cannot be classified.
        """
        changes: dict[str, Any] = {}
        if not response.model_name:
            changes["model_name"] = self.name
        if self.version and not response.model_version:
            changes["model_version"] = self.version
        if response.id is None and request.id is not None:
            changes["id"] = request.id
        if request.outputs:
            by_name = {tensor.name: tensor for tensor in response.outputs}
            missing = [output.name for output in request.outputs if output.name not in by_name]
            if missing:
                have = ", ".join(f"'{name}'" for name in by_name) or "none"
                raise InvalidInput(f"output '{missing[0]}' is not one of model '{self.name}'; its outputs are {have}")
            specs = {spec.name: spec for spec in self.model.outputs}
            classified = self._requests.forwards_classification
            changes["outputs"] = select_outputs(
                list(response.outputs), request, specs, by_row=False, texts_are_classes=classified
            )
        return replace(response, **changes) if changes else response

    async def _stream(
        self,
        first: InferRequest,
        further: AsyncIterator[InferRequest] | None,
        stream: ResponseStream[InferResponse],
    ) -> None:
        """Pass on what the model answers, until it has ended."""

        async def requests() -> AsyncIterator[InferRequest]:
            yield first
            if further is not None:
                async for request in further:
                    self._checks.admit(request)
                    yield request

        responses = self._requests.infer_stream(requests())
        async with closing(responses):
            async for response in responses:
                if not isinstance(response, InferResponse):
                    raise ModelFailed(
                        f"model '{self.name}' answered a {type(response).__name__} in its stream; an InferResponse was expected"
                    )
                await stream.put(self._complete(response, first))

    async def _ask_again(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_INTERVAL_S)
            healthy = await self._is_ready()
            if healthy != self._healthy:
                _log.warning("model '%s' says that it is %s", self.name, "ready" if healthy else "not ready")
                self._healthy = healthy

    async def _is_ready(self) -> bool:
        try:
            return bool(await self._requests.is_ready())
        except Exception as error:  # noqa: BLE001 # an author's check; that it fails is its answer
            _log.warning("model '%s' cannot say whether it is ready: %s", self.name, error)
            return False


class _V1Call:
    """A V1 body that a model answers itself, in its queue like any request: bounded, counted, cancelled with its client.

    An answer in pieces is there when its first piece may be read; the call goes on until the last one has been. A model that answers
    None is asked in V2.
    """

    __slots__ = ("_answered", "_ask", "_begun", "_call", "_current", "_on_complete", "_servable", "_stream")

    def __init__(
        self,
        servable: RequestServable,
        call: V1Request,
        on_complete: Callable[[V1Answer | SerinusError], None],
        ask: Callable[[Mapping[str, str]], Awaitable[Any]],
    ) -> None:
        self._servable = servable
        self._call = call
        self._ask = ask
        self._on_complete = on_complete
        self._answered = False
        self._stream: ResponseStream[bytes] = ResponseStream()
        request = InferRequest(servable.name, (), call.version, headers=call.headers, deadline=call.deadline)
        begun = servable.begin_task(request, self._complete, self._run, len(call.body))
        self._begun = begun
        self._current: Cancellable = begun
        self._stream.source = begun

    def cancel(self) -> None:
        """The client has gone."""
        self._current.cancel()

    @property
    def is_streamed(self) -> bool:
        """Its answer has begun to come in pieces."""
        return self._answered

    async def _run(self) -> Any:
        answer = await self._ask(self._call.headers)
        if is_streamed(answer):
            self._answered = self._begun.is_stream = True
            self._on_complete(replace(answer, document=self._stream))
            await self._stream.fill(answer.document)
        return answer

    def _complete(self, outcome: Any) -> None:
        if self._answered:
            self._stream.end_with_request(outcome)
        elif outcome is None:
            self._ask_in_v2()
        elif isinstance(outcome, V1Answer | SerinusError):
            self._on_complete(outcome)
        else:
            self._on_complete(V1Answer(outcome))

    def _ask_in_v2(self) -> None:
        servable, call = self._servable, self._call
        if call.explain:
            self._on_complete(NotSupported(f"model '{servable.name}' does not explain its predictions"))
            return
        try:
            self._current = ask_in_v2(servable.infer_nowait, call, servable.metadata(), self._on_complete)
        except SerinusError as error:
            self._on_complete(error)
        except Exception:  # noqa: BLE001 # the edge of a request
            ids = error_ids(call.headers)
            _log.exception("model '%s': a V1 body could not be asked in V2", servable.name, extra={"ids": ids})
            failure = ModelFailed("the request could not be processed; the server's log has the details")
            failure.request_id = ids["request_id"]
            self._on_complete(failure)
