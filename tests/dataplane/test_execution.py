"""Where a batch runs and what it costs, at the bounds and by a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler
from serinus import InferRequest, Model, ModelSettings, TensorSpec
from serinus.dataplane.batching.pending_request import Batch, BatchKey, PendingRequest
from serinus.dataplane.execution.executor import INLINE_BATCH_S, Cost, InlineExecutor, ThreadExecutor
from serinus.dataplane.execution.request_executor import RequestExecutor
from serinus.dataplane.execution.warmup import INLINE_ROW_S, measure
from serinus.errors import ModelFailed
from serinus.model import Call, RequestModel


def batch_of(*arrays: Mapping[str, np.ndarray], rows: int | None = None, call: Call | None = None) -> Batch:
    names = tuple(arrays[0])
    key = BatchKey(None, names, call or Call())
    members = [
        PendingRequest(
            InferRequest("m", ()), lambda _: None, 0.0, None, None, key, tuple(each.values()), len(each[names[0]]), 0
        )
        for each in arrays
    ]
    batch = Batch(members, sum(m.rows for m in members) if rows is None else rows, 0.0)
    for member in members:
        member.batch = batch
    return batch


def x_of(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float32)}


class Spill:
    """A thread executor that only notes what it was given."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.closed = 0

    def run(self, batch: Batch, on_finish: Callable[[Batch], None]) -> bool:
        self.given.append(batch.rows)
        return False

    def close(self) -> None:
        self.closed += 1


