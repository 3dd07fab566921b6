"""What is known of a rollout at one moment: a look, as values and as one line of JSON.

Counts are cumulative since the rollout began, as Prometheus's counters are; the judge takes differences. So a counter that goes back, a
time that goes back or bounds of buckets that change make everything after them meaningless, and are refused (`look_order`) rather than
guessed at. A metric that an arm does not have is None or absent, which is something else than 0.

Looks, arms and latencies are not changed once made. They are not frozen, since that takes thrice the time to make them, and a replay makes
a million.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import orjson

from ..errors import InvalidInput

__all__ = ["Arm", "Latency", "Look", "Mean", "Rate", "listed", "load_line", "parse_look", "read_look"]

_MOST: Final = 1 << 53
"""Counts above it lose units in the float64 that Prometheus keeps them in."""
_MOST_BUCKETS: Final = 512
"""Of a histogram, whose counts a judge keeps for each run: Prometheus' own have 11, native ones 160 at the most unless told otherwise."""
_MOST_NAME: Final = 256
"""Of a metric."""
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(slots=True)
class Latency:
    """A histogram of latencies."""

    le_s: tuple[float, ...]
    """Upper bounds of the buckets, seconds, ascending; at least one."""
    counts: tuple[int, ...]
    """Requests of each bucket alone (not of all below, as Prometheus has it); one more than `le_s`: the last is beyond the last bound."""


@dataclass(frozen=True, slots=True)
class Mean:
    """What is needed of a number per request (revenue, watch time) to compare its mean."""

    count: int
    total: float
    """Sum of the values."""
    total_squares: float
    """Sum of their squares."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happened of the times that it could have: clicks of offers, right ones of labelled predictions."""

    count: int
    events: int
    waiting: int | None = None
    """Further ones whose outcome has not come, so that they count nowhere; None: not told."""

    def as_json(self) -> dict[str, int]:
        """The rate as `parse_look` reads it."""
        value = {"count": self.count, "events": self.events}
        return value if self.waiting is None else {**value, "waiting": self.waiting}


@dataclass(slots=True, kw_only=True)
class Arm:
    """One version's counts since the rollout began."""

    requests: int
    errors: int | None = None
    """Failed requests; None: not measured."""
    latency: Latency | None = None
    score: tuple[int, ...] | None = None
    """Histogram of the model's scores: a count a bucket, the same buckets for both arms (stable's deciles serve best)."""
    means: Mapping[str, Mean] = field(default_factory=lambda: _NOTHING)
    """By the metric's name."""
    rates: Mapping[str, Rate] = field(default_factory=lambda: _NOTHING)
    """By the metric's name."""
    affinity_keys: int | None = None
    """Distinct users (sticky keys) seen; where requests of a user stay with one arm, users are the units that were randomised."""

    def as_json(self) -> dict[str, Any]:
        """The arm as `parse_look` reads it."""
        value: dict[str, Any] = {"requests": self.requests}
        if self.errors is not None:
            value["errors"] = self.errors
        if self.latency is not None:
            value["latency"] = {"le_s": list(self.latency.le_s), "counts": list(self.latency.counts)}
        if self.score is not None:
            value["score"] = {"counts": list(self.score)}
        if self.means:
            value["means"] = {
                name: {"count": mean.count, "sum": mean.total, "sum_squares": mean.total_squares}
                for name, mean in self.means.items()
            }
        if self.rates:
            value["rates"] = {name: rate.as_json() for name, rate in self.rates.items()}
        if self.affinity_keys is not None:
            value["affinity_keys"] = self.affinity_keys
        return value


