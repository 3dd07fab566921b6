"""How much may be present at a model before a request is refused at the door, where nobody has set a number.

Theory of operation. A queue adds delay and no throughput beyond what keeps the model busy, so what is limited is the delay, not a
number that waits. The time from a request's arrival to its answer is held as a line of the rows that were present when it came (waiting
and running before it, and its own):

    own time, or two of it where requests are joined  +  slope x (rows present - rows of a request alone)

A model that predicts one request after the other has a slope of its own time (by the places that it has). One that gains by
batching has next to none: a request that comes while a batch runs waits for that batch and is answered with the next, so two of the own
time are no queue, however many share it. One that works on many requests at a time and slows none of them has none at all, and is
never limited. The line is measured where the traffic is: its far end is the mean of the requests that were answered in a crowd.

*At the door.* Since the line says how long a newcomer would wait, it is refused when it comes, and no place is taken by one that will
leave. TCP Vegas (Brakmo and Peterson, SIGCOMM 1994) and Netflix's concurrency-limits hold a sender to such an estimate of what stands in
the queue; Breakwater (OSDI 2020) refuses at the server by delay.

*Bursts pass.* A queue that drains is good and one that stands is not (CoDel, RFC 8289, section 3). What is above the line's own part may be
`BURST_S` as long as the queue was drained within the last `INTERVAL_S`, and `STANDING_S` else: "Fail at Scale" (ACM Queue 13-8, 2015)
has the same two times. A slower model has multiples of its own time in their place.

*Deadlines.* A request that brings one is refused where the line passes it, with a margin.

*A model that answers no more* is sent nothing beyond a few once the time since its last answer is as long as what a burst may wait.

Times are arguments, on one clock, in seconds. Other rules were measured beside this: tests/benchmarks/RELIABILITY.md.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = [
    "BURST_S",
    "INTERVAL_S",
    "QUICK_S",
    "STANDING_S",
    "UNMEASURED_ROWS",
    "AdaptiveLimit",
    "Joining",
    "shares_of_levels",
]

Joining = Literal["alone", "joined", "inside"]
"""How the model is given requests: one by one; together; or each when it comes, and what becomes of them is inside the model."""

INTERVAL_S: Final = 0.1
"""CoDel's (RFC 8289, 4.3): how long a queue may be long before it is called standing."""
STANDING_S: Final = 0.08
"""Delay of a standing queue. Enough that jitter of some 10 ms never leaves the model idle; with a model of 20 ms, an answer within 0.1 s."""
BURST_S: Final = 0.2
"""Delay of a burst: with a model of 20 ms, an answer within a quarter of a second, the least that clients usually wait."""
STANDING_TIMES: Final = 4
BURST_TIMES: Final = 8
"""What a slower model may have in their place: so many requests' worth, so that it is never idle for want of a queue."""
LOWEST_SHARE: Final = 0.5
"""Part of the delay that the lowest level of priority may cause; what is above is left for the higher ones."""
QUICK_S: Final = 0.001
"""An answer that was there sooner is not measured: it would cost each request of an idle server a percent, and shows no queue."""
UNMEASURED_ROWS: Final = 256
"""Rows that may be present before anybody asks for more than a number, where the model shows no queue: the tasks of a request model."""
_MARGIN: Final = 1.25
"""An estimate is this much too short at times: deadlines are held with room to spare."""
_TRIALS: Final = 3
"""A model's first answers are slow at times (lazy imports, caches): the own time is the least of so many at first."""


