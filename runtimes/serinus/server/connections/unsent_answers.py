"""What waits in memory for clients that read slowly, of all connections together: it is bounded, and who holds the most for nothing is given up.

Theory of operation. An answer that its client does not take yet waits in this process. One connection's is bounded by the requests that it may have
under way, but clients cost an attacker nothing. So all that waits is added up, and an answer that would pass the bound has to make
room: clients that would need longer than `patience_s` for what waits for them, at the pace at which they have read so far, are closed,
the slowest first. Where nobody is that slow the new answer is refused in words (429, RESOURCE_EXHAUSTED).
Who reads just fast enough must not hold all of it for as long, answer after answer: while answers are refused `patience_s` becomes half
with every `_HALVED_S`, down to `_LEAST_PATIENCE_S`, and is whole again when none was refused for `_CALM_S`. Answers of less than
`LARGE_BYTES` are not counted one by one, and always go out: requests with small answers notice nothing. What of them waits is seen when readers are
looked at, and closes who is too slow just the same.

A reader is whoever answers wait for: a connection, a call, or a whole engine that tells only how much it holds (`tells_pace` is False): that one
is asked to give up what has not moved for `patience_s`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from ...errors import Overloaded
from ...model import Family

__all__ = ["LARGE_BYTES", "SEND_TIMEOUT_S", "UNSENT_BYTES", "Reader", "UnsentAnswers"]

LARGE_BYTES: Final = 64 * 1024
"""What a transport's buffer takes at once (asyncio's high-water mark)."""
UNSENT_BYTES: Final = 256 * 1024 * 1024
"""As `max_queue_bytes`: four of the largest answers, of the size that a pod of 1 GiB can hold beside its model."""
SEND_TIMEOUT_S: Final = 60.0
"""nginx's `send_timeout`: "only between two successive write operations, not for the transmission of the whole response"."""
_HALVED_S: Final = 1.0
_LEAST_PATIENCE_S: Final = 4.0
"""A client on a tenth of a gigabit takes an answer of 50 MB in that time."""
_CALM_S: Final = 5.0
"""Who was refused is told to come back in a second."""
_PACE_S: Final = 1.0
"""A client is not called slow sooner."""
_LOOK_S: Final = 0.001
"""Least time between two looks at everybody while answers are refused,"""
_LOOK_SHARE: Final = 0.05
"""and most of the time that they take: a look at thousands of readers takes milliseconds."""


class Reader(Protocol):
    """Whom answers wait for."""

    tells_pace: bool
    """`unsent` tells how fast it reads; else only whether it has read all."""

    def unsent(self) -> int:
        """Bytes that wait for it now."""
        ...

    def give_up(self) -> bool:
        """Drop what waits for it, or of that what has not moved for long; whether there was any."""
        ...


