"""Deadlines of many requests behind one timer, in simulated time."""

from __future__ import annotations

import asyncio

import pytest

from dataplane_support import Doubler, Queue, SimulatedExecutor, rows_of, serving
from serinus import Model, ModelSettings
from serinus.dataplane.batching.deadlines import Deadlines
from serinus.dataplane.batching.pending_request import DONE, BatchKey, PendingRequest
from serinus.model import Call, RequestModel
from serinus.protocol.types import InferRequest, InferResponse
from serinus.settings import BatchSettings

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


class Watch:
    """Deadlines alone, and what they expired and when."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.expired: list[tuple[str, float]] = []
        self.deadlines = Deadlines(self.loop, self.loop.time, self._expire)

    def add(self, label: str, after_s: float) -> PendingRequest:
        now = self.loop.time()
        request = InferRequest("m", (), id=label)
        pending = PendingRequest(
            request, lambda _: None, now, now + after_s, None, BatchKey(None, (), Call()), (), 1, 0
        )
        self.deadlines.add(pending, now + after_s)
        return pending

    def _expire(self, pending: PendingRequest) -> None:
        pending.state = DONE
        self.expired.append((str(pending.request.id), round(self.loop.time(), 6)))


async def test_each_request_expires_at_its_own_deadline_in_whatever_order_they_came():
    watch = Watch()
    for label, after in (("third", 3.0), ("first", 1.0), ("second", 2.0)):
        watch.add(label, after)
    await asyncio.sleep(10)
    assert watch.expired == [("first", 1.0), ("second", 2.0), ("third", 3.0)]
    assert len(watch.deadlines) == 0


async def test_the_timer_is_set_again_after_it_has_fired_for_nothing():
    watch = Watch()
    watch.add("answered", 1.0).state = DONE
    watch.add("late", 5.0)
    await asyncio.sleep(2)
    assert watch.expired == []
    await asyncio.sleep(8)
    assert watch.expired == [("late", 5.0)]


async def test_a_request_that_comes_after_the_timer_has_fired_has_its_deadline_too():
    watch = Watch()
    watch.add("first", 1.0)
    await asyncio.sleep(2)
    watch.add("second", 1.0)
    await asyncio.sleep(5)
    assert watch.expired == [("first", 1.0), ("second", 3.0)]


async def test_a_deadline_that_has_passed_expires_at_once_and_one_that_is_years_away_is_accepted():
    watch = Watch()
    watch.add("never", 1e300)
    watch.add("past", -5.0)
    await asyncio.sleep(0.001)
    assert [label for label, _ in watch.expired] == ["past"]
    await asyncio.sleep(3 * 86_400)
    assert [label for label, _ in watch.expired] == ["past"]
    watch.deadlines.close()


async def test_requests_of_one_deadline_expire_in_the_order_they_came():
    watch = Watch()
    for label in "abc":
        watch.add(label, 1.0)
    await asyncio.sleep(2)
    assert watch.expired == [("a", 1.0), ("b", 1.0), ("c", 1.0)]


async def test_what_is_done_does_not_pile_up_behind_a_distant_deadline_and_nothing_living_is_lost():
    watch = Watch()
    living = [watch.add(f"living-{n}", 100.0 + n) for n in range(10)]
    longest = 0
    for n in range(5000):
        watch.add(f"done-{n}", 3600.0).state = DONE
        longest = max(longest, len(watch.deadlines))
    assert longest <= 256 + 4 * (len(living) + 1), "the one that is being added lives too"
    await asyncio.sleep(200)
    assert watch.expired == [(f"living-{n}", 100.0 + n) for n in range(10)]


async def test_a_heap_of_the_living_is_not_swept_for_each_request(monkeypatch: pytest.MonkeyPatch):
    watch, sweeps = Watch(), []
    sweep = Deadlines._sweep
    monkeypatch.setattr(Deadlines, "_sweep", lambda self: sweeps.append(len(self)) or sweep(self))
    for n in range(5000):
        watch.add(str(n), 3600.0)
    assert 1 <= len(sweeps) <= 3, "each sweep waits for a heap four times as long"


async def test_closing_stops_the_timer_and_forgets_everything():
    watch = Watch()
    watch.add("a", 1.0)
    watch.deadlines.close()
    assert len(watch.deadlines) == 0
    await asyncio.sleep(5)
    assert watch.expired == []
    watch.deadlines.close()


async def test_deadlines_of_a_queue_are_told_to_the_requests_own_queue():
    queue = Queue(SimulatedExecutor(call_s=10.0))
    queue.deadlines = Deadlines(queue.loop, queue.loop.time)
    queue.submit("a", timeout_s=2.0)
    queue.submit("b", timeout_s=3.0)
    await asyncio.sleep(5)
    assert queue.told == {"a": (2.0, "TimedOut"), "b": (3.0, "TimedOut")}


async def test_a_refused_request_has_no_queue_to_tell():
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, loop.time)
    pending = PendingRequest(InferRequest("m", ()), lambda _: None, 0, 1.0, None, BatchKey(None, (), Call()), (), 1, 0)
    deadlines.add(pending, loop.time() + 1)
    await asyncio.sleep(2)
    assert len(deadlines) == 0


class Answers(RequestModel):
    """Answers whole requests."""

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("", ())


@pytest.mark.parametrize(
    ("transport_s", "timeout_us", "default_s", "expected_s"),
    [
        (5.0, 2_000_000, None, 2.0),
        (2.0, 5_000_000, None, 2.0),
        (None, 2_000_000, None, 2.0),
        (2.0, None, None, 2.0),
        (2.0, 0, None, 2.0),
        (None, None, 2.0, 2.0),
        (3.0, None, 2.0, 3.0),
        (None, 3_000_000, 2.0, 3.0),
        (None, 0, 2.0, 2.0),
    ],
)
@pytest.mark.parametrize("factory", [Doubler, Answers], ids=["arrays", "requests"])
async def test_the_shorter_of_two_deadlines_counts_and_the_default_only_where_there_is_none(
    factory: type[Model], transport_s: float | None, timeout_us: int | None, default_s: float | None, expected_s: float
):
    """`timeout` is in microseconds (extension_schedule_policy.md)."""
    loop = asyncio.get_running_loop()
    settings = ModelSettings(name="m", batch=BatchSettings(default_timeout_s=default_s))
    async with serving(factory, settings, clock=loop.time) as plane:
        servable = plane.registry.find("m", "")
        now = loop.time()
        parameters = {} if timeout_us is None else {"timeout": timeout_us}
        deadline = None if transport_s is None else now + transport_s
        pending = servable.infer_nowait(rows_of(1.0, deadline=deadline, parameters=parameters), lambda _: None, now)
        assert pending.deadline == pytest.approx(now + expected_s)
        assert len(plane.registry.find("m", "")._deadlines) == 1
        pending.cancel()