class Clock:
    """Moves on by what each predict takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[dict[str, Any]] = []
        self.takes = 0.0

    def __call__(self) -> float:
        return self.now

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        self.seen.append({name: array.tolist() for name, array in inputs.items()})
        self.now += self.takes
        return {"y": inputs["x"]}


def inline(clock: Clock, spill: Any = None, **options: Any) -> InlineExecutor:
    return InlineExecutor(clock.predict, clock=clock, spill=spill, **{"cost": Cost(), **options})


def test_a_batch_is_stacked_in_the_order_of_its_members_input_by_input():
    clock = Clock()
    executor = inline(clock)
    finished: list[Batch] = []
    two = [{**x_of(1, 2), "z": np.array([7, 8])}, {**x_of(3), "z": np.array([9])}]
    assert executor.run(batch_of(x_of(1, 2), x_of(3)), finished.append) is True
    assert executor.run(batch_of(*two), finished.append) is True
    assert executor.run(batch_of(x_of(5)), finished.append) is True
    assert clock.seen == [{"x": [1, 2, 3]}, {"x": [1, 2, 3], "z": [7, 8, 9]}, {"x": [5]}]
    assert [batch.error for batch in finished] == [None] * 3
    assert finished[0].outputs["y"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), SystemExit(3), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_whatever_a_predict_raises_is_the_batchs_error(error: BaseException):
    clock = Clock()

    def fails(inputs: Any, call: Any) -> Any:
        clock.now += 2.0
        raise error

    finished: list[Batch] = []
    InlineExecutor(fails, clock=clock, cost=Cost(), spill=None).run(batch_of(x_of(1)), finished.append)
    assert finished[0].error is error
    assert (finished[0].infer_from, finished[0].infer_to) == (0.0, 2.0)


@pytest.mark.parametrize(
    ("cost", "stays", "goes"),
    [
        (Cost(0.0, 0.0001), 10, 11),
        (Cost(0.0005, 0.0001), 5, 6),
        (Cost(0.0005, 0.0005), 1, 2),
        (Cost(0.002, 0.0001), 1, 2),
        (Cost(0.0, 1.0), 1, 2),
    ],
)
def test_a_batch_of_more_than_a_millisecond_goes_to_the_thread_and_a_single_row_stays(
    cost: Cost, stays: int, goes: int
):
    assert INLINE_BATCH_S == 0.001
    clock, spill = Clock(), Spill()
    executor = inline(clock, spill, cost=cost)
    assert executor.run(batch_of(x_of(1), rows=stays), lambda _: None) is True
    assert executor.run(batch_of(x_of(1), rows=goes), lambda _: None) is False
    assert spill.given == [goes]
    alone = inline(clock, cost=cost)
    assert alone.run(batch_of(x_of(1), rows=10**6), lambda _: None) is True, "the settings say so"


def test_rows_that_cost_nothing_never_leave_the_loop():
    assert inline(Clock(), Spill(), cost=Cost(0.0005, 0.0)).run(batch_of(x_of(1), rows=10**9), lambda _: None) is True
    assert Cost(0.5, 0.25).of(4) == 1.5


@pytest.mark.parametrize(
    ("wanted", "inline_"), [(None, True), (frozenset({"y"}), True), (frozenset({"y", "why"}), False)]
)
def test_a_slow_output_is_asked_of_the_thread(wanted: frozenset[str] | None, inline_: bool):
    executor = inline(Clock(), Spill(), slow_outputs=frozenset({"why"}))
    assert executor.run(batch_of(x_of(1), call=Call(outputs=wanted)), lambda _: None) is inline_


@pytest.mark.parametrize(
    ("takes", "moves"),
    [
        ([0.0051] * 3, True),
        ([0.005] * 10, False),
        ([0.0051, 0.0051, 0.001, 0.0051, 0.0051], False),
        ([0.0051, 0.0051, 0.001, 0.0051, 0.0051, 0.0051], True),
    ],
    ids=["three in a row", "just five times", "two and two", "two and three"],
)
def test_three_batches_in_a_row_of_more_than_five_times_the_limit_move_the_model(takes: list[float], moves: bool):
    clock, spill, moved = Clock(), Spill(), []
    executor = inline(clock, spill, moved=lambda: moved.append(True))
    for seconds in takes:
        clock.takes, clock.now = seconds, 0.0
        assert executor.run(batch_of(x_of(1)), lambda _: None) is True
    assert moved == [True] * moves
    assert executor.run(batch_of(x_of(1)), lambda _: None) is not moves
    assert len(spill.given) == moves


def test_an_inline_executor_ends_its_thread_where_it_has_one():
    spill = Spill()
    inline(Clock(), spill).close()
    inline(Clock()).close()
    assert spill.closed == 1
    assert inline(Clock()).capacity == 1


async def test_threads_start_with_the_first_batch_are_daemons_and_end_when_closed():
    loop, closed, clock = asyncio.get_running_loop(), [], Clock()
    executor = ThreadExecutor("t", [clock.predict] * 2, loop=loop, clock=clock, on_close=lambda: closed.append(True))
    assert executor.capacity == 2
    assert executor._threads == []
    finished: asyncio.Queue[Batch] = asyncio.Queue()
    for value in range(4):
        assert executor.run(batch_of(x_of(value)), finished.put_nowait) is False
    assert sorted([(await finished.get()).outputs["y"].tolist() for _ in range(4)]) == [[0], [1], [2], [3]]
    assert [thread.name for thread in executor._threads] == ["t-0", "t-1"]
    assert all(thread.daemon for thread in executor._threads), "a predict that hangs must not keep the process"
    executor.close()
    for thread in executor._threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in executor._threads)
    assert closed == [True]


async def test_a_batch_that_nobody_waits_for_any_more_is_not_predicted():
    loop, clock = asyncio.get_running_loop(), Clock()
    executor = ThreadExecutor("t", [clock.predict], loop=loop, clock=clock)
    finished: asyncio.Queue[Batch] = asyncio.Queue()
    left, half = batch_of(x_of(1)), batch_of(x_of(2), x_of(3))
    left.members[0].batch = None
    half.members[0].batch = None
    executor.run(left, finished.put_nowait)
    executor.run(half, finished.put_nowait)
    assert isinstance((await finished.get()).error, asyncio.CancelledError)
    assert (await finished.get()).outputs["y"].tolist() == [2, 3]
    assert clock.seen == [{"x": [2, 3]}]
    executor.close()


def test_a_thread_whose_loop_has_closed_ends():
    loop, clock = asyncio.new_event_loop(), Clock()
    executor = ThreadExecutor("t", [clock.predict], loop=loop, clock=clock)
    loop.close()
    executor.run(batch_of(x_of(1)), lambda _: None)
    executor._threads[0].join(10)
    assert not executor._threads[0].is_alive()


# Warming up


class Priced(Doubler):
    """Takes `call_s` and `row_s` of the test's clock; notes its batches."""

    def __init__(self, clock: Clock, call_s: float, row_s: float) -> None:
        super().__init__(ModelSettings(name="m"))
        self.clock, self.call_s, self.row_s = clock, call_s, row_s

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        self.clock.now += self.call_s + self.row_s * len(inputs["x"])
        return super().predict(inputs, call)


def measured(model: Priced, *, batchable: bool = True, max_rows: int = 4096) -> Cost:
    cost = measure(model, model.predict, model.clock, batchable=batchable, max_rows=max_rows)
    assert cost is not None
    return cost


