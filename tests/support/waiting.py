"""Waiting for what another thread, process or peer does. It tells nobody, so a claim about it is looked at until it is true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["turns", "until", "wait_until"]

LIMIT_S = 30.0
"""Far more than anything waited for takes, on a machine that does much else."""


async def until(claim: Callable[[], object], *, limit_s: float = LIMIT_S) -> None:
    """Let the loop run until the claim is true.

    Raises:
        AssertionError: it is not in `limit_s`.
    """
    end = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < end, f"it did not come true in {limit_s:g} s"
        await asyncio.sleep(0.001)  # not 0: who is waited for may need this very core


def wait_until(claim: Callable[[], object], *, limit_s: float = LIMIT_S) -> None:
    """Wait in this thread until the claim is true; likewise."""
    end = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < end, f"it did not come true in {limit_s:g} s"
        time.sleep(0.01)  # what is waited for has other things to do than to answer


async def turns(count: int = 50) -> None:
    """Let the loop turn so often: whatever could happen by now, without a clock, has then happened."""
    for _ in range(count):
        await asyncio.sleep(0)
