"""How a canary is judged: a file of YAML, read strictly.

A guardrail has two sides. It rolls back on evidence that the canary is worse at all; its margin belongs to the promotion, which needs
evidence that the canary is not worse by more than that (non-inferiority). Between the two, the judge holds. A file that means something
else than it says must not start a rollout: unknown keys name the nearest known one, and all mistakes are told together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from ..errors import ConfigError
from ..manifests.documents import Document, FieldPath, field_text, load_text
from ..manifests.problems import nearest
from ..small_file import read_text

__all__ = [
    "DEFAULT_POLICY",
    "ErrorGuardrail",
    "LatencyGuardrail",
    "MeanGuardrail",
    "Policy",
    "RateGuardrail",
    "ScoreGuardrail",
    "load_policy",
    "parse_policy",
]

DEFAULT_POLICY: Final = Path(__file__).with_name("default_policy.yaml")
"""The file that `serinus canary policy` prints."""

DEFAULT_PROMOTION_LIMIT: Final = 0.1
"""Where both arms fail so often it is the service that is broken, and no version is shown to be good. Flagger's default for its metric
request-success-rate lets 1 % fail, Argo Rollouts' example of an analysis 5 %; a service that is used to some failures is not to be held by this."""

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGuardrail:
    """Failed requests of all requests."""

    margin: float
    """Share of requests: 0.005 is half a percentage point. 0: no promotion by this guardrail, equal canaries never show less."""
    hard_limit: float | None = None
    """Share of requests: evidence that the canary fails more often rolls it back, whatever stable does; None: no limit."""
    promotion_limit: float = DEFAULT_PROMOTION_LIMIT
    """Share of requests: a canary that failed more often gets no further, however often stable does; 1: no limit."""
    weight: float = 1.0
    """Of the level, relative to the other guardrails."""
    required: bool = False
    """Whether a promotion waits for this metric where looks do not tell it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyGuardrail:
    """The whole distribution of latencies for the rollback, one quantile for the promotion."""

    quantile: float
    """In (0, 1)."""
    margin: float
    """Of the quantile: 0.1 lets it be 10 % longer."""
    tolerated_ratio: float = 1.0
    """The canary may take so many times as long as stable before it is rolled back; 1: not at all."""
    warm_up_requests: int = 0
    """Of the canary at the first step, left out of this guardrail's evidence: caches fill for longer than errors last. Again after each step
    up, by as much more as its percent is, since its new replicas are cold."""
    warm_up_s: float = 0.0
    """Left out likewise; a warm-up ends when both are reached."""
    hard_limit_s: float | None = None
    """Evidence that more than 1 - quantile of the canary's requests take longer than this rolls it back; None: no limit."""
    weight: float = 1.0
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGuardrail:
    """The distribution of the model's scores, canary beside stable, by the population stability index."""

    tolerated_psi: float | None = None
    """Evidence of more rolls back; None: drift is warned of, and nothing more."""
    promotion_psi: float | None = None
    """A promotion waits for evidence of less; None: it does not."""
    weight: float = 1.0
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RateGuardrail:
    """A share of things counted under `rates`: clicks of offers, right predictions of those whose label has come."""

    better: Better
    margin: float
    """Share: 0.005 is half a percentage point."""
    minimum_count: int = 0
    """A promotion waits until the canary's count is this, as labels come late."""
    minimum_labelled: float = 0.0
    """Share of each arm's predictions whose outcome has come, before a promotion; where looks tell how many are waiting."""
    weight: float = 1.0
    required: bool = True
    """A business metric that somebody names is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanGuardrail:
    """The mean of a number counted under `means`: revenue a request, watch time."""

    better: Better
    margin: float
    """Of stable's mean: 0.02 lets the canary's be 2 % worse."""
    bounds: tuple[float, float] | None = None
    """Between which every value lies; then the evidence is exact, else it holds for large counts."""
    minimum_count: int = 1000
    """Values of the canary before it is judged at all without `bounds`, and before a promotion with them."""
    weight: float = 1.0
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy, as its file says. Shares are fractions here, whatever the file calls them in."""

    steps: tuple[float, ...]
    """Percent of the traffic, ascending; the last is 100, the promotion."""
    level: float
    promotion_level: float
    warm_up_requests: int
    """Of the canary, left out."""
    warm_up_s: float
    minimum_requests: int
    """Of the canary at a step."""
    minimum_s: float
    """At a step."""
    maximum_s: float | None
    """Of the rollout; None: it may hold for ever."""
    at_maximum: Literal["hold", "rollback"]
    errors: ErrorGuardrail | None = None
    latency: LatencyGuardrail | None = None
    score: ScoreGuardrail | None = None
    rates: Mapping[str, RateGuardrail] = field(default_factory=lambda: MappingProxyType({}))
    means: Mapping[str, MeanGuardrail] = field(default_factory=lambda: MappingProxyType({}))