def test_one_row_is_timed_after_two_calls_and_then_batches_eight_times_as_large_each():
    model = Priced(Clock(), 0.00001, 0.000001)
    cost = measured(model)
    assert model.sizes == [1] * 9 + [8] * 8 + [64] * 8 + [512] * 8 + [4096] * 8
    assert cost.row_s == pytest.approx(0.000001)
    assert cost.call_s == pytest.approx(0.00001)


@pytest.mark.parametrize(
    ("max_rows", "batchable", "largest"),
    [(4096, False, 1), (1, True, 1), (7, True, 1), (8, True, 8), (63, True, 8), (64, True, 64)],
)
def test_no_batch_is_tried_that_the_model_would_never_get(max_rows: int, batchable: bool, largest: int):
    model = Priced(Clock(), 0.00001, 0.000001)
    cost = measured(model, batchable=batchable, max_rows=max_rows)
    assert max(model.sizes) == largest
    if largest == 1:
        assert cost == Cost(pytest.approx(0.000011), 0.0)


def test_a_batch_of_twenty_milliseconds_is_the_last_one():
    model = Priced(Clock(), 0.0, 0.0005)
    measured(model)
    assert max(model.sizes) == 64, "8 rows take 4 ms, 64 take 32"


def test_what_does_not_fit_the_half_second_is_not_tried():
    model = Priced(Clock(), 0.0, 0.019)
    measured(model)
    assert max(model.sizes) == 1, "24 times one row would pass the budget that is left"
    slow = Priced(Clock(), 1.0, 0.0)
    assert measured(slow).call_s == pytest.approx(1.0)
    assert len(slow.sizes) == 3, "the first, one more, and one that is timed"


def test_a_model_that_is_faster_in_batches_costs_nothing_a_row():
    class Odd(Priced):
        def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
            self.clock.now += 0.001 if len(inputs["x"]) == 1 else 0.0001
            return Doubler.predict(self, inputs, call)

    cost = measured(Odd(Clock(), 0, 0))
    assert cost == Cost(pytest.approx(0.001), 0.0)


def test_one_slow_call_among_seven_is_not_the_cost():
    model = Priced(Clock(), 0.0001, 0.0)
    calls = 0
    predict = model.predict

    def uneven(inputs: Any, call: Any) -> Any:
        nonlocal calls
        calls += 1
        model.clock.now += 0.01 if calls in (1, 2, 4, 6, 8) else 0.0
        return predict(inputs, call)

    assert measure(model, uneven, model.clock, batchable=False, max_rows=1) == Cost(pytest.approx(0.0001), 0.0)


def test_a_models_own_rows_warm_it_up_and_must_be_predicted():
    class Own(Priced):
        def warmup_inputs(self) -> Mapping[str, np.ndarray]:
            return {"x": np.full((2, 2), self.given, np.float32)}

    good = Own(Clock(), 0.001, 0.0)
    good.given = 5
    measured(good, batchable=False)
    assert set(good.sizes) == {2}
    bad = Own(Clock(), 0.001, 0.0)
    bad.given = 13
    with pytest.raises(ModelFailed, match="model 'm' does not predict its own warm-up inputs: unlucky"):
        measured(bad)


def test_a_model_that_declares_nothing_is_not_measured_and_one_that_refuses_zeros_is_told_how(caplog: Any):
    class Bare(Model):
        def predict(self, inputs: Any, call: Any) -> Any:
            raise AssertionError("nothing to predict")

    class Fussy(Doubler):
        inputs = (TensorSpec("x", "FP32", (-1, 2)),)

        def predict(self, inputs: Any, call: Any) -> Any:
            raise ValueError("zero")

    caplog.set_level("INFO")
    clock = Clock()
    for made in (Bare(ModelSettings(name="m")), Fussy(ModelSettings(name="m"))):
        assert measure(made, made.predict, clock, batchable=True, max_rows=8) is None
    assert "not warmed up, since it does not predict zeros (zero); it may give warmup_inputs()" in caplog.text
    assert INLINE_ROW_S == 0.0002


# Requests


class Answers(RequestModel):
    """Answers requests with what it is told."""

    async def infer(self, request: InferRequest) -> Any:
        if request.id == "wait":
            await asyncio.Event().wait()
        if request.id == "fail":
            raise ValueError("a bug")
        return request.id


def single(label: str, task: Any = None) -> Batch:
    request = InferRequest("m", (), id=label)
    pending = PendingRequest(request, lambda _: None, 0.0, None, None, BatchKey(None, (), Call()), (), 1, 0, task)
    return Batch([pending], 1, 0.0)


