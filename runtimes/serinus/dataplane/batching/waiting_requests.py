"""The requests of one model that wait, by level of priority and group; which of them are taken next, and which is the first to be given up.

Theory of operation. Each level keeps its groups in order, and a group its requests. A request that is done before it was taken stays where
it is, is skipped when it comes up, and is swept when such dead entries are the majority. Who puts a request in, takes it or ends it, keeps the
counts of rows; they are plain lists because a call for each would be felt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from .pending_request import QUEUED, PendingRequest

__all__ = ["WaitingRequests"]

_SLACK: Final = 64
"""Dead entries that are not worth a sweep."""


class WaitingRequests:
    """See the module; not safe for other threads.

    Args:
        levels: of priority, at least one.
    """

    __slots__ = ("added", "alone", "dead", "levels", "rows")

    def __init__(self, levels: int) -> None:
        self.levels: list[dict[object, deque[PendingRequest]]] = [{} for _ in range(levels)]
        """Of each level, the highest first: the groups by `BatchKey.value`."""
        self.rows = [0] * levels
        """Rows that wait, of each level, where there are several."""
        self.added = [0] * levels
        """Rows that ever came, of each level, where there are several."""
        self.alone: deque[PendingRequest] = deque()
        """Requests of a failed batch, to be predicted one by one before anything else."""
        self.dead = 0
        """Entries that are done."""

    def __iter__(self) -> Iterator[PendingRequest]:
        yield from self.alone
        for groups in self.levels:
            for queue in groups.values():
                yield from queue

    def take(self, now: float, limit: int, solo: bool, late: list[PendingRequest]) -> list[PendingRequest]:
        """Take the members of the next batch; none where every request looked at was dead or late.

        Args:
            now: deadlines up to it have passed.
            limit: rows of a batch; one request may have more.
            solo: one request is a batch.
            late: is given the requests whose deadline has passed.
        """
        if self.alone:
            return self._take_alone(now, late)
        members: list[PendingRequest] = []
        rows = 0
        chosen: object = None
        full = False
        for groups in self.levels:
            if full:
                break
            if members:
                key, queue = chosen, groups.get(chosen)
                if queue is None:
                    continue
            elif groups:
                key, queue = next(iter(groups.items()))
            else:
                continue
            while queue and not full:
                pending = queue[0]
                if pending.state != QUEUED:
                    queue.popleft()
                    self.dead -= 1
                    continue
                size = pending.rows
                if members and (rows + size > limit or not size):
                    full = True
                    break
                queue.popleft()
                if pending.deadline is not None and pending.deadline <= now:
                    late.append(pending)
                    continue
                members.append(pending)
                rows += size
                chosen = key
                full = rows >= limit or solo or not size
            if not queue:
                del groups[key]
            elif len(groups) > 1:
                del groups[key]
                groups[key] = queue
        return members

    def count_in(self, pending: PendingRequest) -> None:
        """Note the rows of a request that is put in, and how many had come above it until then."""
        level = pending.level
        self.rows[level] += pending.rows
        self.added[level] += pending.rows
        pending.ahead -= sum(self.added[:level])

    def count_out(self, members: Sequence[PendingRequest]) -> None:
        """Note the rows of requests that wait no more."""
        for pending in members:
            self.rows[pending.level] -= pending.rows

    def last_below(self, level: int) -> PendingRequest | None:
        """Find the last request of the lowest level below this one; None: there is none."""
        for groups in self.levels[:level:-1]:
            for queue in reversed(groups.values()):
                while queue and queue[-1].state != QUEUED:
                    queue.pop()
                    self.dead -= 1
                if queue:
                    return queue[-1]
        return None

    def sweep(self, living: int) -> None:
        """Throw dead entries away, once there are more of them than of the living."""
        if self.dead <= _SLACK + living:
            return
        for groups in self.levels:
            for key, queue in list(groups.items()):
                kept = deque(pending for pending in queue if pending.state == QUEUED)
                if kept:
                    groups[key] = kept
                else:
                    del groups[key]
        self.alone = deque(pending for pending in self.alone if pending.state == QUEUED)
        self.dead = 0

    def _take_alone(self, now: float, late: list[PendingRequest]) -> list[PendingRequest]:
        pending = self.alone.popleft()
        if pending.state != QUEUED:
            self.dead -= 1
            return []
        if pending.deadline is not None and pending.deadline <= now:
            late.append(pending)
            return []
        return [pending]
