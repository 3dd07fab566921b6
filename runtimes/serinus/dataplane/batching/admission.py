"""Who is let into a queue, and in which words the others are told: looked at only where the queue is crowded or a deadline is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ...errors import Overloaded
from .adaptive_limit import AdaptiveLimit
from .pending_request import PendingRequest

__all__ = ["Admission", "Queue"]

_STALE_S: Final = 0.1
"""How long one refusal is told again: what it says of rows and seconds is that old at the most."""


class Queue(Protocol):
    """What waits and what runs, as the queue counts it."""

    queued: int
    queued_rows: int
    running_rows: int
    present_bytes: int
    """Of the tensors of requests that wait or run."""

    @property
    def is_running(self) -> bool:
        """Whether a batch runs, be it one that nobody waits for."""
        ...

    def retry_after_s(self) -> float:
        """Seconds after which another try is worth it."""
        ...


class Admission:
    """The bounds of one queue.

    Args:
        queue: whose.
        limit: on the rows before a request.
        most_rows: rows that wait, and requests that wait.
        most_bytes: bytes that wait or run.
        shares: of the limit, by level of priority.
    """

    def __init__(
        self, queue: Queue, limit: AdaptiveLimit, *, most_rows: int, most_bytes: int, shares: Sequence[float]
    ) -> None:
        self._queue = queue
        self._limit = limit
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._shares = shares
        self.refusal: Overloaded | None = None
        """What somebody was refused with while nobody else would have been let in either; `refusal_now` tells whether that is still so."""
        self._refused_at = 0.0

    def check_deadline(self, pending: PendingRequest) -> None:
        """Refuse a request that cannot be answered in time.

        Raises:
            Overloaded: its deadline passes before.
        """
        limit, now, deadline, ahead = self._limit, pending.arrived, pending.deadline, pending.ahead
        if deadline is not None and ahead > pending.rows and not limit.meets(now, ahead, deadline):
            raise self.refuse(
                f"the request's deadline is too near: after what is before it, it is answered in about {limit.predicted_s(ahead):.2g} s, "
                f"and it has {max(0.0, deadline - now):.2g} s"
            )

    def reason_to_refuse(self, pending: PendingRequest) -> str | None:
        """Say what keeps a request out; None: nothing does."""
        queue, own = self._queue, pending.rows
        rows = queue.queued_rows
        if queue.queued and (rows + own > self._most_rows or queue.queued >= self._most_rows):
            return f"the queue is full: {rows} rows wait, {own} more would pass the limit of {self._most_rows}"
        if not queue.queued and not queue.is_running:
            return None
        held = queue.present_bytes
        if held + pending.size > self._most_bytes:
            return f"the queue is full: {held} bytes wait or run, {pending.size} more would pass the limit of {self._most_bytes}"
        present = rows + queue.running_rows + own
        if present <= self._limit.room:
            self._limit.drained_at = pending.arrived
        elif not self._limit.admits(pending.arrived, present, self._shares[pending.level]):
            return (
                f"the model is overloaded: {present - own} rows are before this request, and would keep it waiting for "
                f"{self._limit.predicted_s(present):.2g} s"
            )
        return None

    def refuse(self, reason: str) -> Overloaded:
        """Make the error of a request that is kept out or has to go."""
        again_s = self._queue.retry_after_s()
        return Overloaded(f"{reason}; come back in {again_s:.2g} s or send to more replicas", again_s)

    def refuse_at(self, now: float, reason: str) -> Overloaded:
        """Make the error of a request that is kept out, and keep it for the next ones where the queue is full for all."""
        error = self.refuse(reason)
        if self._is_full(now):
            self.refusal, self._refused_at = error, now
        return error

    def refusal_now(self, now: float) -> Overloaded | None:
        """Give what any request is refused with at this moment, whatever it holds; None: it must be read to know.

        So one that is refused costs neither decoding nor words. Never with levels of priority, of which the request tells.
        """
        error = self.refusal
        if error is not None and (now - self._refused_at > _STALE_S or not self._is_full(now)):
            self.refusal = error = None
        return error

    def _is_full(self, now: float) -> bool:
        """Whether a request of one row without a deadline is refused, and so every one."""
        queue = self._queue
        if len(self._shares) > 1 or (not queue.queued and not queue.is_running):
            return False
        rows, most = queue.queued_rows, self._most_rows
        if queue.queued and (rows >= most or queue.queued >= most):
            return True
        present = rows + queue.running_rows + 1
        return present > self._limit.room and not self._limit.admits(now, present)
