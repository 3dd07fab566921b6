"""Evidence about scores: whether they have shifted, by how much, and whether more than is tolerated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from canary_support import EVEN_SCORES, WANTED, block, shifted_scores, walk
from depth import draws
from representative import every
from serinus.canary.evidence.any_shift import AnyShift
from serinus.canary.evidence.psi import psi, psi_upper
from serinus.canary.evidence.score_drift import DriftBeyond
from serinus.canary.evidence.shift_size import errors_beyond, errors_needed


def test_psi_of_known_distributions():
    assert psi(np.array([500.0, 500.0]), np.array([500.0, 500.0])) == 0
    expected = 0.3 * math.log(0.8 / 0.5) + 0.3 * math.log(0.5 / 0.2)
    assert psi(np.array([8e8, 2e8]), np.array([5e8, 5e8])) == pytest.approx(expected, rel=1e-6)


def test_without_a_shift_every_stake_on_one_is_worth_1_at_most():
    rng = np.random.default_rng(11)
    shift = AnyShift(rng.multinomial(300, EVEN_SCORES), rng.multinomial(2700, EVEN_SCORES), 0.05)
    shift.add(block(rng.multinomial(900, EVEN_SCORES), rng.multinomial(100, EVEN_SCORES), 900, 100))
    for _ in range(100):
        same = rng.dirichlet(np.full(10, rng.choice([0.3, 1.0, 100.0])))
        for share in (0.01, 0.1, 0.5, 0.9):
            factors = 1 + share * shift._excess
            canary, stable = (np.exp(shift._log_ratios) / factors) @ same, (1 / factors) @ same
            # Independent requests: ln E[E] = n (share ln canary + (1 - share) ln stable).
            assert (share * np.log(canary) + (1 - share) * np.log(stable)).max() <= 1e-12


def first_shift(rng, canary, looks, requests=500):
    """Requests until the evidence of any shift reaches the level."""
    test = AnyShift(np.zeros(10), np.zeros(10), 0.05)
    for look in range(1, looks + 1):
        n = rng.binomial(requests, 0.1)
        test.add(block(rng.multinomial(requests - n, EVEN_SCORES), rng.multinomial(n, canary), requests - n, n))
        if test.value >= WANTED:
            return requests * look
    return math.inf


def test_any_shift_is_found_at_the_published_speed():
    # Published for the count formula, 10 buckets, every 500 requests: equal arms 1.3 %, PSI 0.13 found at 2,000, 0.33 at 1,000.
    rng = np.random.default_rng(11)
    assert sum(first_shift(rng, EVEN_SCORES, 100) < math.inf for _ in range(100)) <= 5
    assert np.median([first_shift(rng, shifted_scores(0.13), 20) for _ in range(40)]) <= 2000
    assert np.median([first_shift(rng, shifted_scores(0.33), 20, 250) for _ in range(40)]) <= 1250


def test_a_shift_of_no_usual_direction_is_found():
    rng = np.random.default_rng(12)
    zigzag = np.array([0.12, 0.08] * 5)
    assert np.median([first_shift(rng, zigzag, 60) for _ in range(20)]) < 20_000


@pytest.mark.parametrize(("requests", "index"), every(3, [(300, 0.0), (3000, 0.0), (300, 0.05), (3000, 0.05)], names=2))
def test_the_estimate_of_the_index_is_without_bias_and_its_standard_error_is_one(requests, index):
    rng = np.random.default_rng(13)
    canary = shifted_scores(index) if index else np.array(EVEN_SCORES)
    beyond = [
        errors_beyond(rng.multinomial(requests, canary), rng.multinomial(9 * requests, EVEN_SCORES), index or 1e-9)
        for _ in range(1500)
    ]
    assert abs(np.mean(beyond)) < 0.12
    assert 0.85 < np.std(beyond) < 1.15
    assert errors_beyond(np.zeros(10), np.ones(10), 0.05) == -math.inf


def crosses(rng: np.random.Generator, canary: np.ndarray, looks: int = 120) -> int | None:
    """The first look, every 500 requests, at which the estimate is beyond the boundary for 0.05; None: none."""
    split = rng.binomial(500, 0.1, size=looks)
    seen = np.cumsum(rng.multinomial(split, canary), axis=0)
    beside = np.cumsum(rng.multinomial(500 - split, EVEN_SCORES), axis=0)
    for look in range(looks):
        counts = float(seen[look].sum()), float(beside[look].sum())
        if errors_beyond(seen[look], beside[look], 0.05) >= errors_needed(*counts, 0.05, 0.05):
            return look
    return None


@pytest.mark.slow  # up to 48,000 looks
def test_the_estimate_of_a_tolerated_shift_crosses_the_boundary_with_the_levels_probability_at_most():
    rng = np.random.default_rng(17)
    runs = draws(400, 150)
    wrong = sum(crosses(rng, shifted_scores(0.0499)) is not None for _ in range(runs))
    assert wrong <= runs * 0.05 + 3 * math.sqrt(runs * 0.05 * 0.95)
    found = [crosses(rng, shifted_scores(0.13)) for _ in range(40)]
    assert None not in found


@pytest.mark.parametrize(
    "canary", [[0.0] * 9 + [400.0], [400.0] + [0.0] * 9, [40.0] * 10], ids=["top", "bottom", "even"]
)
def test_the_smooth_part_of_the_index_is_at_most_the_index(canary):
    seen, beside = np.array(canary), np.full(10, 400.0)
    inverse = 1 / 400 + 1 / 4000
    error = math.sqrt(inverse * (4 * 0.05 + 4 * inverse))
    assert errors_beyond(seen, beside, 0.05) * error + 0.05 + 2 * inverse <= psi(seen, beside) + 1e-9


def test_scores_of_two_buckets_have_a_size_too():
    assert errors_beyond(np.array([100.0, 300.0]), np.array([2000.0, 2000.0]), 0.05) > 3


@pytest.mark.slow
def test_drift_that_is_tolerated_is_worth_1_at_most_to_every_bettor():
    rng = np.random.default_rng(7)
    drift = DriftBeyond(rng.multinomial(300, EVEN_SCORES), rng.multinomial(2700, EVEN_SCORES), 0.05)
    drift.add(block(np.zeros(10), np.zeros(10), 2700, 300))  # chooses the stakes
    bets = drift._bets
    assert bets is not None
    for _ in range(400):
        stable = rng.dirichlet(np.full(10, rng.choice([1.0, 10.0, 100.0])))
        direction = rng.normal(size=10)
        low, high = 0.0, 30.0
        for _ in range(50):
            middle = (low + high) / 2
            canary = stable * np.exp(middle * (direction - direction.max()))
            canary = canary / canary.sum()
            index = float(((canary - stable) * np.log(canary / stable)).sum())
            low, high = (middle, high) if index < 0.05 else (low, middle)
        if index > 0.05:
            continue
        for stable_count, canary_count in ((2700, 300), (10, 10), (99, 1)):
            of_canary = np.exp(
                [bets.log_growth(block(np.zeros(10), row, stable_count, canary_count)) for row in np.eye(10)]
            )
            of_stable = np.exp(
                [bets.log_growth(block(row, np.zeros(10), stable_count, canary_count)) for row in np.eye(10)]
            )
            logs = canary_count * np.log(canary @ of_canary) + stable_count * np.log(stable @ of_stable)
            assert logs.max() <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("index", "most"), every(3, [(0.0499, 0.05), (0.0, 0.05), (0.03, 0.05)], names=2))
def test_drift_that_is_tolerated_raises_no_alarm(index, most):
    rng = np.random.default_rng(8)
    canary = shifted_scores(index) if index else np.array(EVEN_SCORES)
    reached = sum(
        walk(DriftBeyond(np.zeros(10), np.zeros(10), 0.05), rng, canary, EVEN_SCORES, blocks=60) >= WANTED
        for _ in range(60)
    )
    assert reached <= 60 * most + 3 * math.sqrt(60 * most * (1 - most))


def test_drift_beyond_what_is_tolerated_is_found():
    rng = np.random.default_rng(9)
    took = []
    for _ in range(40):
        test = DriftBeyond(np.zeros(10), np.zeros(10), 0.05)
        requests = 0
        while test.value < WANTED and requests < 60_000:
            walk(test, rng, shifted_scores(0.13), EVEN_SCORES, blocks=1)
            requests += 500
        took.append(requests)
    # The best that can be, for one who knows both distributions: log(20) / (0.36 - 0.22)^2 * 2 / 0.9 / 0.1 = 3,500.
    assert np.median(took) < 9_000


@pytest.mark.slow
def test_an_index_at_the_limit_is_called_less_no_oftener_than_the_level():
    rng = np.random.default_rng(10)
    canary = shifted_scores(0.1)
    called = 0
    for _ in range(200):
        of_canary, of_stable = np.zeros(10), np.zeros(10)
        for _ in range(60):
            of_canary, of_stable = (
                of_canary + rng.multinomial(50, canary),
                of_stable + rng.multinomial(450, EVEN_SCORES),
            )
            if psi_upper(of_canary, of_stable, 0.1, 0.05) < 0.1:
                called += 1
                break
    assert called <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)
    # And an equal canary is called so, after a thousand requests of it.
    assert psi_upper(np.full(10, 100.0), np.full(10, 900.0), 0.1, 0.05) < 0.1