@dataclass(slots=True, kw_only=True)
class Look:
    """Both arms at one moment."""

    run: str = ""
    """Which rollout it is of; empty: the only one."""
    seconds: float
    """Since the rollout began."""
    percent: float | None = None
    """Share of the traffic that the canary was given since the look before, 0 to 100; None: not told."""
    stable: Arm
    canary: Arm
    counts: list[int] | None = field(default=None, compare=False)
    """All counts in one list, where both arms tell requests, errors, latency and score and nothing else, which most looks do: none of them may go
    back, which is seen thrice as fast so."""

    def as_json(self) -> dict[str, Any]:
        """The look as `parse_look` reads it."""
        value: dict[str, Any] = {"run": self.run} if self.run else {}
        value["seconds"] = self.seconds
        if self.percent is not None:
            value["percent"] = self.percent
        return {**value, "stable": self.stable.as_json(), "canary": self.canary.as_json()}


def parse_look(line: str | bytes) -> Look:
    """Read a look from one line of JSON.

    Args:
        line: ``{"run": "a", "seconds": 60, "percent": 10, "stable": {"requests": 900, "errors": 4, "latency": {"le_s": [0.01, 0.1],
            "counts": [850, 48, 2]}, "score": {"counts": [...]}, "means": {"revenue": {"count", "sum", "sum_squares"}}, "rates":
            {"clicks": {"count", "events", "waiting"}}, "affinity_keys": 120}, "canary": {...}}``; everything but `seconds`, the arms and
            their `requests` may be absent, `waiting` too. `means` also takes ``{"values": [...]}``, all values since the rollout began.

    Raises:
        InvalidInput: naming the field, what came and what was expected.
    """
    return read_look(load_line(line))


