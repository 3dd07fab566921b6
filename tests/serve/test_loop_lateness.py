"""How late a loop was, as it is counted, and from when on it counts as held."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from serinus.server import loop_watchdog
from serinus.server.loop_watchdog import LoopWatchdog

BOUNDS = ("0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "+Inf")


class StandIn:
    """Stands in until the loop is free, which it is after so many turns."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.served = self.ended = 0
        self.watchdog: Any = None

    def serve(self, for_s: float) -> None:
        self.served += 1
        if self.served == self.turns:
            self.watchdog._answered.set()

    def end(self) -> None:
        self.ended += 1


async def test_each_look_is_counted_in_its_bucket_with_the_seconds_of_all():
    looks: list[float] = []
    watchdog = LoopWatchdog(interval_s=3600, patience_s=20, on_look=looks.append)
    try:
        (family,) = watchdog.families()
        assert [value for _, value in family.samples] == [0] * 14 + [0.0, 0]
        for late_s in (0.3, 0.3, 2.0, 60.0):
            watchdog._answer(time.monotonic() - late_s)
        assert watchdog._answered.is_set()
        (family,) = watchdog.families()
    finally:
        watchdog.close()
    assert (family.name, family.kind) == ("serinus_event_loop_lag_seconds", "histogram")
    buckets = {labels["le"]: value for labels, value in family.samples if "le" in labels}
    assert tuple(buckets) == BOUNDS
    assert buckets == {**dict.fromkeys(BOUNDS[:9], 0), "0.5": 2, "1": 2, "2.5": 3, "5": 3, "+Inf": 4}
    rest = {labels["__name__"]: value for labels, value in family.samples if "le" not in labels}
    assert rest["serinus_event_loop_lag_seconds_sum"] == pytest.approx(sum(looks))
    assert sum(looks) >= 62.6
    assert rest["serinus_event_loop_lag_seconds_count"] == 4


@pytest.mark.parametrize(("asked_before_s", "is_told"), [(0.0, False), (19.0, False), (21.0, True)])
async def test_a_loop_is_held_once_it_has_not_answered_for_its_patience(
    asked_before_s: float, is_told: bool, caplog: pytest.LogCaptureFixture
):
    stand_in, held = StandIn(3), []
    watchdog = LoopWatchdog(interval_s=3600, patience_s=20, stand_in=stand_in, on_held=held.append)  # type: ignore[arg-type] # in its place
    stand_in.watchdog = watchdog
    try:
        watchdog._stand(time.monotonic() - asked_before_s)
    finally:
        watchdog.close()
    assert (stand_in.served, stand_in.ended) == (3, 1)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if is_told:
        begins, ends = said
        assert begins.startswith("the event loop is held for more than 20 s: nothing but liveness is answered.")
        assert ends.startswith("the event loop goes on, after 2")
        assert held == [pytest.approx(21.0, abs=10)]
    else:
        assert (said, held) == ([], [])


async def test_a_watch_that_is_closed_stands_in_for_nobody_and_tells_no_end(caplog: pytest.LogCaptureFixture):
    stand_in = StandIn(3)
    watchdog = LoopWatchdog(interval_s=3600, patience_s=20, stand_in=stand_in)  # type: ignore[arg-type] # in its place
    watchdog.close()
    watchdog._stand(time.monotonic() - 60)
    assert (stand_in.served, stand_in.ended) == (0, 1)
    assert caplog.records == []


async def test_where_the_loop_is_held_is_told_by_its_four_innermost_places():
    watchdog = LoopWatchdog(interval_s=3600, patience_s=20)
    try:

        def outer() -> str:
            return middle()

        def middle() -> str:
            return inner()

        def inner() -> str:
            return watchdog._place()

        places = outer().split(", called by ")
        assert [place.partition(" (")[0] for place in places] == ["_place", "inner", "middle", "outer"]
        assert all(f"({__file__}:" in place for place in places[1:])
        watchdog._thread_of_loop = 0
        assert watchdog._place() == "unknown"
    finally:
        watchdog.close()


@pytest.mark.parametrize(
    ("stand_in_after_s", "patience_s", "used_s"), [(0.03, 1.0, 0.03), (2.0, 1.0, 1.0), (1.0, 1.0, 1.0)]
)
async def test_a_stand_in_begins_no_later_than_patience_ends(stand_in_after_s: float, patience_s: float, used_s: float):
    watchdog = LoopWatchdog(interval_s=3600, patience_s=patience_s, stand_in_after_s=stand_in_after_s)
    watchdog.close()
    assert watchdog._stand_in_after_s == used_s


async def test_what_nobody_sets_is_as_a_probe_waits_and_its_thread_holds_up_no_end():
    before = set(threading.enumerate())
    watchdog = LoopWatchdog()
    try:
        assert (watchdog._stand_in_after_s, watchdog._patience_s) == (0.03, 1.0)
        (thread,) = [one for one in set(threading.enumerate()) - before if one.name == "loop-watchdog"]
        assert thread.daemon
    finally:
        watchdog.close()


@pytest.mark.parametrize("bound", range(13))
async def test_a_bucket_has_its_upper_bound_and_the_next_what_is_above(bound: int, monkeypatch: pytest.MonkeyPatch):
    now = 1000.0
    watchdog = LoopWatchdog(interval_s=3600, patience_s=20)
    try:
        monkeypatch.setattr(loop_watchdog, "time", SimpleNamespace(monotonic=lambda: now))
        upper_s = loop_watchdog._BUCKETS_S[bound]
        now = upper_s
        watchdog._answer(0.0)
        assert watchdog._counts == [int(number == bound) for number in range(14)]
        now = upper_s * 1.001
        watchdog._answer(0.0)
        assert watchdog._counts == [int(number in (bound, bound + 1)) for number in range(14)]
    finally:
        watchdog.close()
