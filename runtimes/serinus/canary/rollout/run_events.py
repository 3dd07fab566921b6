"""What a run tells: its events, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..judge import Decision

__all__ = ["Ending", "Event", "Tell"]

EndingKind = Literal["promoted", "rolled back", "undecided", "changed", "verdict"]
EventKind = Literal["begin", "look", "problem", "move", "note", "end"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `details` are JSON values."""

    kind: EventKind
    words: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    kind: EndingKind
    decision: Decision | None
    words: str
    patch: tuple[Mapping[str, Any], ...] = ()
    """What a run that moves nothing would have changed, as a JSON patch."""


class Tell(Protocol):
    """Takes what happens."""

    def __call__(self, kind: EventKind, words: str, **details: Any) -> None:
        """Take an event; details are JSON values."""
        ...
