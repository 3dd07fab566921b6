"""The queue of one model: which requests are predicted together, and when.

Theory of operation ------------------- Everything here runs on the event loop's thread; there is no lock. A request is
QUEUED, then RUNNING in one batch, then DONE.

*Continuous.* A batch is taken when a predict may begin (the executor has a free place), and is whatever waits then,
up to `max_batch_rows`. An idle server therefore adds no delay, and a busy one batches by itself: while one predict
runs, the next batch gathers. Requests that one turn of the event loop has read are taken together, since the queue is
looked at by a `call_soon` callback after the turn's I/O. With `max_delay_s` a free place waits for more rows, until
the batch is full, or the oldest request has waited that long (or half the time to its deadline, if that is sooner).
What a full batch leaves behind does not wait again.

*Groups.* (`waiting_requests`) A batch is homogeneous: `BatchKey.value` holds the inputs' names, shapes beyond the rows, datatypes, parameters
and wanted outputs. Each level of priority keeps its groups in order; a batch is of one group, first in, first out. A
group that was not emptied goes behind the others of its level, so no group starves another.

*Rows.* A request is never split: one with more than `max_batch_rows` rows is predicted alone and whole, since only
the model knows whether its rows are independent. A request of no rows is predicted alone too, as stacking would hide
it.

*Priorities.* Level 0 is the highest here (1 in the protocol). A lower level is looked at only when the higher ones
are empty, so sustained overload by high priorities starves the low ones until their deadlines; that is what the
extension asks for. Room left in a batch is filled from lower levels of the same group, which costs the high ones
nothing.

*Bounds.* A request is refused with Overloaded, whose `retry_after_s` is the time that the rows before it will take: beyond
`max_queue_rows` rows that wait; where no such number was set, beyond what the model answers soon enough (`adaptive_limit`);
beyond `max_queue_bytes` of tensors that wait or run; and, with a deadline, where the rows before it take until then. A
request larger than a whole bound is let in when nothing waits (nothing is present, for the bytes), else it could never be
served. In the place of a request of a higher level, the last one of the lowest level is refused, though it waits already.

*Deadlines and cancelled requests.* A queued request whose deadline comes, or whose client goes, leaves at once: its
rows are subtracted, it is marked DONE, and the entry left in the deque is skipped later (and swept when dead entries
are the majority). Rows that have not begun are never predicted for nobody. A running one is answered TimedOut at its
deadline, its result is dropped, and its neighbours notice nothing. When nobody waits for a running batch any more the
executor is told, and stops it if it can.

*Isolation.* When a batch of several requests fails, each is predicted again, alone, ahead of the queue; only those
that fail alone are failed. A model that is called again for a request must not mind: predict is a function. One bad
request thus costs its batch one predict each; a batch of one is not tried again. An error that no member can be the cause of
(`is_of_a_member`) is every member's answer at once.

*Requests as members.* A model that answers whole requests may have some of them together as well (`model.RequestBatching`): the
rows of one-row requests in front of a pipeline, or what MLServer's adaptive batching joins. Those have a key of their own
making; all others have one that nobody shares.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from ...errors import SerinusError, TimedOut
from ...settings import QUEUE_ROWS, BatchSettings
from .adaptive_limit import QUICK_S, AdaptiveLimit, shares_of_levels
from .admission import Admission
from .pending_request import DONE, QUEUED, RUNNING, Batch, PendingRequest
from .waiting_requests import WaitingRequests
from .wake_timer import WakeTimer

__all__ = ["Batcher", "Executor"]


class Executor(Protocol):
    """Runs batches, somewhere."""

    capacity: int
    """Batches that may run at a time."""

    def run(self, batch: Batch, on_finish: Callable[[Batch], None]) -> bool:
        """Predict a batch, fill in its outputs or error and its times, and call `on_finish` on the loop's thread.

        Returns:
            Whether `on_finish` was called already: the predict took the event loop's time, and others should have a turn.
        """
        ...

    def abandon(self, batch: Batch) -> None:
        """Stop the batch if that is possible: nobody waits for it. `on_finish` is called all the same."""
        ...


class Batcher:
    """The queue of one model.

    Args:
        settings: bounds, delay, levels.
        executor: where batches run.
        solo: one request a batch (the model is not batchable).
        answer: given a predicted batch; returns None once its members are answered, or the error that its outputs deserve.
        reject: tells one request's client an error.
        dropped: told of a request whose client has gone.
        limit: what bounds the queue where `max_queue_rows` does not; None: one for `executor`'s batches.
        is_of_a_member: whether one member of a failed batch may be the cause, so that each is worth trying alone.
    """

    def __init__(
        self,
        settings: BatchSettings,
        executor: Executor,
        *,
        solo: bool,
        answer: Callable[[Batch], BaseException | None],
        reject: Callable[[PendingRequest, BaseException], None],
        dropped: Callable[[PendingRequest], None],
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        limit: AdaptiveLimit | None = None,
        is_of_a_member: Callable[[BaseException], bool] = lambda error: True,  # noqa: ARG005 # the plain rule
    ) -> None:
        self._max_rows = settings.max_batch_rows
        most = settings.max_queue_rows
        self._max_queue_rows = QUEUE_ROWS if most is None else most
        self._max_bytes = settings.max_queue_bytes
        if limit is None:
            limit = AdaptiveLimit("alone" if solo else "joined", places=executor.capacity, is_fixed=most is not None)
        self._limit = limit
        self._is_joined = limit.joining == "joined"
        self._max_delay_s = 0.0 if solo else settings.max_delay_s
        self._executor = executor
        self._solo = solo
        self._answer = answer
        self._reject = reject
        self._dropped = dropped
        self._is_of_a_member = is_of_a_member
        self._loop = loop
        self._clock = clock
        self._waiting = WaitingRequests(levels := max(1, settings.priority_levels))
        self._has_levels = levels > 1
        self.admission = Admission(
            self,
            limit,
            most_rows=self._max_queue_rows,
            most_bytes=self._max_bytes,
            shares=shares_of_levels(levels),
        )
        self._free = self.places = executor.capacity
        self._batches: set[Batch] = set()
        self._scheduled = False
        self._dispatching = False
        self._due = float("inf")
        """With `max_delay_s`: when a free place stops waiting for more."""
        self._timer = WakeTimer(loop, clock, self._dispatch)
        self._row_s = 0.0
        """Seconds of predict per row, a moving average; 0: not known yet."""
        self.running_rows = 0
        self.queued_rows = 0
        self.queued = 0
        self.present_bytes = 0
        """Of the tensors of requests that wait or run."""
        self.running = 0
        """Requests in batches that run, those given up included until their batch ends."""
        self.on_idle: Callable[[], None] | None = None
        """Called when the last request is gone; set by whoever drains."""

    @property
    def idle(self) -> bool:
        """Nothing waits or runs."""
        return not self.queued and self._free == self._executor.capacity

    @property
    def is_running(self) -> bool:
        """Whether a batch runs, be it one that nobody waits for."""
        return bool(self._batches)

    @property
    def under_way(self) -> Sequence[Batch]:
        """Batches that run now, also those that nobody waits for any more."""
        return tuple(self._batches)

    def add(self, pending: PendingRequest) -> None:
        """Queue a request.

        Raises:
            Overloaded: the queue is full, or the deadline would pass before the answer; the request is not queued.
        """
        own = pending.rows
        waiting, level, limit = self._waiting, pending.level, self._limit
        if self._batches or self.queued:
            pending.ahead = present = self.queued_rows + self.running_rows + own
            if self._has_levels:
                pending.ahead -= sum(waiting.rows[level + 1 :])
            if (
                present > limit.room
                or pending.deadline is not None
                or self.queued_rows + own > self._max_queue_rows
                or self.queued >= self._max_queue_rows
                or self.present_bytes + pending.size > self._max_bytes
            ):
                self._admit(pending)
            else:
                limit.drained_at = pending.arrived
        else:
            pending.ahead = own
            limit.drained_at = pending.arrived
        self.queued_rows += own
        self.queued += 1
        self.present_bytes += pending.size
        if self._has_levels:
            waiting.count_in(pending)
        groups = waiting.levels[level]
        key = pending.key.value
        queue = groups.get(key)
        if queue is None:
            groups[key] = deque((pending,))
        else:
            queue.append(pending)
        if self._max_delay_s:
            self._wait(pending)
        if self._free and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _admit(self, pending: PendingRequest) -> None:
        """Look closely at a request that may be one too many, or late; lower ones make room for it.

        Raises:
            Overloaded: it is refused.
        """
        admission = self.admission
        admission.check_deadline(pending)
        while (reason := admission.reason_to_refuse(pending)) is not None:
            lower = self._waiting.last_below(pending.level)
            if lower is None:
                raise admission.refuse_at(pending.arrived, reason)
            self._count_out(lower)
            self._fail(lower, admission.refuse(f"requests of higher priority came, and {reason}"))
            lower.release()

    def _count_out(self, pending: PendingRequest) -> None:
        """Subtract a queued request, whose entry stays where it is, dead."""
        self.queued -= 1
        self.queued_rows -= pending.rows
        self.present_bytes -= pending.size
        self._waiting.dead += 1
        if self._has_levels:
            self._waiting.count_out((pending,))
        if not self.queued:
            self._due = float("inf")

    def cancel(self, pending: PendingRequest) -> None:
        """Take out a request whose client has gone."""
        self._end(pending, None)
        self._idle()

    def expire(self, pending: PendingRequest) -> None:
        """Answer a request whose deadline has come."""
        where = "the model was predicting" if pending.state == RUNNING else "the request waited in the queue"
        self._end(pending, TimedOut(f"the deadline passed while {where}"))
        self._idle()

    def give_up(self, waiting: Sequence[PendingRequest], error: SerinusError) -> None:
        """Answer requests with an error before their result is there; what predicts them is told to stop if it can."""
        for pending in waiting:
            if pending.state != DONE:
                self._end(pending, error)
        self._idle()

    def join_none(self) -> None:
        """Make each request a batch of its own from now on."""
        self._solo = True
        self._max_delay_s = 0.0
        self._is_joined = False
        self._limit.joining = "alone"

    def retry_after_s(self) -> float:
        """Estimate how long what is queued will take; 1 s while nothing has been measured."""
        measured = self._limit.clears_in_s(self.queued_rows + self.running_rows)
        return measured or self.queued_rows * self._row_s / self._executor.capacity or 1.0

    def fail_all(self, error: SerinusError) -> None:
        """Answer everything that waits or runs with an error; the executor is told to stop what it can."""
        self.give_up([*self._waiting, *(one for batch in self._batches for one in batch.members)], error)

    def _end(self, pending: PendingRequest, error: SerinusError | None) -> None:
        """Take a request out before its result is there; None: its client has gone, and is told nothing."""
        batch = pending.batch
        if pending.state == QUEUED:
            self._count_out(pending)
        pending.state = DONE
        self._waiting.sweep(self.queued)
        if error is None:
            self._dropped(pending)
        else:
            self._reject(pending, error)
        if batch is None:
            pending.release()  # one that runs is released when its batch ends: a thread may be reading its tensors
        else:
            pending.batch = None
            if all(other.state == DONE for other in batch.members):
                self._executor.abandon(batch)

    def _wait(self, pending: PendingRequest) -> None:
        delay = self._max_delay_s
        if pending.deadline is not None:
            delay = min(delay, (pending.deadline - pending.arrived) / 2)
        pending.due = pending.arrived + delay
        self._due = min(self._due, pending.due)

    def _flush(self) -> None:
        self._scheduled = False
        self._dispatch()

    def _dispatch(self) -> None:
        while self._free and self.queued:
            now = self._clock()
            if self._max_delay_s and not self._waiting.alone and self.queued_rows < self._max_rows and now < self._due:
                self._timer.wake_at(self._due)
                return
            batch = self._take(now)
            if batch is None:
                continue
            self._free -= 1
            self.running += len(batch.members)
            self.running_rows += batch.rows
            self._batches.add(batch)
            self._dispatching = True
            inline = self._executor.run(batch, self._finished)
            self._dispatching = False
            if inline:
                if self.queued and self._free and not self._scheduled:
                    self._scheduled = True
                    self._loop.call_soon(self._flush)
                return

    def _take(self, now: float) -> Batch | None:
        """Make the next batch; None where every request looked at was dead or late."""
        late: list[PendingRequest] = []
        waiting = self._waiting
        members = waiting.take(now, self._max_rows, self._solo, late)
        batch, rows = None, 0
        if members:
            batch = Batch(members, 0, now)
            for pending in members:
                pending.state = RUNNING
                pending.batch = batch
                rows += pending.rows
            batch.rows = rows
            if self._has_levels:
                waiting.count_out(members)
            self.queued -= len(members)
            self.queued_rows -= rows
            if self._is_joined and not self.queued:
                self._limit.drained_at = now
        if self._max_delay_s:
            self._due = now if self.queued else float("inf")
        # Answered last: what `reject` calls may submit and cancel, and so change the queues.
        for pending in late:
            if pending.state == QUEUED:
                self._count_out(pending)
                waiting.dead -= 1
                self._fail(pending, TimedOut("the deadline passed while the request waited in the queue"))
        return batch

    def _finished(self, batch: Batch) -> None:
        """Take back a batch, on the loop's thread; the next one is started before this one's answers are made."""
        members = batch.members
        self._free += 1
        self.running_rows -= batch.rows
        self._batches.discard(batch)
        first = members[0]
        if batch.infer_to - first.arrived > QUICK_S and batch.error is None and not first.is_stream:
            self._measure(batch)
        if not self._dispatching:
            self._dispatch()
        error = batch.error
        if error is None:
            error = self._answer(batch)
        if error is not None:
            if len(members) > 1 and self._is_of_a_member(error):
                self._again(members)
            else:
                for pending in members:
                    self._fail(pending, error)
        self.running -= len(members)
        for pending in members:
            if pending.state != DONE:
                continue
            self.present_bytes -= pending.size
            if pending.deadline is not None:
                pending.release()  # it stays in the heap of deadlines for a while
        if self.on_idle is not None:
            self._idle()

    def _measure(self, batch: Batch) -> None:
        """Tell the limit of the request of a batch that has waited longest."""
        first, now, service_s = batch.members[0], batch.infer_to, batch.infer_to - batch.started
        self._row_s += (service_s / (batch.rows or 1) - self._row_s) * (0.2 if self._row_s else 1.0)
        present = first.ahead - first.rows + batch.rows
        if first.level:
            present += sum(self._waiting.added[: first.level])
        self._limit.answered(now, present=present, rows=batch.rows, delay_s=now - first.arrived, service_s=service_s)

    def _again(self, members: Sequence[PendingRequest]) -> None:
        for pending in members:
            if pending.state == RUNNING:
                pending.state = QUEUED
                pending.batch = None
                self.queued += 1
                self.queued_rows += pending.rows
                if self._has_levels:
                    self._waiting.rows[pending.level] += pending.rows
                self._waiting.alone.append(pending)
        if self._free and self._waiting.alone and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _fail(self, pending: PendingRequest, error: BaseException) -> None:
        if pending.state != DONE:
            pending.state = DONE
            self._reject(pending, error)

    def _idle(self) -> None:
        if self.on_idle is not None and self.idle:
            self.on_idle()
