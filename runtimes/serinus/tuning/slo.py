"""Service level objectives: `p99<20ms`, several joined by a comma."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["Objective", "Slo", "parse_duration", "parse_rate"]

_TERM = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*<=?\s*(\d+(?:\.\d+)?)\s*(us|ms|s)")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/\s*(s|sec|min|m))?")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_EXPECTED = "expected such as p99<20ms, or several: p50<5ms,p99.9<100ms"


@dataclass(frozen=True, slots=True)
class Objective:
    """One quantile and its bound."""

    quantile: float
    """In (0, 1)."""
    limit_s: float

    @property
    def name(self) -> str:
        """`p99`, `p99.9`."""
        return f"p{self.quantile * 100:g}"

    def __str__(self) -> str:
        return f"{self.name}<{self.limit_s * 1e3:g}ms"


@dataclass(frozen=True, slots=True)
class Slo:
    """Objectives that must all hold."""

    objectives: tuple[Objective, ...]

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read an SLO.

        Raises:
            ConfigError: with every term that is not one.
        """
        problems: list[str] = []
        found: list[Objective] = []
        for part in text.split(","):
            term = part.strip().lower()
            match = _TERM.fullmatch(term)
            if match is None:
                problems.append(f"--slo {part.strip()!r}: not an objective; {_EXPECTED}")
                continue
            objective = Objective(round(float(match[1]) / 100, 9), float(match[2]) * _SECONDS[match[3]])
            if not objective.quantile or not objective.limit_s:
                problems.append(f"--slo {part.strip()!r}: quantile and bound must be above 0; {_EXPECTED}")
            elif any(other.quantile == objective.quantile for other in found):
                problems.append(f"--slo: {objective.name} is bounded twice")
            else:
                found.append(objective)
        problems.extend(
            f"--slo: {low} can never bind beside {high}; leave it out"
            for low in found
            for high in found
            if low.quantile < high.quantile and low.limit_s > high.limit_s
        )
        if problems:
            raise ConfigError(problems)
        return cls(tuple(sorted(found, key=lambda objective: objective.quantile)))

    def excess(self, quantiles_s: Mapping[float, float]) -> float:
        """The worst ratio of a measured quantile to its bound: 1 or less means that the SLO holds.

        Args:
            quantiles_s: seconds by quantile; infinite where requests failed.
        """
        return max(quantiles_s[objective.quantile] / objective.limit_s for objective in self.objectives)

    @property
    def strictest(self) -> Objective:
        """The objective of the highest quantile: the one that plots show."""
        return self.objectives[-1]

    def __str__(self) -> str:
        return ",".join(str(objective) for objective in self.objectives)


def parse_rate(text: str) -> float:
    """Read a rate in requests per second: `200/s`, `200`, `12000/min`.

    Raises:
        ConfigError: it is none.
    """
    match = _RATE.fullmatch(text.strip().lower())
    rate = float(match[1]) / (60 if match[2] in {"m", "min"} else 1) if match else 0.0
    if rate <= 0:
        raise ConfigError(f"--rate {text!r}: not a rate; expected such as 200/s or 12000/min")
    return rate


def parse_duration(text: str, option: str = "--budget") -> float:
    """Read a duration in seconds: `120s`, `2m`, `90`.

    Args:
        text: to be read.
        option: whose it is, for the message.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min)?", text.strip().lower())
    seconds = float(match[1]) * (60 if match[2] in {"m", "min"} else 1) if match else 0.0
    if seconds <= 0:
        raise ConfigError(f"{option} {text!r}: not a duration; expected such as 120s or 5m")
    return seconds
