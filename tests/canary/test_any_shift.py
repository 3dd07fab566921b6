"""Evidence for any shift of scores is the published formula with the stakes that are stated, computed here a second time, bucket by bucket."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from serinus.canary.evidence.any_shift import AnyShift
from serinus.canary.evidence.blocks import Block
from serinus.canary.evidence.psi import shift_directions

SIZES, SHARES = (1.6, 4.0, 12.0), (0.4, 0.4, 0.2)
"""PSI of the stakes' shifts, of the scale, and how much is on each."""
DIRECTIONS = (0.25, 0.25, 0.1, 0.1, 0.08, 0.08)
SEEN = 0.14
"""On the stake that follows what was seen."""


def ratios_of(size: float, direction: Sequence[float], both: Sequence[float]) -> list[float]:
    """A shift of so much PSI in a direction, as ratios of probabilities whose mean is 1."""
    mean = sum(share * at for share, at in zip(both, direction, strict=True))
    spread = sum(share * (at - mean) ** 2 for share, at in zip(both, direction, strict=True))
    scale = math.sqrt(size / max(spread, 1e-12))
    ratios = [math.exp(min(30, max(-30, scale * (at - mean)))) for at in direction]
    total = sum(share * ratio for share, ratio in zip(both, ratios, strict=True))
    return [ratio / total for ratio in ratios]


class Reference:
    """The docstring of `any_shift`, in as plain words as there are."""

    def __init__(self, canary: Sequence[float], stable: Sequence[float], scale: float) -> None:
        self.canary, self.stable, self.scale = [float(one) for one in canary], [float(one) for one in stable], scale
        self.weights = [share * part for share in SHARES for part in DIRECTIONS] + [SEEN]
        self.logs = [math.log(weight / sum(self.weights)) for weight in self.weights]
        self.ratios = [[1.0] * len(canary) for _ in self.weights]
        self.fitted = self.followed = 0.0

    def add(self, canary: Sequence[float], stable: Sequence[float]) -> float:
        known = sum(self.canary) + sum(self.stable)
        both = [x + y + 0.5 for x, y in zip(self.canary, self.stable, strict=True)]
        both = [one / sum(both) for one in both]
        if known >= 5 * len(self.canary):
            if known >= 2 * self.fitted:
                directions = shift_directions(np.array(both))
                self.ratios[:-1] = [ratios_of(size * self.scale, way, both) for size in SIZES for way in directions]
                self.fitted = known
            if known >= 1.2 * self.followed:
                of_canary = [(x + 20 * share) for x, share in zip(self.canary, both, strict=True)]
                of_stable = [(y + 20 * share) for y, share in zip(self.stable, both, strict=True)]
                total = (sum(self.stable) + 20) / (sum(self.canary) + 20)
                self.ratios[-1] = [x / y * total for x, y in zip(of_canary, of_stable, strict=True)]
                self.followed = known
        value = 0.0
        if self.fitted:
            share = sum(canary) / (sum(canary) + sum(stable))
            for place, ratios in enumerate(self.ratios):
                for ratio, x, y in zip(ratios, canary, stable, strict=True):
                    self.logs[place] += x * math.log(ratio) - (x + y) * math.log1p(share * (ratio - 1))
            most = max(self.logs)
            value = most + math.log(sum(math.exp(log - most) for log in self.logs))
        self.canary = [was + now for was, now in zip(self.canary, canary, strict=True)]
        self.stable = [was + now for was, now in zip(self.stable, stable, strict=True)]
        return value


EVEN = (0.1,) * 10
SKEWED = (0.6, 0.2, 0.1, 0.05, 0.03, 0.01, 0.005, 0.003, 0.0015, 0.0005)
# The arms' distributions, and the canary's and stable's requests before the first block.
STREAMS: dict[str, tuple[Sequence[float], Sequence[float], tuple[int, int]]] = {
    "no shift": (EVEN, EVEN, (300, 2700)),
    "nothing known before": (EVEN, EVEN, (0, 0)),
    "a shift up": (tuple(0.06 + 0.08 * place / 9 for place in range(10)), EVEN, (300, 2700)),
    "drawn in": ((0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05), EVEN, (30, 270)),
    "rare scores": (SKEWED[::-1], SKEWED, (100, 900)),
    "two scores": ((0.4, 0.6), (0.5, 0.5), (10, 10)),
}


@pytest.mark.parametrize("scale", [0.02, 0.25])
@pytest.mark.parametrize("stream", STREAMS)
def test_the_evidence_is_the_published_formula_with_the_stakes_that_are_stated(stream: str, scale: float):
    of_canary, of_stable, before = STREAMS[stream]
    random = np.random.default_rng(5)
    begun = [
        random.multinomial(count, shares).astype(float)
        for count, shares in zip(before, (of_canary, of_stable), strict=True)
    ]
    evidence, reference = AnyShift(*begun, scale), Reference(*begun, scale)
    assert evidence.value == 0
    for _ in range(40):
        canary = random.multinomial(20, of_canary).astype(float)
        stable = random.multinomial(180, of_stable).astype(float)
        evidence.add(Block(stable, canary, 180, 20))
        assert evidence.value == pytest.approx(reference.add(canary.tolist(), stable.tolist()), abs=1e-9)


def test_a_score_that_is_hardly_ever_seen_is_worth_no_more_than_its_bound():
    begun = [1e7, 1e7, 0.0]
    evidence, reference = AnyShift(np.array(begun), np.array(begun), 1.0), Reference(begun, begun, 1.0)
    canary, stable = [0.0, 0.0, 1.0], [500.0, 499.0, 0.0]
    evidence.add(Block(np.array(stable), np.array(canary), 999, 1))
    assert evidence.value == pytest.approx(reference.add(canary, stable), abs=1e-9)
    assert evidence.value > 3


@pytest.mark.parametrize(("count", "is_staked"), [(49, False), (50, True)])
def test_nothing_is_staked_before_five_requests_a_bucket_are_known(count: int, is_staked: bool):
    begun = np.full(10, 0.0)
    begun[0] = count
    evidence = AnyShift(begun, np.zeros(10), 0.05)
    evidence.add(Block(np.full(10, 10.0), np.full(10, 1.0), 100, 10))
    assert (evidence.value != 0) is is_staked
