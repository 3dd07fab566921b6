"""A queue that nobody has given a number, in simulated time: what it refuses, whom first, and what it takes whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from dataplane_support import Told
from depth import QUICK, some_of
from representative import every
from serinus import Call, InferRequest
from serinus.dataplane.batching.adaptive_limit import (
    BURST_S,
    INTERVAL_S,
    STANDING_S,
    AdaptiveLimit,
    Joining,
    shares_of_levels,
)
from serinus.dataplane.batching.batcher import Batcher
from serinus.dataplane.batching.deadlines import Deadlines
from serinus.dataplane.batching.pending_request import DONE, Batch, BatchKey, PendingRequest, held_bytes
from serinus.errors import Overloaded
from serinus.settings import BatchSettings
from simulated_time import SimulatedLoop

MODELS = [0.005, 0.02]
"""Seconds of a predict."""
TIMES = [1.5, 3, 10]
"""An overload: so many times what the model can do."""


class Places:
    """An executor of so many places: each batch takes `call_s + rows * row_s`; labels in `bad` make a batch fail."""

    def __init__(self, loop: SimulatedLoop, call_s: float, row_s: float = 0.0, capacity: int = 1) -> None:
        self.loop, self.call_s, self.row_s, self.capacity = loop, call_s, row_s, capacity
        self.bad: set[Any] = set()

    def run(self, batch: Batch, on_finish: Callable[[Batch], None]) -> bool:
        """Predict, later."""
        self.loop.call_later(self.call_s + self.row_s * batch.rows, self.ended, batch, on_finish)
        return False

    def abandon(self, batch: Batch) -> None:
        """Let it run."""

    def ended(self, batch: Batch, on_finish: Callable[[Batch], None]) -> None:
        """Note when."""
        batch.infer_to = self.loop.time()
        if self.bad.intersection(pending.request.id for pending in batch.members):
            batch.error = ValueError("bad")
        on_finish(batch)


class Locked(Places):
    """Begins whatever comes, and has it wait inside for the one place that there is: a hosted class with a lock."""

    free_at = 0.0

    def run(self, batch: Batch, on_finish: Callable[[Batch], None]) -> bool:
        """Predict when the lock is free."""
        self.free_at = max(self.free_at, self.loop.time()) + self.call_s
        self.loop.call_at(self.free_at, self.ended, batch, on_finish)
        return False


class Inside(Places):
    """As a pipeline in front of a model that joins rows: all that came while one batch ran is the next one."""

    def __init__(self, loop: SimulatedLoop, call_s: float, row_s: float = 0.0) -> None:
        super().__init__(loop, call_s, row_s, 256)
        self._next: list[tuple[Batch, Callable[[Batch], None]]] = []
        self._busy = False

    def run(self, batch: Batch, on_finish: Callable[[Batch], None]) -> bool:
        """Predict with the next ones."""
        self._next.append((batch, on_finish))
        if not self._busy:
            self._begin()
        return False

    def _begin(self) -> None:
        taken, self._next = self._next, []
        self._busy = bool(taken)
        if taken:
            self.loop.call_later(self.call_s + self.row_s * len(taken), self._finish, taken)

    def _finish(self, taken: list[tuple[Batch, Callable[[Batch], None]]]) -> None:
        for batch, on_finish in taken:
            self.ended(batch, on_finish)
        self._begin()


class Queue(Told):
    """A batcher, and a record of who was told what and when."""

    def __init__(
        self,
        loop: SimulatedLoop,
        executor: Places,
        *,
        solo: bool = False,
        limit: AdaptiveLimit | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(loop)
        self.executor = executor
        self.begun: dict[Any, float] = {}
        self.refused: Counter[int] = Counter()
        self.most_present = 0
        self.batcher = Batcher(
            BatchSettings(**settings),
            executor,
            solo=solo,
            answer=self._answer,
            reject=lambda pending, error: self._tell(pending, type(error).__name__),
            dropped=lambda pending: None,
            loop=loop,  # type: ignore[arg-type]
            clock=loop.time,
            limit=limit,
        )
        self.deadlines = Deadlines(loop, loop.time, self.batcher.expire)  # type: ignore[arg-type]

    def submit(
        self, label: Any, *, level: int = 0, rows: int = 1, timeout_s: float | None = None, size: int = 0
    ) -> PendingRequest:
        """Queue a request."""
        now = self.loop.time()
        deadline = None if timeout_s is None else now + timeout_s
        request, key = InferRequest("m", (), id=label), BatchKey(None, ("x",), Call())
        pending = PendingRequest(request, lambda _: None, now, deadline, self.batcher, key, (), rows, level, None, size)
        self.batcher.add(pending)
        self.begun[label] = now
        if deadline is not None:
            self.deadlines.add(pending, deadline)
        return pending

    def try_submit(self, label: Any, patience_s: float | None = None, level: int = 0, **fields: Any) -> None:
        """Queue a request whose client leaves after `patience_s`, or count it as refused."""
        try:
            pending = self.submit(label, level=level, **fields)
        except Overloaded:
            self.refused[level] += 1
        else:
            if patience_s is not None:
                self.loop.call_later(patience_s, leave, pending)
        self.most_present = max(self.most_present, self.batcher.queued + self.batcher.running)

    def load(self, rate: float, seconds: float, **fields: Any) -> None:
        """Arrange requests at a steady rate from now on."""
        start = self.loop.time()
        for number in range(round(rate * seconds)):
            self.loop.call_at(
                start + number / rate, lambda number=number: self.try_submit((start, rate, number), **fields)
            )

    def delays(self) -> list[float]:
        """Of what was answered, ascending."""
        told = self.told
        return sorted(
            told[label][0] - at for label, at in self.begun.items() if told.get(label, (0, ""))[1] == "answered"
        )


def leave(pending: PendingRequest) -> None:
    """Go, if it is not answered."""
    if pending.state != DONE:
        pending.cancel()


KINDS: dict[str, Callable[[SimulatedLoop, float], tuple[Places, AdaptiveLimit | None]]] = {
    "array": lambda loop, call_s: (Places(loop, call_s), None),
    "array-4-places": lambda loop, call_s: (Places(loop, 4 * call_s, capacity=4), None),
    "whole-requests": lambda loop, call_s: (Locked(loop, call_s, capacity=256), AdaptiveLimit("inside")),
}
"""Ways to answer a request every `call_s`."""


def serial(kind: str, call_s: float, **settings: Any) -> Queue:
    """A model that gains nothing by having more requests."""
    loop = SimulatedLoop()
    executor, limit = KINDS[kind](loop, call_s)
    queue = Queue(loop, executor, solo=True, limit=limit, **settings)
    if limit is None:  # as a model of arrays is at warm-up
        queue.batcher._limit.expect(executor.call_s, 0.0)
    return queue


@pytest.mark.parametrize(
    ("times", "predict_s", "kind"), every(5, some_of(list(product(TIMES, MODELS, KINDS)), 8), names=3)
)
def test_patient_clients_of_an_overloaded_model_get_what_it_can_give_in_time(kind: str, predict_s: float, times: float):
    queue = serial(kind, predict_s)
    queue.load(times / predict_s, 8)
    queue.loop.run()
    delays = queue.delays()
    assert len(delays) * predict_s >= 0.95 * 8
    assert delays[int(0.99 * len(delays))] <= (1.0 if kind == "whole-requests" else 0.5)
    assert queue.most_present <= 1.0 / predict_s


@pytest.mark.parametrize(
    ("times", "predict_s", "patience_s", "kind"),
    every(7, some_of(list(product(TIMES, MODELS, [0.25, 0.5], KINDS)), 13), names=4),
)
def test_impatient_clients_are_answered_before_they_leave(kind: str, predict_s: float, times: float, patience_s: float):
    queue = serial(kind, predict_s)
    queue.load(times / predict_s, 8, patience_s=patience_s)
    queue.loop.run()
    assert len(queue.delays()) * predict_s >= 0.9 * 8


@pytest.mark.parametrize("timeout_s", [0.1, 0.25, 1.0])
@pytest.mark.parametrize("predict_s", MODELS)
@pytest.mark.parametrize("settings", [{}, {"max_queue_rows": 1000}], ids=["adaptive", "fixed"])
def test_a_deadline_that_cannot_be_met_is_refused_at_the_door(
    predict_s: float, timeout_s: float, settings: dict[str, int]
):
    queue = serial("array", predict_s, **settings)
    queue.load(3 / predict_s, 5, timeout_s=timeout_s)
    queue.loop.run()
    late = sum(what == "TimedOut" for _, what in queue.told.values())
    assert len(queue.delays()) * predict_s >= 0.9 * 5
    assert late <= 0.01 * len(queue.begun)


def test_a_deadline_is_never_refused_by_an_idle_model():
    queue = serial("array", 1.0)
    for number in range(5):
        queue.submit(number)
        queue.loop.run()
    queue.submit("hopeless", timeout_s=0.5)  # only by trying can it be known that the model is as slow as it was
    queue.loop.run()
    assert queue.told["hopeless"][1] == "TimedOut"


@pytest.mark.parametrize("kind", KINDS)
def test_a_burst_to_an_idle_model_is_taken_whole_however_often_it_comes(kind: str):
    queue = serial(kind, 0.02)
    for burst in range(20):
        for number in range(9):
            queue.submit((burst, number))
        queue.loop.run(queue.loop.time() + 0.4)
    assert Counter(what for _, what in queue.told.values()) == {"answered": 180}


@pytest.mark.parametrize("kind", KINDS)
def test_a_burst_that_no_model_could_answer_in_time_is_cut_once_its_time_is_known(kind: str):
    queue = serial(kind, 0.02)
    queue.load(150, 2)
    queue.loop.run()
    taken = 0
    with pytest.raises(Overloaded):
        for number in range(1000):
            queue.submit(("burst", number))
            taken += 1
    assert 8 <= taken <= 20


def test_a_model_that_works_on_many_requests_at_a_time_and_slows_none_is_not_limited():
    loop = SimulatedLoop()
    queue = Queue(loop, Places(loop, 2.0, capacity=256), solo=True, limit=AdaptiveLimit("inside"))
    queue.load(100, 20)
    loop.run()
    for number in range(250):  # and a burst
        queue.submit(number)
    loop.run()
    assert len(queue.delays()) == 2250


@pytest.mark.parametrize(
    ("size", "rate", "kind"),
    every(11, product([1, 50], [500, 2000, 5000], ["array", "inside"]), names=3),
    ids=lambda value: {1: "steady", 50: "bursts"}.get(value),
)
def test_a_model_that_gains_by_batching_is_given_its_batches(kind: str, rate: int, size: int):
    """One request at a time it would do 50 a second, and joined nearly 10,000."""
    loop = SimulatedLoop()
    if kind == "array":
        queue = Queue(loop, Places(loop, 0.02, 0.0001))
    else:
        queue = Queue(loop, Inside(loop, 0.02, 0.0001), solo=True, limit=AdaptiveLimit("inside"))
    queue.load(20, 1)  # all that was ever seen of it: one request at a time
    loop.run()
    for member in range(size):
        loop.call_later(member * 1e-6, queue.load, rate / size, 1 if QUICK else 4)
    loop.run()
    assert not queue.refused


def test_a_model_whose_batches_cost_what_their_rows_cost_is_limited_all_the_same():
    loop = SimulatedLoop()
    queue = Queue(loop, Places(loop, 0.001, 0.002))
    queue.load(1500, 8)  # three times what it can
    loop.run()
    delays = queue.delays()
    assert len(delays) * 0.002 >= 0.9 * 8
    assert delays[int(0.99 * len(delays))] <= 0.5


def test_a_slow_model_may_always_have_a_few_requests():
    queue = serial("array", 5.0)
    for number in range(6):
        queue.submit(number)
        queue.loop.run(queue.loop.time() + 4)
    for number in range(3):
        queue.submit(("more", number))
    queue.loop.run()
    assert len(queue.delays()) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_overload_all_is_taken_again_at_once(kind: str):
    queue = serial(kind, 0.02)
    queue.load(500, 3)
    queue.loop.run()
    refused = queue.refused.total()
    queue.load(45, 5)
    queue.loop.run()
    assert queue.refused.total() == refused > 0


def test_a_model_that_became_faster_or_slower_is_measured_again():
    queue = serial("array", 0.02)
    queue.load(150, 5)
    queue.loop.run()
    queue.executor.call_s = 0.002  # now 150 a second are a third of what it can
    queue.load(150, 3)
    queue.loop.run()
    refused = queue.refused.total()
    queue.load(150, 3)
    queue.loop.run()
    assert queue.refused.total() == refused
    queue.executor.call_s = 0.1
    queue.begun.clear()
    queue.load(150, 20)
    queue.loop.run()
    delays = queue.delays()
    assert len(delays) * 0.1 >= 0.9 * 20
    assert delays[int(0.9 * len(delays))] <= 1.0


@pytest.mark.parametrize("kind", ["array", "whole-requests"])
def test_a_model_that_hangs_is_sent_no_more_than_a_few(kind: str):
    queue = serial(kind, 0.02)
    queue.load(45, 5)
    queue.loop.run()
    queue.executor.call_s = 6000
    queue.load(45, 20)
    queue.loop.run(queue.loop.time() + 20)
    assert queue.batcher.queued + queue.batcher.running <= 300
    assert queue.refused.total() >= 500


@pytest.mark.parametrize("kind", KINDS)
def test_of_an_overload_the_low_levels_are_refused_first(kind: str):
    queue = serial(kind, 0.02, priority_levels=2)
    queue.load(30, 10, level=0)
    queue.load(150, 10, level=1)
    queue.loop.run()
    assert queue.refused[0] <= 0.1 * 300
    assert queue.refused[1] >= 0.8 * 1500 - 20
    assert len(queue.delays()) * 0.02 >= 0.9 * 10


@pytest.mark.parametrize("settings", [{"max_queue_rows": 3}, {"max_queue_bytes": 400}], ids=["rows", "bytes"])
def test_a_high_request_takes_the_place_of_the_last_low_one(settings: dict[str, int]):
    queue = serial("array", 1.0, priority_levels=3, **settings)
    for number in range(4):  # one runs, three wait
        queue.submit(number, level=2 if number > 1 else 1, size=100)
        queue.loop.run(0)
    with pytest.raises(Overloaded):
        queue.submit("low", level=2, size=100)
    queue.submit("high", level=0, size=100)
    assert queue.told == {3: (0.0, "Overloaded")}
    queue.loop.run()
    assert queue.told["high"] == (2.0, "answered")
    assert queue.batcher.present_bytes == 0


def test_no_high_request_is_refused_while_a_low_one_waits():
    queue = serial("array", 1.0, priority_levels=2)
    low = range(100)
    with pytest.raises(Overloaded):
        for number in low:
            queue.submit(number, level=1)
            queue.loop.run(0)
    waiting = {label for label in queue.begun if label != 0}
    with pytest.raises(Overloaded):
        for number in low:
            queue.submit(("high", number))
    assert {label for label, (_, what) in queue.told.items() if what == "Overloaded"} == waiting


def test_what_waits_and_runs_is_bounded_in_bytes():
    queue = serial("array", 0.001, max_queue_bytes=1000)
    queue.submit("larger than all", size=5000)
    with pytest.raises(Overloaded, match=r"5000 bytes wait or run, 1 more would pass the limit of 1000"):
        queue.submit("one more", size=1)
    queue.loop.run()
    for number in range(10):
        queue.submit(number, size=100)
    with pytest.raises(Overloaded):
        queue.submit("one more", size=1)
    queue.loop.run()
    assert queue.batcher.present_bytes == 0


@pytest.mark.parametrize("fails", [False, True])
def test_bytes_are_given_back_whatever_becomes_of_a_request(fails: bool):
    loop = SimulatedLoop()
    queue = Queue(loop, Places(loop, 1.0), max_batch_rows=2)
    queue.executor.bad = {0, 1} if fails else set()
    pending = [queue.submit(number, size=10, timeout_s=1.5 if number == 5 else None) for number in range(8)]
    loop.run(0.5)
    for number in (1, 4):
        pending[number].cancel()
    assert queue.batcher.present_bytes == 70  # what runs holds its own until its batch ends
    loop.run()
    assert queue.batcher.present_bytes == 0


@pytest.mark.parametrize(
    ("array", "least"),
    [(np.zeros((3, 4), np.float32), 48), (np.array([b"x" * 1000, b""], object), 1000), (np.array([], object), 0)],
    ids=["numbers", "bytes", "empty"],
)
def test_a_tensor_of_objects_holds_what_they_hold(array: np.ndarray, least: int):
    assert least <= held_bytes(array) <= least + 100


def test_the_standing_delay_is_shorter_than_a_burst_may_be():
    limit = AdaptiveLimit("alone")
    for turn in range(10):
        limit.answered(turn, present=1, rows=1, delay_s=0.01, service_s=0.01)
        limit.answered(turn, present=11, rows=1, delay_s=0.11, service_s=0.01)
    limit.drained_at = 10.0
    assert limit.slope_s == pytest.approx(0.01)
    assert limit.admits(10.0, 1 + BURST_S / 0.01 - 0.1)
    assert not limit.admits(10.0, 1 + BURST_S / 0.01 + 0.1)
    limit.progress_at = later = 10.0 + 2 * INTERVAL_S
    assert limit.admits(later, 1 + STANDING_S / 0.01 - 0.1)
    assert not limit.admits(later, 1 + STANDING_S / 0.01 + 0.1)


@pytest.mark.parametrize(("late_s", "is_standing"), [(0.0, False), (INTERVAL_S, False), (INTERVAL_S + 0.001, True)])
def test_a_queue_stands_when_it_was_not_drained_for_longer_than_the_interval(late_s: float, is_standing: bool):
    limit = AdaptiveLimit("alone")
    limit.expect(0.01, 0.0)
    limit.drained_at, limit.progress_at = 0.0, late_s
    between = 1 + (STANDING_S + BURST_S) / 2 / 0.01
    assert limit.admits(late_s, between) is not is_standing


# The own time, how requests are given to the model, its places; then what a standing queue and a burst may add.
DELAYS: list[tuple[float, Joining, int, float, float]] = [
    (0.001, "alone", 1, 0.08, 0.2),
    (0.02, "alone", 1, 0.08, 0.2),
    (0.05, "alone", 1, 0.2, 0.4),
    (0.1, "alone", 4, 0.1, 0.2),
    (0.4, "alone", 4, 0.4, 0.8),
    (0.04, "joined", 1, 0.08, 0.2),
    (0.1, "joined", 1, 0.2, 0.4),
    (0.1, "inside", 4, 0.2, 0.4),
]


@pytest.mark.parametrize(("own_s", "joining", "places", "standing_s", "burst_s"), DELAYS)
def test_a_slow_model_may_have_four_requests_worth_of_queue_and_eight_of_a_burst(
    own_s: float, joining: Joining, places: int, standing_s: float, burst_s: float
):
    limit = AdaptiveLimit(joining, places=places)
    limit.expect(own_s, 0.0)
    assert (limit.standing_s, limit.burst_s) == pytest.approx((standing_s, burst_s))


@pytest.mark.parametrize(
    ("levels", "shares"), [(1, [1.0]), (2, [1.0, 0.5]), (3, [1.0, 0.75, 0.5]), (5, [1.0, 0.875, 0.75, 0.625, 0.5])]
)
def test_the_lowest_level_may_cause_half_of_the_delay_and_the_highest_all_of_it(levels: int, shares: list[float]):
    assert shares_of_levels(levels) == shares


@pytest.mark.parametrize(("joining", "own_s"), [("alone", 0.01), ("joined", 0.015), ("inside", 0.015)])
def test_a_prediction_of_the_time_begins_with_the_own_time_and_half_a_batch_where_requests_are_joined(
    joining: Joining, own_s: float
):
    limit = AdaptiveLimit(joining)
    assert limit.predicted_s(1) == 0
    limit.expect(0.01, 0.001)
    slope_s = 0.01 if joining == "alone" else 0.001
    for present in (1, 3, 10):
        assert limit.predicted_s(present) == pytest.approx(own_s + (present - 1) * slope_s)
        assert limit.clears_in_s(present) == pytest.approx(present * slope_s)
        margin_s = 1.25 * (present - 1) * slope_s
        assert limit.meets(5.0, present, 5.0 + own_s + margin_s + 1e-6)
        assert not limit.meets(5.0, present, 5.0 + own_s + margin_s - 1e-6)


def test_a_limit_that_is_a_number_admits_all_but_judges_deadlines():
    limit = AdaptiveLimit("alone", is_fixed=True)
    limit.expect(1.0, 0.0)
    assert limit.room == float("inf")
    assert limit.admits(1e9, 1e6)
    assert not limit.meets(0.0, 2, 2.2)


def test_the_own_time_is_the_least_of_three_and_then_follows_by_a_tenth():
    limit = AdaptiveLimit("alone")
    seen = []
    for turn, service_s in enumerate([0.5, 0.1, 0.2, 1.1, 1.0]):
        limit.answered(turn, present=1, rows=1, delay_s=9.0, service_s=service_s)
        seen.append(limit.own_s)
        assert limit.progress_at == turn
    assert seen == pytest.approx([0.5, 0.1, 0.1, 0.2, 0.28])


def test_a_crowd_is_the_first_at_once_then_the_larger_by_half_and_the_smaller_by_little():
    limit = AdaptiveLimit("joined")
    limit.expect(0.01, 0.0)
    slopes = []
    for present, delay_s in [(11, 0.12), (21, 0.22), (8, 0.02), (2, 0.02)]:
        limit.answered(1.0, present=present, rows=1, delay_s=delay_s, service_s=0.01)
        slopes.append(limit.slope_s)
    # (crowd's mean delay - two own times) / (its mean rows - 1)
    means = [(11, 0.12), (16, 0.17), (14.4, 0.14), (14.4 - 12.4 * 0.005, 0.14 - 0.12 * 0.005)]
    assert slopes == pytest.approx([(delay_s - 0.02) / (rows - 1) for rows, delay_s in means])


@pytest.mark.parametrize(("own_s", "room"), [(0.0, 1 + 256), (0.02, 1 + 2), (0.1, 1 + 2), (0.001, 1 + 40)])
def test_room_is_half_of_what_a_standing_queue_may_add(own_s: float, room: float):
    limit = AdaptiveLimit("alone")
    limit.expect(own_s, 0.0)
    assert limit.room == pytest.approx(room)


def test_simulated_time_calls_in_order_and_not_what_was_cancelled():
    loop, seen = SimulatedLoop(), []
    loop.call_later(2, seen.append, "later")
    loop.call_later(1, lambda: loop.call_soon(seen.append, "soon"))
    loop.call_at(1.5, seen.append, "cancelled").cancel()
    loop.call_later(1, seen.append, "second of a moment")
    loop.run(1.7)
    assert (seen, loop.time()) == (["soon", "second of a moment"], 1.7)
    loop.run()
    assert (seen[-1], loop.time()) == ("later", 2)
