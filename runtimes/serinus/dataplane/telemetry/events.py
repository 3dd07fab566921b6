"""Rare events of a server's life, counted: each family is on the page from the start, so that an alert sees its first count as an increase."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Final

from ...model import Family

__all__ = ["EVENTS", "Events"]

EVENTS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "serinus_model_hangs_total": ("Predicts that passed hang_timeout_s.", ("model", "version")),
    "serinus_model_process_restarts_total": (
        "Processes of a model that were replaced: ended by themselves, or killed because a predict hung.",
        ("model", "version", "reason"),
    ),
    "serinus_model_moved_total": (
        "Models that were moved from the event loop to a thread, because they held it.",
        ("model", "version"),
    ),
    "serinus_model_signature_refusals_total": (
        "Loads by request that were refused because a model's signature is missing or does not fit.",
        (),
    ),
    "serinus_loop_held_total": ("Times that the event loop was held for longer than a probe waits.", ()),
    "serinus_loop_held_seconds_total": ("Seconds of them.", ()),
}
"""Name to help and labels."""


class Events:
    """Counts events; may be told from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[tuple[str, ...], float]] = {
            name: {} if labels else {(): 0.0} for name, (_, labels) in EVENTS.items()
        }

    def expect(self, name: str, *labels: str) -> None:
        """Have a series of a family on the page, at 0 as yet."""
        self.count(name, *labels, amount=0.0)

    def count(self, name: str, *labels: str, amount: float = 1.0) -> None:
        """Add to a series.

        Args:
            name: of the family, in `EVENTS`.
            labels: their values, in the family's order.
            amount: to add.
        """
        with self._lock:
            counts = self._counts[name]
            counts[labels] = counts.get(labels, 0.0) + amount

    def families(self) -> Iterable[Family]:
        """Give what was counted."""
        with self._lock:
            copies = {name: dict(counts) for name, counts in self._counts.items()}
        for name, (text, labels) in EVENTS.items():
            samples = [(dict(zip(labels, values, strict=True)), value) for values, value in copies[name].items()]
            if samples:
                yield Family(name, text, "counter", samples)
