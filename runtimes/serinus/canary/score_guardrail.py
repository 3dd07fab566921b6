"""The guardrail of scores: rolls back on a shift that is there beyond doubt and is more than is tolerated.

Two ways lead there, of one part of the level. The first needs both: evidence against "no shift at all" (`evidence.any_shift`), and an
estimate of its size that is beyond a boundary (`evidence.shift_size`), which a tolerated shift ever crosses with about the level's probability. While
the estimate is not, this evidence counts as 1 at most. The second is the exact test that the index is beyond the tolerated one
(`evidence.score_drift`), which takes several times the requests; it is evaluated from the look on at which any shift has some evidence, and counts
as 0 before.

What is guaranteed: both ways are never more than e-processes against "no shift at all", so that a canary without any shift is
rolled back with the level's probability at most, however often one looks. What is asymptotic: that one with a shift that is tolerated is,
for its scores; measured in README.md.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np

from .evidence.any_shift import AnyShift
from .evidence.blocks import Block
from .evidence.psi import psi, psi_upper
from .evidence.score_drift import DriftBeyond
from .evidence.shift_size import errors_beyond, errors_needed
from .looks import Look
from .policy import ScoreGuardrail
from .watch import Promotion, Told, Watch

__all__ = ["ScoreWatch"]

_EXACT_PART: Final = 0.15
"""Of the guardrail's part of the level, for the exact test of the tolerated index."""
_EXACT_FROM: Final = 2.0
"""log E of any shift from which on the exact test is evaluated: without a shift there is nothing beyond a tolerated one."""
_COUNTS_FROM: Final = 1.0
"""log E of any shift from which on it counts, where the estimate is clear: what is next to nothing needs no estimate at each look."""
_ANY_SCALE: Final = 0.05
"""PSI about which shifts are looked for where none is tolerated: half of 0.1, by convention the least that is of note."""


