"""The judge: what it decides over whole rollouts, and what it says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from canary_support import EVEN_SCORES, Rollout, Truth, judge, ramp, shifted_scores
from depth import draws
from serinus.canary.judge import Judge
from serinus.canary.looks import Arm, Latency, Look, Mean, Rate
from serinus.canary.policy import DEFAULT_POLICY, Policy, load_policy, parse_policy
from serinus.errors import InvalidInput

DEFAULT = load_policy()
ERRORS = "guardrails:\n  errors: {margin_percentage_points: 0.5}\n"
PLAIN = "steps: [10, 50, 100]\nlevel: 0.05\n"


def policy(text: str) -> Policy:
    return parse_policy(PLAIN + text)


def look(
    seconds: float, stable: tuple[int, int], canary: tuple[int, int], percent: float | None = 10, **more: object
) -> Look:
    return Look(
        seconds=seconds,
        percent=percent,
        stable=Arm(requests=stable[0], errors=stable[1], **more),  # type: ignore[arg-type]
        canary=Arm(requests=canary[0], errors=canary[1], **more),  # type: ignore[arg-type]
    )


def outcomes(
    rollout: Rollout, runs: int, seed: int = 1, judged_by: Policy = DEFAULT
) -> list[tuple[str, str | None, int]]:
    rng = np.random.default_rng(seed)
    found = [judge(judged_by, rollout.simulate_lazily(rng)) for _ in range(runs)]
    return [(decision.decision, decision.metric, requests) for decision, requests in found]


def most_wrong(runs: int, level: float = 0.05) -> float:
    """More than this many of runs that err with probability `level` come once in 700 times."""
    return runs * level + 3 * math.sqrt(runs * level * (1 - level))


EQUAL = {
    "as by default": Rollout(),
    "errors alone, no percent": Rollout(only_errors=True, says_percent=False),
    "12 % routed for 10": Rollout(routed=12.0),
    "dealt exactly": Rollout(deals_exactly=True),
    "daily swings": Rollout(swing=0.8),
    "heavy tail": Rollout(stable=Truth(sigma=2.0), canary=Truth(sigma=2.0)),
    "many errors": Rollout(stable=Truth(errors=0.3), canary=Truth(errors=0.3)),
    "half the traffic": Rollout(percent=50.0),
    "one request a look": Rollout(requests=1, looks=3000),
    "a billion requests": Rollout(requests=10_000_000, looks=100),
    "tolerated drift": Rollout(canary=Truth(scores=shifted_scores(0.03))),
    "a slow start of 150 requests": Rollout(canary=Truth(slow_start=150)),
    "a slow start of 500 requests": Rollout(canary=Truth(slow_start=500)),
    "a slow first minute": Rollout(canary=Truth(slow_start_s=60.0), requests=2000, looks=100),
}


@pytest.mark.slow
@pytest.mark.parametrize("rollout", EQUAL.values(), ids=EQUAL)
def test_a_canary_as_good_is_rolled_back_no_oftener_than_the_level(rollout: Rollout):
    runs = draws(20, 8) if rollout.looks > 1000 else draws(60, 20)
    rolled_back = [each for each in outcomes(rollout, runs) if each[0] == "rollback"]
    assert len(rolled_back) <= most_wrong(runs)


FAULTS = {
    # The requests (median) are those that a single test at the whole level took in the published simulations, and half as many again.
    "errors 0.5 % to 2 %": (Rollout(canary=Truth(errors=0.02)), "errors", 3_600 * 1.5),
    "errors alone": (Rollout(canary=Truth(errors=0.02), only_errors=True, says_percent=False), "errors", 3_600 * 1.5),
    "p99 half as long again": (Rollout(canary=Truth(median_s=0.03)), "latency", 10_000 * 1.5),
    "PSI 0.13": (
        Rollout(canary=Truth(scores=shifted_scores(0.13)), looks=300),
        "score",
        2_000 * 1.7,
    ),  # 2,900 of 600 runs
    "PSI 0.33": (Rollout(canary=Truth(scores=shifted_scores(0.33))), "score", 1_000 * 1.5),
    "all a fifth slower": (Rollout(canary=Truth(median_s=0.024)), "latency", 42_000 * 1.5),
    "all fail": (Rollout(canary=Truth(errors=1.0)), "errors", 1_000),
}


@pytest.mark.slow
@pytest.mark.parametrize(("rollout", "metric", "within"), FAULTS.values(), ids=FAULTS)
def test_a_worse_canary_is_rolled_back_in_time_and_never_promoted(rollout: Rollout, metric: str, within: float):
    found = outcomes(rollout, 60)
    assert not [each for each in found if each[0] == "promote"]
    assert [each[:2] for each in found].count(("rollback", metric)) >= 57
    assert np.median([each[2] if each[0] == "rollback" else math.inf for each in found]) <= within


@pytest.mark.slow
def test_a_good_canary_goes_up_the_steps_and_is_promoted_and_a_bad_one_is_not():
    rng = np.random.default_rng(4)
    rollout = Rollout(requests=200, looks=300)
    good = [ramp(DEFAULT, rollout, rng) for _ in range(20)]
    assert [decision.decision for decision, _ in good].count("promote") >= 17
    assert np.median([requests for _, requests in good]) < 20_000  # 27,000 and more, were it held at 10 %
    for truth in (Truth(errors=0.03), Truth(median_s=0.04), Truth(scores=shifted_scores(0.25))):
        bad = [ramp(DEFAULT, dataclasses.replace(rollout, canary=truth), rng)[0].decision for _ in range(10)]
        assert set(bad) == {"rollback"}


@pytest.mark.slow
def test_a_canary_that_was_slow_to_warm_up_is_promoted_in_the_end():
    rollout = Rollout(canary=Truth(slow_start=500), requests=500, looks=200)
    assert [each[0] for each in outcomes(rollout, 20)].count("promote") >= 17


@pytest.mark.slow
def test_replicas_that_are_cold_after_a_step_up_cost_no_rollback_and_a_slow_canary_is_not_stepped_up():
    rng = np.random.default_rng(12)
    cold = Rollout(canary=Truth(slow_start=300), requests=400, looks=250)
    found = [ramp(DEFAULT, cold, rng)[0] for _ in range(15)]
    assert [decision.decision for decision in found].count("rollback") <= most_wrong(15)
    assert [decision.decision for decision in found].count("promote") >= 12
    judged = Judge(DEFAULT)
    slow = Rollout(canary=Truth(median_s=0.03)).simulate(rng)
    assert {judged.see(each) for each in slow[:50]} == {"hold"}
    assert judged.see(slow[49]) == "hold"


def test_scores_that_swing_while_the_split_is_changed_are_not_taken_for_a_shift():
    # Scores move together in both arms, the canary's share with them: pooled, the arms would differ.
    text = "guardrails:\n  score: {tolerated_psi: 0.05}\n"
    rng = np.random.default_rng(13)
    judged, totals = Judge(policy(text)), np.zeros((2, 10), dtype=int)
    for step in range(60):
        late = step >= 30
        scores = shifted_scores(0.8) if late else np.array(EVEN_SCORES)
        canary = rng.binomial(1000, 0.5 if late else 0.1)
        for arm, n in enumerate((1000 - canary, canary)):
            totals[arm] += rng.multinomial(n, scores)
        arms = [Arm(requests=int(row.sum()), score=tuple(row.tolist())) for row in totals]
        decision = judged.look(Look(seconds=step, percent=50 if late else 10, stable=arms[0], canary=arms[1]))
        assert decision.decision != "rollback"
    assert "exceeded by" not in "\n".join(decision.reasons)


def test_an_obvious_fault_is_rolled_back_with_its_numbers():
    rng = np.random.default_rng(5)
    decision, _ = judge(DEFAULT, Rollout(canary=Truth(errors=0.3)).simulate(rng))
    assert (decision.decision, decision.metric, decision.requests_needed) == ("rollback", "errors", 0)
    assert decision.reasons[0].startswith("errors: canary ")
    assert "; 20 rolls it back" not in decision.reasons[0]
    assert "20 rolls it back" in decision.reasons[1]
    assert decision.is_final


def test_low_traffic_holds_and_says_what_is_missing_and_how_long_that_takes():
    judged = Judge(DEFAULT)
    decision = judged.look(look(60, (9, 0), (1, 0)))
    assert decision.decision == "hold"
    assert decision.reasons[0] == "warming up: the canary has answered 1 of 50 requests"
    assert decision.requests_needed is None
    for minute in range(2, 121):
        decision = judged.look(look(60 * minute, (9 * minute, 0), (minute, 0)))
    assert decision.decision == "hold"
    assert decision.metric == "errors"
    assert decision.requests_needed is not None
    assert decision.requests_needed > 2_000
    said = "\n".join(decision.reasons)
    assert "the canary has 230 requests less at this step than the minimum" in said
    assert "at 0.167 a second" in said
    assert "latency: not told by the looks, not judged" in said


def test_what_the_canary_answered_while_warming_up_is_left_out():
    cold = "warm_up: {canary_requests: 100}\n" + ERRORS
    judged = Judge(policy(cold))
    assert judged.look(look(1, (900, 0), (99, 90))).decision == "hold"
    assert judged.look(look(2, (1800, 0), (200, 100))).decision != "rollback"
    decision = judged.look(look(3, (2700, 0), (300, 100)))
    assert "canary 0 % (0 of 100)" in "\n".join(decision.reasons)
    assert decision.evidence["errors"] < 0.1
    assert Judge(policy(ERRORS)).look(look(1, (900, 0), (99, 90))).decision == "rollback"


def test_a_warm_up_of_seconds_waits_for_them():
    judged = Judge(policy("warm_up: {canary_requests: 5, seconds: 30}\n" + ERRORS))
    assert judged.look(look(29, (900, 0), (100, 90))).reasons[0] == "warming up: 29 of 30 s have passed"
    judged.look(look(30, (900, 0), (100, 90)))
    assert judged.look(look(31, (1800, 0), (200, 90))).decision != "rollback"


def test_latencies_may_warm_up_for_longer():
    text = "guardrails:\n  latency: {quantile: 0.99, margin_percent: 10, warm_up_canary_requests: 200}\n"
    judged = Judge(policy(text))

    def at(seconds: float, slow: int, requests: int) -> Look:
        counts = (requests - slow, slow)
        return Look(
            seconds=seconds,
            stable=Arm(requests=9 * requests, latency=Latency((0.1,), (9 * requests, 0))),
            canary=Arm(requests=requests, latency=Latency((0.1,), counts)),
        )

    assert judged.look(at(1, 150, 150)).reasons == (
        "latency: warming up: the canary has answered 150 of 200 requests, about 500 requests more, 0.333 s at 1.5e+03 a second",
    )
    judged.look(at(2, 200, 200))
    assert judged.look(at(3, 200, 400)).decision == "hold"
    assert judged.look(at(4, 300, 500)).decision == "rollback"


def test_steps_are_advanced_after_their_minimum_and_end_before_the_promotion():
    judged = Judge(policy("minimum: {canary_requests: 100, seconds: 10}\n" + ERRORS))
    assert judged.look(look(5, (900, 4), (100, 1))).decision == "hold"  # five seconds short
    decision = judged.look(look(10, (1800, 9), (200, 1)))
    assert (decision.decision, decision.next_percent) == ("advance", 50)
    assert judged.look(look(15, (1900, 9), (290, 2), 50)).decision == "hold"  # of the new step
    decision = judged.look(look(20, (2000, 9), (390, 2), 50))
    assert (decision.decision, decision.next_percent) == ("hold", None)  # only 100 is left, which is the promotion


def test_a_step_waits_while_something_leans_against_the_canary():
    judged = Judge(policy(ERRORS))
    decision = judged.look(look(10, (900, 5), (100, 4)))
    assert decision.decision == "hold"
    assert decision.metric == "errors"
    assert decision.reasons[0].startswith("errors: evidence ")


def test_the_evidence_of_steps_multiplies_whatever_their_splits():
    one, several = Judge(policy(ERRORS)), Judge(policy(ERRORS))
    assert one.look(look(10, (9000, 45), (1000, 9))).decision != "rollback"
    several.look(look(10, (9000, 45), (1000, 9)))
    first = several.explain().evidence["errors"]
    decision = several.look(look(20, (10_000, 50), (2_000, 19), 50))
    assert decision.evidence["errors"] > first + 0.5


def test_a_change_of_the_split_at_a_bad_hour_is_no_fault_of_the_canary():
    # Nine quiet minutes at 10 %, then a bad one at 50 %: together the canary has 23 % of the errors and 14 % of the requests.
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        judged, totals = Judge(policy(ERRORS)), np.zeros((2, 2), dtype=int)
        for minute in range(60):
            percent, rate = (50, 0.5) if minute % 10 == 9 else (10, 0.001)
            canary = rng.binomial(20, percent / 100)
            for arm, n in enumerate((20 - canary, canary)):
                totals[arm] += n, rng.binomial(n, rate)
            if judged.see(look(60.0 * minute, tuple(totals[0]), tuple(totals[1]), percent)) == "rollback":
                alarms += 1
                break
    assert alarms <= most_wrong(40)


def test_a_maximum_holds_or_rolls_back_as_the_policy_says():
    held = Judge(policy("maximum: {seconds: 100}\n" + ERRORS)).look(look(100, (90, 0), (10, 0), None))
    assert held.decision == "hold"
    assert "the maximum of 100 s has passed: a person has to decide" in held.reasons
    ended = Judge(policy("maximum: {seconds: 100, then: rollback}\n" + ERRORS)).look(look(100, (90, 0), (10, 0), None))
    assert (ended.decision, ended.metric) == ("rollback", None)
    assert "has passed without enough evidence" in ended.reasons[0]


def test_a_hard_limit_rolls_back_though_stable_is_as_bad():
    bad = look(10, (9000, 1800), (1000, 200))
    assert Judge(policy(ERRORS)).look(bad).decision != "rollback"
    limited = policy("guardrails:\n  errors: {margin_percentage_points: 0.5, hard_limit_percent: 10}\n")
    assert Judge(limited).look(bad).decision == "rollback"


@pytest.mark.parametrize("failing", [1.0, 0.6, 0.12])
def test_a_canary_that_fails_often_gets_no_further_though_stable_is_as_bad(failing: float):
    judged = Judge(DEFAULT)
    for step in range(1, 60):
        arms = [(n * step, int(n * step * failing)) for n in (9000, 1000)]
        decision = judged.look(look(60 * step, *arms))
        assert decision.decision == "hold"
    assert decision.metric == "errors"
    assert decision.requests_needed is None
    assert (
        f"errors: {failing * 100:g} % of the canary's requests fail; with more than 10 % (promotion_limit_percent)"
        in (decision.reasons[0])
    )


def test_a_service_that_is_used_to_failures_sets_its_own_limit():
    text = "guardrails:\n  errors: {margin_percentage_points: 0.5, promotion_limit_percent: 100}\n"
    looks = [look(60 * n, (900_000 * n, 900_000 * n), (100_000 * n, 100_000 * n)) for n in range(1, 30)]
    assert judge(policy(text), looks)[0].decision == "promote"
    assert (
        judge(DEFAULT, [look(60 * n, (90_000 * n, 7200 * n), (10_000 * n, 800 * n)) for n in range(1, 60)])[0].decision
        == "promote"
    )


def test_a_step_waits_for_stables_requests_too():
    judged = Judge(DEFAULT)
    for step in range(1, 30):
        decision = judged.look(look(60 * step, (0, 0), (1000 * step, 5 * step)))
        assert decision.decision == "hold"
    assert "stable has answered next to nothing at this step" in decision.reasons[0]
    assert judged.look(look(60 * 30, (9000, 45), (30_000, 150))).decision == "advance"


def test_a_hard_limit_of_latency_counts_what_is_surely_beyond_it():
    text = "guardrails:\n  latency: {quantile: 0.9, margin_percent: 10, hard_limit_seconds: 0.15}\n"
    arms = [Arm(requests=n, latency=Latency((0.1, 0.2), (n // 2, 0, n - n // 2))) for n in (9000, 1000)]
    assert Judge(policy(text)).look(Look(seconds=1, stable=arms[0], canary=arms[1])).decision == "rollback"
    arms = [Arm(requests=n, latency=Latency((0.1, 0.2), (n // 2, n - n // 2, 0))) for n in (9000, 1000)]
    assert Judge(policy(text)).look(Look(seconds=1, stable=arms[0], canary=arms[1])).decision != "rollback"


def test_short_latencies_are_told_in_digits_alone():
    text = "guardrails:\n  latency: {quantile: 0.9, margin_percent: 10}\n"
    le_s = (5e-05, 0.0001, 0.25)
    arms = [
        Arm(requests=9000, latency=Latency(le_s, (9000, 0, 0, 0))),
        Arm(requests=1000, latency=Latency(le_s, (0, 900, 100, 0))),
    ]
    said = "\n".join(Judge(policy(text)).look(Look(seconds=1, stable=arms[0], canary=arms[1])).reasons)
    assert "above 0.00005 s canary 100 % of 1,000, stable 0 % of 9,000" in said
    assert "p90 canary 0.00005 to 0.25 s" in said
    assert "e-05" not in said


def test_drift_without_tolerance_is_warned_of_and_decides_nothing():
    rng = np.random.default_rng(6)
    warned = policy("guardrails:\n  errors: {margin_percentage_points: 0.5}\n  score: {}\n")
    decision, _ = judge(warned, Rollout(canary=Truth(scores=shifted_scores(0.3)), looks=60).simulate(rng))
    assert decision.decision in {"hold", "advance"}
    assert any(reason.startswith("warning: score: ") for reason in decision.reasons)
    decision, _ = judge(warned, Rollout(looks=60).simulate(rng))
    assert not any(reason.startswith("warning") for reason in decision.reasons)


def test_a_split_that_is_not_as_asked_is_warned_of():
    rng = np.random.default_rng(7)
    decision, _ = judge(DEFAULT, Rollout(routed=15.0, looks=60).simulate(rng))
    assert any("split: the canary got 1" in reason and "10 % was asked for" in reason for reason in decision.reasons)
    decision, _ = judge(DEFAULT, Rollout(looks=60).simulate(rng))
    assert not any("split" in reason for reason in decision.reasons)


def test_requests_of_one_user_count_as_one():
    bad = look(10, (9000, 45), (1000, 30))
    assert Judge(policy(ERRORS)).look(bad).decision == "rollback"
    sticky = look(10, (9000, 45), (1000, 30), affinity_keys=250)
    decision = Judge(policy(ERRORS)).look(sticky)
    assert decision.decision != "rollback"
    assert decision.evidence["errors"] > 3


def test_a_promotion_waits_for_outcomes_that_come_late():
    text = "guardrails:\n  rates:\n    right: {better: higher, margin_percentage_points: 5, minimum_count: 3000}\n"

    def at(seconds: float, count: int) -> Look:
        arms = [
            Arm(requests=100_000 + int(seconds), rates={"right": Rate(n, int(0.9 * n))}) for n in (9 * count, count)
        ]
        return Look(seconds=seconds, stable=arms[0], canary=arms[1])

    judged = Judge(policy(text))
    decision = judged.look(Look(seconds=0, stable=Arm(requests=9), canary=Arm(requests=1)))
    assert decision.decision == "hold"
    assert decision.reasons == (
        "looks tell nothing that a guardrail is of",
        "right: not told by the looks, and required",
    )
    for step in range(1, 30):
        decision = judged.look(at(step, 100 * step))
    assert decision.decision == "hold"
    assert "2,900 outcomes of the canary have come, 3,000 are waited for" in decision.reasons[0]
    assert judged.look(at(30, 3000)).decision == "promote"


def test_a_worse_business_metric_rolls_back_and_a_better_one_does_not():
    text = "guardrails:\n  means:\n    revenue: {better: higher, margin_percent: 5}\n"
    rng = np.random.default_rng(8)

    def final(factor: float) -> str:
        judged, sums = Judge(policy(text)), np.zeros((2, 3))
        for step in range(1, 120):
            for arm, (n, by) in enumerate(((900, 1.0), (100, factor))):
                values = rng.gamma(2.0, 1.0, n) * by
                sums[arm] += n, values.sum(), (values**2).sum()
            arms = [Arm(requests=int(row[0]), means={"revenue": Mean(int(row[0]), row[1], row[2])}) for row in sums]
            decision = judged.look(Look(seconds=step, stable=arms[0], canary=arms[1]))
            if decision.is_final:
                break
        return decision.decision

    assert final(0.9) == "rollback"
    assert final(1.1) == "promote"


def test_a_metric_that_is_told_later_joins_with_its_share():
    rng = np.random.default_rng(9)
    early = Rollout(looks=20, only_errors=True).simulate(rng)
    late = Rollout(looks=60, canary=Truth(median_s=0.08)).simulate(rng)
    judged = Judge(DEFAULT)
    for each in early:
        assert judged.see(each) in {"hold", "advance"}
    base = early[-1]
    for each in late:

        def on(arm: Arm, before: Arm) -> Arm:
            return dataclasses.replace(
                arm, requests=arm.requests + before.requests, errors=(arm.errors or 0) + (before.errors or 0)
            )

        verdict = judged.see(
            dataclasses.replace(
                each,
                seconds=each.seconds + base.seconds,
                stable=on(each.stable, base.stable),
                canary=on(each.canary, base.canary),
            )
        )
        if verdict == "rollback":
            break
    assert judged.explain().metric == "latency"


def test_a_required_metric_that_is_not_told_holds_the_promotion():
    text = DEFAULT_POLICY.read_text().replace("margin_percent: 10", "margin_percent: 10\n    required: true", 1)
    good = [look(100 * step, (90_000 * step, 450 * step), (10_000 * step, 50 * step)) for step in range(1, 9)]
    assert judge(DEFAULT, good)[0].decision == "promote"
    decision, _ = judge(parse_policy(text), good)
    assert decision.decision in {"hold", "advance"}
    assert decision.requests_needed is None
    assert "latency: not told by the looks, and required" in decision.reasons


def test_looks_that_do_not_follow_are_refused():
    judged = Judge(DEFAULT)
    judged.look(look(10, (900, 4), (100, 1)))
    with pytest.raises(InvalidInput, match="went back"):
        judged.look(look(11, (900, 4), (99, 1)))


def test_a_canary_with_all_or_none_of_the_traffic_is_held():
    judged = Judge(policy(ERRORS))
    assert judged.look(look(1, (1000, 5), (0, 0), 0)).decision in {"hold", "advance"}
    assert judged.look(look(2, (1000, 5), (1000, 5), 100)).decision == "hold"


def test_a_billion_requests_are_judged_in_numbers_that_hold():
    rng = np.random.default_rng(10)
    rollout = Rollout(requests=50_000_000, looks=25)
    decision, requests = judge(DEFAULT, rollout.simulate(rng))
    assert decision.decision == "promote"
    assert requests <= 1_250_000_000
    worse = dataclasses.replace(rollout, canary=Truth(errors=0.0051, scores=EVEN_SCORES))
    assert judge(DEFAULT, worse.simulate(rng))[0].decision == "rollback"


@pytest.mark.slow
def test_no_counts_that_can_be_read_make_the_judge_fail_or_speak_nonsense():
    strict = parse_policy(
        "steps: [5, 100]\nlevel: 0.01\nguardrails:\n"
        "  errors: {margin_percentage_points: 0, hard_limit_percent: 100}\n"
        "  latency: {quantile: 0.999, margin_percent: 0, hard_limit_seconds: 99}\n"
        "  score: {tolerated_psi: 0.0001, promotion_psi: 0.001}\n"
        "  rates: {clicks: {better: higher, margin_percentage_points: 100}}\n"
        "  means: {revenue: {better: lower, margin_percent: 5}}\n"
    )
    rng = np.random.default_rng(11)

    def some(size: int) -> np.ndarray:
        return rng.choice([0, 0, 1, 2, 7, 50, 1000, 10**6, 10**9, 10**12], size)

    def arm(counts: np.ndarray, le_s: tuple[float, ...], value: float) -> Arm:
        requests, events, values, *buckets = (int(each) for each in counts)
        return Arm(
            requests=requests + events,
            errors=events,
            latency=Latency(le_s, tuple(buckets[: len(le_s) + 1])),
            score=tuple(buckets[len(le_s) + 1 :]),
            rates={"clicks": Rate(requests + events, events)},
            means={"revenue": Mean(values, values * value, values * value * value)},
        )

    for _ in range(150):
        le_s = tuple(
            sorted(rng.choice([1e-9, 0.001, 0.0011, 0.1, 1.0, 1e6], int(rng.integers(1, 5)), replace=False).tolist())
        )
        value = float(rng.choice([-5, 0, 1e-9, 1, 1e6]))
        width = 3 + len(le_s) + 1 + int(rng.choice([2, 10]))
        for judged_by in (DEFAULT, strict):
            judged, stable, canary = Judge(judged_by), np.zeros(width, dtype=int), np.zeros(width, dtype=int)
            for seconds in range(int(rng.choice([1, 10]))):
                stable, canary = stable + some(width), canary + some(width)
                decision = judged.look(
                    Look(
                        seconds=seconds * 100,
                        percent=rng.choice([None, 0, 0.001, 50, 100]),
                        stable=arm(stable, le_s, value),
                        canary=arm(canary, le_s, value),
                    )
                )
                assert all(math.isfinite(each) for each in decision.evidence.values())
                assert decision.requests_needed is None or decision.requests_needed >= 0
                assert "nan" not in "\n".join(decision.reasons)


SLOWER = """
guardrails:
  latency: {quantile: 0.99, margin_percent: 200, tolerated_ratio: 2}
