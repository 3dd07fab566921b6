"""Policies: files of YAML, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from serinus.canary.policy import DEFAULT_POLICY, load_policy, parse_policy
from serinus.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = "steps: [10, 100]\nlevel: 0.05\nguardrails:\n  errors: {margin_percentage_points: 0.5}\n"


def test_the_default_is_what_the_documents_say():
    policy = load_policy()
    assert policy.steps == (10, 25, 50, 100)
    assert policy.level == 0.05
    assert policy.errors is not None
    assert policy.errors.margin == 0.005
    assert policy.errors.promotion_limit == 0.1
    assert policy.latency is not None
    assert (policy.latency.quantile, policy.latency.margin) == (0.99, 0.1)
    assert policy.score is not None
    assert policy.score.tolerated_psi == 0.05


def test_what_a_policy_leaves_out_is_what_the_default_says():
    errors, default = parse_policy(SMALL).errors, load_policy().errors
    assert errors is not None
    assert default is not None
    assert errors.promotion_limit == default.promotion_limit


def test_the_recommenders_policy_only_warns_of_drift():
    policy = load_policy(REPOSITORY / "inferenceservices" / "recommender" / "canary.yaml")
    assert policy.score is not None
    assert policy.score.tolerated_psi is None


def test_a_policy_names_business_metrics():
    policy = parse_policy(
        SMALL
        + "  rates:\n    clicks: {better: higher, margin_percentage_points: 1, minimum_count: 500}\n"
        + "  means:\n    revenue: {better: higher, margin_percent: 2, bounds: [0, 5]}\n"
    )
    assert policy.rates["clicks"].margin == 0.01
    assert policy.rates["clicks"].minimum_count == 500
    assert policy.means["revenue"].bounds == (0.0, 5.0)
    assert policy.promotion_level == policy.level


WRONG = {
    "a promotion limit of 0": (
        SMALL.replace("0.5}", "0.5, promotion_limit_percent: 0}"),
        "errors.promotion_limit_percent: is 0; a number above 0, 100 at most",
    ),
    "level 0": (SMALL.replace("0.05", "0"), "policy:2: level: is 0; a number between 0 and 1"),
    "level 2": (SMALL.replace("0.05", "2"), "policy:2: level: is 2; a number between 0 and 1"),
    "level a text": (SMALL.replace("0.05", "five"), "policy:2: level: is 'five'"),
    "level nan": (SMALL.replace("0.05", ".nan"), "policy:2: level: is nan"),
    "level true": (SMALL.replace("0.05", "true"), "policy:2: level: is True"),
    "no level": (SMALL.replace("level: 0.05\n", ""), "policy:1: the policy: level is missing"),
    "margin negative": (
        SMALL.replace("0.5}", "-0.5}"),
        "errors.margin_percentage_points: is -0.5; a number of 0 or more",
    ),
    "margin beyond": (SMALL.replace("0.5}", "101}"), "is 101; a number of 0 or more, 100 at most"),
    "typo": (SMALL.replace("guardrails", "gardrails"), "gardrails: unknown key; did you mean guardrails?"),
    "typo inside": (SMALL + "  latncy: {}\n", "guardrails.latncy: unknown key; did you mean latency?"),
    "typo deep": (
        SMALL.replace("margin_percentage_points", "margin_percentage_point"),
        "did you mean margin_percentage_points?",
    ),
    "no guardrails": ("steps: [10, 100]\nlevel: 0.05\nguardrails: {}\n", "guardrails: is empty"),
    "steps descend": (
        SMALL.replace("[10, 100]", "[50, 10, 100]"),
        "steps: is [50, 10, 100]; percents were expected, ascending",
    ),
    "steps end": (SMALL.replace("[10, 100]", "[10, 50]"), "steps: is [10, 50]"),
    "steps zero": (SMALL.replace("[10, 100]", "[0, 100]"), "steps: is [0, 100]"),
    "twice": (SMALL + "level: 0.1\n", "level: is there twice"),
    "quantile": (
        SMALL + "  latency: {quantile: 99, margin_percent: 10}\n",
        "quantile: is 99; a number between 0 and 1",
    ),
    "psi": (
        SMALL + "  score: {tolerated_psi: 0.2, promotion_psi: 0.1}\n",
        "promotion_psi: is 0.1; more than tolerated_psi (0.2)",
    ),
    "psi 0": (SMALL + "  score: {tolerated_psi: 0}\n", "tolerated_psi: is 0; a number above 0"),
    "better": (SMALL + "  rates: {clicks: {better: hihger, margin_percentage_points: 1}}\n", "did you mean higher?"),
    "bounds": (
        SMALL + "  means: {x: {better: higher, margin_percent: 1, bounds: [1, 0]}}\n",
        "bounds: is [1, 0]; two numbers",
    ),
    "warm-up": (SMALL + "warm_up: {canary_requests: 1.5}\n", "warm_up.canary_requests: is 1.5; a whole number"),
    "maximum": (SMALL + "maximum: {seconds: 0}\n", "maximum.seconds: is 0; a number above 0"),
    "then": (SMALL + "maximum: {then: promote}\n", "maximum.then: is 'promote'; hold or rollback was expected"),
    "a mapping": (SMALL + "minimum: 3\n", "minimum: is 3; keys and values were expected"),
    "a list": ("- 1\n", "policy:1: a policy is a mapping, this document is a list"),
    "nothing": ("", "0 documents"),
    "two": (SMALL + "---\n" + SMALL, "2 documents"),
    "no YAML": ("a: [", "not YAML"),
    "a tag": ("a: !!python/object/apply:os.system [ls]\n", "not YAML"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_what_a_policy_must_not_say_is_refused(text: str, message: str):
    with pytest.raises(ConfigError) as refused:
        parse_policy(text)
    assert message in "\n".join(refused.value.problems)


def test_all_mistakes_are_told_together():
    with pytest.raises(ConfigError) as refused:
        parse_policy(SMALL.replace("0.05", "2").replace("0.5}", "-1}") + "stesp: 3\n")
    assert len(refused.value.problems) == 3


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="a policy's file was expected"):
        load_policy(tmp_path / name)


def test_the_default_ships_beside_the_code():
    assert DEFAULT_POLICY.is_file()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            "margin_percent: 10, tolerated_ratio: 0.9",
            "tolerated_ratio: is 0.9; a number of 1 or more, 100 at most was expected",
        ),
        ("margin_percent: 10, tolerated_ratio: 101", "tolerated_ratio: is 101; a number of 1 or more"),
        ("margin_percent: 10, tolerated_ratio: .nan", "tolerated_ratio: is nan; a number of 1 or more"),
        (
            "margin_percent: 50, tolerated_ratio: 1.5",
            "margin_percent: is 50; more than 50 was expected, since tolerated_ratio is 1.5",
        ),
    ],
)
def test_a_tolerated_ratio_of_latency_is_at_least_1_and_within_the_margin(keys: str, said: str):
    text = f"steps: [10, 100]\nlevel: 0.05\nguardrails:\n  latency: {{quantile: 0.99, {keys}}}\n"
    with pytest.raises(ConfigError) as caught:
        parse_policy(text)
    assert said in str(caught.value)