class ScoreWatch(Watch):
    """The distribution of the model's scores."""

    needs_fine_blocks = False

    def __init__(self, guardrail: ScoreGuardrail, level: float, promotion_level: float) -> None:
        """Before the first look.

        Args:
            guardrail: of the policy.
            level: most probability that a canary of `tolerated_psi` is rolled back.
            promotion_level: most probability that a canary of `promotion_psi` is promoted.
        """
        super().__init__(
            "score", guardrail.weight if guardrail.tolerated_psi is not None else 0.0, required=guardrail.required
        )
        self._tolerated = guardrail.tolerated_psi
        self._promotion_psi = guardrail.promotion_psi
        self._level, self._promotion_level = level, promotion_level
        self._any: AnyShift | None = None
        self._beyond: DriftBeyond | None = None
        self._waiting: list[Block] | None = []
        """Blocks that the exact test has not seen; None: it sees each at once."""
        self._steps: list[Told] = []
        """Where each step that has ended began, and the present one."""

    def passes(self, look: Look) -> bool:
        """As of `Watch`; not while each look may make the estimate clear."""
        return (self._any is None or self._any.value <= _COUNTS_FROM) and super().passes(look)

    def see(self, look: Look, *, from_zero: bool, before: Look | None, is_new_step: bool) -> bool:
        """As of `Watch`; while there is evidence of a shift, each look may make the estimate clear."""
        changed = super().see(look, from_zero=from_zero, before=before, is_new_step=is_new_step)
        return changed or (self._any is not None and self._any.value > _COUNTS_FROM)

    def _count(self, look: Look) -> tuple[float, float] | None:
        stable, canary = look.stable.score, look.canary.score
        return None if stable is None or canary is None else (sum(stable), sum(canary))

    def _read(self, look: Look) -> Told | None:
        stable, canary = look.stable.score, look.canary.score
        return None if stable is None or canary is None else Told(stable, canary, sum(stable), sum(canary))

    def _start(self, begin: Told, look: Look) -> None:
        stable, canary = np.array(begin.stable, dtype=float), np.array(begin.canary, dtype=float)
        self._steps = [begin]
        self._any = AnyShift(canary, stable, self._tolerated or _ANY_SCALE)
        if self._tolerated is not None:
            self._beyond = DriftBeyond(canary, stable, self._tolerated)

    def _end_blocks(self) -> None:
        super()._end_blocks()
        now = self._now
        if now is not None and self._steps:
            self._steps.append(now)

    def _add_coarse(self, block: Block) -> None:
        if self._any is None:
            return
        self._any.add(block)
        if self._beyond is None:
            return
        if self._waiting is None:
            self._beyond.add(block)
        else:
            self._waiting.append(block)
            if self._any.value >= _EXACT_FROM:
                for each in self._waiting:
                    self._beyond.add(each)
                self._waiting = None
        self.against = self.evidence(1.0)

    def evidence(self, discount: float) -> float:
        """As of `Watch`: the mean of both ways, the first as 1 at most until the estimate is clear."""
        if self._any is None or self._tolerated is None:
            return 0.0
        either = self._any.value * discount
        if either > 0 and (either <= _COUNTS_FROM or not self._is_beyond(discount)):
            either = 0.0
        value = math.log(1 - _EXACT_PART) + either
        if self._waiting is None and self._beyond is not None:
            value = float(np.logaddexp(value, math.log(_EXACT_PART) + self._beyond.value * discount))
        return value

    def _is_beyond(self, discount: float) -> bool:
        """Whether the estimate is beyond the boundary."""
        found, needed = self._errors(discount)
        return found >= needed

    def _errors(self, discount: float) -> tuple[float, float]:
        """By how many standard errors the estimate is beyond the tolerated index, and how many it takes."""
        stable, canary = self._compared()
        counts, tolerated = (float(canary.sum()) * discount, float(stable.sum()) * discount), self._tolerated or 0.0
        if min(counts) <= 0 or not tolerated:
            return -math.inf, math.inf
        needed = errors_needed(*counts, tolerated, self._level)
        return errors_beyond(canary, stable, tolerated, discount), needed

    def _compared(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts of stable and of the canary, stable's weighed so that each step has the part of them that it has of the canary's.

        Scores that swing with the day would else differ between the arms because the split was changed. Stable's are as many
        as requests of one step would be that are as exact.
        """
        now = self._now
        if now is None or not self._steps:
            return np.zeros(1), np.zeros(1)
        edges = [*self._steps, now]
        if len(edges) == 2:
            return self.counted()[:2]
        stable, canary = np.zeros(len(now.stable)), np.zeros(len(now.stable))
        weights = 0.0
        for low, high in itertools.pairwise(edges):
            more_stable, more_canary = high.stable_count - low.stable_count, high.canary_count - low.canary_count
            if more_stable <= 0 or more_canary <= 0:
                continue
            canary += np.subtract(high.canary, low.canary, dtype=float)
            stable += np.subtract(high.stable, low.stable, dtype=float) * (more_canary / more_stable)
            weights += more_canary * more_canary / more_stable
        return stable * (float(stable.sum()) / weights if weights else 0.0), canary

    def promotion(self, wanted: float, discount: float) -> Promotion:
        """As of `Watch`."""
        limit = self._promotion_psi
        if limit is None:
            return Promotion(True, 0.0, "")
        stable, canary, stable_count, canary_count = self.counted()
        upper = psi_upper(canary * discount, stable * discount, limit, self._promotion_level)
        if upper < limit:
            return Promotion(True, 0.0, "")
        seen = psi(canary, stable)
        # The bound's width falls as the square root of the requests.
        room = limit - min(seen, limit / 2)
        total = stable_count + canary_count
        needed = total * ((upper - seen) / room) ** 2 - total if upper < math.inf and total else math.inf
        said = f"{upper:.2g}" if upper < math.inf else "not known yet"
        return Promotion(False, max(needed, 1.0), f"upper bound of the PSI is {said}, less than {limit:g} is needed")

    def words(self) -> str:
        """As of `Watch`."""
        stable, canary, stable_count, canary_count = self.counted()
        tolerated = ""
        if self._tolerated is not None:
            errors, needed = self._errors(1.0)
            tolerated = f", {self._tolerated:g} is tolerated"
            if 0 < errors < math.inf:
                tolerated += f" and exceeded by {errors:.1f} standard errors, {needed:.1f} are clear"
        return (
            f"PSI about {psi(canary, stable):.2g} of {canary_count:,.0f} beside {stable_count:,.0f} scores{tolerated}"
        )

    def warning(self, wanted: float) -> str:
        """As of `Watch`."""
        if self._tolerated is not None or self._any is None or self._any.value < wanted:
            return ""
        return f"the scores are distributed otherwise, which this policy only warns of: {self.words()}"
