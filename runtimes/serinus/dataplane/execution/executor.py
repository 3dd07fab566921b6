"""Where a model's predict runs: on the event loop, in threads, or as a task.

Theory of operation. An executor takes a `Work`, stacks its tensors, predicts, notes the times, and has `finish(work)`
called on the loop's thread. It never raises: what goes wrong is `work.error`. Stacking belongs to it because copying
the tensors of a large batch takes milliseconds, which must be the thread's and not the loop's.

*Inline* runs on the loop at once. That is the fastest for a predict of microseconds, and would stop every other
connection for one of milliseconds. So a batch whose estimated time passes `limit_s` goes to a thread instead, and a
model whose batches keep taking many times the limit, whatever was measured at warm-up, moves there for good.

*Threads* take work from one queue (`SimpleQueue`: no future, no lock of ours) and report by `call_soon_threadsafe`.
They are daemons: a predict that hangs cannot keep the process from ending. Each thread has a predict of its own,
which is how a pool of worker processes is driven too (see process.py).

*Tasks* are for `RequestModel`s, whose `infer` is a coroutine; they can be cancelled while they run. A request that the
model would rather `begin`, and answer by callback, needs none.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

import numpy as np

from ...model import Call, RequestModel
from ...protocol.types import InferResponse
from ..batching.pending_request import ModelCall, Work

__all__ = ["INLINE_BATCH_S", "Cost", "InlineExecutor", "Predict", "TaskExecutor", "ThreadExecutor"]

_log = logging.getLogger("serinus.executor")

Predict = Callable[[Mapping[str, np.ndarray], Call], Mapping[str, np.ndarray]]
Finish = Callable[[Work], None]
Clock = Callable[[], float]

INLINE_BATCH_S: Final = 0.001
"""Longest estimated batch that may take the event loop: 1 ms delays a health check less than a scheduler's slice does."""
_OVERRUN: Final = 5.0
_OVERRUNS: Final = 3
"""So many batches in a row of so many times the limit mean that warm-up misled us; one alone may be the machine's doing."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Estimated time of a predict: `call_s + rows * row_s`, both in seconds."""

    call_s: float = 0.0
    row_s: float = 0.0

    def of(self, rows: int) -> float:
        """Seconds for a batch of `rows`."""
        return self.call_s + rows * self.row_s


def compute(work: Work, predict: Predict, clock: Clock) -> None:
    """Stack the tensors of a batch and predict."""
    try:
        tickets = work.tickets
        form = tickets[0].form
        if len(tickets) == 1:
            inputs = dict(zip(form.names, tickets[0].arrays, strict=True))
        elif len(form.names) == 1:
            inputs = {form.names[0]: np.concatenate([ticket.arrays[0] for ticket in tickets])}
        else:
            inputs = {
                name: np.concatenate([ticket.arrays[i] for ticket in tickets]) for i, name in enumerate(form.names)
            }
        work.infer_from = clock()
        work.outputs = predict(inputs, form.call)
    except BaseException as error:  # noqa: BLE001 # the edge of a batch: even SystemExit must not end a worker thread
        work.error = error
    work.infer_to = clock()