"""


@pytest.mark.parametrize(("times", "most"), [(1.0, 0.05), (1.5, 0.05), (2.0, 0.05)])
def test_a_version_that_is_slower_by_no_more_than_is_tolerated_is_rolled_back_with_the_levels_probability_at_most(
    times: float, most: float
):
    runs = draws(60, 60, 30)
    found = outcomes(Rollout(canary=Truth(median_s=0.02 * times)), runs, judged_by=policy(SLOWER))
    assert sum(decision == "rollback" for decision, _, _ in found) <= most_wrong(runs, most)


def test_a_version_that_is_slower_by_a_known_ratio_is_promoted_and_by_far_more_rolled_back():
    known = outcomes(Rollout(canary=Truth(median_s=0.028), looks=400), 20, judged_by=policy(SLOWER))
    assert [decision for decision, _, _ in known].count("promote") >= 15
    assert {decision for decision, _, _ in outcomes(Rollout(canary=Truth(median_s=0.028)), 5, judged_by=DEFAULT)} == {
        "rollback"
    }
    wrong = outcomes(Rollout(canary=Truth(median_s=0.1)), 10, judged_by=policy(SLOWER))
    assert {(decision, metric) for decision, metric, _ in wrong} == {("rollback", "latency")}


def test_without_a_ratio_latency_is_judged_as_with_a_ratio_of_1():
    rollout = Rollout(canary=Truth(median_s=0.022), looks=80)
    texts = [SLOWER.replace(", tolerated_ratio: 2", ""), SLOWER.replace("ratio: 2", "ratio: 1")]
    first, second = (outcomes(rollout, 3, judged_by=policy(text)) for text in texts)
    assert first == second
