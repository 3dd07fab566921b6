"""A thread that notices when the event loop is held: by a model that computes on it, or waits there for something slow.

Theory of operation. While the loop is held nothing is answered, no probe either: Kubernetes kills the pod and nobody knows why. So
a daemon thread asks the loop to set an event, every `interval_s`. Where it does not within `patience_s`, the thread writes to the log what
the loop's thread was doing, once for each time that it is held, and how long it took when it is over.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

__all__ = ["LoopWatchdog"]

_log = logging.getLogger("serinus.loop")

_INTERVAL_S: Final = 0.5
_PATIENCE_S: Final = 1.0
"""Kubernetes' default `timeoutSeconds` of a probe: a loop that is held for longer has missed one."""
_FRAMES: Final = 4


class LoopWatchdog:
    """Watches the running loop until `close`.

    Args:
        interval_s: between two questions.
        patience_s: how long the loop may take to answer.
        on_held: told, in the thread, each time that the loop was held, and for how many seconds, when it is over.
    """

    def __init__(
        self,
        *,
        interval_s: float = _INTERVAL_S,
        patience_s: float = _PATIENCE_S,
        on_held: Callable[[float], None] = lambda seconds: None,  # noqa: ARG005 # nobody counts
    ) -> None:
        self._on_held = on_held
        self._interval_s = interval_s
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._thread_of_loop = threading.get_ident()
        self._closed = threading.Event()
        self._answered = threading.Event()
        threading.Thread(target=self._watch, name="loop-watchdog", daemon=True).start()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._interval_s):
            self._answered.clear()
            try:
                self._loop.call_soon_threadsafe(self._answered.set)
            except RuntimeError:  # the loop is closed
                return
            asked = time.monotonic()
            if self._answered.wait(self._patience_s):
                continue
            _log.warning(
                "the event loop is held for more than %.2g s: nothing is answered, no probe either. A model that computes there is moved to a "
                "thread when it ends; better said at start (--execution). It is at: %s",
                self._patience_s,
                self._place(),
            )
            while not self._answered.wait(self._interval_s):
                if self._closed.is_set():
                    return
            held_s = time.monotonic() - asked
            self._on_held(held_s)
            _log.warning("the event loop goes on, after %.2g s", held_s)

    def _place(self) -> str:
        """What the loop's thread does, innermost first."""
        frame = sys._current_frames().get(
            self._thread_of_loop
        )  # documented; there is no other way to another thread's frame
        if frame is None:
            return "unknown"
        places = traceback.extract_stack(frame)[-_FRAMES:]
        return ", called by ".join(f"{place.name} ({place.filename}:{place.lineno})" for place in reversed(places))
