"""Where a model's predict runs: on the event loop or in threads. What answers whole requests runs in `request_executor`.

Theory of operation. An executor takes a `Batch`, stacks its tensors, predicts, notes the times, and has `on_finish(batch)`
called on the loop's thread. It never raises: what goes wrong is `batch.error`. Stacking belongs to it because copying
the tensors of a large batch takes milliseconds, which must be the thread's and not the loop's.

*Inline* runs on the loop at once. That is the fastest for a predict of microseconds, and would stop every other
connection for one of milliseconds. So a batch whose estimated time passes `limit_s` goes to a thread instead, and a
model whose batches keep taking many times the limit, whatever was measured at warm-up, moves there for good. One that has held the loop for
`HELD_S` moves at once, also where the settings say inline: a probe was missed.

*Threads* take batch from one queue (`SimpleQueue`: no future, no lock of ours) and report by `call_soon_threadsafe`.
They are daemons: a predict that hangs cannot keep the process from ending. Each thread has a predict of its own,
which is how a pool of worker processes is driven too (see process_pool.py).
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

from ...errors import NotReady
from ...model import Call
from ..batching.pending_request import Batch

__all__ = ["HELD_S", "INLINE_BATCH_S", "Cost", "InlineExecutor", "Predict", "ThreadExecutor"]

_log = logging.getLogger("serinus.executor")

Predict = Callable[[Mapping[str, np.ndarray], Call], Mapping[str, np.ndarray]]
OnFinish = Callable[[Batch], None]
Clock = Callable[[], float]

INLINE_BATCH_S: Final = 0.001
"""Longest estimated batch that may take the event loop: 1 ms delays a health check less than a scheduler's slice does."""
HELD_S: Final = 1.0
"""Kubernetes' default `timeoutSeconds` of a probe: a loop that is held for longer has missed one."""
_NO_THREAD: Final = "a limit on processes or memory is reached (pids.max of the container, ulimit -u, ulimit -v)"
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


def compute(batch: Batch, predict: Predict, clock: Clock) -> None:
    """Stack the tensors of a batch and predict."""
    try:
        members = batch.members
        key = members[0].key
        if len(members) == 1:
            inputs = dict(zip(key.names, members[0].arrays, strict=True))
        elif len(key.names) == 1:
            inputs = {key.names[0]: np.concatenate([pending.arrays[0] for pending in members])}
        else:
            inputs = {
                name: np.concatenate([pending.arrays[i] for pending in members]) for i, name in enumerate(key.names)
            }
        batch.infer_from = clock()
        batch.outputs = predict(inputs, key.call)
    except BaseException as error:  # noqa: BLE001 # the edge of a batch: even SystemExit must not end a worker thread
        batch.error = error
    batch.infer_to = clock()


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
        self._jobs: SimpleQueue[tuple[Batch, OnFinish] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._told = False
        """Whether the log says that the system gives no more threads."""

    def run(self, batch: Batch, on_finish: OnFinish) -> bool:
        """Hand the batch to a thread; threads start with the first batch."""
        if len(self._threads) < len(self._predicts) and not self._start():
            batch.error = NotReady(f"no thread can be started for {self._name}: {_NO_THREAD}")
            batch.infer_from = batch.infer_to = self._clock()
            on_finish(batch)
            return True
        self._jobs.put((batch, on_finish))
        return False

    def _start(self) -> bool:
        """Start the threads that are missing, as many as the system gives; whether there are any."""
        for number in range(len(self._threads), len(self._predicts)):
            thread = threading.Thread(
                target=self._serve, args=(self._predicts[number],), name=f"{self._name}-{number}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # CPython's word for EAGAIN; the next batch tries again
                if not self._told:
                    self._told = True
                    _log.error("%s: %s; %s", self._name, error, _NO_THREAD)
                break
            self._threads.append(thread)
        else:
            self._told = False
        return bool(self._threads)

    def abandon(self, batch: Batch) -> None:
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
            batch, on_finish = job
            if any(pending.batch is batch for pending in batch.members):
                compute(batch, predict, self._clock)
            else:
                batch.error = asyncio.CancelledError()  # every client left before it began; nobody reads this
            try:
                self._loop.call_soon_threadsafe(on_finish, batch)
            except RuntimeError:  # the loop is closed, so nobody waits
                return
            del batch, on_finish, job  # else the thread would hold the batch's tensors until its next one


class InlineExecutor:
    """Predicts on the event loop, and sends long batches to a thread.

    Args:
        cost: measured at warm-up; zeros where nothing was measured.
        spill: takes the long batches; None: everything runs inline, because the settings say so.
        refuge: takes all batches of a model that has held the loop too long; None: `spill` does.
        slow_outputs: a batch that wants one of them is a long one, however few its rows.
        moved: told once, when the model turned out too slow for the loop and stays in the thread.
        held: told once in its place, where a single predict held the loop for so many seconds.
    """

    capacity = 1

    def __init__(
        self,
        predict: Predict,
        *,
        clock: Clock,
        cost: Cost,
        spill: ThreadExecutor | None,
        refuge: ThreadExecutor | None = None,
        slow_outputs: frozenset[str] = frozenset(),
        limit_s: float = INLINE_BATCH_S,
        moved: Callable[[], None] = lambda: None,
        held: Callable[[float], None] = lambda seconds: None,  # noqa: ARG005 # nobody asks
    ) -> None:
        self._predict = predict
        self._clock = clock
        self._spill = spill
        self._refuge = refuge if refuge is not None else spill
        self._slow_outputs = slow_outputs
        self._overrun_s = _OVERRUN * limit_s
        self._moved = moved
        self._held = held
        self._overruns = 0
        self._max_rows = float("inf")
        if spill is not None and cost.row_s > 0:
            self._max_rows = max(1.0, (limit_s - cost.call_s) / cost.row_s)

    def run(self, batch: Batch, on_finish: OnFinish) -> bool:
        """Predict now, or hand over."""
        spill = self._spill
        if spill is not None:
            if batch.rows > self._max_rows:
                return spill.run(batch, on_finish)
            wanted = batch.members[0].key.call.outputs
            if wanted is not None and not self._slow_outputs.isdisjoint(wanted):
                return spill.run(batch, on_finish)
        compute(batch, self._predict, self._clock)
        took = batch.infer_to - batch.infer_from
        if took <= self._overrun_s:
            if self._overruns:
                self._overruns = 0
        elif self._refuge is not None:
            self._overruns += 1
            if took > HELD_S:
                if self._spill is None or self._max_rows >= 0:
                    self._spill, self._max_rows = self._refuge, -1
                    self._held(took)
            elif spill is not None and self._overruns == _OVERRUNS:
                self._max_rows = -1
                self._moved()
        on_finish(batch)
        return True

    def abandon(self, batch: Batch) -> None:
        """Nothing to stop: an inline batch is over when anybody else can speak."""

    def close(self) -> None:
        """End the thread, if one was needed."""
        if self._spill is not None:
            self._spill.close()
