"""`Paced`: whether anything goes to a client, and how fast, for whoever must choose which one to give up."""

from __future__ import annotations

import time

__all__ = ["Paced"]

_SOON_S = 1e-3
"""What no pace is told over less than."""


class Paced:
    """A connection that says how many bytes have gone to its client (`_sent`)."""

    _sent: int
    """Since it began."""

    def __init__(self) -> None:
        self._seen = self._marked = 0
        """Bytes as of the last look; as of the mark."""
        self.moved_at = time.monotonic()
        """When they were last seen to grow."""
        self.marked_at = self.moved_at
        """Since when `pace` counts."""

    def note_progress(self, now: float) -> None:
        """Note whether anything has gone to the client since the last look."""
        if self._sent != self._seen:
            self._seen = self._sent
            self.moved_at = now

    def mark(self, now: float) -> None:
        """Count what goes to the client anew."""
        self._marked, self.marked_at = self._sent, now

    def pace(self, now: float) -> float:
        """Bytes per second that have gone to the client since it was marked."""
        return (self._sent - self._marked) / max(now - self.marked_at, _SOON_S)