class ThreadExecutor:
    """One thread per predict function.

    Args:
        name: of the threads.
        predicts: one function for each thread; the same one several times where it may be called from several threads.
        on_close: ends what the predict functions stand on.
    """

    def __init__(
        self,
        name: str,
        predicts: Sequence[Predict],
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.capacity = len(predicts)
        self._name = name
        self._predicts = predicts
        self._loop = loop
        self._clock = clock
        self._on_close = on_close
        self._jobs: SimpleQueue[tuple[Work, Finish] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self, work: Work, finish: Finish) -> bool:
        """Hand the batch to a thread; threads start with the first batch."""
        if not self._threads:
            for number, predict in enumerate(self._predicts):
                thread = threading.Thread(
                    target=self._serve, args=(predict,), name=f"{self._name}-{number}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        self._jobs.put((work, finish))
        return False

    def abandon(self, work: Work) -> None:
        """Let it run: a thread cannot be stopped."""

    def close(self) -> None:
        """Let each thread end after the job it has."""
        for _ in self._threads:
            self._jobs.put(None)
        self._on_close()

    def _serve(self, predict: Predict) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            work, finish = job
            if any(ticket.work is work for ticket in work.tickets):
                compute(work, predict, self._clock)
            else:
                work.error = asyncio.CancelledError()  # every client left before it began; nobody reads this
            try:
                self._loop.call_soon_threadsafe(finish, work)
            except RuntimeError:  # the loop is closed, so nobody waits
                return
            del work, finish, job  # else the thread would hold the batch's tensors until its next one


class InlineExecutor:
    """Predicts on the event loop, and sends long batches to a thread.

    Args:
        cost: measured at warm-up; zeros where nothing was measured.
        spill: takes the long batches; None: everything runs inline, because the settings say so.
        slow_outputs: a batch that wants one of them is a long one, however few its rows.
        moved: told once, when the model turned out too slow for the loop and stays in the thread.
    """

    capacity = 1

    def __init__(
        self,
        predict: Predict,
        *,
        clock: Clock,
        cost: Cost,
        spill: ThreadExecutor | None,
        slow_outputs: frozenset[str] = frozenset(),
        limit_s: float = INLINE_BATCH_S,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._predict = predict
        self._clock = clock
        self._spill = spill
        self._slow_outputs = slow_outputs
        self._limit_s = limit_s
        self._moved = moved
        self._overruns = 0
        self._max_rows = float("inf")
        if spill is not None and cost.row_s > 0:
            self._max_rows = max(1.0, (limit_s - cost.call_s) / cost.row_s)

    def run(self, work: Work, finish: Finish) -> bool:
        """Predict now, or hand over."""
        spill = self._spill
        if spill is not None:
            if work.rows > self._max_rows:
                return spill.run(work, finish)
            wanted = work.tickets[0].form.call.outputs
            if wanted is not None and not self._slow_outputs.isdisjoint(wanted):
                return spill.run(work, finish)
        compute(work, self._predict, self._clock)
        if spill is not None:
            if work.infer_to - work.infer_from <= _OVERRUN * self._limit_s:
                self._overruns = 0
            else:
                self._overruns += 1
                if self._overruns == _OVERRUNS:
                    self._max_rows = -1
                    self._moved()
        finish(work)
        return True

    def abandon(self, work: Work) -> None:
        """Nothing to stop: an inline batch is over when anybody else can speak."""

    def close(self) -> None:
        """End the thread, if one was needed."""
        if self._spill is not None:
            self._spill.close()


class TaskExecutor:
    """Runs a `RequestModel`'s coroutine, one task a request, unless the model answers by callback."""

    def __init__(self, model: RequestModel, capacity: int, *, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self.capacity = capacity
        self._model = model
        self._loop = loop
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._begins = type(model).begin is not RequestModel.begin

    def run(self, work: Work, finish: Finish) -> bool:
        """Start the task, or what the model has in its place."""
        if self._begins and self._begin(work, finish):
            return False
        task = self._loop.create_task(self._infer(work))
        work.task = task
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            work.task = None
            work.infer_to = self._clock()
            if task.cancelled():
                work.error = asyncio.CancelledError()
            elif (error := task.exception()) is not None:
                work.error = error
            finish(work)

        task.add_done_callback(ended)
        return False

    def _begin(self, work: Work, finish: Finish) -> bool:
        request = work.tickets[0].request
        if isinstance(request, ModelCall):
            return False

        def done(answer: InferResponse | BaseException) -> None:
            work.task = None
            work.infer_to = self._clock()
            if isinstance(answer, InferResponse):
                work.outputs = answer
            else:
                work.error = answer
            finish(work)

        work.infer_from = self._clock()
        try:
            work.task = self._model.begin(request, done)
        except Exception as error:  # noqa: BLE001 # the edge of a request
            self._loop.call_soon(done, error)
            return True
        return work.task is not None

    def abandon(self, work: Work) -> None:
        """Cancel the task."""
        if work.task is not None:
            work.task.cancel()

    def close(self) -> None:
        """Cancel what still runs."""
        for task in list(self._tasks):
            task.cancel()

    async def _infer(self, work: Work) -> None:
        work.infer_from = self._clock()
        request = work.tickets[0].request
        work.outputs = await (
            request.answer(self._model) if isinstance(request, ModelCall) else self._model.infer(request)
        )
