"""A loaded model that takes requests: what is the same whether it answers arrays or whole requests.

Theory of operation. A `Servable` has one queue (the batcher), one executor and one set of statistics. A request is checked,
queued, answered by callback; times of it are: queue until its batch is taken, compute-input until the inputs are ready,
compute-infer until the model has answered, compute-output until its response exists.

What a model raises becomes what the client reads here and nowhere else: a `SerinusError` passes as it is, anything
else is a ModelFailed without details, and its traceback is logged once (the same failure again within a few seconds
is counted, not repeated). A failed request of no rows is the client's fault: the protocol allows an empty tensor, and
few models do.

Not safe for other threads; everything runs on the loop's.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Literal, Protocol

from ...errors import Cancelled, InvalidInput, ModelFailed, NotReady, Overloaded, SerinusError
from ...model import Cancellable, Model, V1Answer
from ...protocol.json_codec import describe
from ...protocol.types import InferRequest, InferResponse, ModelMetadata
from ...settings import BatchSettings
from ..awaiting import wait_for_answer
from ..batching.adaptive_limit import AdaptiveLimit
from ..batching.batcher import Batcher, Executor
from ..batching.deadlines import Deadlines
from ..batching.pending_request import DONE, Batch, Outcome, PendingRequest
from ..response_stream import ResponseStream
from ..telemetry.request_records import error_ids
from ..telemetry.statistics import ModelStatistics
from .v1_requests import V1Request

__all__ = ["ModelExecutor", "Servable", "StreamKind"]

StreamKind = Literal["", "each", "whole"]
"""How a model streams: not; each request has a stream of responses; all requests of a gRPC stream have one together."""

_log = logging.getLogger("serinus.model")

_INT64: Final = 1 << 63
"""Beyond what a parameter of gRPC holds (`int64_param`); JSON's numbers are held to the same."""
_SAME_FAILURE_S: Final = 10.0
"""A traceback that was logged this recently is not logged again, only counted."""


class ModelExecutor(Executor, Protocol):
    """An executor that belongs to one model."""

    def close(self) -> None:
        """End what it runs on."""


