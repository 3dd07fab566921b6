"""Predicts that do not end: noticed, answered for, and restarted where they run in a process.

Theory of operation. A task looks at every model's batches several times in its `hang_timeout_s`; the requests' way knows nothing of it. A batch
that has run for longer hangs, whatever the model does: its requests are answered 504 (DEADLINE_EXCEEDED) and the model is not ready.
  process    the process is killed and another one started. The batch's requests are tried again, each alone, so that only those of which the predict
             hangs are failed; after three hangs in a row all that wait are, since then it is the model and no request.
  thread     nobody can stop it. The model is not ready until the predict ends or, where other threads go on answering, they answer.
  task       it is cancelled, which may be its cure; the model is ready again with the next answer, or when nothing has hung for that time.
Streams have no end that could be late, and are not looked at. A predict on the event loop is not seen from there: see `server.loop_watchdog`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Final

from ..errors import TimedOut
from .batching.pending_request import DONE, Batch
from .servables.servable import Servable
from .telemetry.events import Events

__all__ = ["HangWatch"]

_log = logging.getLogger("serinus.model")

_LOOKS: Final = 8
"""In one `hang_timeout_s`: a hang is noticed an eighth of it late at the most."""
_LONGEST_S: Final = 1.0
_SHORTEST_S: Final = 0.02
_IN_A_ROW: Final = 3
"""Hangs without an answer between them: a batch, a request of it alone, and one more. Then it is the model."""
_FRAMES: Final = 4


class HangWatch:
    """Watches the models of one plane.

    Args:
        servables: gives them all as they are now.
        clock: seconds, monotonic; the batches' times are on it.
        events: counts hangs.
    """

    def __init__(self, servables: Callable[[], Iterable[Servable]], clock: Callable[[], float], events: Events) -> None:
        self._servables = servables
        self._clock = clock
        self._events = events
        self._watched: dict[Servable, _Watched] = {}

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            limits = [one.hang_timeout_s for one in self._servables() if one.hang_timeout_s]
            await asyncio.sleep(max(_SHORTEST_S, min([_LONGEST_S, *(limit / _LOOKS for limit in limits)])))
            self.look()

    def look(self) -> None:
        """Look at every model once."""
        servables = [servable for servable in self._servables() if servable.hang_timeout_s]
        self._watched = {one: self._watched.get(one) or _Watched(one, self._events) for one in servables}
        for watched in self._watched.values():
            try:
                watched.look(self._clock())
            except Exception:  # noqa: BLE001 # the edge of a task: one model must not keep the others from being watched
                _log.exception("model '%s' could not be watched", watched.name)


class _Watched:
    """One model, and what has hung in it."""

    def __init__(self, servable: Servable, events: Events) -> None:
        self.name = servable.known_as
        self._servable = servable
        self._events = events
        self._overdue: set[Batch] = set()
        self._in_a_row = 0
        self._answered = servable.statistics.success_count
        self._last: float | None = None
        events.expect("serinus_model_hangs_total", self.name, servable.version)

    def look(self, now: float) -> None:
        servable, limit_s = self._servable, self._servable.hang_timeout_s
        if servable.statistics.success_count != self._answered:
            self._answered = servable.statistics.success_count
            self._in_a_row, self._last = 0, None
        killed = servable.end_overdue(limit_s)
        if killed is not None:
            self._note(killed, now, "; its process is killed, and another one started")
            healthy = servable.is_at_work
        else:
            batches = servable.batcher.under_way
            overdue = {one for one in batches if now - one.started > limit_s and not servable.is_open_ended(one)}
            new = overdue - self._overdue
            self._overdue = overdue
            self._note(len(new), now, f". It is at: {_place(servable.name)}")
            for batch in new:
                waiting = [pending for pending in batch.members if pending.state != DONE]
                servable.batcher.give_up(waiting, TimedOut(_said(servable.name, limit_s)))
            hangs = len(overdue) >= servable.batcher.places or (
                self._last is not None and (bool(overdue) or now - self._last < limit_s)
            )
            healthy = not hangs
        if self._in_a_row >= _IN_A_ROW:
            servable.batcher.fail_all(TimedOut(f"{_said(servable.name, limit_s)}, nor those before it"))
            self._in_a_row = 0
        if healthy != servable.at_work:
            level = logging.INFO if healthy else logging.ERROR
            _log.log(level, "model '%s' %s", self.name, "predicts again" if healthy else "hangs, and is not ready")
            servable.at_work = healthy

    def _note(self, count: int, now: float, end: str) -> None:
        if not count:
            return
        self._last = now
        self._in_a_row += count
        self._events.count("serinus_model_hangs_total", self.name, self._servable.version, amount=count)
        limit_s = self._servable.hang_timeout_s
        _log.error("model '%s': a predict has not ended in %.3g s%s", self.name, limit_s, end)


def _said(name: str, limit_s: float) -> str:
    return f"model '{name}' did not answer in {limit_s:.3g} s (hang_timeout_s)"


def _place(name: str) -> str:
    """What the threads of a model do, innermost first."""
    frames = sys._current_frames()  # documented; there is no other way to another thread's frame
    found = []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread.name.startswith(f"serinus-{name}-") and frame is not None:
            places = traceback.extract_stack(frame)[-_FRAMES:]
            found.append(", called by ".join(f"{one.name} ({one.filename}:{one.lineno})" for one in reversed(places)))
    return "; ".join(found) or "a task of the event loop"
