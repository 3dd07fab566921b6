"""One guardrail over one rollout: what it begins with, its blocks, and what it says.

A `Watch` begins at the look that ends the warm-up (or the first that tells its metric), whose counts are subtracted, cuts what follows into
blocks (`evidence.blocks`) and hands each to two tests: that the canary is worse at all, and that it is not worse by the margin. Counts stay
as the look has them until a block ends: most looks end none.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .evidence.blocks import LEAST_COARSE, Block, Blocks
from .looks import Look

__all__ = ["Promotion", "Told", "Watch", "evidence_text", "needs", "percent_text", "users_per_request"]


@dataclass(frozen=True, slots=True)
class Promotion:
    """How far a guardrail is from letting the canary through."""

    reached: bool
    requests_needed: float
    """Of both arms, at the present split, if the canary is as good as stable; infinite where it cannot be told."""
    missing: str
    """In words; empty where nothing is."""


@dataclass(slots=True)
class Told:
    """The counts of one metric in one look; not changed once made."""

    stable: Sequence[float]
    """[categories]."""
    canary: Sequence[float]
    stable_count: float
    canary_count: float

    def nothing(self) -> Told:
        """The same of no requests."""
        return Told([0.0] * len(self.stable), [0.0] * len(self.canary), 0.0, 0.0)


class Watch(ABC):
    """One guardrail over one rollout."""

    needs_fine_blocks = True
    """Whether a test takes the finer blocks; `_add` gets none where not."""

    def __init__(self, name: str, weight: float, *, required: bool) -> None:
        self.name = name
        """The metric's."""
        self.weight = weight
        self.required = required
        self.against = 0.0
        """log E that the canary is worse, to be held to the level's share, where a request counts as one."""
        self.leaning = -math.inf
        """log E that makes the next step wait and rolls nothing back; minus infinity: there is none."""
        self.is_told = False
        """Whether a look has told the metric."""
        self._blocks: Blocks | None = None
        self._coarse_blocks: Blocks | None = None
        self._begin: Told | None = None
        self._quiet_until = 0.0
        """The canary's count until which no block ends."""
        self._look: Look | None = None
        """The last that told the metric."""

    @property
    def has_begun(self) -> bool:
        """Whether it is told, and its warm-up is over."""
        return self._begin is not None

    @property
    def _now(self) -> Told | None:
        """The counts at the last look that told the metric; None: none has."""
        return self._read(self._look) if self._look is not None else None

    def evidence(self, discount: float) -> float:
        """Log E that the canary is worse, where a request counts for `discount`; see `judge`."""
        return self.against * discount

    def warming_up(self, look: Look) -> Promotion:
        """What is missing before it begins."""
        return Promotion(False, math.inf, f"warming up with {look.canary.requests:,} requests of the canary")

    def passes(self, look: Look) -> bool:
        """Go on to a look of the same split that changes nothing but the counts, as most do.

        Returns:
            Whether it was such a one; where not, it is to be seen.
        """
        counted = self._count(look)
        if counted is None or counted[1] >= self._quiet_until:
            return False
        self._look = look
        return True

    def see(self, look: Look, *, from_zero: bool, before: Look | None, is_new_step: bool) -> bool:
        """Go on to a look.

        Args:
            look: the next; a metric that it lacks stays as it was.
            from_zero: there is no warm-up: all that the metric counts is judged.
            before: the look before; None: this is the first.
            is_new_step: another split since the look before.

        Returns:
            Whether anything may be known that was not; most looks end no block and change nothing.
        """
        if is_new_step:
            self._end_blocks()
        counted = self._count(look)
        if counted is None:
            return is_new_step
        stable_count, canary_count = counted
        self._look = look
        fine, coarse = self._blocks, self._coarse_blocks
        if fine is None or coarse is None:
            return self._see_first(look, from_zero=from_zero)
        is_over = self.needs_fine_blocks and fine.is_over(stable_count, canary_count)
        is_coarse_over = coarse.is_over(stable_count, canary_count)
        if not (is_over or is_coarse_over):
            return is_new_step
        told = self._read(look)
        if told is not None:
            self._take(told, is_over=is_over, is_coarse_over=is_coarse_over)
        return True

    def _see_first(self, look: Look, *, from_zero: bool) -> bool:
        told = self._read(look)
        if told is None:
            return False
        self.is_told = True
        self._begin = begin = told.nothing() if from_zero else told
        counts = begin.stable, begin.canary, begin.stable_count, begin.canary_count
        fine, coarse = Blocks(*counts), Blocks(*counts, least=LEAST_COARSE)
        self._blocks, self._coarse_blocks = fine, coarse
        self._start(begin, look)
        counts = told.stable_count, told.canary_count
        self._take(
            told, is_over=self.needs_fine_blocks and fine.is_over(*counts), is_coarse_over=coarse.is_over(*counts)
        )
        return True

    def _take(self, told: Told, *, is_over: bool, is_coarse_over: bool) -> None:
        """Hand blocks that end with the counts to the tests."""
        counts = told.stable, told.canary, told.stable_count, told.canary_count
        if is_over and self._blocks is not None:
            block = self._blocks.add(*counts)
            if block is not None:
                self._add(block)
        if is_coarse_over and self._coarse_blocks is not None:
            block = self._coarse_blocks.add(*counts)
            if block is not None:
                self._add_coarse(block)
        self._be_quiet()

    def _be_quiet(self) -> None:
        """Know from where on a block may end."""
        if self._blocks is None or self._coarse_blocks is None:
            return
        coarse = self._coarse_blocks.canary_until
        self._quiet_until = min(self._blocks.canary_until, coarse) if self.needs_fine_blocks else coarse

    def _end_blocks(self) -> None:
        """End the blocks where the counts stand."""
        now = self._now
        if self._blocks is None or self._coarse_blocks is None or now is None:
            return
        counts = now.stable, now.canary, now.stable_count, now.canary_count
        coarse = self._coarse_blocks.add(*counts) or self._coarse_blocks.end()
        if self.needs_fine_blocks:
            block = self._blocks.add(*counts) or self._blocks.end()
            if block is not None:
                self._add(block)
        if coarse is not None:
            self._add_coarse(coarse)
        self._be_quiet()

    def counted(self) -> tuple[np.ndarray, np.ndarray, float, float]:
        """What was counted since the beginning: stable's and the canary's outcomes, and of how many requests each."""
        begin, now = self._begin, self._now
        if begin is None or now is None:
            return np.zeros(1), np.zeros(1), 0.0, 0.0
        return (
            np.subtract(now.stable, begin.stable, dtype=float),
            np.subtract(now.canary, begin.canary, dtype=float),
            now.stable_count - begin.stable_count,
            now.canary_count - begin.canary_count,
        )

    @abstractmethod
    def promotion(self, wanted: float, discount: float) -> Promotion:
        """Say how far a promotion is.

        Args:
            wanted: log E that is needed.
            discount: what a request counts for, in (0, 1]; see `judge`.
        """

    def lets_through(self, wanted: float, discount: float) -> bool:
        """Whether a promotion is reached, without saying how far it is."""
        return self.promotion(wanted, discount).reached

    @abstractmethod
    def words(self) -> str:
        """The arms beside each other, such as `canary 2.0 % (40 of 2,000), stable 0.5 % (90 of 18,000)`."""

    def obstacle(self) -> str:
        """What the next step and a promotion wait for, though nothing of it is held against the canary; empty: nothing."""
        return ""

    def warning(self, wanted: float) -> str:
        """What should be known and decides nothing; empty: nothing."""
        return ""

    @abstractmethod
    def _read(self, look: Look) -> Told | None:
        """The metric's counts, None where the look does not tell them."""

    @abstractmethod
    def _count(self, look: Look) -> tuple[float, float] | None:
        """How many of stable's and of the canary's requests the metric's counts are of; None where the look does not tell them."""

    @abstractmethod
    def _start(self, begin: Told, look: Look) -> None:
        """Make the tests."""

    def _add(self, block: Block) -> None:  # noqa: B027 # the tests of some metrics take coarser blocks alone
        """Take in a block, where the test is that the canary is worse."""

    @abstractmethod
    def _add_coarse(self, block: Block) -> None:
        """Take in a coarser block, where the test takes many requests anyway."""


def users_per_request(look: Look) -> float:
    """What a request counts for, in (0, 1]: users a request of both arms; 1 where users are not told."""
    stable, canary = look.stable, look.canary
    if stable.affinity_keys is None or canary.affinity_keys is None:
        return 1.0
    return min(1.0, max(stable.affinity_keys + canary.affinity_keys, 1) / max(stable.requests + canary.requests, 1))


def evidence_text(log_e: float) -> str:
    """A likelihood ratio in words."""
    if log_e > 13.8:
        return "more than 1,000,000"
    value = math.exp(log_e)
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def needs(what: str, value: float, wanted: float, needed: float, discount: float) -> Promotion:
    """A promotion that waits for evidence of something.

    Args:
        what: it is evidence of, in words.
        value: log E, where a request counts as one.
        wanted: log E that is needed.
        needed: requests until then.
        discount: what a request counts for.
    """
    if value * discount >= wanted:
        return Promotion(True, 0.0, "")
    return Promotion(
        False, needed, f"evidence that {what} is {evidence_text(value * discount)}, {evidence_text(wanted)} is needed"
    )


def percent_text(events: float, count: float) -> str:
    """A share in words."""
    return f"{100 * events / count:.3g} %" if count else "none"
