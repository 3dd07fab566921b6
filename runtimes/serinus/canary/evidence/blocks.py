"""Cuts the stream of counts into blocks, each compared within itself.

Within a block both arms saw the same minutes, so that a swing of the day's traffic, of its error rate or of the split between the arms moves
both alike: everything is conditioned on how many requests each arm had in the block. A block ends when both arms have had enough, or when
the split is changed (a block over two splits would compare one arm's busy hour with the other's quiet one). That depends on the numbers of
requests alone and never on outcomes; so the product of a block's evidence with that of all blocks before it is as valid as one of them (a
martingale has no memory of why its steps were as long as they were).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Final

import numpy as np

__all__ = ["LEAST", "LEAST_COARSE", "Block", "Blocks", "Counts"]

Counts = Sequence[float] | np.ndarray
"""[categories]."""

LEAST: Final = 10
"""Requests of either arm in a block. Conditioning on the arms' numbers costs a share of about one in this of what frequent events tell."""
LEAST_COARSE: Final = 40
"""Of tests that take hundreds of the canary's requests anyway: fewer blocks cost less time and lose less to conditioning."""
GROWTH: Final = 0.1
"""A block has at least this share of what the smaller arm has had; evidence is at most so much behind the counts."""
GROWTH_COARSE: Final = 0.15
"""Likewise of coarse blocks: a promotion may be so much later, and takes less than half of the time to compute."""


class Block:
    """What happened in both arms between two moments."""

    __slots__ = ("canary", "canary_count", "share", "stable", "stable_count")

    def __init__(self, stable: Counts, canary: Counts, stable_count: float, canary_count: float) -> None:
        self.stable = stable
        """[categories], as many of each as happened."""
        self.canary = canary
        self.stable_count = stable_count
        self.canary_count = canary_count
        self.share = canary_count / (stable_count + canary_count)
        """The canary's of the block's requests, in (0, 1)."""


class Blocks:
    """The blocks of one metric, from cumulative counts."""

    __slots__ = (
        "_at_least",
        "_canary",
        "_canary_count",
        "_growth",
        "_last",
        "_stable",
        "_stable_count",
        "_stable_until",
        "_start",
        "canary_until",
    )

    def __init__(
        self, stable: Counts, canary: Counts, stable_count: float, canary_count: float, *, least: int = LEAST
    ) -> None:
        """Begin at cumulative counts, which are in no block (what came before the end of the warm-up).

        Args:
            stable: [categories].
            canary: [categories].
            stable_count: requests of the arm, of which `stable` tells the outcomes.
            canary_count: likewise.
            least: requests of either arm in a block.
        """
        self._stable, self._canary = stable, canary
        self._stable_count, self._canary_count = stable_count, canary_count
        self._start = (stable_count, canary_count)
        self._last = (stable, canary, stable_count, canary_count)
        self.canary_until = 0.0
        """What the canary's requests have to be for the block to end."""
        self._at_least, self._growth = float(least), GROWTH if least < LEAST_COARSE else GROWTH_COARSE
        self._stable_until, self.canary_until = stable_count + least, canary_count + least

    def is_over(self, stable_count: float, canary_count: float) -> bool:
        """Whether the block ends with so many requests; until then `add` changes nothing but where `end` would end it."""
        return canary_count >= self.canary_until and stable_count >= self._stable_until

    def add(self, stable: Counts, canary: Counts, stable_count: float, canary_count: float) -> Block | None:
        """Go on to later cumulative counts.

        Returns:
            The block that has ended with them; None: it goes on.
        """
        self._last = (stable, canary, stable_count, canary_count)
        return self.end() if self.is_over(stable_count, canary_count) else None

    def end(self) -> Block | None:
        """End the block where the counts stand.

        Returns:
            The block; None: one of the arms had nothing in it, so that there is nothing to compare.
        """
        stable, canary, stable_count, canary_count = self._last
        more_stable, more_canary = stable_count - self._stable_count, canary_count - self._canary_count
        before = self._stable, self._canary
        self._stable, self._canary = stable, canary
        self._stable_count, self._canary_count = stable_count, canary_count
        had = min(stable_count - self._start[0], canary_count - self._start[1])
        least = max(self._at_least, self._growth * had)
        self._stable_until, self.canary_until = stable_count + least, canary_count + least
        if more_stable <= 0 or more_canary <= 0:
            return None
        # Lists: of ten numbers they are made and added up faster than arrays are, and most tests need only two sums of them.
        return Block(
            list(map(operator.sub, stable, before[0])),
            list(map(operator.sub, canary, before[1])),
            more_stable,
            more_canary,
        )
