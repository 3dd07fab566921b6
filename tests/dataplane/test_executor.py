"""Where predict runs, and what that does to the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, model_of, outcome, outcomes, request_of, rows_of, serving
from serinus import InferResponse, Model, ModelSettings, RequestModel, TensorSpec
from serinus.dataplane.execution.executor import Cost, InlineExecutor, ThreadExecutor
from serinus.dataplane.execution.warmup import measure, sample_inputs
from serinus.errors import ConfigError, ModelFailed, NotReady
from serinus.model import Call
from waiting import turns, until

LOOP_THREAD = threading.main_thread()


class Clock:
    """Seconds that go by where a model works; a microsecond where it is looked at."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class Where(Doubler):
    """Notes the thread of each predict; a row takes `row_s` of the clock. A batch of 4096 rows waits for the gate."""

    row_s = 0.0
    clock = Clock()

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.on_loop: list[bool] = []
        self.gate = threading.Event()
        self.gate.set()  # for the warm-up

    def predict(self, inputs, call):
        self.on_loop.append(threading.current_thread() is LOOP_THREAD)
        self.clock.now += self.row_s * len(inputs["x"])
        if len(inputs["x"]) == 4096:
            assert self.gate.wait(20), "nobody opened the gate"
        return super().predict(inputs, call)


class SlowWhere(Where):
    row_s = 0.002


class PerRow(Where):
    row_s = 0.00002


async def test_auto_runs_a_fast_model_on_the_loop_and_a_slow_one_in_a_thread():
    async with serving(Where, clock=Where.clock) as plane:
        await outcome(plane, rows_of(1))
        assert model_of(plane).on_loop[-1]
        assert plane.model_metadata("m").parameters["execution"] == "inline"
    async with serving(SlowWhere, clock=Where.clock) as plane:
        await outcome(plane, rows_of(1))
        assert not model_of(plane).on_loop[-1]
        assert plane.model_metadata("m").parameters["execution"] == "thread"


async def test_warm_up_is_done_before_the_model_is_ready_and_off_the_loop():
    async with serving(Where) as plane:
        assert len(model_of(plane).sizes) > 8
        assert not any(model_of(plane).on_loop)
    async with serving(Where, ModelSettings(name="m", warmup=False)) as plane:
        assert model_of(plane).sizes == []
        assert plane.model_metadata("m").parameters["execution"] == "thread"  # nothing was measured


async def test_settings_choose_over_the_model_and_the_model_over_auto():
    class Threaded(Where):
        execution = "thread"

    async with serving(Threaded) as plane:
        assert plane.model_metadata("m").parameters["execution"] == "thread"
    async with serving(Threaded, ModelSettings(name="m", execution="inline")) as plane:
        await outcome(plane, rows_of(1))
        assert model_of(plane).on_loop[-1]


async def test_an_inline_model_sends_a_batch_to_a_thread_where_it_would_hold_up_the_loop():
    async with serving(PerRow, clock=Where.clock) as plane:
        model = model_of(plane)
        assert plane.model_metadata("m").parameters["execution"] == "inline"
        await outcome(plane, rows_of(1))
        assert model.on_loop[-1]
        model.gate.clear()
        watch = asyncio.ensure_future(outcome(plane, rows_of(1, 4096)))
        await turns()
        assert not watch.done(), "the loop turns while the 80 ms go by elsewhere"
        model.gate.set()
        assert isinstance(await watch, InferResponse)
        assert not model.on_loop[-1]


async def test_a_batch_that_wants_a_slow_output_does_not_run_on_the_loop():
    class Explains(Where):
        outputs = (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("why", "FP32", (-1, 2), optional=True))
        slow_outputs = frozenset({"why"})

        def predict(self, inputs, call):
            why = {"why": inputs["x"]} if call.outputs and "why" in call.outputs else {}
            return {**super().predict(inputs, call), **why}

    async with serving(Explains) as plane:
        plain, explained = await outcomes(
            plane, rows_of(1), request_of(x=np.ones((1, 2), np.float32), outputs=["why", "y"])
        )
        assert model_of(plane).on_loop[-2:] == [True, False]
        assert [output.name for output in plain.outputs] == ["y"]
        assert [output.name for output in explained.outputs] == ["why", "y"]


def test_a_model_slower_than_at_warm_up_moves_to_the_thread_for_good():
    now = 0.0
    took = iter([0.01, 0.01, 0.0001, 0.01, 0.01, 0.01])
    moved: list[bool] = []
    spilled: list[Any] = []

    class Spill:
        def run(self, batch: Any, on_finish: Any) -> bool:
            spilled.append(batch)
            return False

    def predict(inputs: Any, call: Any) -> Any:
        nonlocal now
        now += next(took)
        return {}

    executor = InlineExecutor(
        predict, clock=lambda: now, cost=Cost(), spill=Spill(), limit_s=0.001, moved=lambda: moved.append(True)
    )
    from dataplane_support import rows_of
    from serinus.dataplane.batching.pending_request import Batch, BatchKey, PendingRequest

    def batch() -> Batch:
        pending = PendingRequest(rows_of(1), lambda _: None, 0, None, None, BatchKey(None, (), Call()), (), 1, 0)
        return Batch([pending], 1, 0)

    # Two slow ones and a quick one say nothing; three slow ones in a row do.
    assert [executor.run(batch(), lambda _: None) for _ in range(6)] == [True] * 6
    assert moved == [True]
    assert executor.run(batch(), lambda _: None) is False
    assert len(spilled) == 1


