"""Looks: one JSON line, read strictly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serinus.canary import looks
from serinus.canary.look_order import check_follows
from serinus.canary.looks import Latency, Look, Mean, Rate, parse_look
from serinus.errors import InvalidInput

ARM = {
    "requests": 900,
    "errors": 4,
    "latency": {"le_s": [0.01, 0.1], "counts": [850, 48, 2]},
    "score": {"counts": [90, 91, 89]},
    "means": {"revenue": {"count": 3, "sum": 6.0, "sum_squares": 14.0}},
    "rates": {"clicks": {"count": 10, "events": 4}},
    "affinity_keys": 300,
}
LOOK = {"run": "a", "seconds": 60, "percent": 10, "stable": ARM, "canary": ARM}


def changed(path: str, value: Any, look: dict[str, Any] = LOOK) -> dict[str, Any]:
    """The look with one field set, or left out where the value is `...`."""
    result = json.loads(json.dumps(look))
    *parents, last = path.split(".")
    at: Any = result
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at[part]
    if value is ...:
        del at[last]
    else:
        at[int(last) if isinstance(at, list) else last] = value
    return result


def both(path: str, value: Any) -> dict[str, Any]:
    return changed(f"canary.{path}", value, changed(f"stable.{path}", value))


def read(value: Any) -> Look:
    return parse_look(json.dumps(value))


def test_a_look_is_read_whole_and_written_as_it_is_read():
    look = read(LOOK)
    assert (look.run, look.seconds, look.percent) == ("a", 60.0, 10.0)
    assert look.stable == look.canary
    assert look.canary.latency == Latency((0.01, 0.1), (850, 48, 2))
    assert look.canary.score == (90, 91, 89)
    assert look.canary.means == {"revenue": Mean(3, 6.0, 14.0)}
    assert look.canary.rates == {"clicks": Rate(10, 4)}
    assert look.canary.affinity_keys == 300
    assert read(look.as_json()) == look


def test_everything_but_seconds_and_requests_may_be_absent():
    look = read({"seconds": 0, "stable": {"requests": 0}, "canary": {"requests": 0}})
    assert (look.run, look.percent, look.stable.errors, look.stable.latency, look.stable.score) == (
        "",
        None,
        None,
        None,
        None,
    )
    assert read(look.as_json()) == look


def test_values_are_as_good_as_their_sums():
    assert read(both("means.revenue", {"values": [1, 2, 3.0]})) == read(LOOK)


REFUSED = {
    "no object": ([1], "a look is a JSON object"),
    "no seconds": (changed("seconds", ...), "seconds: missing"),
    "seconds before": (changed("seconds", -1), "seconds: -1 is before the rollout began"),
    "seconds a text": (changed("seconds", "60"), "seconds: a number was expected, a text (60) came"),
    "percent": (changed("percent", 101), "percent: 101 is no share"),
    "run": (changed("run", 3), "run: text was expected"),
    "key": (changed("secnods", 3), "secnods: unknown; did you mean seconds?"),
    "key of an arm": (changed("canary.reqests", 3), "canary.reqests: unknown; did you mean requests?"),
    "no arm": (changed("canary", ...), "canary: missing"),
    "an arm of nothing": (changed("canary", None), "canary: an object was expected, nothing came"),
    "no requests": (changed("stable.requests", ...), "stable.requests: missing"),
    "negative": (changed("stable.requests", -1), "stable.requests: -1 is negative"),
    "true": (
        changed("stable.requests", True),
        "stable.requests: a whole number was expected, true or false (True) came",
    ),
    "part": (changed("stable.errors", 1.5), "stable.errors: 1.5 is not whole; counters were expected"),
    "huge": (changed("stable.requests", 1 << 54), "more than 2^53"),
    "more errors than requests": (changed("canary.errors", 901), "canary.errors: 901 of 900 requests"),
    "errors of one arm": (changed("canary.errors", ...), "canary.errors: missing, though stable has it"),
    "latency of one arm": (changed("stable.latency", ...), "stable.latency: missing, though canary has it"),
    "rate of one arm": (changed("canary.rates", {}), "canary.rates.clicks: missing, though stable has it"),
    "counts and bounds": (
        both("latency.counts", [1, 2]),
        "stable.latency.counts: 2 counts for 2 bounds; 3 were expected",
    ),
    "negative count": (both("latency.counts", [1, -2, 3]), "stable.latency.counts[1]: -2 is negative"),
    "bounds not ascending": (both("latency.le_s", [0.1, 0.01]), "stable.latency.le_s: [0.1, 0.01] are not ascending"),
    "no bounds": (both("latency.le_s", []), "stable.latency.le_s: a list of upper bounds"),
    "other bounds": (
        changed("canary.latency.le_s", [0.01, 0.2]),
        "canary.latency.le_s: [0.01, 0.2], stable's are [0.01, 0.1]",
    ),
    "other scores": (changed("canary.score.counts", [1, 2]), "canary.score.counts: 2 buckets, stable has 3"),
    "one score": (both("score.counts", [1]), "stable.score.counts: 1 bucket; at least 2"),
    "bounds without an end": (
        both("latency", {"le_s": [*range(1, 1000)], "counts": [1] * 1000}),
        "stable.latency.le_s: 999 bounds; at most 512",
    ),
    "buckets without an end": (both("score.counts", [1] * 1000), "stable.score.counts: 1000 buckets; at most 512"),
    "a long name": (
        both("means", {"m" * 1000: {"values": []}}),
        "stable.means: a name has 1000 characters; at most 256",
    ),
    "a long unknown name": (changed("x" * 1000, 1), f"{'x' * 256}: unknown; known are"),
    "sums that cannot be": (both("means.revenue.sum", 600.0), "stable.means.revenue: 3 values cannot have the sum 600"),
    "values too large": (
        both("means.revenue", {"values": [1e200]}),
        "stable.means.revenue.values: too large to be squared",
    ),
    "no sum": (both("means.revenue", {"count": 3}), "stable.means.revenue.sum: missing"),
    "events": (both("rates.clicks.events", 11), "stable.rates.clicks.events: 11 of 10"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_named_with_what_was_expected(value: Any, message: str):
    with pytest.raises(InvalidInput) as refused:
        read(value)
    assert message in str(refused.value)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_is_said(word: str):
    with pytest.raises(InvalidInput, match=r"not JSON.*is no JSON and no count"):
        parse_look('{"seconds": 1, "stable": {"requests": ' + word + '}, "canary": {"requests": 1}}')
    with pytest.raises(InvalidInput, match="not JSON: number is infinity"):
        parse_look('{"seconds": 1e999, "stable": {"requests": 1}, "canary": {"requests": 1}}')


def test_bytes_that_are_no_text_are_no_json():
    with pytest.raises(InvalidInput, match="not JSON"):
        parse_look(b"\xff\xfe{}")


WENT_WRONG = {
    "time": (changed("seconds", 59), "seconds: went back from 60 to 59"),
    "requests": (changed("canary.requests", 899), "canary.requests: went back from 900 to 899; has a pod restarted?"),
    "errors": (changed("stable.errors", 3), "stable.errors: went back from 4 to 3"),
    "latency": (both("latency.counts", [850, 47, 3]), "stable.latency.counts[1]: went back from 48 to 47"),
    "score": (both("score.counts", [90, 90, 90]), "stable.score.counts[1]: went back from 91 to 90"),
    "bounds": (both("latency.le_s", [0.01, 0.2]), "stable.latency.le_s: [0.01, 0.2], the looks before had [0.01, 0.1]"),
    "buckets": (both("score.counts", [90, 91]), "stable.score.counts: 2 buckets, the looks before had 3"),
    "mean": (both("means.revenue", {"count": 2, "sum": 3.0, "sum_squares": 5.0}), "stable.means.revenue: went back"),
    "rate": (both("rates.clicks.events", 3), "stable.rates.clicks: went back from 4 to 3"),
    "keys": (changed("canary.affinity_keys", 1), "canary.affinity_keys: went back from 300 to 1"),
}


@pytest.mark.parametrize(("later", "message"), WENT_WRONG.values(), ids=WENT_WRONG)
def test_what_cannot_follow_is_said(later: Any, message: str):
    with pytest.raises(InvalidInput) as refused:
        check_follows(read(LOOK), read(later))
    assert message in str(refused.value)


def test_a_metric_that_a_look_leaves_out_is_held_to_what_was_told_last():
    known = check_follows(read(LOOK), read(changed("seconds", 61, both("errors", ...))))
    assert known.canary.errors == 4
    with pytest.raises(InvalidInput, match=r"stable\.errors: went back from 4 to 3"):
        check_follows(known, read(changed("seconds", 62, both("errors", 3))))


PLAIN_ARM = {key: ARM[key] for key in ("requests", "errors", "latency", "score")}
PLAIN = {"run": "a", "seconds": 60, "percent": 10, "stable": PLAIN_ARM, "canary": PLAIN_ARM}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("canary.requests", 900),
        ("canary.requests", 900.0),
        ("canary.requests", True),
        ("canary.requests", 3),
        ("canary.errors", -1),
        ("stable.errors", None),
        ("stable.latency.counts", [850, 48]),
        ("stable.latency.counts", [850, 48, 1 << 60]),
        ("stable.latency.counts", "850"),
        ("canary.latency.le_s", [0.01, 0.2]),
        ("canary.latency.le_s", [True, 0.1]),
        ("canary.latency.more", 1),
        ("canary.score.counts", [90, 91]),
        ("canary.score.counts", [90, 91, 0.5]),
        ("canary.score", []),
        ("canary.more", 1),
    ],
)
def test_the_usual_look_is_read_as_every_other_is(path: str, value: Any, monkeypatch: pytest.MonkeyPatch):
    def outcome() -> Look | str:
        try:
            return read(changed(path, value, PLAIN))
        except InvalidInput as error:
            return str(error)

    quick = outcome()
    monkeypatch.setattr(looks, "_plain_look", lambda *_: None)
    assert quick == outcome()
