"""How many connections the descriptors of a process are enough for, and which one is closed for a new one where they are not.

Theory of operation. Transports share the descriptors. Who accepts until the kernel gives none leaves none for what a connection needs besides: one of
the native gRPC engine takes three, and the last of them is taken by the front, in a thread that waits for it while new clients take
what is freed. So connections are counted, a few descriptors are left for all else, and beyond that each new connection takes the place of the one, of
all transports, that has been of no use for longest.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import Final

__all__ = ["Idle", "IdleRoom"]

Idle = tuple[float, Callable[[], object]]
"""Loop time since which a connection has been of no use (now: it may yet be of some), and what closes it."""
_SPARE: Final = 24
"""Descriptors left for files that models open, logs, and connections that are being joined; an eighth of all where that is less."""


class IdleRoom:
    """The transports of one process."""

    def __init__(self) -> None:
        self._holders: list[tuple[Callable[[], Idle | None], Callable[[], int]]] = []
        self._most = -1.0
        """Descriptors that connections may have; below 0: not counted yet."""

    def add(self, holder: Callable[[], Idle | None], used: Callable[[], int]) -> None:
        """Ask a transport too.

        Args:
            holder: gives the connection of its own that has been of no use for longest; None: all are at work.
            used: how many descriptors its connections have, without those that are being closed.
        """
        self._holders.append((holder, used))

    def is_full(self) -> bool:
        """Whether the connections have all descriptors that they may have."""
        return self._share() >= 1

    def is_scarce(self) -> bool:
        """Whether the connections have a quarter of them: it is worth while to know more of each that comes from now on."""
        return self._share() >= 0.25

    def _share(self) -> float:
        used = sum(used() for _, used in self._holders)
        if self._most < 0:
            self._most = _descriptors_left() + used
        return used / self._most

    def make(self) -> bool:
        """Close the longest of all; whether there was one."""
        found = [idle for holder, _ in self._holders if (idle := holder()) is not None]
        if not found:
            return False
        _, close = min(found, key=lambda idle: idle[0])
        close()
        return True


def _descriptors_left() -> float:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return float("inf")
    try:
        present = len(os.listdir("/proc/self/fd"))
    except OSError:  # no /proc: then only the kernel tells
        return float("inf")
    return max(1.0, most - present - min(_SPARE, most // 8))
