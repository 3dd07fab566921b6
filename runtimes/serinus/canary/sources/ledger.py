"""Counts of processes that come, restart and go, added up by revision since the ledger was opened.

Theory of operation. Of each process the ledger knows the counters that it saw last, and when the process started. What is more since then
is added to the revision's totals. A process that started anew counts from 0; what the old one counted after it was last seen is lost,
which is said. A process that is seen for the first time counts from 0 too if it is younger than the ledger, else from what it has: that
was before the rollout. One that is not seen any more keeps what it has counted.

A counter that goes back in a process that did not start anew is nonsense (two processes under one name, a page of another server): it is
a problem of that look, adds nothing, and the process is counted from its new values on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .revision_counts import Key

__all__ = ["Ledger"]

_SAME_START_S = 1.0
"""A start that differs less is the same: pages give fractions that scrapes may round."""


@dataclass(slots=True)
class _Process:
    revision: str
    started_s: float | None
    counters: dict[Key, float]


@dataclass(slots=True)
class Ledger:
    """Totals by revision."""

    totals: dict[str, dict[Key, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Since `begin`."""
    notes: list[str] = field(default_factory=list)
    _processes: dict[str, _Process] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin a look: forget the words of the one before."""
        self.problems.clear()
        self.notes.clear()

    def add(
        self, process: str, revision: str, counters: Mapping[Key, float], *, started_s: float | None, is_young: bool
    ) -> None:
        """Enter what a process counts now.

        Args:
            process: its name: pod, or host and port.
            revision: it belongs to.
            counters: since it started.
            started_s: when that was, on its own clock; None: it does not say.
            is_young: it started after the ledger was opened.
        """
        last = self._processes.get(process)
        self._processes[process] = _Process(revision, started_s, dict(counters))
        totals = self.totals.setdefault(revision, {})
        for key in counters:
            totals.setdefault(key, 0.0)
        if last is None or last.revision != revision:
            self._add(totals, counters if is_young else {})
            return
        restarted = (
            started_s is not None and last.started_s is not None and abs(started_s - last.started_s) > _SAME_START_S
        )
        back = [key for key, value in counters.items() if value < last.counters.get(key, 0.0)]
        back += [key for key, value in last.counters.items() if value and key not in counters]
        if restarted or (back and (started_s is None or last.started_s is None)):
            self.notes.append(f"{process} restarted; what it counted between the last look and its end is lost")
            self._add(totals, counters)
        elif back and all(key[0] == "score" for key in back):
            self.notes.append(f"{process}: its score is counted anew, as after a reload with other bins")
            for key in [key for key in totals if key[0] == "score" and key not in counters]:
                del totals[key]
        elif back:
            key = back[0]
            self.problems.append(
                f"{process}: {' '.join(key)} went back from {last.counters[key]:g} to {counters.get(key, 0):g}, and the process did "
                "not restart; do two processes answer under this name?"
            )
        else:
            self._add(totals, {key: value - last.counters.get(key, 0.0) for key, value in counters.items()})

    @staticmethod
    def _add(totals: dict[Key, float], counters: Mapping[Key, float]) -> None:
        for key, value in counters.items():
            totals[key] = totals.get(key, 0.0) + value
