"""`python -m benchmarks.limiters`: the queue's limit beside two other rules, in simulated time.

One model that answers one request after the other, arrivals at a steady rate. The gradient is Netflix's concurrency-limits `Gradient2Limit`
with its defaults (a limit of 20 at first, tolerance 1.5, smoothing 0.2, a long window of 600 samples, four requests of queue).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from serinus.dataplane.batching.adaptive_limit import AdaptiveLimit

__all__ = ["main"]

SECONDS = 20.0


class Limiter(Protocol):
    """Says who may come, and learns."""

    def admits(self, now: float, present: int) -> bool:
        """Whether one more request may come."""
        ...

    def answered(self, now: float, delay_s: float, own_s: float, present: int) -> None:
        """One was answered."""
        ...

    def left(self, waited_s: float) -> None:
        """One has gone."""
        ...


class Ours:
    """`AdaptiveLimit`, told as the batcher tells it."""

    def __init__(self) -> None:
        self._limit = AdaptiveLimit("alone")

    def admits(self, now: float, present: int) -> bool:
        """As `Batcher.add`."""
        limit = self._limit
        if not present or present + 1 <= limit.room:
            limit.drained_at = now
            return True
        return limit.admits(now, present + 1)

    def answered(self, now: float, delay_s: float, own_s: float, present: int) -> None:
        """As `Batcher._measure`."""
        self._limit.answered(now, present=present, rows=1, delay_s=delay_s, service_s=own_s)

    def left(self, waited_s: float) -> None:
        """It learns nothing of this."""


class Age:
    """Refuses while what was answered last had waited too long, as Breakwater (OSDI 2020) drops at a server by its queueing delay."""

    TARGET_S = 0.08

    def __init__(self) -> None:
        self._delay_s = 0.0

    def admits(self, now: float, present: int) -> bool:
        """Look at the last delay; an idle model takes what comes."""
        return not present or self._delay_s <= self.TARGET_S

    def answered(self, now: float, delay_s: float, own_s: float, present: int) -> None:
        """Note the delay in the queue."""
        self._delay_s = delay_s - own_s

    def left(self, waited_s: float) -> None:
        """A delay as well."""
        self._delay_s = waited_s


class Gradient:
    """Netflix's `Gradient2Limit`."""

    def __init__(self) -> None:
        self._limit = 20.0
        self._long = 0.0
        self._samples = 0

    def admits(self, now: float, present: int) -> bool:  # the protocol
        """Hold the number of requests."""
        return present < self._limit

    def answered(self, now: float, delay_s: float, own_s: float, present: int) -> None:  # the protocol
        """Move the limit by the gradient of the long to the short latency."""
        self._samples += 1
        self._long += (delay_s - self._long) / min(self._samples, 600)
        if self._long / delay_s > 2:
            self._long *= 0.95
        if present < self._limit / 2:
            return
        gradient = max(0.5, min(1.0, 1.5 * self._long / delay_s))
        wanted = self._limit * gradient + 4
        self._limit = max(20.0, min(200.0, self._limit * 0.8 + wanted * 0.2))

    def left(self, waited_s: float) -> None:
        """It takes a drop for a sign of overload."""
        self.answered(0.0, waited_s, 0.0, math.ceil(self._limit))


def simulate(limiter: Limiter, predict_s: float, times: float, patience_s: float | None) -> tuple[float, float]:
    """Give the goodput (answers within a second, or before the client leaves, as a part of the capacity) and the p99 in seconds."""
    waiting: deque[float] = deque()
    running: float | None = None
    ends = math.inf
    arrival, delays, good = 0.0, [], 0
    while arrival < SECONDS:
        leaves = waiting[0] + patience_s if waiting and patience_s is not None else math.inf
        now = min(arrival, ends, leaves)
        if now == leaves:
            waiting.popleft()
            limiter.left(patience_s or 0.0)
        elif now == ends:
            assert running is not None  # something ends
            delay = now - running
            if patience_s is None or delay <= patience_s:
                delays.append(delay)
                good += delay <= 1.0
            else:
                limiter.left(patience_s)
            limiter.answered(
                now, delay, predict_s, len(waiting) + 1
            )  # what runs is not stopped: the model worked on it all the same
            running, ends = None, math.inf
        else:
            if limiter.admits(now, len(waiting) + (running is not None)):
                waiting.append(now)
            arrival += predict_s / times
        if running is None and waiting:
            running, ends = waiting.popleft(), now + predict_s
    return good * predict_s / SECONDS, sorted(delays)[int(0.99 * len(delays))] if delays else math.nan


def main() -> None:
    """Print the table."""
    print(
        "| model | clients | load | ours: goodput, p99 | age: goodput, p99 | gradient: goodput, p99 |\n|---|---|---|---|---|---|"
    )
    for predict_s in (0.005, 0.02):
        for patience_s in (None, 0.1, 0.25):
            for times in (1.5, 3.0, 10.0):
                cells = [simulate(limiter, predict_s, times, patience_s) for limiter in (Ours(), Age(), Gradient())]
                who = "patient" if patience_s is None else f"leave after {patience_s:g} s"
                text = " | ".join(f"{good:.0%}, {p99 * 1e3:.0f} ms" for good, p99 in cells)
                print(f"| {predict_s * 1e3:g} ms | {who} | {times:g}x | {text} |")


if __name__ == "__main__":
    main()
