"""Outcomes that come late: predictions by id and arm, outcomes by id, joined into the counts of a rate.

Whether a transaction was fraud is known weeks after it was scored, whether a film was watched the same evening. A prediction counts when its
outcome has come, in whichever order the two arrive; so the counts only grow, as the judge needs them. What is joined is a fair comparison
as long as outcomes come no sooner for one arm than for the other, which a random split sees to; a window that ends outcomes (a chargeback after 90
days) belongs to whoever tells them: tell the ones that did not happen, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Literal

from .looks import Rate

__all__ = ["ArmName", "LabelJoiner", "Unjoined"]

ArmName = Literal["stable", "canary"]

_MOST_WAITING: Final = 1_000_000
"""Ids of one kind that wait: about 200 MB."""


@dataclass(slots=True)
class Unjoined:
    """What was not counted, and why."""

    repeated_predictions: int = 0
    """Of an id that has a prediction already: the first counts (a retry is answered twice, and acted upon once)."""
    repeated_outcomes: int = 0
    """Of an id that has an outcome already: the first counts."""
    forgotten: int = 0
    """Predictions and outcomes whose counterpart did not come before too many others waited."""


class LabelJoiner:
    """Joins predictions with outcomes.

    An id that was joined is forgotten but for its being known, up to the same number of ids, so that a repetition is not counted again.
    """

    def __init__(self, *, most_waiting: int = _MOST_WAITING) -> None:
        """Begin with nothing.

        Args:
            most_waiting: ids that wait for their counterpart, and that are known to be joined; the oldest are forgotten first.
        """
        self._most = most_waiting
        self._predictions: OrderedDict[Hashable, tuple[ArmName, Hashable]] = OrderedDict()
        self._outcomes: OrderedDict[Hashable, Hashable] = OrderedDict()
        self._joined: OrderedDict[Hashable, None] = OrderedDict()
        self._counts: dict[ArmName, list[int]] = {"stable": [0, 0], "canary": [0, 0]}
        self._waiting: dict[ArmName, int] = {"stable": 0, "canary": 0}
        self.unjoined = Unjoined()

    def predict(self, key: Hashable, arm: ArmName, predicted: Hashable = True) -> None:
        """Note a prediction.

        Args:
            key: the request's id, which its outcome will bear.
            arm: which version answered.
            predicted: what it said; an outcome equal to it counts as an event.
        """
        if key in self._predictions or key in self._joined:
            self.unjoined.repeated_predictions += 1
            return
        if key in self._outcomes:
            self._join(key, arm, predicted, self._outcomes.pop(key))
            return
        self._predictions[key] = (arm, predicted)
        self._waiting[arm] += 1
        if len(self._predictions) > self._most:
            _, (oldest, _) = self._predictions.popitem(last=False)
            self._waiting[oldest] -= 1
            self.unjoined.forgotten += 1

    def observe(self, key: Hashable, outcome: Hashable) -> None:
        """Note an outcome.

        Args:
            key: the id of the prediction.
            outcome: what happened: equal to what was predicted, or not.
        """
        if key in self._outcomes or key in self._joined:
            self.unjoined.repeated_outcomes += 1
            return
        waiting = self._predictions.pop(key, None)
        if waiting is not None:
            self._waiting[waiting[0]] -= 1
            self._join(key, *waiting, outcome)
            return
        self._outcomes[key] = outcome
        if len(self._outcomes) > self._most:
            self._outcomes.popitem(last=False)
            self.unjoined.forgotten += 1

    @property
    def waiting(self) -> int:
        """Predictions without an outcome so far."""
        return len(self._predictions)

    def waiting_of(self, arm: ArmName) -> int:
        """Predictions of an arm without an outcome so far."""
        return self._waiting[arm]

    def rate(self, arm: ArmName) -> Rate:
        """Joined predictions of an arm, and those whose outcome was as predicted; for `Arm.rates`."""
        count, events = self._counts[arm]
        return Rate(count, events)

    def _join(self, key: Hashable, arm: ArmName, predicted: Hashable, outcome: Hashable) -> None:
        counts = self._counts[arm]
        counts[0] += 1
        counts[1] += predicted == outcome
        self._joined[key] = None
        if len(self._joined) > self._most:
            self._joined.popitem(last=False)
