"""A model that answers arrays: its requests are checked, joined by rows, predicted, and cut into responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ...errors import NotSupported, SerinusError
from ...model import Cancellable, Model, V1Answer
from ...protocol.types import InferRequest, InferResponse, Tensor
from ...settings import BatchSettings
from ..batching.adaptive_limit import AdaptiveLimit
from ..batching.deadlines import Deadlines
from ..batching.pending_request import DONE, RUNNING, Batch, BatchKey, Outcome, PendingRequest, held_bytes
from ..execution.executor import Cost, InlineExecutor, ThreadExecutor
from ..execution.process_pool import ProcessPool
from ..telemetry.statistics import ModelStatistics
from .checks import AS_SENT, OutputChecks, RequestChecks, RowsDiffer
from .response_rows import Outputs, cut_rows, select_outputs
from .servable import Servable
from .v1_requests import V1Request, ask_in_v2

__all__ = ["ArrayServable"]

_log = logging.getLogger("serinus.model")


class ArrayServable(Servable):
    """A `Model` that takes requests; see `Servable` for the arguments.

    Args:
        cost: of its predicts, as measured at warm-up; None: it was not.
    """

    def __init__(
        self,
        model: Model,
        executor: InlineExecutor | ThreadExecutor,
        *,
        execution: str,
        cost: Cost | None = None,
        settings: BatchSettings,
        statistics: ModelStatistics,
        deadlines: Deadlines,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        processes: ProcessPool | None = None,
    ) -> None:
        self._processes = processes
        self._checks = checks = RequestChecks(model)
        self._batchable = checks.batchable
        limit = AdaptiveLimit(
            "joined" if checks.batchable else "alone",
            places=executor.capacity,
            is_fixed=settings.max_queue_rows is not None,
        )
        if cost is not None:
            limit.expect(cost.of(1), cost.row_s)
        super().__init__(
            model,
            executor,
            execution=execution,
            settings=settings,
            solo=not checks.batchable,
            statistics=statistics,
            deadlines=deadlines,
            loop=loop,
            clock=clock,
            limit=limit,
        )
        self._output_checks = OutputChecks(model, batchable=checks.batchable)
        self._signature_checks = {
            name: OutputChecks(model, batchable=own.batchable, outputs=model.signatures[name].outputs)
            for name, own in checks.signatures.items()
        }
        self._as_sent_checks = {
            name: OutputChecks(model, batchable=False, outputs=signature.outputs, any_shape=True)
            for name, signature in model.signatures.items()
            if model.takes_v1_shapes
        }

    @property
    def batchable(self) -> bool:
        """Requests share batches; see `RequestChecks.batchable`."""
        return self._batchable

    def end_overdue(self, limit_s: float) -> int | None:
        """See `Servable.end_overdue`."""
        return self._processes.end_overdue(limit_s) if self._processes is not None else None

    @property
    def is_at_work(self) -> bool:
        """See `Servable.is_at_work`."""
        return self._processes is None or self._processes.is_at_work

    def infer_nowait(self, request: InferRequest, on_complete: Outcome, now: float | None = None) -> PendingRequest:
        """See `Servable.infer_nowait`."""
        if now is None:
            now = self._clock()
        deadline = request.deadline
        level = self._default_level
        if request.parameters or request.priority:
            deadline, level = self._policy(request, now)
        key, arrays, rows = self._checks.admit(request)
        if deadline is None and self._default_timeout_s is not None:
            deadline = now + self._default_timeout_s
        size = rows * key.row_bytes or sum(map(held_bytes, arrays))
        pending = PendingRequest(
            request, on_complete, now, deadline, self.batcher, key, arrays, rows, level, None, size
        )
        self.batcher.add(pending)
        if deadline is not None:
            self._deadlines.add(pending, deadline)
        return pending

    def v1_nowait(self, call: V1Request, on_complete: Callable[[V1Answer | SerinusError], None]) -> Cancellable:
        """See `Servable.v1_nowait`: asked in V2."""
        if call.explain:
            raise NotSupported(f"model '{self.name}' does not explain its predictions")
        ask = self._infer_as_sent if self._as_sent_checks else self.infer_nowait
        return ask_in_v2(ask, call, self.metadata(), on_complete)

    def _infer_as_sent(self, request: InferRequest, on_complete: Outcome) -> PendingRequest:
        """As `infer_nowait`, for a model with `takes_v1_shapes`."""
        admitted = self._checks.admit_as_sent(request)
        if admitted is None:
            return self.infer_nowait(request, on_complete)
        now = self._clock()
        deadline, level = self._policy(request, now)
        if deadline is None and self._default_timeout_s is not None:
            deadline = now + self._default_timeout_s
        size = sum(map(held_bytes, admitted[1]))
        pending = PendingRequest(request, on_complete, now, deadline, self.batcher, *admitted, level, None, size)
        self.batcher.add(pending)
        if deadline is not None:
            self._deadlines.add(pending, deadline)
        return pending

    def _answer(self, batch: Batch) -> BaseException | None:
        """Answer a batch with what predict returned; gives back the error that the outputs deserve."""
        members = batch.members
        call = members[0].key.call
        checks = self._output_checks
        if self._signature_checks:
            checks = self._checks_of(members[0].key)
        try:
            try:
                outputs = checks.check(batch.outputs, batch.rows, call.outputs)
            except RowsDiffer as error:
                if self.model.batching == "declared":
                    raise
                self._join_none(error)
                if len(members) > 1:
                    raise  # each is predicted again, alone
                outputs = checks.check(batch.outputs, batch.rows, call.outputs)
        except SerinusError as error:
            return error
        answers = (
            self._plain_answers(members, outputs) if call.outputs is None else self._chosen_answers(members, outputs)
        )
        self.statistics.answered(batch, self._clock())
        if self._score is not None:
            self._score.observe(batch.outputs)
        for pending, response in answers:
            # Looked at again: telling one client may have cancelled another's request.
            if pending.state == RUNNING:
                pending.state = DONE
                try:
                    pending.on_complete(response)
                except Exception:  # noqa: BLE001 # as in `_tell`, which costs a call for each request
                    _log.exception("model '%s': an answer could not be handed over", self.name)
        return None

    def _join_none(self, error: RowsDiffer) -> None:
        """Predict requests alone from now on: a model that earned its batching has rows that are not one for one, after all."""
        if self._batchable:
            reason = f"output rows do not belong to input rows one by one, which no check at start has shown: {error}"
            _log.warning(
                "%s; requests are joined no more. Set batchable to false in model-settings.json, so that none are at the next start",
                reason,
            )
            self.model.details |= {"batching": "alone", "batching_reason": reason}
        self._batchable = False
        self.batcher.join_none()
        self.model.join_rows(False)
        for checks in (self._output_checks, *self._signature_checks.values(), *self._as_sent_checks.values()):
            checks.take_any_rows()

    def _checks_of(self, key: BatchKey) -> OutputChecks:
        """Find the output checks of a batch's signature."""
        name = key.call.parameters.get("signature_name", "")
        if self._as_sent_checks and type(key.value) is tuple and key.value[0] is AS_SENT:
            return self._as_sent_checks[name or self.model.default_signature]
        return self._signature_checks[name] if name else self._output_checks

    def _plain_answers(
        self, members: Sequence[PendingRequest], outputs: Outputs
    ) -> list[tuple[PendingRequest, InferResponse]]:
        """Cut the batch for requests that name no outputs. The parts are views."""
        name, version = self.name, self.version
        answers = []
        start = 0
        if len(outputs) == 1:
            output, datatype, array, _ = outputs[0]
            tail = array.shape[1:]
            if len(members) == 1:
                tensor = Tensor(output, datatype, array.shape, array)
                return [(members[0], InferResponse(name, (tensor,), version, members[0].request.id))]
            for pending in members:
                rows = pending.rows
                stop = start + rows
                if pending.state == RUNNING:
                    tensor = Tensor(output, datatype, (rows, *tail), array[start:stop])
                    answers.append((pending, InferResponse(name, (tensor,), version, pending.request.id)))
                start = stop
            return answers
        for pending, tensors in zip(members, cut_rows(members, outputs), strict=True):
            if pending.state == RUNNING:
                answers.append((pending, InferResponse(name, tensors, version, pending.request.id)))
        return answers

    def _chosen_answers(
        self, members: Sequence[PendingRequest], outputs: Outputs
    ) -> list[tuple[PendingRequest, InferResponse]]:
        """Cut the batch for requests that name outputs; one that wants classes of what has none is refused alone."""
        specs = {spec.name: spec for *_, spec in outputs if spec}
        answers = []
        for pending, tensors in zip(members, cut_rows(members, outputs), strict=True):
            if pending.state == RUNNING:
                request = pending.request
                try:
                    tensors = select_outputs(tensors, request, specs, self._batchable)
                except SerinusError as error:
                    pending.state = DONE
                    self._reject(pending, error)
                else:
                    answers.append((pending, InferResponse(self.name, tensors, self.version, request.id)))
        return answers
