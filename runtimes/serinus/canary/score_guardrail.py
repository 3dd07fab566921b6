"""The guardrail of scores: rolls back on a shift that is there beyond doubt and is more than is tolerated.

Two ways lead there, of one part of the level. The first needs both: evidence against "no shift at all" (`evidence.any_shift`), and an
estimate of its size that has once been beyond a boundary (`evidence.shift_size`), which a tolerated shift ever crosses with a part of the level's
probability. Until then this evidence counts as 1 at most. The second is the exact test that the index is beyond the tolerated one
(`evidence.score_drift`), which takes several times the requests and finds shifts of every shape; it is evaluated from the look on at which any
shift has some evidence, and counts as 0 before.

What is guaranteed: both ways are never more than e-processes against "no shift at all", so that a canary without any shift is
rolled back with the level's probability at most, however often one looks. What is asymptotic: that one with a shift that is tolerated is, for
anything. Let the first way be c of all evidence, and be 1 at most but with probability p. The rest starts at 1 - c and rolls back at 1 / level
less the c, which by Ville's inequality it reaches with probability (1 - c) / (1 / level - c); p is what is left of the level.
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
from .evidence.shift_size import SizeBeyond
from .looks import Look
from .policy import ScoreGuardrail
from .watch import Promotion, Told, Watch, users_per_request

__all__ = ["ScoreWatch"]

_EXACT_PART: Final = 0.08
"""Of the guardrail's part of the level, for the exact test of the tolerated index."""
_EXACT_FROM: Final = 2.0
"""log E of any shift from which on the exact test is evaluated: without a shift there is nothing beyond a tolerated one."""
_MEASURED_FROM: Final = 1.0
"""log E of any shift from which on its size is estimated: what is next to nothing is not clearly more than is tolerated."""
_ANY_SCALE: Final = 0.05
"""PSI about which shifts are looked for where none is tolerated: half of 0.1, by convention the least that is of note."""


class ScoreWatch(Watch):
    """The distribution of the model's scores."""

    needs_fine_blocks = False

    def __init__(self, guardrail: ScoreGuardrail, part: float, level: float, promotion_level: float) -> None:
        """Before the first look.

        Args:
            guardrail: of the policy.
            part: of all guardrails' weights, this one's.
            level: most probability that a canary of `tolerated_psi` that is as good as stable in all else is rolled back.
            promotion_level: most probability that a canary of `promotion_psi` is promoted.
        """
        super().__init__(
            "score", guardrail.weight if guardrail.tolerated_psi is not None else 0.0, required=guardrail.required
        )
        self._tolerated = guardrail.tolerated_psi
        self._promotion_psi = guardrail.promotion_psi
        part *= 1 - _EXACT_PART
        self._size: SizeBeyond | None = None
        if guardrail.tolerated_psi is not None:
            self._size = SizeBeyond(guardrail.tolerated_psi, level - (1 - part) / (1 / level - part))
        self._promotion_level = promotion_level
        self._any: AnyShift | None = None
        self._beyond: DriftBeyond | None = None
        self._waiting: list[Block] | None = []
        """Blocks that the exact test has not seen; None: it sees each at once."""
        self._steps: list[Told] = []
        """Where each step that has ended began, and the present one."""

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
        if self._beyond is None or self._size is None:
            return
        if self._any.value > _MEASURED_FROM:
            stable, canary = self._compared()
            self._size.look(canary, stable, self._users())
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
        """As of `Watch`: the mean of both ways, the first as 1 at most until the estimate was clear."""
        if self._any is None or self._size is None:
            return 0.0
        either = self._any.value * discount
        if not self._size.is_clear:
            either = min(either, 0.0)
        value = math.log(1 - _EXACT_PART) + either
        if self._waiting is None and self._beyond is not None:
            value = float(np.logaddexp(value, math.log(_EXACT_PART) + self._beyond.value * discount))
        return value

    def _users(self) -> float:
        return 1.0 if self._look is None else users_per_request(self._look)

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
        if self._size is not None:
            of_stable, of_canary = self._compared()
            said = self._size.words(of_canary, of_stable, self._users())
            tolerated = f", {self._tolerated:g} is tolerated{' ' if said else ''}{said}"
        return (
            f"PSI about {psi(canary, stable):.2g} of {canary_count:,.0f} beside {stable_count:,.0f} scores{tolerated}"
        )

    def warning(self, wanted: float) -> str:
        """As of `Watch`."""
        if self._tolerated is not None or self._any is None or self._any.value < wanted:
            return ""
        return f"the scores are distributed otherwise, which this policy only warns of: {self.words()}"
