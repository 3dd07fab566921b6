"""Where a `RequestModel` works: one task a request, which can be cancelled while it runs, or several requests at once by callback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from ...model import RequestModel
from ...protocol.types import InferResponse
from ..batching.pending_request import Batch
from .loop_share import LoopShare

__all__ = ["RequestExecutor"]

OnFinish = Callable[[Batch], None]


class RequestExecutor:
    """Runs the requests of one model.

    Args:
        model: loaded; `request_batching` is read now.
        capacity: most batches (of one request each, unless the model joins some) that may be under way.
    """

    def __init__(
        self, model: RequestModel, capacity: int, *, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self.capacity = capacity
        self._model = model
        self._batching = model.request_batching
        self._loop = loop
        self._clock = clock
        self._share = LoopShare(loop, clock)
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, batch: Batch, on_finish: OnFinish) -> bool:
        """Start the task, or hand the requests over together.

        Returns:
            Whether others should have a turn before the next batch: what a model does to begin a batch takes the loop's time.
        """
        first = batch.members[0]
        if self._batching is not None and first.key.names:
            self._run_together(batch, on_finish)
            return True
        task = self._loop.create_task(self._answer(batch))
        batch.running = task
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            batch.running = None
            batch.infer_to = self._clock()
            if task.cancelled():
                batch.error = asyncio.CancelledError()
            elif (error := task.exception()) is not None:
                batch.error = error
            on_finish(batch)

        task.add_done_callback(ended)
        return False

    def abandon(self, batch: Batch) -> None:
        """Stop it: nobody waits."""
        if batch.running is not None:
            batch.running.cancel()

    def close(self) -> None:
        """Cancel what still runs."""
        for task in list(self._tasks):
            task.cancel()

    async def _answer(self, batch: Batch) -> None:
        batch.infer_from = self._clock()
        pending = batch.members[0]
        work = pending.task() if pending.task is not None else self._model.infer(pending.request)
        batch.outputs = await (
            work if len(self._tasks) == 1 else self._share.steps(work, partial(_count_as_queue, batch))
        )

    def _run_together(self, batch: Batch, on_finish: OnFinish) -> None:
        def completed(answers: Sequence[InferResponse] | BaseException) -> None:
            batch.running = None
            batch.infer_to = self._clock()
            if isinstance(answers, BaseException):
                batch.error = answers
            else:
                batch.outputs = answers
            on_finish(batch)

        assert self._batching is not None  # noqa: S101 # `run` has looked
        batch.infer_from = self._clock()
        try:
            batch.running = self._batching.infer_batch([pending.request for pending in batch.members], completed)
        except Exception as error:  # noqa: BLE001 # the edge of these requests
            self._loop.call_soon(completed, error)


def _count_as_queue(batch: Batch, waited_s: float) -> None:
    """Take the time in line for the loop, before a step or between two, for time in the queue: the model had none of it."""
    batch.started += waited_s
    batch.infer_from += waited_s
