"""One loaded model, ready for requests: its checks, its queue, its executor, its statistics.

Theory of operation. `ServedModel.submit` checks a request and queues it; the batcher gives predicted batches to
`_answer`, which checks the outputs, cuts them into responses and tells each client. Times of a request: queue until
its batch is taken, compute-input until the tensors are stacked, compute-infer until predict returns, compute-output
until its response exists.

What a model raises becomes what the client reads here and nowhere else: a `SerinusError` passes as it is, anything
else is a ModelFailed without details, and its traceback is logged once (the same failure again within a few seconds
is counted, not repeated). A failed request of no rows is the client's fault: the protocol allows an empty tensor, and
few models do.

Not safe for other threads; everything runs on the loop's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ..errors import Cancelled, InvalidInput, ModelFailed, NotReady, SerinusError
from ..model import Call, Model, RequestModel
from ..protocol.classification import classification_count, classify
from ..protocol.datatypes import BYTES
from ..protocol.json_codec import describe
from ..protocol.types import InferRequest, InferResponse, Tensor, TensorSpec
from ..settings import BatchSettings
from .batching.batcher import Batcher
from .batching.deadlines import Deadlines
from .batching.pending_request import DONE, RUNNING, Done, Form, ModelCall, StreamCall, Ticket, Work
from .checks import OutputChecks, RequestChecks
from .execution.executor import InlineExecutor, TaskExecutor, ThreadExecutor
from .telemetry.statistics import ModelStatistics

__all__ = ["ServedModel"]

Outputs = list[tuple[str, str, Any, TensorSpec | None]]
"""Name, datatype, array of the batch, spec."""

_log = logging.getLogger("serinus.model")

_CALL_FORM: Final = Form(None, (), Call())
_INT64: Final = 1 << 63
"""Beyond what a parameter of gRPC holds (`int64_param`); JSON's numbers are held to the same."""
_HEALTH_INTERVAL_S: Final = 1.0
_SAME_FAILURE_S: Final = 10.0
"""A traceback that was logged this recently is not logged again, only counted."""


