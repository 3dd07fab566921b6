"""`PYTHONPATH=tests:tests/support python -m benchmarks.canary`: how often the judge errs, and how many requests it takes.

Rollouts whose truth is known, looked at every 100 requests with 10 % of the traffic at the canary, under the default policy.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from canary_support import FINE_LE_S, Rollout, Truth, judge, ramp, shifted_scores
from serinus.canary.policy import Policy, load_policy

# What single tests at the whole level took of both arms' requests (median), with a split known exactly, no warm-up and nothing tolerated.
CASES: dict[str, tuple[Rollout, float | None]] = {
    "equal": (Rollout(), None),
    "equal, errors alone, no percent": (Rollout(only_errors=True, says_percent=False), None),
    "equal, 12 % routed": (Rollout(routed=12.0), None),
    "equal, dealt exactly": (Rollout(deals_exactly=True), None),
    "equal, daily swings": (Rollout(swing=0.8), None),
    "equal, heavy tail": (Rollout(stable=Truth(sigma=2.0), canary=Truth(sigma=2.0)), None),
    "equal, 10 requests a look": (Rollout(requests=10), None),
    "equal, 100,000 requests a look": (Rollout(requests=100_000), None),
    "PSI 0.03": (Rollout(canary=Truth(scores=shifted_scores(0.03))), None),
    "PSI 0.02": (Rollout(canary=Truth(scores=shifted_scores(0.02)), looks=600), None),
    "PSI 0.03, 60,000 requests": (Rollout(canary=Truth(scores=shifted_scores(0.03)), looks=600), None),
    "PSI 0.04": (Rollout(canary=Truth(scores=shifted_scores(0.04)), looks=600), None),
    "PSI 0.0499": (Rollout(canary=Truth(scores=shifted_scores(0.0499)), looks=600), None),
    "slow for 40 requests": (Rollout(canary=Truth(slow_start=40)), None),
    "slow for 200 requests": (Rollout(canary=Truth(slow_start=200), looks=600), None),
    "slow for 500 requests": (Rollout(canary=Truth(slow_start=500), looks=600), None),
    "slow for 60 s, 100 requests a second": (Rollout(canary=Truth(slow_start_s=60), requests=600, looks=100), None),
    "errors 0.5 % -> 1 %": (Rollout(canary=Truth(errors=0.01), looks=600), 17_600),
    "errors 0.5 % -> 2 %": (Rollout(canary=Truth(errors=0.02)), 3_600),
    "errors 0.5 % -> 2 %, errors alone": (Rollout(canary=Truth(errors=0.02), only_errors=True), 3_600),
    "errors 0.5 % -> 5 %": (Rollout(canary=Truth(errors=0.05)), 1_000),
    "latency x1.2": (Rollout(canary=Truth(median_s=0.024)), 2_000),
    "latency x1.5 (p99 x1.5)": (Rollout(canary=Truth(median_s=0.03)), 10_000),
    "latency x1.5, fine buckets": (Rollout(canary=Truth(median_s=0.03), le_s=FINE_LE_S), 10_000),
    "PSI 0.13, 0.05 tolerated": (Rollout(canary=Truth(scores=shifted_scores(0.13)), looks=300), 2_000),
    "PSI 0.33, 0.05 tolerated": (Rollout(canary=Truth(scores=shifted_scores(0.33))), 1_000),
}


def _alone(metric: str) -> Callable[[Policy], Policy]:
    """A policy of one guardrail."""
    return lambda policy: replace(policy, **{each: None for each in ("errors", "latency", "score") if each != metric})


def _promoting_alone(metric: str) -> Callable[[Policy], Policy]:
    """A policy of one guardrail that rolls back as good as never, so that what is promoted is told without what was rolled back before."""
    return lambda policy: replace(_alone(metric)(policy), level=1e-300)


# At the edges of what is tolerated and of what is promoted, guardrail by guardrail: promotions at a margin, rollbacks at no difference.
EDGES: dict[str, tuple[Rollout, Callable[[Policy], Policy]]] = {
    "equal, errors alone": (Rollout(looks=600), _alone("errors")),
    "equal, latency alone": (Rollout(looks=600), _alone("latency")),
    "equal, scores alone": (Rollout(looks=600), _alone("score")),
    "errors 0.5 % -> 1 % (the margin), errors alone, never rolled back": (
        Rollout(canary=Truth(errors=0.01), looks=600),
        _promoting_alone("errors"),
    ),
    "latency x1.1 (the margin)": (Rollout(canary=Truth(median_s=0.022), looks=600), lambda policy: policy),
    "latency x1.1 (the margin), latency alone, never rolled back": (
        Rollout(canary=Truth(median_s=0.022), looks=600),
        _promoting_alone("latency"),
    ),
    "latency x1.1, likewise, fine buckets": (
        Rollout(canary=Truth(median_s=0.022), looks=600, le_s=FINE_LE_S),
        _promoting_alone("latency"),
    ),
    "latency x1.1, likewise, longer tail": (
        Rollout(stable=Truth(sigma=1.0), canary=Truth(median_s=0.022, sigma=1.0), looks=600),
        _promoting_alone("latency"),
    ),
    "PSI 0.1 (the promotion's), scores alone, never rolled back": (
        Rollout(canary=Truth(scores=shifted_scores(0.1)), looks=600),
        _promoting_alone("score"),
    ),
}


def main() -> None:
    """Simulate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="part of a case's name")
    arguments = parser.parse_args()
    policy = load_policy()
    print(
        "| rollout | runs | rolled back | promoted | median requests | 90 % | of single tests |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name, (rollout, reference) in CASES.items():
        if arguments.only not in name:
            continue
        rng = np.random.default_rng(arguments.seed)
        _row(name, [judge(policy, rollout.simulate_lazily(rng)) for _ in range(arguments.runs)], reference)
    for name, (rollout, changed) in EDGES.items():
        if arguments.only not in name:
            continue
        rng = np.random.default_rng(arguments.seed)
        _row(name, [judge(changed(policy), rollout.simulate_lazily(rng)) for _ in range(arguments.runs)], None)
    for name, canary in (
        ("stepped 10, 25, 50 %: equal", Truth()),
        ("stepped: slow for 200 requests, again after each step", Truth(slow_start=200)),
        ("stepped: slow for 500 requests, again after each step", Truth(slow_start=500)),
        ("stepped: errors 0.5 % -> 1 % (the margin)", Truth(errors=0.01)),
        ("stepped: errors 0.5 % -> 2 %", Truth(errors=0.02)),
        ("stepped: latency x1.5", Truth(median_s=0.03)),
        ("stepped: PSI 0.13", Truth(scores=shifted_scores(0.13))),
    ):
        if arguments.only not in name:
            continue
        rng = np.random.default_rng(arguments.seed)
        rollout = Rollout(canary=canary, requests=200, looks=500)
        _row(name, [ramp(policy, rollout, rng) for _ in range(max(1, arguments.runs // 5))], None)


def _row(name: str, found: list, reference: float | None) -> None:
    kinds = Counter(decision.decision for decision, _ in found)
    decided = sorted(requests for decision, requests in found if decision.is_final)
    median = decided[len(decided) // 2] if decided else None
    ninety = decided[int(0.9 * len(decided))] if decided else None
    ratio = f"x{median / reference:.2f}" if median and reference else ""
    print(
        f"| {name} | {len(found)} | {kinds['rollback'] / len(found):.1%} | {kinds['promote'] / len(found):.1%} | "
        f"{median or ''} | {ninety or ''} | {ratio} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