class _Waiting:
    """What waits for one reader."""

    __slots__ = ("added", "is_seen", "left", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.added = 0
        """All that it was to read since then."""
        self.left = 0
        self.is_seen = False
        """It has been looked at: what was taken until then went into the kernel's buffers, and says nothing of the client."""


class UnsentAnswers:
    """The account of one server process.

    Args:
        most_bytes: that may wait.
        patience_s: how long a client may take for what waits for it.
        clock: seconds.
    """

    def __init__(
        self,
        most_bytes: int = UNSENT_BYTES,
        *,
        patience_s: float = SEND_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_bytes = most_bytes
        self._patience_s = patience_s
        self._clock = clock
        self._readers: dict[Reader, _Waiting] = {}
        self._look_at = float("-inf")
        """When everybody may be looked at again."""
        self._refusing_since = self._refused_at = float("-inf")
        """The first and the last refusal of those that have followed one another."""
        self.waiting_bytes = 0
        """As of the last look, and what was added since."""
        self.closed = 0
        """Readers given up, by whoever did."""
        self.refused = 0
        """Answers that found no room."""

    def add(self, reader: Reader, size: int) -> None:
        """Count an answer that is handed over, or, with 0, have a reader looked at."""
        waiting = self._readers.get(reader)
        if waiting is None:
            waiting = self._readers[reader] = _Waiting(self._clock())
        waiting.added += size
        waiting.left += size
        self.waiting_bytes += size

    def drop(self, reader: Reader) -> None:
        """Forget a reader that is gone."""
        waiting = self._readers.pop(reader, None)
        if waiting is not None:
            self.waiting_bytes -= waiting.left

    def look(self) -> None:
        """Ask every reader how much waits for it."""
        for reader in list(self._readers):
            self._ask(reader)

    def tend(self) -> None:
        """Close who is too slow while more waits than may: answers that are not large add up too, and no large one need come that would make room."""
        if self.waiting_bytes > self._most_bytes:
            self._has_room(0)

    def check(self, size: int) -> None:
        """Make room for an answer.

        Args:
            size: its bytes, more than `LARGE_BYTES`.

        Raises:
            Overloaded: there is none.
        """
        if self.waiting_bytes + size <= self._most_bytes or self._has_room(size):
            return
        self.refused += 1
        now = self._clock()
        if now - self._refused_at > _CALM_S:
            self._refusing_since = now
        self._refused_at = now
        raise Overloaded(
            f"{self.waiting_bytes} bytes of answers wait for clients that read slowly, and this one of {size} bytes would pass the limit of "
            f"{self._most_bytes} (max_unsent_bytes); come back in {_PACE_S:g} s or ask for less at a time",
            _PACE_S,
        )

    def families(self) -> Iterator[Family]:
        """Tell of what waits, for the page of metrics."""
        self.look()
        yield Family(
            "serinus_unsent_answer_bytes",
            "Bytes of large answers that wait for clients that read slowly.",
            "gauge",
            [({}, self.waiting_bytes)],
        )
        yield Family(
            "serinus_slow_readers_closed_total",
            "Clients closed because they took nothing, or too little, of what waited for them.",
            "counter",
            [({}, self.closed)],
        )
        yield Family(
            "serinus_unsent_answers_refused_total",
            "Answers refused because too much waited for clients that read slowly.",
            "counter",
            [({}, self.refused)],
        )

    def _has_room(self, size: int) -> bool:
        now = self._clock()
        if now >= self._look_at:
            self.look()
            self._look_at = now + max(_LOOK_S, (self._clock() - now) / _LOOK_SHARE)
            for _, reader in sorted(self._too_slow(now), key=lambda found: -found[0]):
                if self.waiting_bytes + size <= self._most_bytes:
                    break
                if reader.give_up():
                    self.closed += 1
                self._ask(reader)
        # One that is larger than all that may wait is let through when nothing does, else it could never be answered.
        return self.waiting_bytes + size <= self._most_bytes or not self.waiting_bytes

    def _patience_now_s(self, now: float) -> float:
        """How long a client may take just now."""
        if now - self._refused_at > _CALM_S:
            return self._patience_s
        halved = min((now - self._refusing_since) // _HALVED_S, 32)
        return max(min(_LEAST_PATIENCE_S, self._patience_s), self._patience_s / 2**halved)

    def _too_slow(self, now: float) -> Iterator[tuple[float, Reader]]:
        """Readers, and how long each would need for what waits for it."""
        patience_s = self._patience_now_s(now)
        for reader, waiting in self._readers.items():
            spent_s = now - waiting.since
            if not reader.tells_pace:
                if spent_s >= self._patience_s:
                    yield spent_s, reader
            elif spent_s >= _PACE_S and waiting.is_seen:
                taken = waiting.added - waiting.left
                needs_s = waiting.left * spent_s / taken if taken > 0 else float("inf")
                if needs_s > patience_s:
                    yield needs_s, reader

    def _ask(self, reader: Reader) -> None:
        waiting = self._readers.get(reader)
        if waiting is None:
            return
        left = reader.unsent()
        self.waiting_bytes += left - waiting.left
        if left > waiting.added:
            waiting.added = left  # smaller answers, which nobody counts, wait behind it too
        waiting.left = left
        if not left:
            del self._readers[reader]
        elif reader.tells_pace and not waiting.is_seen:
            waiting.is_seen, waiting.since, waiting.added = True, self._clock(), left