class ServedModel:
    """A model that takes requests.

    Args:
        model: loaded and warm.
        executor: where its predict runs.
        execution: name of that, for people: "inline", "thread", "process" or "async".
        statistics: outlives this object where the model is reloaded.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: Model,
        executor: InlineExecutor | ThreadExecutor | TaskExecutor,
        *,
        execution: str,
        settings: BatchSettings,
        statistics: ModelStatistics,
        deadlines: Deadlines,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.model = model
        self.name = model.name
        self.version = model.version
        self.execution = execution
        self.statistics = statistics
        self.healthy = True
        """What a `RequestModel` last said of itself; readiness shows it, requests are let through all the same."""
        self._watcher: asyncio.Task[None] | None = None
        self.accepting = True
        """False once it was replaced or unloaded: what is in flight ends, nothing new comes."""
        self._executor = executor
        self._deadlines = deadlines
        self._clock = clock
        self._loop = loop
        self._checks = RequestChecks(model)
        self._output_checks = OutputChecks(model, batchable=self._checks.batchable)
        self._signature_checks = {
            name: OutputChecks(model, batchable=checks.batchable, outputs=model.signatures[name].outputs)
            for name, checks in self._checks.signatures.items()
        }
        self._batchable = self._checks.batchable
        self._default_timeout_s = settings.default_timeout_s
        self._levels = max(1, settings.priority_levels)
        self._default_level = min(max(1, settings.default_priority), self._levels) - 1
        self._logged: tuple[str, float, int] = ("", 0.0, 0)
        self.batcher = Batcher(
            settings,
            executor,
            solo=not self._batchable,
            answer=self._answer if not isinstance(model, RequestModel) else self._answer_whole,
            reject=self._reject,
            dropped=self._drop,
            loop=loop,
            clock=clock,
        )

    @property
    def batchable(self) -> bool:
        """Requests share batches; see `RequestChecks.batchable`."""
        return self._batchable

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self.batcher.queued + self.batcher.running

    def submit(self, request: InferRequest, done: Done, now: float) -> Ticket:
        """Check and queue a request.

        Raises:
            SerinusError: it is refused; `done` will not be called.
        """
        deadline = request.deadline
        level = self._default_level
        if request.parameters or request.priority:
            deadline, level = self._policy(request, now)
        if isinstance(request, ModelCall):
            form, arrays, rows = _CALL_FORM, (), 1
            if isinstance(request, StreamCall):
                self._checks.admit(request.first)
        else:
            form, arrays, rows = self._checks.admit(request)
        if deadline is None and self._default_timeout_s is not None:
            deadline = now + self._default_timeout_s
        ticket = Ticket(request, done, now, deadline, self.batcher, form, arrays, rows, level)
        self.batcher.add(ticket)
        if deadline is not None:
            self._deadlines.add(ticket, deadline)
        return ticket

    def check(self, request: InferRequest) -> None:
        """Check a further request of a stream.

        Raises:
            InvalidInput: it does not fit the model.
        """
        self._checks.admit(request)

    async def watch(self) -> None:
        """Ask a `RequestModel` that overrides `is_ready` once, and then every second until `close`."""
        model = self.model
        if isinstance(model, RequestModel) and type(model).is_ready is not RequestModel.is_ready:
            self.healthy = await self._is_ready(model)
            self._watcher = self._loop.create_task(self._ask_again(model))

    async def _ask_again(self, model: RequestModel) -> None:
        while True:
            await asyncio.sleep(_HEALTH_INTERVAL_S)
            healthy = await self._is_ready(model)
            if healthy != self.healthy:
                _log.warning("model '%s' says that it is %s", self.name, "ready" if healthy else "not ready")
                self.healthy = healthy

    async def _is_ready(self, model: RequestModel) -> bool:
        try:
            return bool(await model.is_ready())
        except Exception as error:  # noqa: BLE001 # an author's check; that it fails is its answer
            _log.warning("model '%s' cannot say whether it is ready: %s", self.name, error)
            return False

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        if self.batcher.idle:
            return
        idle = self._loop.create_future()
        self.batcher.on_idle = lambda: None if idle.done() else idle.set_result(None)
        await idle

    def close(self) -> None:
        """Fail what is left in flight, and end the executor's threads."""
        self.accepting = False
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        self.batcher.fail_all(NotReady(f"model '{self.name}' is being unloaded"))
        self._executor.close()

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

    def _answer(self, work: Work) -> BaseException | None:
        """Answer a batch with what predict returned; gives back the error that the outputs deserve."""
        tickets = work.tickets
        form = tickets[0].form
        checks = self._output_checks
        if self._signature_checks and "signature_name" in form.call.parameters:
            checks = self._signature_checks[form.call.parameters["signature_name"]]
        try:
            outputs = checks.check(work.outputs, work.rows, form.call.outputs)
        except SerinusError as error:
            return error
        plain = form.call.outputs is None
        answers = self._plain_answers(tickets, outputs) if plain else self._chosen_answers(tickets, outputs)
        self.statistics.answered(work, self._clock())
        for ticket, response in answers:
            # Looked at again: telling one client may have cancelled another's ticket.
            if ticket.state == RUNNING:
                ticket.state = DONE
                try:
                    ticket.done(response)
                except Exception:  # noqa: BLE001 # as in `_tell`, which costs a call for each request
                    _log.exception("model '%s': an answer could not be handed over", self.name)
        return None

    def _plain_answers(self, tickets: Sequence[Ticket], outputs: Outputs) -> list[tuple[Ticket, InferResponse]]:
        """Cut the batch for requests that name no outputs. The parts are views."""
        name, version = self.name, self.version
        answers = []
        start = 0
        if len(outputs) == 1:
            output, datatype, array, _ = outputs[0]
            tail = array.shape[1:]
            if len(tickets) == 1:
                tensor = Tensor(output, datatype, array.shape, array)
                return [(tickets[0], InferResponse(name, (tensor,), version, tickets[0].request.id))]
            for ticket in tickets:
                rows = ticket.rows
                stop = start + rows
                if ticket.state == RUNNING:
                    tensor = Tensor(output, datatype, (rows, *tail), array[start:stop])
                    answers.append((ticket, InferResponse(name, (tensor,), version, ticket.request.id)))
                start = stop
            return answers
        for ticket, tensors in zip(tickets, _cut(tickets, outputs), strict=True):
            if ticket.state == RUNNING:
                answers.append((ticket, InferResponse(name, tensors, version, ticket.request.id)))
        return answers

    def _chosen_answers(self, tickets: Sequence[Ticket], outputs: Outputs) -> list[tuple[Ticket, InferResponse]]:
        """Cut the batch for requests that name outputs; one that wants classes of what has none is refused alone."""
        specs = {spec.name: spec for *_, spec in outputs if spec}
        answers = []
        for ticket, tensors in zip(tickets, _cut(tickets, outputs), strict=True):
            if ticket.state == RUNNING:
                request = ticket.request
                try:
                    tensors = _selected(tensors, request, specs, self._batchable)
                except SerinusError as error:
                    ticket.state = DONE
                    self._reject(ticket, error)
                else:
                    answers.append((ticket, InferResponse(self.name, tensors, self.version, request.id)))
        return answers

    def _answer_whole(self, work: Work) -> BaseException | None:
        """Answer one request of a `RequestModel`."""
        ticket = work.tickets[0]
        if ticket.state != RUNNING:
            return None
        response = work.outputs
        if not isinstance(response, InferResponse):
            return ModelFailed(f"model '{self.name}' did not answer with a response")
        try:
            response = self.complete(response, ticket.request)
        except SerinusError as error:
            return error
        self.statistics.answered(work, self._clock())
        ticket.state = DONE
        self._tell(ticket.done, response)
        return None

    def complete(self, response: InferResponse, request: InferRequest) -> InferResponse:
        """Make what a `RequestModel` answered the client's response: its name and id, the outputs that were asked for.

        Raises:
            InvalidInput: an output that was asked for is not there, or cannot be classified.
        """
        changes: dict[str, Any] = {}
        if not response.model_name:
            changes["model_name"] = self.name
        if response.id is None and request.id is not None:
            changes["id"] = request.id
        if request.outputs:
            by_name = {tensor.name: tensor for tensor in response.outputs}
            missing = [output.name for output in request.outputs if output.name not in by_name]
            if missing:
                have = ", ".join(f"'{name}'" for name in by_name) or "none"
                raise InvalidInput(f"output '{missing[0]}' is not one of model '{self.name}'; its outputs are {have}")
            specs = {spec.name: spec for spec in self.model.outputs}
            done = isinstance(self.model, RequestModel) and self.model.forwards_classification
            changes["outputs"] = _selected(list(response.outputs), request, specs, by_row=False, texts_are_classes=done)
        return replace(response, **changes) if changes else response

    def _reject(self, ticket: Ticket, error: BaseException) -> None:
        answer = self._public(ticket, error)
        self.statistics.failed(answer, ticket, self._clock())
        self._tell(ticket.done, answer)

    def _drop(self, ticket: Ticket) -> None:
        self.statistics.failed(Cancelled("the client went away"), ticket, self._clock())

    def _public(self, ticket: Ticket, error: BaseException) -> SerinusError:
        """What the client reads of an error."""
        if ticket.rows == 0 and not isinstance(error, SerinusError):
            return InvalidInput(f"model '{self.name}' cannot predict a request of 0 rows; send at least one")
        if isinstance(error, SerinusError):
            if isinstance(error, ModelFailed):
                self._log_failure(error, traceback=error.__cause__ is not None)
            return error
        if isinstance(error, asyncio.CancelledError):
            return NotReady(f"model '{self.name}' stopped before the request was answered; try again")
        self._log_failure(error, traceback=True)
        return ModelFailed(f"model '{self.name}' failed to predict; the server's log has the details")

    def _log_failure(self, error: BaseException, *, traceback: bool) -> None:
        text = f"{type(error).__name__}: {error}"
        last, when, repeats = self._logged
        now = self._clock()
        if text == last and now - when < _SAME_FAILURE_S:
            self._logged = (last, when, repeats + 1)
            return
        if repeats:
            _log.error("model '%s': %d more failures of the same kind: %s", self.name, repeats, last)
        self._logged = (text, now, 0)
        _log.error("model '%s' failed: %s", self.name, text, exc_info=error if traceback else None)

    def _tell(self, done: Done, answer: InferResponse | SerinusError) -> None:
        try:
            done(answer)
        except Exception:  # noqa: BLE001
            # One transport's mistake must not keep the neighbours in the batch from their answers.
            _log.exception("model '%s': an answer could not be handed over", self.name)