class Servable(ABC):
    """A model that takes requests.

    Args:
        model: loaded and warm.
        executor: where it works; `close` ends it.
        execution: name of that, for people: "inline", "thread", "process" or "async".
        settings: of the queue.
        solo: each request is a batch of its own.
        statistics: outlives this object where the model is reloaded.
        clock: seconds, monotonic.
        limit: see `Batcher`.
        is_of_a_member: see `Batcher`.
    """

    def __init__(
        self,
        model: Model,
        executor: ModelExecutor,
        *,
        execution: str,
        settings: BatchSettings,
        solo: bool,
        statistics: ModelStatistics,
        deadlines: Deadlines,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        limit: AdaptiveLimit | None = None,
        is_of_a_member: Callable[[BaseException], bool] = lambda error: True,  # noqa: ARG005 # the plain rule
    ) -> None:
        self.model = model
        self.name = self.known_as = model.name
        """What clients read, and what the plane, its metrics and its log call it; they differ for a model behind another one."""
        self.version = model.version
        self.execution = execution
        self.statistics = statistics
        self._score = statistics.count_scores(model.settings.score)
        self.accepting = True
        """False once it was replaced or unloaded: what is in flight ends, nothing new comes."""
        self.files: Mapping[str, str] = {}
        """What its files were when it was loaded, where somebody asks; see `dataplane.model_files`."""
        self.behind: list[Servable] = []
        """Models that this one stands in front of; they live as long as it."""
        self._executor = executor
        self._deadlines = deadlines
        self._clock = clock
        self._loop = loop
        self._default_timeout_s = settings.default_timeout_s
        self.hang_timeout_s = settings.hang_timeout_s
        """Seconds after which a predict counts as one that hangs; 0: none does."""
        self.at_work = True
        """False: its predicts hang, as `dataplane.hang_watch` has found; readiness shows it."""
        self._levels = max(1, settings.priority_levels)
        self.has_priorities = self._levels > 1
        self._default_level = min(max(1, settings.default_priority), self._levels) - 1
        self._logged: tuple[str, float, int] = ("", 0.0, 0)
        self._idle: asyncio.Future[None] | None = None
        """Done when nothing is in flight; several may wait for it."""
        self.batcher = Batcher(
            settings,
            executor,
            solo=solo,
            answer=self._answer,
            reject=self._reject,
            dropped=self._drop,
            loop=loop,
            clock=clock,
            limit=limit,
            is_of_a_member=is_of_a_member,
        )

    # The verbs

    @abstractmethod
    def infer_nowait(self, request: InferRequest, on_complete: Outcome, now: float | None = None) -> PendingRequest:
        """Check and queue a request; `on_complete` is told the outcome.

        Args:
            request: its `deadline` is on the plane's clock.
            on_complete: called once, later than this returns; not at all after a cancel.
            now: the plane's clock, where the caller has just read it.

        Raises:
            SerinusError: it is refused; `on_complete` will not be called.
        """

    def refuse_unread(self) -> Overloaded | None:
        """Refuse, and count, a request that nobody has read yet; None: it must be read, for itself or for the log."""
        if self.statistics.recorder is not None:
            return None
        error = self.batcher.admission.refusal_now(self._clock())
        if error is not None:
            self.statistics.failed(error, None, 0.0)
        return error

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request; cancelling the task that awaits cancels the request.

        Raises:
            SerinusError: what the client reads.
        """
        return await wait_for_answer(lambda on_complete: self.infer_nowait(request, on_complete))

    def infer_stream(
        self, request: InferRequest, further: AsyncIterator[InferRequest] | None = None
    ) -> ResponseStream[InferResponse]:
        """Answer a request with the stream of its responses: here, with the only one.

        Args:
            request: what opens the stream.
            further: requests that follow it, for a model that takes whole streams.

        Raises:
            SerinusError: it is refused.
        """
        stream: ResponseStream[InferResponse] = ResponseStream()
        stream.source = self.infer_nowait(request, stream.end_with_only)
        return stream

    @abstractmethod
    def v1_nowait(self, call: V1Request, on_complete: Callable[[V1Answer | SerinusError], None]) -> Cancellable:
        """Answer a V1 body; `on_complete` is told the answer, whose document may be a `ResponseStream`, or the error.

        Raises:
            SerinusError: it is refused; `on_complete` will not be called.
        """

    async def predict_v1(self, body: bytes, headers: Mapping[str, str], *, deadline: float | None = None) -> V1Answer:
        """Answer a V1 `:predict` body.

        Raises:
            SerinusError: what the client reads.
        """
        call = V1Request(body=body, headers=headers, deadline=deadline)
        return await wait_for_answer(lambda on_complete: self.v1_nowait(call, on_complete))

    def read_loosely(self, body: bytes, headers: Mapping[str, str], version: str) -> InferRequest | None:
        """Read a V2 body that the protocol does not allow, where the model's clients are used to more; None: it is refused."""
        return None

    @property
    def healthy(self) -> bool:
        """Its predicts end, and what the model last said of itself, and those behind it; readiness shows it, requests are let through."""
        return self.at_work

    @property
    def batchable(self) -> bool:
        """Rows of several requests share batches."""
        return False

    @property
    def stream_kind(self) -> StreamKind:
        """How it streams."""
        return ""

    @property
    def has_generate(self) -> bool:
        """It is served under `/generate` too."""
        return False

    async def watch(self) -> None:
        """Begin to follow what the model says of its health; one of arrays says nothing."""
        return

    def metadata(self, versions: tuple[str, ...] | None = None) -> ModelMetadata:
        """Describe the model.

        Args:
            versions: those of its name; None: its own.
        """
        model = self.model
        details = dict(model.details)
        if model.settings.digest:
            details["digest"] = model.settings.digest
        outputs = tuple(spec for spec in model.outputs if not spec.optional)
        if outputs and len(outputs) < len(model.outputs):
            # "outputs" are those of a request that names none (inference_rest.md, "Inference Request JSON Object").
            details["optional_outputs"] = [
                {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
                for spec in model.outputs
                if spec.optional
            ]
        if versions is None:
            versions = (self.version,) if self.version else ()
        return ModelMetadata(
            self.name,
            versions,
            model.settings.platform or model.platform,
            tuple(model.inputs),
            outputs or tuple(model.outputs),
            details,
            model.signatures,
            model.columns.names if model.columns is not None else (),
        )

    def end_overdue(self, limit_s: float) -> int | None:
        """End the processes in which a predict has taken longer than this, and have others take their place.

        Returns:
            How many; None: it runs in no process of its own.
        """
        return None

    @property
    def is_at_work(self) -> bool:
        """Some process of its own can predict."""
        return True

    def is_open_ended(self, batch: Batch) -> bool:
        """Whether a batch may go on for as long as it likes: it is a stream."""
        return False

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self.batcher.queued + self.batcher.running

    @property
    def unanswered(self) -> int:
        """Requests that somebody waits for: those of a predict that hangs are none, once they are answered that it does."""
        batches = self.batcher.under_way
        return self.batcher.queued + sum(pending.state != DONE for batch in batches for pending in batch.members)

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        if self.batcher.idle:
            return
        if self._idle is None or self._idle.done():
            self._idle = idle = self._loop.create_future()
            self.batcher.on_idle = lambda: None if idle.done() else idle.set_result(None)
        await asyncio.shield(self._idle)

    def close(self) -> None:
        """Fail what is left in flight, and end the executor."""
        self.accepting = False
        self.batcher.fail_all(NotReady(f"model '{self.name}' is being unloaded"))
        self._executor.close()

    # What both kinds share

    @abstractmethod
    def _answer(self, batch: Batch) -> BaseException | None:
        """Answer a batch; gives back the error that its outputs deserve."""

    def _policy(self, request: InferRequest, now: float) -> tuple[float | None, int]:
        """Read the schedule policy extension: priority (1 the highest, 0 the default) and timeout (microseconds, 0 none).

        As in Triton, a priority beyond the levels that the model has is the default one.
        """
        parameters = request.parameters
        deadline = request.deadline
        timeout_us = parameters.get("timeout", 0)
        if type(timeout_us) is not int or not 0 <= timeout_us < _INT64:
            raise InvalidInput(
                f"parameter 'timeout' is {describe(timeout_us)}; it is a whole number of microseconds below 2^63, 0 for none"
            )
        if timeout_us:
            limit = now + timeout_us / 1e6
            deadline = limit if deadline is None else min(deadline, limit)
        priority = request.priority or parameters.get("priority", 0)
        if type(priority) is not int or not 0 <= priority < _INT64:
            raise InvalidInput(
                f"parameter 'priority' is {describe(priority)}; it is a whole number below 2^63, 1 the highest, 0 the default"
            )
        level = priority - 1 if 0 < priority <= self._levels else self._default_level
        return deadline, level

    def _reject(self, pending: PendingRequest, error: BaseException) -> None:
        answer = self._public(pending, error)
        self.statistics.failed(answer, pending, self._clock())
        self._tell(pending.on_complete, answer)

    def _drop(self, pending: PendingRequest) -> None:
        self.statistics.failed(Cancelled("the client went away"), pending, self._clock())

    def _public(self, pending: PendingRequest, error: BaseException) -> SerinusError:
        """What the client reads of an error."""
        if pending.rows == 0 and not isinstance(error, SerinusError):
            return InvalidInput(f"model '{self.name}' cannot predict a request of 0 rows; send at least one")
        if isinstance(error, SerinusError):
            if not isinstance(error, ModelFailed):
                return error
            request_id = self._log_failure(error, pending, traceback=error.__cause__ is not None)
            if not request_id or error.request_id == request_id:
                return error
            # Of its own: the members of a batch that has failed as a whole were all given the same error.
            answer = copy.copy(error)
            answer.__cause__ = error.__cause__
            answer.request_id = request_id
            return answer
        if isinstance(error, asyncio.CancelledError):
            return NotReady(f"model '{self.name}' stopped before the request was answered; try again")
        answer = ModelFailed(f"model '{self.name}' failed to predict; the server's log has the details")
        answer.request_id = self._log_failure(error, pending, traceback=True)
        return answer

    def _log_failure(self, error: BaseException, pending: PendingRequest, *, traceback: bool) -> str:
        """Log a failure; gives the id that its line has, empty where it is only counted."""
        text = f"{type(error).__name__}: {error}"
        last, when, repeats = self._logged
        now = self._clock()
        if text == last and now - when < _SAME_FAILURE_S:
            self._logged = (last, when, repeats + 1)
            return ""
        if repeats:
            _log.error("model '%s': %d more failures of the same kind: %s", self.name, repeats, last)
        self._logged = (text, now, 0)
        ids = error_ids(pending.request.headers)
        _log.error("model '%s' failed: %s", self.name, text, exc_info=error if traceback else None, extra={"ids": ids})
        return ids["request_id"]

    def _tell(self, on_complete: Outcome, answer: Any) -> None:
        try:
            on_complete(answer)
        except Exception:  # noqa: BLE001
            # One transport's mistake must not keep the neighbours in the batch from their answers.
            _log.exception("model '%s': an answer could not be handed over", self.name)
