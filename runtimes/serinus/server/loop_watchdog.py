"""A thread that notices when the event loop is held: by a model that computes on it, or waits there for something slow.

Theory of operation. While the loop is held it answers nothing, no probe either: Kubernetes kills the pod and nobody knows why. So
a daemon thread asks the loop to set an event, every `interval_s`. Where it does not within `stand_in_after_s`, the thread answers liveness in its
place until it is free (`http.stand_in`). Where it does not within `patience_s`, the thread writes to the log what the loop's thread was
doing, once for each time that it is held, and how long it took when it is over.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from ..model import Family
from .http.stand_in import StandIn

__all__ = ["LoopWatchdog"]

_log = logging.getLogger("serinus.loop")

_INTERVAL_S: Final = 0.04
_STAND_IN_AFTER_S: Final = 0.03
"""With the interval, a probe waits for 70 ms at the most before somebody looks; looking 25 times a second costs a thousandth of a core."""
_PATIENCE_S: Final = 1.0
"""Kubernetes' default `timeoutSeconds` of a probe: a loop that is held for longer has missed one."""
_FRAMES: Final = 4
_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds: from a turn of the loop to a probe's patience."""
_TURN_S: Final = 0.02
"""Between two looks at whether the loop is free."""


class LoopWatchdog:
    """Watches the running loop until `close`.

    Args:
        interval_s: between two questions.
        patience_s: how long the loop may take to answer.
        stand_in_after_s: how long it may take before liveness is answered here.
        stand_in: answers it; None: nobody does.
        on_look: told, on the loop's thread, how late it was each time that it was looked at, seconds.
        on_held: told, in the thread, each time that the loop was held, and for how many seconds, when it is over.
    """

    def __init__(
        self,
        *,
        interval_s: float = _INTERVAL_S,
        patience_s: float = _PATIENCE_S,
        stand_in_after_s: float = _STAND_IN_AFTER_S,
        stand_in: StandIn | None = None,
        on_look: Callable[[float], None] = lambda seconds: None,  # noqa: ARG005 # nobody asks
        on_held: Callable[[float], None] = lambda seconds: None,  # noqa: ARG005 # nobody counts
    ) -> None:
        self._on_look = on_look
        self._on_held = on_held
        self._interval_s = interval_s
        self._patience_s = patience_s
        self._stand_in_after_s = min(stand_in_after_s, patience_s)
        self._stand_in = stand_in
        self._loop = asyncio.get_running_loop()
        self._thread_of_loop = threading.get_ident()
        self._counts = [0] * (len(_BUCKETS_S) + 1)
        self._total_s = 0.0
        self._closed = threading.Event()
        self._answered = threading.Event()
        threading.Thread(target=self._watch, name="loop-watchdog", daemon=True).start()

    def families(self) -> list[Family]:
        """Tell how late the loop was at each question, as a histogram."""
        name = "serinus_event_loop_lag_seconds"
        counts, total_s = list(self._counts), self._total_s
        samples: list[tuple[dict[str, str], float]] = []
        upto = 0
        for bound, count in zip((*_BUCKETS_S, float("inf")), counts, strict=True):
            upto += count
            samples.append(
                ({"__name__": f"{name}_bucket", "le": "+Inf" if bound == float("inf") else f"{bound:g}"}, upto)
            )
        samples += [({"__name__": f"{name}_sum"}, total_s), ({"__name__": f"{name}_count"}, upto)]
        text = f"How late the event loop was when it was looked at, each {self._interval_s:g} s."
        return [Family(name, text, "histogram", samples)]

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._interval_s):
            self._answered.clear()
            asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._answer, asked)
            except RuntimeError:  # the loop is closed
                return
            if not self._answered.wait(self._stand_in_after_s):
                self._stand(asked)

    def _stand(self, asked: float) -> None:
        """Answer liveness until the loop is free, and tell where it is held for long."""
        stand_in, told = self._stand_in, False
        while not self._answered.is_set() and not self._closed.is_set():
            if not told and time.monotonic() - asked > self._patience_s:
                told = True
                _log.warning(
                    "the event loop is held for more than %.2g s: nothing but liveness is answered. A model that computes there is moved to a "
                    "thread when it ends; better said at start (--execution). It is at: %s",
                    self._patience_s,
                    self._place(),
                )
            if stand_in is None:
                self._answered.wait(_TURN_S)
            else:
                stand_in.serve(_TURN_S)
        if stand_in is not None:
            stand_in.end()
        if told and self._answered.is_set():
            held_s = time.monotonic() - asked
            self._on_held(held_s)
            _log.warning("the event loop goes on, after %.2g s", held_s)

    def _answer(self, asked: float) -> None:
        """Say, on the loop's thread, that it goes on, and count how late."""
        late_s = time.monotonic() - asked
        self._counts[bisect_left(_BUCKETS_S, late_s)] += 1
        self._total_s += late_s
        self._on_look(late_s)
        self._answered.set()

    def _place(self) -> str:
        """What the loop's thread does, innermost first."""
        frame = sys._current_frames().get(
            self._thread_of_loop
        )  # documented; there is no other way to another thread's frame
        if frame is None:
            return "unknown"
        places = traceback.extract_stack(frame)[-_FRAMES:]
        return ", called by ".join(f"{place.name} ({place.filename}:{place.lineno})" for place in reversed(places))