def load_line(line: str | bytes) -> dict[str, Any]:
    """Read a line of JSON, whose fields `read_look` reads; most that is wrong with it is not seen yet.

    Raises:
        InvalidInput: it is no JSON, no object, or its run is no text.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"not JSON: {error}{_no_number(line)}") from None
    if type(value) is not dict:
        raise InvalidInput(f"a look is a JSON object, this is {_named(value)}")
    run = value.get("run", "")
    if type(run) is not str:
        raise InvalidInput(f"run: text was expected, {_named(run)} came")
    return value


def read_look(value: Mapping[str, Any]) -> Look:
    """Read a look from a line of JSON that is read.

    Args:
        value: as of `load_line`.

    Raises:
        InvalidInput: naming the field, what came and what was expected.
    """
    if not value.keys() <= _LOOK_KEYS:
        _known(value, _LOOK_KEYS, "")
    run = value.get("run", "")
    if "seconds" not in value:
        raise InvalidInput("seconds: missing; the time since the rollout began was expected")
    seconds = value["seconds"]
    if type(seconds) is not float:
        seconds = _number(seconds, "seconds")
    if seconds < 0:
        raise InvalidInput(f"seconds: {seconds:g} is before the rollout began; 0 or more was expected")
    percent = value.get("percent")
    if percent is not None:
        percent = _number(percent, "percent")
        if not 0 <= percent <= 100:
            raise InvalidInput(f"percent: {percent:g} is no share of the traffic; 0 to 100 was expected")
    plain = _plain_look(value, run, seconds, percent)
    if plain is not None:
        return plain
    look = Look(run=run, seconds=seconds, percent=percent, stable=_arm(value, "stable"), canary=_arm(value, "canary"))
    _check_alike(look)
    return look


def _plain_look(value: Mapping[str, Any], run: str, seconds: float, percent: float | None) -> Look | None:
    """A look whose arms tell requests, errors, latency and score, all as they should be, without a check for each number.

    Returns:
        The look; None: it tells something else, or something is wrong with it, which the reading of each part finds.
    """
    try:
        stable, canary = value["stable"], value["canary"]
        of_stable, of_canary, scores, canary_scores = (
            stable["latency"],
            canary["latency"],
            stable["score"],
            canary["score"],
        )
        counts, canary_counts = of_stable["counts"], of_canary["counts"]
        bins, canary_bins = scores["counts"], canary_scores["counts"]
        bounds, canary_bounds = of_stable["le_s"], of_canary["le_s"]
        requests, errors = stable["requests"], stable["errors"]
        canary_requests, canary_errors = canary["requests"], canary["errors"]
        numbers = counts + canary_counts + bins + canary_bins + [requests, errors, canary_requests, canary_errors]
        types = {*map(type, numbers)}
        is_plain = (
            len(stable) == len(canary) == 4
            and len(of_stable) + len(of_canary) + len(scores) + len(canary_scores) == 6
            and types == _WHOLE
            and min(numbers) >= 0
            and max(numbers) <= _MOST
            and {*map(type, bounds), *map(type, canary_bounds)} <= _REAL
            and bounds == canary_bounds
            and len(counts) == len(canary_counts) == len(bounds) + 1 > 1
            and _MOST_BUCKETS >= len(bins) == len(canary_bins) >= 2
            and errors <= requests
            and canary_errors <= canary_requests
        )
    except (KeyError, TypeError):
        return None
    if not is_plain:
        return None
    le_s = _bounds(tuple(bounds), "stable.latency")
    return Look(
        run=run,
        seconds=seconds,
        percent=percent,
        stable=Arm(
            requests=requests,
            errors=errors,
            latency=Latency(le_s, tuple(counts)),
            score=tuple(bins),
            means=_NOTHING,
            rates=_NOTHING,
        ),
        canary=Arm(
            requests=canary_requests,
            errors=canary_errors,
            latency=Latency(le_s, tuple(canary_counts)),
            score=tuple(canary_bins),
            means=_NOTHING,
            rates=_NOTHING,
        ),
        counts=numbers,
    )


_WHOLE: Final = {int}
_REAL: Final = {int, float}
_LOOK_KEYS: Final = frozenset({"run", "seconds", "percent", "stable", "canary"})
_ARM_KEYS: Final = frozenset({"requests", "errors", "latency", "score", "means", "rates", "affinity_keys"})
_LATENCY_KEYS: Final = frozenset({"le_s", "counts"})
_SCORE_KEYS: Final = frozenset({"counts"})
_MEAN_KEYS: Final = frozenset({"count", "sum", "sum_squares", "values"})
_RATE_KEYS: Final = frozenset({"count", "events", "waiting"})


def _arm(value: Mapping[str, Any], name: str) -> Arm:
    if name not in value:
        raise InvalidInput(f"{name}: missing; an object with its counts was expected")
    arm = _object(value[name], name)
    _known(arm, _ARM_KEYS, name)
    if "requests" not in arm:
        raise InvalidInput(f"{name}.requests: missing; the requests since the rollout began were expected")
    requests = _count(arm["requests"], f"{name}.requests")
    errors = None
    if arm.get("errors") is not None:
        errors = _count(arm["errors"], f"{name}.errors")
        if errors > requests:
            raise InvalidInput(f"{name}.errors: {errors} of {requests} requests; at most all were expected")
    keys = arm.get("affinity_keys")
    return Arm(
        requests=requests,
        errors=errors,
        latency=_latency(arm["latency"], f"{name}.latency") if arm.get("latency") is not None else None,
        score=_score(arm["score"], f"{name}.score") if arm.get("score") is not None else None,
        means=dict(_means(arm["means"], f"{name}.means")) if arm.get("means") is not None else _NOTHING,
        rates=dict(_rates(arm["rates"], f"{name}.rates")) if arm.get("rates") is not None else _NOTHING,
        affinity_keys=_count(keys, f"{name}.affinity_keys") if keys is not None else None,
    )


def _latency(value: Any, name: str) -> Latency:
    _known(_object(value, name), _LATENCY_KEYS, name)
    bounds = value.get("le_s")
    if type(bounds) is not list or not bounds or not set(map(type, bounds)) <= {int, float}:
        raise InvalidInput(
            f"{name}.le_s: a list of upper bounds in seconds was expected, at least one, {_named(bounds)} came"
        )
    le_s = _bounds(tuple(bounds), name)
    counts = _counts(value.get("counts"), f"{name}.counts")
    if len(counts) != len(le_s) + 1:
        raise InvalidInput(
            f"{name}.counts: {len(counts)} counts for {len(le_s)} bounds; {len(le_s) + 1} were expected, the last of what is beyond "
            "the last bound"
        )
    return Latency(le_s, counts)


@functools.lru_cache(maxsize=256)
def _bounds(bounds: tuple[Any, ...], name: str) -> tuple[float, ...]:
    """Checked once for all looks that have them."""
    if len(bounds) > _MOST_BUCKETS:
        raise InvalidInput(f"{name}.le_s: {len(bounds)} bounds; at most {_MOST_BUCKETS} were expected")
    le_s = tuple([_number(bound, f"{name}.le_s[{index}]") for index, bound in enumerate(bounds)])
    if le_s[0] <= 0 or any(low >= high for low, high in itertools.pairwise(le_s)):
        raise InvalidInput(
            f"{name}.le_s: {listed(le_s)} are not ascending bounds above 0; leave out +Inf, it is the last count"
        )
    return le_s


def _score(value: Any, name: str) -> tuple[int, ...]:
    _known(_object(value, name), _SCORE_KEYS, name)
    counts = _counts(value.get("counts"), f"{name}.counts")
    if len(counts) < 2:
        raise InvalidInput(f"{name}.counts: {len(counts)} bucket; at least 2 were expected")
    if len(counts) > _MOST_BUCKETS:
        raise InvalidInput(f"{name}.counts: {len(counts)} buckets; at most {_MOST_BUCKETS} were expected")
    return counts


def _metrics(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    for key, item in _object(value, name).items():
        if len(key) > _MOST_NAME:
            raise InvalidInput(f"{name}: a name has {len(key)} characters; at most {_MOST_NAME} were expected")
        yield key, item


def _means(value: Any, name: str) -> Iterator[tuple[str, Mean]]:
    for key, item in _metrics(value, name):
        where = f"{name}.{key}"
        _known(_object(item, where), _MEAN_KEYS, where)
        if "values" in item:
            if len(item) > 1:
                raise InvalidInput(f"{where}: values, or count, sum and sum_squares were expected, not both")
            values = item["values"]
            if type(values) is not list:
                raise InvalidInput(f"{where}.values: a list of numbers was expected, {_named(values)} came")
            numbers = [_number(each, f"{where}.values[{index}]") for index, each in enumerate(values)]
            squares = sum(each * each for each in numbers)
            if squares == math.inf:
                raise InvalidInput(f"{where}.values: too large to be squared; values of less than 1e150 were expected")
            yield key, Mean(len(numbers), math.fsum(numbers), squares)
            continue
        for part in ("count", "sum", "sum_squares"):
            if part not in item:
                raise InvalidInput(f"{where}.{part}: missing; count, sum and sum_squares were expected, or values")
        count = _count(item["count"], f"{where}.count")
        total = _number(item["sum"], f"{where}.sum")
        squares = _number(item["sum_squares"], f"{where}.sum_squares")
        # Cauchy and Schwarz; the sums are rounded.
        if squares < 0 or total * total > squares * count * (1 + 1e-9) + 1e-12:
            raise InvalidInput(
                f"{where}: {count} values cannot have the sum {total:g} and the sum of squares {squares:g}; "
                "sum_squares is of the values themselves, not of deviations"
            )
        yield key, Mean(count, total, squares)


def _rates(value: Any, name: str) -> Iterator[tuple[str, Rate]]:
    for key, item in _metrics(value, name):
        where = f"{name}.{key}"
        _known(_object(item, where), _RATE_KEYS, where)
        for part in ("count", "events"):
            if part not in item:
                raise InvalidInput(f"{where}.{part}: missing; count and events were expected")
        count, events = _count(item["count"], f"{where}.count"), _count(item["events"], f"{where}.events")
        if events > count:
            raise InvalidInput(f"{where}.events: {events} of {count}; at most all were expected")
        waiting = item.get("waiting")
        yield key, Rate(count, events, None if waiting is None else _count(waiting, f"{where}.waiting"))


def _check_alike(look: Look) -> None:
    """The arms have the same metrics with the same buckets, or there is nothing to compare."""
    stable, canary = look.stable, look.canary
    for name in ("errors", "latency", "score", "affinity_keys"):
        if (getattr(stable, name) is None) != (getattr(canary, name) is None):
            has, lacks = ("stable", "canary") if getattr(canary, name) is None else ("canary", "stable")
            raise InvalidInput(f"{lacks}.{name}: missing, though {has} has it; both arms or neither were expected")
    for name in ("means", "rates"):
        for key in getattr(stable, name).keys() ^ getattr(canary, name).keys():
            has, lacks = ("stable", "canary") if key in getattr(stable, name) else ("canary", "stable")
            raise InvalidInput(
                f"{lacks}.{name}.{key}: missing, though {has} has it; both arms or neither were expected"
            )
    if stable.latency is not None and canary.latency is not None and stable.latency.le_s != canary.latency.le_s:
        raise InvalidInput(
            f"canary.latency.le_s: {listed(canary.latency.le_s)}, stable's are {listed(stable.latency.le_s)}; "
            "counts of other buckets cannot be compared"
        )
    if stable.score is not None and canary.score is not None and len(stable.score) != len(canary.score):
        raise InvalidInput(f"canary.score.counts: {len(canary.score)} buckets, stable has {len(stable.score)}")


def _known(value: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    if value.keys() <= known:
        return
    key = next(key for key in value if key not in known)[:_MOST_NAME]
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    raise InvalidInput(f"{where}.{key}: unknown; {hint}" if where else f"{key}: unknown; {hint}")


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise InvalidInput(f"{name}: an object was expected, {_named(value)} came")
    return value


def _count(value: Any, name: str) -> int:
    if type(value) is not int:
        if type(value) is not float:
            raise InvalidInput(f"{name}: a whole number was expected, {_named(value)} came")
        if value != math.floor(value):
            raise InvalidInput(f"{name}: {value:g} is not whole; counters were expected, not rates or increase()")
        value = int(value)
    if value < 0:
        raise InvalidInput(f"{name}: {value} is negative; a count was expected")
    if value > _MOST:
        raise InvalidInput(f"{name}: {value} is more than 2^53, beyond which float64 counters lose units")
    return value


def _counts(value: Any, name: str) -> tuple[int, ...]:
    if type(value) is not list:
        raise InvalidInput(f"{name}: a list of counts was expected, {_named(value)} came")
    if value and set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= _MOST:
        return tuple(value)
    return tuple([_count(each, f"{name}[{index}]") for index, each in enumerate(value)])


def _number(value: Any, name: str) -> float:
    if type(value) is not float:
        if type(value) is not int:
            raise InvalidInput(f"{name}: a number was expected, {_named(value)} came")
        value = float(value)
    return value


def _no_number(line: str | bytes) -> str:
    text = line if isinstance(line, str) else line.decode("utf-8", "replace")
    for word in ("NaN", "Infinity"):
        if word in text:
            return f" ({word} is no JSON and no count: leave out a metric that was not measured)"
    return ""


def listed(values: Sequence[float]) -> str:
    """The first numbers, for a message."""
    shown = ", ".join(f"{value:g}" for value in values[:12])
    return f"[{shown}{', ...' if len(values) > 12 else ''}]"


def _named(value: Any) -> str:
    if value is None:
        return "nothing"
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    text = str(value)
    return f"{kinds.get(type(value), 'something else')} ({text[:40]}{'...' if len(text) > 40 else ''})"