def load_policy(path: Path = DEFAULT_POLICY) -> Policy:
    """Read a policy's file.

    Raises:
        ConfigError: it cannot be read, or as of `parse_policy`.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; a policy's file was expected") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8; a policy is a text of YAML") from None
    return parse_policy(text, str(path))


def parse_policy(text: str, file: str = "policy") -> Policy:
    """Read a policy.

    Args:
        text: YAML, as `default_policy.yaml` has it.
        file: its name, for messages.

    Raises:
        ConfigError: with every mistake, each with its line, what came and what was expected.
    """
    documents = load_text(text, file, what="policy")
    if len(documents) != 1:
        raise ConfigError(
            f"{file}: {len(documents)} documents; one policy was expected (serinus canary policy prints one)"
        )
    reader = _Reader(documents[0])
    policy = _policy(reader)
    reader.close()
    return policy


_GUARDRAILS: Final = ("errors", "latency", "score", "rates", "means")


def _policy(reader: _Reader) -> Policy:
    root: FieldPath = ()
    reader.keys(
        root,
        ("steps", "level", "promotion_level", "warm_up", "minimum", "maximum", "guardrails"),
        required=("steps", "level", "guardrails"),
    )
    reader.keys(("warm_up",), ("canary_requests", "seconds"))
    reader.keys(("minimum",), ("canary_requests", "seconds"))
    reader.keys(("maximum",), ("seconds", "then"))
    guardrails = reader.keys(("guardrails",), _GUARDRAILS)
    level = reader.probability(("level",), 0.05)
    if not any(guardrails.get(name) is not None for name in _GUARDRAILS):
        reader.problem(("guardrails",), f"is empty; at least one of {', '.join(_GUARDRAILS)} was expected")
    then: Literal["hold", "rollback"] = (
        "rollback" if reader.choice(("maximum", "then"), ("hold", "rollback")) == "rollback" else "hold"
    )
    return Policy(
        steps=reader.steps(("steps",)),
        level=level,
        promotion_level=reader.probability(("promotion_level",), level),
        warm_up_requests=reader.whole(("warm_up", "canary_requests"), 0),
        warm_up_s=reader.number(("warm_up", "seconds"), 0.0),
        minimum_requests=reader.whole(("minimum", "canary_requests"), 0),
        minimum_s=reader.number(("minimum", "seconds"), 0.0),
        maximum_s=reader.number(("maximum", "seconds"), None, above=0.0),
        at_maximum=then,
        errors=_errors(reader) if guardrails.get("errors") is not None else None,
        latency=_latency(reader) if guardrails.get("latency") is not None else None,
        score=_score(reader) if guardrails.get("score") is not None else None,
        rates={name: _rate(reader, name) for name in reader.names(("guardrails", "rates"))},
        means={name: _mean(reader, name) for name in reader.names(("guardrails", "means"))},
    )


_COMMON: Final = ("weight", "required")


def _errors(reader: _Reader) -> ErrorGuardrail:
    at: FieldPath = ("guardrails", "errors")
    reader.keys(
        at,
        ("margin_percentage_points", "hard_limit_percent", "promotion_limit_percent", *_COMMON),
        required=("margin_percentage_points",),
    )
    return ErrorGuardrail(
        margin=reader.number((*at, "margin_percentage_points"), 0.5, most=100.0) / 100,
        hard_limit=_share(reader.number((*at, "hard_limit_percent"), None, above=0.0, most=100.0)),
        promotion_limit=reader.number(
            (*at, "promotion_limit_percent"), DEFAULT_PROMOTION_LIMIT * 100, above=0.0, most=100.0
        )
        / 100,
        weight=reader.number((*at, "weight"), 1.0, above=0.0, most=1000.0),
        required=reader.truth((*at, "required"), False),
    )


def _latency(reader: _Reader) -> LatencyGuardrail:
    at: FieldPath = ("guardrails", "latency")
    reader.keys(
        at,
        (
            "quantile",
            "margin_percent",
            "tolerated_ratio",
            "warm_up_canary_requests",
            "warm_up_seconds",
            "hard_limit_seconds",
            *_COMMON,
        ),
        required=("quantile", "margin_percent"),
    )
    margin = reader.number((*at, "margin_percent"), 10.0, most=10_000.0)
    ratio = reader.number((*at, "tolerated_ratio"), 1.0, least=1.0, most=100.0)
    if ratio > 1 and margin <= (ratio - 1) * 100:
        reader.problem(
            (*at, "margin_percent"),
            f"is {margin:g}; more than {(ratio - 1) * 100:g} was expected, since tolerated_ratio is {ratio:g}, or a canary that "
            "takes so long is neither promoted nor rolled back",
        )
    return LatencyGuardrail(
        quantile=reader.probability((*at, "quantile"), 0.99),
        margin=margin / 100,
        tolerated_ratio=ratio,
        warm_up_requests=reader.whole((*at, "warm_up_canary_requests"), 0),
        warm_up_s=reader.number((*at, "warm_up_seconds"), 0.0),
        hard_limit_s=reader.number((*at, "hard_limit_seconds"), None, above=0.0),
        weight=reader.number((*at, "weight"), 1.0, above=0.0, most=1000.0),
        required=reader.truth((*at, "required"), False),
    )


def _score(reader: _Reader) -> ScoreGuardrail:
    at: FieldPath = ("guardrails", "score")
    reader.keys(at, ("tolerated_psi", "promotion_psi", *_COMMON))
    tolerated = reader.number((*at, "tolerated_psi"), None, above=0.0, most=10.0)
    promotion = reader.number((*at, "promotion_psi"), None, above=0.0, most=10.0)
    if tolerated is not None and promotion is not None and promotion <= tolerated:
        reader.problem(
            (*at, "promotion_psi"),
            f"is {promotion:g}; more than tolerated_psi ({tolerated:g}) was expected, or a canary of "
            "that drift is neither promoted nor rolled back",
        )
    return ScoreGuardrail(
        tolerated_psi=tolerated,
        promotion_psi=promotion,
        weight=reader.number((*at, "weight"), 1.0, above=0.0, most=1000.0),
        required=reader.truth((*at, "required"), False),
    )


def _rate(reader: _Reader, name: str) -> RateGuardrail:
    at: FieldPath = ("guardrails", "rates", name)
    reader.keys(
        at,
        ("better", "margin_percentage_points", "minimum_count", "minimum_labelled_percent", *_COMMON),
        required=("better", "margin_percentage_points"),
    )
    return RateGuardrail(
        better="lower" if reader.choice((*at, "better"), ("higher", "lower")) == "lower" else "higher",
        margin=reader.number((*at, "margin_percentage_points"), 0.5, most=100.0) / 100,
        minimum_count=reader.whole((*at, "minimum_count"), 0),
        minimum_labelled=reader.number((*at, "minimum_labelled_percent"), 0.0, most=100.0) / 100,
        weight=reader.number((*at, "weight"), 1.0, above=0.0, most=1000.0),
        required=reader.truth((*at, "required"), True),
    )


def _mean(reader: _Reader, name: str) -> MeanGuardrail:
    at: FieldPath = ("guardrails", "means", name)
    reader.keys(
        at, ("better", "margin_percent", "bounds", "minimum_count", *_COMMON), required=("better", "margin_percent")
    )
    return MeanGuardrail(
        better="lower" if reader.choice((*at, "better"), ("higher", "lower")) == "lower" else "higher",
        margin=reader.number((*at, "margin_percent"), 1.0, most=10_000.0) / 100,
        bounds=reader.pair((*at, "bounds")),
        minimum_count=reader.whole((*at, "minimum_count"), 1000),
        weight=reader.number((*at, "weight"), 1.0, above=0.0, most=1000.0),
        required=reader.truth((*at, "required"), True),
    )


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


class _Reader:
    """Values of a document, each taken with its type and range; what is wrong is collected with its line."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._found: dict[str, int] = {}
        for path in document.duplicates:
            self.problem(path, "is there twice")

    def problem(self, path: FieldPath, text: str) -> None:
        place = self._document.place(path)
        self._found.setdefault(f"{place}: {field_text(path) or 'the policy'}: {text}", place.line)

    def close(self) -> None:
        """Raise all problems in the order of the file."""
        if self._found:
            raise ConfigError(sorted(self._found, key=lambda text: self._found[text]))

    def keys(self, path: FieldPath, known: Collection[str], *, required: Collection[str] = ()) -> Mapping[str, Any]:
        """A mapping whose keys are all known; an empty one where it is absent or something else."""
        value = self._document.get(path) if path else self._document.value
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problem(path, f"is {_shown(value)}; keys and values were expected ({', '.join(known)})")
            return {}
        for key in value:
            if key not in known:
                near = nearest(str(key), known)
                hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
                self.problem((*path, str(key)), f"unknown key; {hint}")
        for key in required:
            if value.get(key) is None:
                self.problem(path, f"{key} is missing")
        return value

    def names(self, path: FieldPath) -> list[str]:
        """The keys of a mapping of metrics that somebody named."""
        value = self._document.get(path)
        if value is None:
            return []
        if not isinstance(value, dict) or not all(isinstance(key, str) and key for key in value):
            self.problem(path, f"is {_shown(value)}; a mapping from names of metrics was expected")
            return []
        return list(value)

    def number(
        self, path: FieldPath, default: Any, *, least: float = 0.0, above: float | None = None, most: float = math.inf
    ) -> Any:  # float, or `default` where it is None
        """A finite number of `least` or more, or more than `above`."""
        value = self._document.get(path)
        if value is None:
            return default
        expected = f"a number of {least:g} or more" if above is None else f"a number above {above:g}"
        expected += f", {most:g} at most" if most < math.inf else ""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.problem(path, f"is {_shown(value)}; {expected} was expected")
            return default
        if value < least or (above is not None and value <= above) or value > most:
            self.problem(path, f"is {_shown(value)}; {expected} was expected")
            return default
        return float(value)

    def whole(self, path: FieldPath, default: int) -> int:
        """A whole number of 0 or more."""
        value = self._document.get(path)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.problem(path, f"is {_shown(value)}; a whole number of 0 or more was expected")
            return default
        return value

    def probability(self, path: FieldPath, default: float) -> float:
        """A number between 0 and 1, neither of them."""
        value = self._document.get(path)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            self.problem(path, f"is {_shown(value)}; a number between 0 and 1 was expected, such as {default:g}")
            return default
        return float(value)

    def truth(self, path: FieldPath, default: bool) -> bool:
        """True or false."""
        value = self._document.get(path)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(path, f"is {_shown(value)}; true or false was expected")
            return default
        return value

    def choice(self, path: FieldPath, words: tuple[str, ...]) -> str:
        """One of several words; the first is the default."""
        value = self._document.get(path)
        if value is None:
            return words[0]
        if value not in words:
            near = nearest(str(value), words)
            self.problem(
                path,
                f"is {_shown(value)}; {' or '.join(words)} was expected{f'; did you mean {near}?' if near else ''}",
            )
            return words[0]
        return value

    def pair(self, path: FieldPath) -> tuple[float, float] | None:
        """Two finite numbers, the lower first; None where absent."""
        value = self._document.get(path)
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in value)
            or not all(math.isfinite(each) for each in value)
            or value[0] >= value[1]
        ):
            self.problem(path, f"is {_shown(value)}; two numbers were expected, the lower first, such as [0, 1]")
            return None
        return float(value[0]), float(value[1])

    def steps(self, path: FieldPath) -> tuple[float, ...]:
        """Percents, ascending to 100."""
        value = self._document.get(path)
        good = (
            isinstance(value, list)
            and len(value) >= 2
            and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in value)
            and all(0 < each <= 100 for each in value)
            and all(low < high for low, high in itertools.pairwise(value))
            and value[-1] == 100
        )
        if not good:
            if value is not None:
                self.problem(
                    path,
                    f"is {_shown(value)}; percents were expected, ascending, 100 the last, such as [10, 25, 50, 100]",
                )
            return (10.0, 100.0)
        return tuple(float(each) for each in value)  # type: ignore[union-attr] # `good` says that it is a list


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
