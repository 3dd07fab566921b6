"""The metrics contract (METRICS.md) as code: which series count, under which key, and what an arm is made of them.

A *counter* of a process is one number under a `Key`; processes' counters of one revision add up, key by key.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

from ...errors import InvalidInput
from ..looks import Arm, Latency
from .text_page import Sample

__all__ = [
    "ERROR_CLASSES",
    "FAMILIES",
    "OUTCOMES",
    "STARTED",
    "ErrorClasses",
    "Key",
    "arm_of",
    "counters_of",
    "key_of",
    "models_of",
    "score_bins",
]

Key = tuple[str, ...]
"""(`outcome`, name), (`transport`, transport, code), (`latency`, le), (`score`, output, le)."""
ErrorClasses = Literal["all", "server"]

OUTCOMES: Final[Mapping[str, str]] = {
    "success": "ok",
    "invalid": "client error",
    "failed": "server error",
    "other": "server error",
    "rejected": "refused",
    "timeout": "timeout",
    "cancelled": "gone",
}
"""Label `outcome` of serinus_requests_total to its class."""
ERROR_CLASSES: Final[Mapping[ErrorClasses, frozenset[str]]] = {
    "all": frozenset({"client error", "server error", "refused", "timeout"}),
    "server": frozenset({"server error", "refused", "timeout"}),
}
_GRPC: Final[Mapping[str, str]] = {
    "3": "client error",
    "8": "refused",
    "12": "server error",
    "13": "server error",
    "14": "refused",
}
_HTTP: Final[Mapping[str, str]] = {**dict.fromkeys(("400", "413", "415", "422"), "client error"), "429": "refused"}

REQUESTS: Final = "serinus_requests_total"
TRANSPORT: Final = "serinus_transport_errors_total"
LATENCY: Final = "serinus_request_seconds_bucket"
SCORE: Final = "serinus_score_bucket"
STARTED: Final = "process_start_time_seconds"
FAMILIES: Final = (REQUESTS, TRANSPORT, LATENCY, SCORE)
"""Series that are counted. Together with STARTED all that a source reads."""


def key_of(sample: Sample, model: str) -> Key | None:
    """Give the counter that a sample is of; None: of none that counts for this model."""
    labels = sample.labels
    if sample.name == TRANSPORT:
        return ("transport", labels.get("transport", ""), labels.get("code", ""))
    if labels.get("model") != model:
        return None
    if sample.name == REQUESTS:
        return ("outcome", labels.get("outcome", ""))
    if sample.name == LATENCY:
        return ("latency", _bound(labels))
    if sample.name == SCORE:
        return ("score", labels.get("output", ""), _bound(labels))
    return None


def counters_of(
    samples: Iterable[Sample], model: str, key_of: Callable[[Sample, str], Key | None] = key_of
) -> dict[Key, float]:
    """Add up the samples of one process by their counters; versions of one name count together.

    Raises:
        InvalidInput: a bucket without a bound.
    """
    counters: dict[Key, float] = {}
    for sample in samples:
        key = key_of(sample, model)
        if key is not None:
            counters[key] = counters.get(key, 0.0) + sample.value
    return counters


def models_of(samples: Iterable[Sample]) -> set[str]:
    """Give the models that pages tell of, without those that stand behind another one's transformer."""
    found = {sample.labels.get("model", "") for sample in samples if sample.name == REQUESTS}
    return {name for name in found if not (name.endswith("-predictor") and name.removesuffix("-predictor") in found)}


def arm_of(counters: Mapping[Key, float], errors: ErrorClasses = "all") -> tuple[Arm, list[str]]:
    """Make an arm of the counters of a revision.

    Returns:
        The arm, and what is wrong with it: outcomes that nobody knows, histograms that are none.
    """
    counted = ERROR_CLASSES[errors]
    requests = failed = 0
    problems: list[str] = []
    for key, value in counters.items():
        kind = _class(key)
        if kind is None:
            if key[0] == "outcome":
                problems.append(f"outcome {key[1]!r} is none of {', '.join(OUTCOMES)}")
            continue
        if kind == "gone":
            continue
        if key[0] == "transport" and kind == "client error" and "client error" not in counted:
            continue
        requests += round(value)
        failed += round(value) if kind in counted else 0
    latency = score = None
    try:
        bounds, counts = _histogram({key[1]: value for key, value in counters.items() if key[0] == "latency"})
        if bounds:
            latency = Latency(bounds, counts)
        outputs = {key[1] for key in counters if key[0] == "score"}
        if len(outputs) == 1:
            _, score = _histogram({key[2]: value for key, value in counters.items() if key[0] == "score"})
    except InvalidInput as error:
        problems.append(str(error))
    return Arm(requests=requests, errors=failed, latency=latency, score=score or None), problems


def score_bins(counters: Mapping[Key, float]) -> tuple[tuple[str, str], ...]:
    """Give output and bounds of the score's bins, by which two arms can be compared."""
    return tuple(sorted((key[1], key[2]) for key in counters if key[0] == "score"))


def _class(key: Key) -> str | None:
    if key[0] == "outcome":
        return OUTCOMES.get(key[1])
    if key[0] == "transport":
        code = key[2]
        if key[1] == "grpc":
            return _GRPC.get(code)
        return "server error" if len(code) == 3 and code[0] == "5" else _HTTP.get(code)
    return None


def _bound(labels: Mapping[str, str]) -> str:
    try:
        return repr(float(labels["le"]))
    except (KeyError, ValueError):
        raise InvalidInput(f"a bucket has the bound {labels.get('le')!r}; a number or +Inf was expected") from None


def _histogram(cumulative: Mapping[str, float]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Turn Prometheus' cumulative buckets into counts of each bucket alone."""
    if not cumulative:
        return (), ()
    ordered = sorted((float(bound), round(value)) for bound, value in cumulative.items())
    if not math.isinf(ordered[-1][0]) or len(ordered) < 2:
        raise InvalidInput("a histogram has no bucket +Inf, or no other; both were expected")
    totals = [0, *(value for _, value in ordered)]
    counts = tuple(after - before for before, after in itertools.pairwise(totals))
    if min(counts) < 0:
        raise InvalidInput("the buckets of a histogram do not grow with their bounds")
    return tuple(bound for bound, _ in ordered[:-1]), counts
