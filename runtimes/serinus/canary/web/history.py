"""What a page shows of a run: taken from its events as they come or as they were recorded, or from looks that were judged again."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ...errors import InvalidInput
from ..judge import Decision
from ..looks import Look, parse_look
from ..standing import GuardrailStanding, Standing

__all__ = ["Point", "RunHistory", "Told"]

_MOST_POINTS: Final = 2000
"""Looks that are kept: counts are cumulative, so a look in between may go and nothing is lost but its moment."""
_MOST_TOLD: Final = 200
_RUN: Final = re.compile(r"(\S+) (\S+) > (\S+)( @\d+)?\Z")
"""The name that the controller gives a run."""


@dataclass(frozen=True, slots=True)
class Point:
    """A look, and what was made of it."""

    look: Look
    decision: str
    against: float | None
    """log E that the canary is worse; None: not recorded."""


@dataclass(slots=True)
class Told:
    """Something that was told beside looks."""

    time: float | None
    """Seconds since the epoch; None: not known."""
    kind: str
    words: str
    times: int = 1
    """How often it was told in a row."""


@dataclass(slots=True)
class RunHistory:
    """One run."""

    run: str = ""
    service: str = ""
    mode: str = ""
    stable: str = "stable"
    canary: str = "canary"
    began: float | None = None
    """Seconds since the epoch."""
    last: float | None = None
    """When something was told last."""
    ending: str = ""
    """promoted, rolled back, undecided, changed, verdict; empty: none yet."""
    words: str = ""
    """Of the ending."""
    is_replay: bool = False
    """Looks judged again: nothing was moved."""
    percent: float | None = None
    quantile: float = 0.99
    """That the policy compares."""
    decision: str = ""
    reasons: tuple[str, ...] = ()
    requests_needed: int | None = None
    looks: int = 0
    standing: Standing | None = None
    points: list[Point] = field(default_factory=list)
    told: deque[Told] = field(default_factory=lambda: deque(maxlen=_MOST_TOLD))
    unread: int = 0
    """Events that made no sense."""

    def take(self, event: Mapping[str, Any]) -> None:
        """Take an event as `RunFiles` keeps it; one that makes no sense is counted and left out."""
        try:
            self._take(event)
        except (AttributeError, KeyError, TypeError, ValueError, InvalidInput):
            self.unread += 1

    def _take(self, event: Mapping[str, Any]) -> None:
        kind, words, time = str(event["kind"]), str(event.get("words") or ""), float(event["time"])
        self.run, self.last = str(event.get("run") or ""), time
        if kind == "begin":
            self.service = self.run.partition(" ")[0]
            self.mode = str(event.get("mode") or "")
            self.stable, self.canary = str(event.get("stable") or "stable"), str(event.get("canary") or "canary")
            self.quantile = float(event.get("quantile") or 0.99)
            self.percent = None if event.get("percent") is None else float(event["percent"])
            self.began = time if self.began is None else self.began
            # A run that goes on has not ended.
            self.ending = self.words = ""
        elif kind == "look":
            verdict = event["verdict"]
            look = parse_look(json.dumps(event["counts"]))
            standing = _standing(event["standing"]) if event.get("standing") is not None else None
            reasons = tuple(str(each) for each in verdict.get("reasons") or ())
            self._add(look, str(verdict["decision"]), reasons, verdict.get("requests_needed"), standing)
            self.looks = int(verdict.get("look") or self.looks)
        elif kind == "end":
            self.ending, self.words = str(event["ending"]), words
        else:
            if kind == "move" and event.get("percent") is not None:
                self.percent = float(event["percent"])
            previous = self.told[-1] if self.told else None
            if previous is not None and (previous.kind, previous.words) == (kind, words):
                previous.times, previous.time = previous.times + 1, time
            else:
                self.told.append(Told(time, kind, words))

    def see(self, look: Look, decision: Decision, standing: Standing) -> None:
        """Take a look that was judged again."""
        self.is_replay = True
        self.run = look.run
        named = _RUN.match(look.run)
        if named is not None:
            self.service, self.stable, self.canary = named[1], named[2], named[3]
        self._add(look, decision.decision, decision.reasons, decision.requests_needed, standing)
        self.looks = decision.look

    def _add(
        self, look: Look, decision: str, reasons: tuple[str, ...], needed: int | None, standing: Standing | None
    ) -> None:
        self.decision, self.reasons, self.requests_needed, self.standing = decision, reasons, needed, standing
        self.percent = look.percent if look.percent is not None else self.percent
        self.points.append(Point(look, decision, standing.against if standing is not None else None))
        self.looks += 1
        if len(self.points) > _MOST_POINTS:
            self._thin()

    def _thin(self) -> None:
        """Leave out every second look, but the last before the split changes, and the last."""
        points = self.points
        self.points = [
            point
            for index, point in enumerate(points)
            if index % 2 == 0 or index + 1 == len(points) or points[index + 1].look.percent != point.look.percent
        ]


def _standing(value: Mapping[str, Any]) -> Standing:
    guardrails = tuple(
        GuardrailStanding(
            str(each["metric"]),
            str(each["words"]),
            float(each["against"]),
            bool(each["passed"]),
            str(each["missing"]),
            None if each["requests_needed"] is None else int(each["requests_needed"]),
        )
        for each in value["guardrails"]
    )
    return Standing(float(value["against"]), float(value["rolls_back_at"]), float(value["promotes_at"]), guardrails)
