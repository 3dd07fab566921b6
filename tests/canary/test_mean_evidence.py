"""Evidence about limits, quantiles and means: each formula against simulation or the figures that are published for it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from canary_support import WANTED, block
from deferred import Deferred
from depth import draws
from representative import every
from serinus.canary.evidence.hard_limits import AboveLimit
from serinus.canary.evidence.means import BoundedMean, LargeMean, Sums
from serinus.canary.evidence.quantiles import quantile_band, quantile_bounds

stats = Deferred("scipy.stats")


@pytest.mark.parametrize("limit", [0.001, 0.05, 0.5])
def test_at_the_limit_the_evidence_is_1(limit):
    binomial = stats.binom(60, limit)
    expected = 0.0
    for events in range(61):
        evidence = AboveLimit(limit)
        evidence.add(block([0], [events], 100, 60))
        expected += binomial.pmf(events) * math.exp(evidence.value)
    assert expected == pytest.approx(1.0)


def test_the_quantile_band_is_the_published_one_and_holds():
    low, high = quantile_band(0.99, 10_000, 0.025)
    iterated = (1.4 * math.log(math.log(21_000)) + math.log(400)) / 10_000
    assert high - 0.99 == pytest.approx(1.5 * math.sqrt(0.0099 * iterated) + 0.8 * iterated)
    assert 0.99 - low == pytest.approx(high - 0.99)
    rng = np.random.default_rng(12)
    wrong = 0
    for _ in range(200):
        below = np.cumsum(rng.random(3000) < 0.9)
        wrong += any(
            not lower * t <= below[t - 1] <= upper * t
            for t in range(50, 3001, 50)
            for lower, upper in [quantile_band(0.9, t, 0.05)]
        )
    assert wrong <= 200 * 0.05


def test_quantiles_are_told_as_far_as_the_buckets_go():
    assert quantile_bounds([0.1, 0.2], [0, 0, 0], 0.5, 0.05) == (0.0, math.inf)
    assert quantile_bounds([0.1, 0.2], [5000, 5000, 0], 0.5, 0.05) == (0.0, 0.2)
    assert quantile_bounds([0.1, 0.2], [100, 9800, 100], 0.5, 0.05) == (0.1, 0.2)
    assert quantile_bounds([0.1, 0.2], [0, 0, 9000], 0.5, 0.05) == (0.2, math.inf)


def sums(values) -> Sums:
    return Sums(len(values), float(values.sum()), float((values**2).sum()))


def mean_walk(test, draw, rng, factor, blocks) -> float:
    highest = 0.0
    for _ in range(blocks):
        n = int(rng.binomial(1000, 0.1))
        test.add(sums(draw(n) * factor), sums(draw(1000 - n)))
        highest = max(highest, test.value)
    return highest


DRAWS = {
    "uniform": lambda rng: lambda n: rng.random(n),
    "skewed": lambda rng: lambda n: rng.lognormal(0, 1, n),
    "mostly nothing": lambda rng: lambda n: rng.exponential(1, n) * (rng.random(n) < 0.05),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("sign", every(2, [1.0, -1.0]))
def test_equal_means_are_called_worse_no_oftener_than_the_level(draw, sign):
    rng, runs = np.random.default_rng(13), draws(100, 100, 40)
    reached = sum(mean_walk(LargeMean(sign, 0.0, 1000), draw(rng), rng, 1.0, 60) >= WANTED for _ in range(runs))
    assert reached <= runs * 0.05 + 3 * math.sqrt(runs * 0.05 * 0.95)


@pytest.mark.parametrize(
    "make", [lambda s, m: LargeMean(s, m, 500), lambda s, m: BoundedMean(s, m, (0.0, 1.0))], ids=["large", "bounded"]
)
def test_a_worse_mean_is_found_and_an_equal_one_is_shown_not_worse(make):
    rng = np.random.default_rng(14)
    assert mean_walk(make(-1.0, 0.0), rng.random, rng, 0.8, 60) >= WANTED
    assert mean_walk(make(1.0, 0.0), rng.random, rng, 0.8, 60) < 1
    assert mean_walk(make(1.0, 0.1), rng.random, rng, 1.0, 120) >= WANTED
    assert mean_walk(make(1.0, 0.1), rng.random, rng, 0.85, 120) < WANTED


def test_the_evidence_of_a_large_mean_is_its_formula_over_all_blocks():
    rng = np.random.default_rng(15)
    blocks = [(rng.normal(5, 1, n), rng.normal(5.5, 2, m)) for n, m in ((15, 60), (25, 75), (40, 90))]
    test = LargeMean(-1.0, 0.1, 20)
    total, of_canary, of_stable, kappa, before = 0.0, 0.0, 0.0, 0.0, None
    for number, (canary, stable) in enumerate(blocks, 1):
        test.add(sums(canary), sums(stable))
        h = len(canary) * len(stable) / (len(canary) + len(stable))
        offset = 0.1 * (stable.mean() if before is None else before)  # of what stable was when the block began
        total += h * (stable.mean() - canary.mean() + offset)
        of_canary, of_stable = of_canary + h * h / len(canary), of_stable + h * h / len(stable)
        seen, beside = (np.concatenate(part) for part in zip(*blocks[:number], strict=True))
        before = beside.mean()
        if number == 1:
            assert test.value == 0.0  # 15 of the canary are too few
            continue
        variance = of_canary * seen.var(ddof=1) + of_stable * beside.var(ddof=1)
        kappa = kappa or 1 / variance
        spread = 1 + kappa * variance
        z = total * math.sqrt(kappa / spread)
        expected = math.log(2) - 0.5 * math.log(spread) + z * z / 2 + stats.norm.logcdf(z)
        assert test.value == pytest.approx(expected, rel=1e-9)


def test_values_that_are_all_equal_say_nothing_and_a_stable_mean_may_be_negative():
    test = LargeMean(1.0, 0.1, 10)
    test.add(sums(np.full(30, 2.0)), sums(np.full(90, 2.0)))
    assert test.value == 0.0
    ahead, mirrored = LargeMean(1.0, 0.1, 10), LargeMean(-1.0, 0.1, 10)
    rng = np.random.default_rng(16)
    canary, stable = rng.normal(-3, 1, 50), rng.normal(-3.2, 1, 400)
    for _ in range(2):
        ahead.add(sums(canary), sums(stable))
        mirrored.add(sums(-canary), sums(-stable))
    assert ahead.value == pytest.approx(mirrored.value)
    assert ahead.value > 0


def test_requests_that_a_mean_needs_are_told_before_and_after_it_has_any():
    test = LargeMean(1.0, 0.1, 1000)
    assert test.requests_needed(WANTED, 0.1) == 10_000
    rng = np.random.default_rng(17)
    test.add(sums(rng.random(40)), sums(rng.random(360)))
    assert test.requests_needed(WANTED, 0.1) == pytest.approx(9600)
    for never in (LargeMean(1.0, 0.0, 10), BoundedMean(1.0, 0.0, (0.0, 1.0))):
        never.add(sums(rng.random(40)), sums(rng.random(360)))
        assert never.requests_needed(WANTED, 0.1) == math.inf
        assert never.requests_needed(never.value, 0.1) == 0.0


@pytest.mark.parametrize(
    "make", [lambda: LargeMean(1.0, 0.1, 50), lambda: BoundedMean(1.0, 0.1, (0.0, 1.0))], ids=["large", "bounded"]
)
def test_an_equal_mean_takes_about_the_requests_that_were_told(make):
    rng = np.random.default_rng(18)
    told, took = [], []
    for _ in range(15):
        test = make()
        mean_walk(test, rng.random, rng, 1.0, 1)
        told.append(test.requests_needed(WANTED, 0.1))
        blocks = 1
        while test.value < WANTED:
            mean_walk(test, rng.random, rng, 1.0, 1)
            blocks += 1
        took.append(1000 * blocks)
    assert 0.5 < np.median(took) / np.median(told) < 2


def test_bounded_means_are_exact():
    # Two values a request, dealt to small arms: the expectation is summed, not simulated.
    expected = 0.0
    for canary, stable in itertools.product(range(5), range(5)):
        test = BoundedMean(-1.0, 0.0, (0.0, 1.0))
        test.add(Sums(4, canary, canary), Sums(4, stable, stable))
        probability = stats.binom(4, 0.3).pmf(canary) * stats.binom(4, 0.3).pmf(stable)
        expected += probability * math.exp(test.value)
    assert expected <= 1 + 1e-9