def _cut(tickets: Sequence[Ticket], outputs: Outputs) -> list[list[Tensor]]:
    """Cut each output into the rows of each ticket. The parts are views."""
    if len(tickets) == 1:  # whole: the outputs of a model that is not batchable have no rows
        return [[Tensor(name, datatype, array.shape, array) for name, datatype, array, _ in outputs]]
    parts: list[list[Tensor]] = []
    start = 0
    for ticket in tickets:
        rows = ticket.rows
        stop = start + rows
        parts.append(
            [
                Tensor(name, datatype, (rows, *array.shape[1:]), array[start:stop])
                for name, datatype, array, _ in outputs
            ]
        )
        start = stop
    return parts


def _selected(
    tensors: list[Tensor],
    request: InferRequest,
    specs: Mapping[str, TensorSpec],
    by_row: bool,
    texts_are_classes: bool = False,
) -> list[Tensor]:
    """Put the outputs in the order of the request, classified where it asks for classes and they are not yet."""
    by_name = {tensor.name: tensor for tensor in tensors}
    chosen = []
    for output in request.outputs or ():
        tensor = by_name[output.name]
        count = classification_count(output.parameters, f"output '{output.name}'")
        if count and not (texts_are_classes and tensor.datatype == BYTES):
            if by_row and tensor.data.ndim == 1:
                rows = tensor.shape[0]  # one value per row: each row is a batch entry of one class
                tensor = Tensor(tensor.name, tensor.datatype, (rows, 1), tensor.data.reshape(rows, 1))
            spec = specs.get(output.name)
            tensor = classify(tensor, count, spec.labels if spec else ())
        chosen.append(tensor)
    return chosen