async def test_a_request_has_a_task_that_ends_is_cancelled_and_is_forgotten():
    clock = Clock()
    executor = RequestExecutor(Answers(ModelSettings(name="m")), 5, loop=asyncio.get_running_loop(), clock=clock)
    finished: asyncio.Queue[Batch] = asyncio.Queue()
    assert executor.run(single("a"), finished.put_nowait) is False
    done = await finished.get()
    assert (done.outputs, done.error, done.running) == ("a", None, None)
    executor.run(single("fail"), finished.put_nowait)
    assert isinstance((await finished.get()).error, ValueError)
    waits = single("wait")
    clock.now = 2.0
    executor.run(waits, finished.put_nowait)
    await asyncio.sleep(0)
    clock.now = 5.0
    executor.abandon(waits)
    stopped = await finished.get()
    assert isinstance(stopped.error, asyncio.CancelledError)
    assert (stopped.infer_from, stopped.infer_to) == (2.0, 5.0)
    executor.abandon(waits)
    executor.run(single("wait"), finished.put_nowait)
    await asyncio.sleep(0)
    executor.close()
    assert isinstance((await finished.get()).error, asyncio.CancelledError)
    assert executor._tasks == set()
    assert executor.capacity == 5


async def test_a_task_of_its_own_stands_in_for_the_models_infer():
    executor = RequestExecutor(Answers(ModelSettings(name="m")), 1, loop=asyncio.get_running_loop(), clock=Clock())
    finished: asyncio.Queue[Batch] = asyncio.Queue()

    async def other() -> str:
        return "other"

    executor.run(single("a", other), finished.put_nowait)
    assert (await finished.get()).outputs == "other"


class Together:
    """Joins requests; told when to answer."""

    max_rows, max_delay_s = 4, 0.0

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.complete: Any = None
        self.error: Exception | None = None

    def key(self, request: InferRequest) -> tuple[str, int] | None:
        return None if request.id == "alone" else ("k", 1)

    def infer_batch(self, requests: Any, on_complete: Any) -> str:
        if self.error is not None:
            raise self.error
        self.asked.append([request.id for request in requests])
        self.complete = on_complete
        return "what stops it"

    def is_of_a_member(self, error: BaseException) -> bool:
        return True


async def test_requests_of_one_key_are_handed_over_together_and_answered_by_callback():
    model, together, clock = Answers(ModelSettings(name="m")), Together(), Clock()
    model.request_batching = together
    executor = RequestExecutor(model, 2, loop=asyncio.get_running_loop(), clock=clock)
    finished: list[Batch] = []

    def joined(*labels: str) -> Batch:
        key = BatchKey("k", ("requests",), Call())
        members = [
            PendingRequest(InferRequest("m", (), id=label), lambda _: None, 0.0, None, None, key, (), 1, 0)
            for label in labels
        ]
        return Batch(members, len(members), 0.0)

    batch = joined("a", "b")
    clock.now = 1.0
    assert executor.run(batch, finished.append) is True
    assert batch.infer_from == 1.0
    assert (together.asked, batch.running) == ([["a", "b"]], "what stops it")
    clock.now = 3.0
    together.complete(["A", "B"])
    assert (batch.outputs, batch.error, batch.running, batch.infer_to) == (["A", "B"], None, None, 3.0)
    executor.run(joined("c"), finished.append)
    together.complete(KeyError("why"))
    assert isinstance(finished[1].error, KeyError)
    together.error = ValueError("a bug")
    assert executor.run(joined("d"), finished.append) is True
    assert len(finished) == 2, "told later than it was begun"
    await asyncio.sleep(0)
    assert finished[2].error is together.error
    alone: asyncio.Queue[Batch] = asyncio.Queue()
    assert executor.run(single("alone"), alone.put_nowait) is False
    assert (await alone.get()).outputs == "alone"


@pytest.mark.parametrize("spilled", [True, False], ids=["auto", "inline as the settings say"])
def test_a_single_predict_that_holds_the_loop_for_a_second_moves_the_model(spilled: bool):
    clock, refuge, held = Clock(), Spill(), []
    executor = inline(clock, refuge if spilled else None, refuge=refuge, held=held.append)
    clock.takes, clock.now = 1.0, 0.0
    executor.run(batch_of(x_of(1)), lambda _: None)
    assert held == []
    clock.takes, clock.now = 1.5, 0.0
    executor.run(batch_of(x_of(1)), lambda _: None)
    assert held == [1.5]
    executor.run(batch_of(x_of(1)), lambda _: None)
    assert refuge.given == [1]
    assert held == [1.5]
