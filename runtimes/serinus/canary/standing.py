"""Where a rollout stands: the evidence beside what it takes, guardrail by guardrail; for whoever draws or tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["GuardrailStanding", "Standing"]


@dataclass(frozen=True, slots=True)
class GuardrailStanding:
    """One guardrail."""

    metric: str
    words: str
    """The arms beside each other; empty: looks do not tell the metric, or it warms up."""
    against: float
    """log E that the canary is worse, its share of the level not yet taken."""
    passed: bool
    """It lets the canary through."""
    missing: str
    """What a promotion lacks, in words; empty where nothing."""
    requests_needed: float | None
    """Of both arms until it lets through, if the canary is as good as stable; None: cannot be told."""


@dataclass(frozen=True, slots=True)
class Standing:
    """All of them after a look."""

    against: float
    """log E that the canary is worse in anything: the guardrails' weighted mean."""
    rolls_back_at: float
    """log E that rolls back."""
    promotes_at: float
    """log E, each guardrail's own, that promotes."""
    guardrails: tuple[GuardrailStanding, ...]

    def as_json(self) -> dict[str, Any]:
        """As events keep it."""
        return {
            "against": self.against,
            "rolls_back_at": self.rolls_back_at,
            "promotes_at": self.promotes_at,
            "guardrails": [
                {
                    "metric": each.metric,
                    "words": each.words,
                    "against": each.against,
                    "passed": each.passed,
                    "missing": each.missing,
                    "requests_needed": each.requests_needed,
                }
                for each in self.guardrails
            ],
        }