class AdaptiveLimit:
    """The limit of one model's queue: told of answers, asked at the door.

    Args:
        joining: see `Joining`.
        places: batches that run at a time, where the executor knows it.
        is_fixed: what may wait is limited by a number, so `admits` is always true; deadlines are judged all the same.
    """

    __slots__ = (
        "_crowd_rows",
        "_crowd_s",
        "_is_fixed",
        "_own_rows",
        "_places",
        "_trials",
        "drained_at",
        "joining",
        "own_s",
        "progress_at",
        "room",
        "slope_s",
    )

    def __init__(self, joining: Joining, *, places: int = 1, is_fixed: bool = False) -> None:
        self.joining: Joining = joining
        self._places = places
        self._is_fixed = is_fixed
        self.room = float("inf") if is_fixed else float(UNMEASURED_ROWS)
        """Rows that may be present before `admits` is asked; who finds no more sets `drained_at`."""
        self.drained_at = float("-inf")
        """When the queue was last empty or short."""
        self.progress_at = float("-inf")
        """When something was last answered."""
        self.own_s = 0.0
        """From arrival to answer of a request alone; 0: not known yet."""
        self.slope_s = 0.0
        """What a row that is present adds to a newcomer's delay, seconds."""
        self._own_rows = 1.0
        self._crowd_rows = 0.0
        """Mean of the rows that were present when those came that had company; 0: none had yet."""
        self._crowd_s = 0.0
        """Mean time to their answers."""
        self._trials = 0

    @property
    def standing_s(self) -> float:
        """What may be above the line's own part while the queue stands."""
        return max(STANDING_S, STANDING_TIMES * self._unit_s())

    @property
    def burst_s(self) -> float:
        """What may be above the line's own part after the queue was drained."""
        return max(BURST_S, BURST_TIMES * self._unit_s())

    def expect(self, own_s: float, row_s: float) -> None:
        """Begin with what was measured at warm-up: seconds of a request alone, and of each row more in a batch."""
        self.own_s = own_s
        self._trials = _TRIALS
        self.slope_s = row_s
        self._draw()

    def answered(self, now: float, *, present: float, rows: int, delay_s: float, service_s: float) -> None:
        """Learn of an answer.

        Args:
            now: when it was there.
            present: rows that were answered with it or before it, of those that were present when it came or came later.
            rows: its own.
            delay_s: from its arrival.
            service_s: of it, how long the model had it.
        """
        self.progress_at = now
        is_alone = present <= rows
        if is_alone or self.joining == "alone":
            self._learn_own(service_s if self.joining == "alone" else delay_s, rows)
        if not is_alone:
            if not self._crowd_rows:
                weight = 1.0
            elif present > self._crowd_rows:
                weight = 0.5  # the crowd grows: what is at its end counts
            else:
                # What a few show while the model is hardly used says little of a crowd, and must not make it forgotten.
                weight = 0.2 if 2 * present >= self._crowd_rows else 0.005
            self._crowd_rows += (present - self._crowd_rows) * weight
            self._crowd_s += (delay_s - self._crowd_s) * weight
        self._draw()

    def predicted_s(self, present: float) -> float:
        """Time to the answer of a request with which so many rows are present; 0: not known."""
        return self._mean_base_s() + self._extra_s(present)

    def admits(self, now: float, present: float, share: float = 1.0) -> bool:
        """Whether a request may come with which so many rows are present, more than `room`.

        Args:
            now: its arrival.
            present: its own rows too.
            share: part of the delay that its level of priority may cause.
        """
        if self._is_fixed or not self.own_s:
            return True
        burst_s = self.burst_s
        if now - max(self.progress_at, self.drained_at) > burst_s + self._base_s():
            return False
        is_standing = now - self.drained_at > max(INTERVAL_S, self._crowd_s)
        return self._extra_s(present) <= share * (self.standing_s if is_standing else burst_s)

    def meets(self, now: float, present: float, deadline: float) -> bool:
        """Whether a request with which so many rows are present is answered before its deadline, as far as can be known."""
        return self._mean_base_s() + _MARGIN * self._extra_s(present) <= deadline - now

    def clears_in_s(self, present: float) -> float:
        """How long it takes until a request is welcome again, with so many rows present; 0: not known."""
        return self.slope_s * present

    def _base_s(self) -> float:
        return self.own_s if self.joining == "alone" else 2 * self.own_s

    def _unit_s(self) -> float:
        """One request's worth of delay; where requests are joined, their base has room for two already."""
        if self.joining == "alone":
            return self.own_s / self._places
        return self.own_s / 2

    def _mean_base_s(self) -> float:
        """Of a request that is joined, half of the batch that runs when it comes has passed."""
        return self.own_s if self.joining == "alone" else 1.5 * self.own_s

    def _learn_own(self, seconds: float, rows: int) -> None:
        self._trials += 1
        if self._trials <= _TRIALS:
            if not self.own_s or seconds < self.own_s:
                self.own_s, self._own_rows = seconds, max(1.0, rows)
        else:
            self.own_s += (seconds - self.own_s) * 0.1
            self._own_rows += (max(1.0, rows) - self._own_rows) * 0.1

    def _extra_s(self, present: float) -> float:
        return self.slope_s * max(0.0, present - self._own_rows * self._places)

    def _draw(self) -> None:
        if self.joining == "alone":
            self.slope_s = self.own_s / self._own_rows / self._places
        else:
            company = self._crowd_rows - self._own_rows
            if company >= 1:
                self.slope_s = max(0.0, self._crowd_s - self._base_s()) / company
        if not self._is_fixed:
            slope_s = self.slope_s
            alone = self._own_rows * self._places
            self.room = alone + self.standing_s / 2 / slope_s if slope_s else alone + UNMEASURED_ROWS


def shares_of_levels(levels: int) -> list[float]:
    """Give the part of the delay that each level of priority may cause, the highest first."""
    return [1.0 - (1.0 - LOWEST_SHARE) * level / max(1, levels - 1) for level in range(levels)]
