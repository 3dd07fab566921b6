"""`NotCovered`: an engine of ours declines a model, and says why."""

from __future__ import annotations

__all__ = ["NotCovered"]


class NotCovered(Exception):
    """The compiled engine does not cover this model; the message is the reason, as a clause: "booster gblinear"."""
