"""Sessions of one graph with one thread and with several: ONNX Runtime fixes the number when a session is made.

A small graph is held twice where small batches are answered sooner by one thread and large ones by all; a large graph never is, and has
all threads: its single rows are worth them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from serinus.engines import thread_choice
from serinus.engines.thread_choice import ThreadChoice

__all__ = ["SessionThreads"]

_log = logging.getLogger("serinus.onnx")

_HELD_TWICE_BYTES: Final = 64 << 20
"""Largest file, external weights included, of a graph that is held twice."""


class SessionThreads:
    """Chooses the session of a batch.

    Args:
        all_threads: made with `most` threads.
        most: threads that the container's CPU limit allows.
    """

    def __init__(self, all_threads: Any, most: int) -> None:
        self._all: Any = all_threads
        self._one: Any = all_threads
        self.choice = ThreadChoice(most)

    def of(self, rows: int) -> Any:
        """The session for a batch of so many rows."""
        return self._all if self.choice.of(rows) > 1 else self._one

    def measure(
        self,
        make: Callable[[int], Any],
        feeds: Callable[[int], Mapping[str, np.ndarray]],
        *,
        file_bytes: int,
        most_rows: int,
    ) -> None:
        """Measure which batches all threads are worth it for, and keep the sessions that it takes.

        Args:
            make: makes a session of so many threads.
            feeds: makes inputs of so many rows.
            file_bytes: size of the graph with its weights.
            most_rows: largest batch to try; 1 where rows are not joined.
        """
        most = self.choice.most
        if most == 1 or file_bytes > _HELD_TWICE_BYTES:
            return
        one = make(1)

        def predict(rows: int, threads: int) -> None:
            (one if threads == 1 else self._all).run(None, dict(feeds(rows)))

        try:
            choice = thread_choice.measure(predict, most, most_rows=most_rows)
        except Exception as error:  # noqa: BLE001 # whatever a graph says to zeros
            _log.info(
                "threads were not measured, since the graph does not run on zeros (%s)", str(error).splitlines()[0]
            )
            return
        self.choice = choice
        if choice.from_rows == 1:
            return
        self._one = one
        if not choice.from_rows:
            self._all = one
