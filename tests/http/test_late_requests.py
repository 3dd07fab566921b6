"""Which requests are too old to be answered: every bound of it, on a clock that the test sets."""

from __future__ import annotations

import pytest

from serinus.dataplane.batching.adaptive_limit import INTERVAL_S, STANDING_S
from serinus.errors import Overloaded
from serinus.server.http.late_arrivals import FEW, LATE_S, OLD_S, LateArrivals


class Clock:
    """Seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Judge:
    """Arrivals, and the time between them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.arrivals = LateArrivals(self.clock)

    def refuses(self, waited_s: float, *, after_s: float = 0.0) -> bool:
        self.clock.now += after_s
        try:
            self.arrivals.check(waited_s)
        except Overloaded:
            return True
        return False

    def stand(self, count: int = FEW) -> None:
        """Read as many that have waited, which nobody is refused for as yet."""
        for _ in range(count):
            assert not self.refuses(STANDING_S)

    @property
    def refused(self) -> float:
        (family,) = self.arrivals.families()
        assert (family.name, family.kind) == ("serinus_late_requests_refused_total", "counter")
        ((labels, value),) = family.samples
        assert labels == {}
        return value


LONG = INTERVAL_S + 0.001


def test_the_bounds_are_those_that_are_told():
    assert (LATE_S, OLD_S, FEW) == (0.02, 0.5, 8)


@pytest.mark.parametrize(("late_s", "is_late"), [(0.0, False), (LATE_S, False), (LATE_S + 0.001, True), (5.0, True)])
def test_the_loop_is_late_beyond_twenty_milliseconds(late_s: float, is_late: bool):
    judge = Judge()
    assert not judge.arrivals.is_late
    judge.arrivals.note(late_s)
    assert judge.arrivals.is_late is is_late


@pytest.mark.parametrize(
    ("standing_s", "waited_s", "is_refused"),
    [
        (LONG, OLD_S + 0.001, True),
        (LONG, OLD_S, False),
        (LONG, STANDING_S, False),
        (INTERVAL_S - 0.001, OLD_S + 0.001, False),
        (0.0, 60.0, False),
    ],
)
def test_a_request_is_refused_that_is_older_than_half_a_second_where_waits_have_stood_for_the_interval(
    standing_s: float, waited_s: float, is_refused: bool
):
    judge = Judge()
    judge.stand()
    assert judge.refuses(waited_s, after_s=standing_s) is is_refused
    assert judge.refused == int(is_refused)


@pytest.mark.parametrize(("between_s", "goes_on"), [(STANDING_S, True), (STANDING_S - 0.001, False), (0.0, False)])
def test_one_that_is_young_ends_the_standing(between_s: float, goes_on: bool):
    judge = Judge()
    judge.stand()
    judge.refuses(between_s, after_s=LONG)
    assert judge.refuses(1.0) is goes_on
    for _ in range(FEW):
        judge.refuses(1.0)
    assert judge.refuses(1.0, after_s=LONG), "it begins anew"


@pytest.mark.parametrize(("count", "is_refused"), [(1, False), (FEW - 1, False), (FEW, True), (FEW + 1, True)])
def test_what_stands_is_a_queue_of_more_than_eight(count: int, is_refused: bool):
    judge = Judge()
    judge.stand(count)
    assert judge.refuses(1.0, after_s=LONG) is is_refused


@pytest.mark.parametrize(("late_s", "goes_on"), [(LATE_S, False), (LATE_S + 0.001, True)])
def test_a_loop_that_is_in_time_ends_the_standing_and_one_that_is_late_does_not(late_s: float, goes_on: bool):
    judge = Judge()
    judge.stand()
    judge.arrivals.note(late_s)
    assert judge.refuses(1.0, after_s=LONG) is goes_on


def test_each_that_is_refused_counts_and_is_told_what_it_waited_and_when_to_come_back():
    judge = Judge()
    assert judge.refused == 0
    judge.stand()
    judge.clock.now += LONG
    for count in (1, 2, 3):
        with pytest.raises(Overloaded) as refused:
            judge.arrivals.check(0.754)
        assert judge.refused == count
    assert "this request had waited for 0.75 s before it could be read; come back in 1 s or send" in str(refused.value)
    assert refused.value.retry_after_s == 1.0