@pytest.mark.alone
async def test_a_slow_predict_does_not_hold_up_the_loop():
    class Long(Doubler):
        execution = "thread"

        def predict(self, inputs, call):
            assert gate.wait(30)
            return super().predict(inputs, call)

    gate = threading.Event()
    gate.set()
    async with serving(Long) as plane:
        gate.clear()
        slow = asyncio.ensure_future(outcome(plane, rows_of(1)))
        for _ in range(1000):
            await asyncio.sleep(0)
            assert plane.ready()
        assert not slow.done()
        gate.set()
        assert isinstance(await slow, InferResponse)


async def test_instances_predict_at_the_same_time():
    barrier = threading.Barrier(3)

    class Meets(Doubler):
        execution = "thread"

        def predict(self, inputs, call):
            barrier.wait(30)  # passes only when three are here
            return super().predict(inputs, call)

    settings = ModelSettings(name="m", instances=3, warmup=False)
    from dataclasses import replace

    from serinus.settings import BatchSettings

    async with serving(Meets, replace(settings, batch=BatchSettings(max_batch_rows=1))) as plane:
        answers = await outcomes(plane, *(rows_of(i) for i in range(3)))
        assert {type(answer) for answer in answers} == {InferResponse}
        assert plane.model_metadata("m").parameters["instances"] == 3


async def test_no_instances_is_a_mistake_of_the_settings():
    with pytest.raises(ConfigError, match="instances is 0"):
        async with serving(Doubler, ModelSettings(name="m", instances=0)):
            pass


async def test_a_batch_that_nobody_waits_for_is_not_predicted_when_its_turn_comes():
    gate = threading.Event()
    seen: list[float] = []
    loop = asyncio.get_running_loop()

    def predict(inputs: Any, call: Any) -> Any:
        seen.append(float(inputs["x"][0, 0]))
        gate.wait(30)
        return {"y": inputs["x"]}

    executor = ThreadExecutor("test", [predict], loop=loop, clock=time.monotonic)
    executor.capacity = 2  # one runs, one lies in the thread's queue
    from serinus.dataplane.batching.batcher import Batcher
    from serinus.dataplane.batching.pending_request import DONE, BatchKey, PendingRequest
    from serinus.settings import BatchSettings

    batcher = Batcher(
        BatchSettings(max_batch_rows=1),
        executor,
        solo=False,
        answer=lambda batch: [setattr(t, "state", DONE) for t in batch.members] and None,
        reject=lambda pending, error: None,
        dropped=lambda pending: None,
        loop=loop,
        clock=time.monotonic,
    )
    members = []
    for number in range(2):
        request = rows_of(number)
        pending = PendingRequest(
            request, lambda _: None, 0, None, batcher, BatchKey(None, ("x",), Call()), (request.inputs[0].data,), 1, 0
        )
        batcher.add(pending)
        members.append(pending)
    await until(lambda: seen)
    members[1].cancel()
    gate.set()
    await until(lambda: batcher.idle)
    executor.close()
    assert seen == [0.0]


# Warm-up


def test_the_sample_has_one_row_and_leaves_optional_inputs_out():
    class Many(Model):
        inputs = (
            TensorSpec("a", "FP32", (-1, 3, -1)),
            TensorSpec("b", "BYTES", (-1,)),
            TensorSpec("c", "BOOL", (-1,), optional=True),
        )

    sample = sample_inputs(Many(ModelSettings(name="m")))
    assert sample is not None
    assert {name: array.shape for name, array in sample.items()} == {"a": (1, 3, 1), "b": (1,)}
    assert sample["b"].tolist() == [b""]
    assert sample_inputs(Model(ModelSettings(name="m"))) is None


def test_the_cost_per_row_is_found_from_larger_batches():
    now = 0.0

    class Priced(Doubler):
        def predict(self, inputs, call):
            nonlocal now
            now += 0.00005 + 0.000002 * len(inputs["x"])
            return super().predict(inputs, call)

    model = Priced(ModelSettings(name="m"))
    cost = measure(model, model.predict, lambda: now, batchable=True, max_rows=4096)
    assert cost is not None
    assert cost.row_s == pytest.approx(0.000002)
    assert cost.of(1) == pytest.approx(0.000052)
    assert max(model.sizes) <= 4096


async def test_a_model_that_cannot_predict_zeros_is_served_all_the_same():
    class Fussy(Doubler):
        def predict(self, inputs, call):
            if not inputs["x"].all():
                raise ValueError("zero")
            return super().predict(inputs, call)

    async with serving(Fussy) as plane:
        assert isinstance(await outcome(plane, rows_of(1)), InferResponse)


async def test_a_model_that_cannot_predict_its_own_sample_does_not_become_ready():
    class Liar(Doubler):
        def warmup_inputs(self):
            return {"x": np.full((1, 2), 13, np.float32)}

    with pytest.raises(ModelFailed, match="does not predict its own warm-up inputs"):
        async with serving(Liar):
            pass

    class WholeLiar(RequestModel):
        def warmup_inputs(self):
            return {"x": np.ones((1, 2), np.float32)}

        async def infer(self, request):
            raise NotReady("the predictor is away")

    with pytest.raises(NotReady, match="predictor is away"):
        async with serving(WholeLiar):
            pass
