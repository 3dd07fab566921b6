"""Signs of life of workers: which of them has given none for too long.

A supervisor that was itself stopped, or whose machine slept, has heard nobody either: the time that it missed between two looks is nobody's silence.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["Pulse", "is_stopped"]


class Pulse:
    """When each worker was last heard of.

    Args:
        interval_s: between two looks.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._heard: dict[int, float] = {}
        self._looked: float | None = None

    def hear(self, index: int, now: float) -> None:
        """Note a sign of life."""
        self._heard[index] = now

    def forget(self, index: int) -> None:
        """Expect none any more."""
        self._heard.pop(index, None)

    def look(self, now: float) -> dict[int, float]:
        """Give the seconds that each worker has been silent for; call it every `interval_s`."""
        if self._looked is not None:
            missed = now - self._looked - self._interval_s
            if missed > self._interval_s:
                self._heard = {index: heard + missed for index, heard in self._heard.items()}
        self._looked = now
        return {index: max(0.0, now - heard) for index, heard in self._heard.items()}


def is_stopped(pid: int, root: Path = Path("/proc")) -> bool:
    """Whether a process was stopped by a signal (proc(5), stat, state T); false where the system does not say.

    Args:
        pid: of the process.
        root: where proc is mounted.
    """
    try:
        text = (root / str(pid) / "stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] == ["T"]
