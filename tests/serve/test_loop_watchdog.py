"""An event loop that is held is noticed, and where; one that works is not."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from serinus.server.loop_watchdog import LoopWatchdog
from waiting import until

pytestmark = pytest.mark.asyncio


async def test_a_loop_that_is_held_is_told_with_its_place_and_its_end(caplog: pytest.LogCaptureFixture):
    noticed = threading.Event()

    class Noted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            noticed.set()

    handler = Noted()
    logging.getLogger("serinus.loop").addHandler(handler)
    watchdog = LoopWatchdog(interval_s=0.01, patience_s=0.05)
    try:
        await asyncio.sleep(0)
        _hold(noticed)
        await until(lambda: len(caplog.records) >= 2)
    finally:
        watchdog.close()
        logging.getLogger("serinus.loop").removeHandler(handler)
    held, over = (record.getMessage() for record in caplog.records[:2])
    assert "_hold" in held
    assert "--execution" in held
    assert "goes on" in over


def _hold(noticed: threading.Event) -> None:
    assert noticed.wait(20)


async def test_a_watchdog_ends_with_its_loop_and_when_it_is_closed():
    watchdog = LoopWatchdog(interval_s=0.001, patience_s=20)
    watchdog.close()
    await until(lambda: not any(thread.name == "loop-watchdog" for thread in threading.enumerate()))
