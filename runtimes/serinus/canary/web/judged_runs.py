"""Judges of many runs side by side, of which the oldest are forgotten; for a server that is asked by anybody."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ...errors import InvalidInput
from ..judge import Decision, Judge
from ..looks import Look
from ..policy import Policy

__all__ = ["Counts", "JudgedRuns", "LookRefused"]

_MOST_METRICS: Final = 64
"""Rates and means in a look: a policy of more is not read at 3 a.m. by anybody."""


class LookRefused(InvalidInput):
    """One of several looks does not follow those before it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was done since the start."""

    looks: int
    refused: int
    forgotten: int
    decisions: Mapping[str, int]


class JudgedRuns:
    """Runs by their name. Safe to be called from several threads.

    Args:
        policy: of every run.
        most: runs that are kept; the one that was posted to least recently goes first.
    """

    def __init__(self, policy: Policy, most: int) -> None:
        self._policy = policy
        self._most = most
        self._lock = threading.Lock()
        self._judges: OrderedDict[str, tuple[Judge | None, Decision]] = OrderedDict()
        """The judge goes with the final decision, which is kept."""
        self._looks = self._refused = self._forgotten = 0
        self._decisions: dict[str, int] = {"hold": 0, "advance": 0, "promote": 0, "rollback": 0}

    def see(self, looks: Sequence[Look]) -> list[Decision]:
        """Judge looks in their order.

        Returns:
            A decision a look. A run that has ended keeps its decision, whatever is posted.

        Raises:
            LookRefused: one does not follow those before; these were judged.
        """
        found = []
        for index, look in enumerate(looks):
            with self._lock:  # for each anew: whoever asks for a decision does not wait for thousands of looks
                try:
                    found.append(self._see(look))
                except InvalidInput as error:
                    self._refused += 1
                    before = f"; the {index} before it were judged" if index else ""
                    raise LookRefused(f"look {index + 1} of {len(looks)}, run {look.run!r}: {error}{before}") from None
        return found

    def _see(self, look: Look) -> Decision:
        if len(look.stable.rates) + len(look.stable.means) > _MOST_METRICS:
            raise InvalidInput(f"more than {_MOST_METRICS} rates and means; fewer were expected")
        judge, decision = self._judges.get(look.run, (None, None))
        if decision is not None and decision.is_final:
            return decision
        judge = judge or Judge(self._policy)
        decision = judge.look(look)
        self._looks += 1
        self._decisions[decision.decision] += 1
        self._judges[look.run] = (None if decision.is_final else judge, decision)
        self._judges.move_to_end(look.run)
        if len(self._judges) > self._most:
            self._judges.popitem(last=False)
            self._forgotten += 1
        return decision

    def decision(self, run: str) -> Decision | None:
        """Give a run's last decision; None: there is none."""
        with self._lock:
            found = self._judges.get(run)
            return found[1] if found is not None else None

    def names(self) -> list[str]:
        """Give the runs, the one that was posted to last at the end."""
        with self._lock:
            return list(self._judges)

    def forget(self, run: str) -> bool:
        """Forget a run, so that its name can be used anew; False: there was none."""
        with self._lock:
            return self._judges.pop(run, None) is not None

    def counts(self) -> Counts:
        """Give what was done since the start."""
        with self._lock:
            return Counts(self._looks, self._refused, self._forgotten, dict(self._decisions))

    def __len__(self) -> int:
        return len(self._judges)
