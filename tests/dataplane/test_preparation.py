"""From settings to a model that takes requests: where it runs and what is said of it, and what is put away where that fails."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from dataplane_support import Doubler, model_of, outcome, rows_of, serving
from serinus import InferRequest, InferResponse, ModelSettings, TensorSpec
from serinus.dataplane.execution.executor import Cost, InlineExecutor, ThreadExecutor
from serinus.dataplane.preparation import _local_executor
from serinus.errors import ConfigError
from serinus.model import Model, RequestModel


class Counted(Doubler):
    """Notes who was unloaded."""

    gone: list[str] = []  # noqa: RUF012 # replaced by each test

    def unload(self) -> None:
        self.gone.append(self.settings.platform)


class Fronts(RequestModel):
    """Stands before two models; what comes after them fails where its settings say so."""

    inner = Counted

    async def start(self) -> None:
        assert self.serve_behind is not None
        for platform in ("first", "second"):
            self.behind = await self.serve_behind(self.inner, ModelSettings(name=self.name, platform=platform))
        if self.settings.platform == "fails":
            raise ConfigError("no such file")

    async def infer(self, request: InferRequest) -> InferResponse:
        return await self.behind.infer(request)


async def test_what_stands_behind_a_front_that_does_not_start_is_unloaded_and_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(Counted, "gone", [])
    seen: list[Any] = []

    class Watched(Fronts):
        async def start(self) -> None:
            try:
                await super().start()
            finally:
                seen.append(self.behind)

    with pytest.raises(ConfigError, match="no such file"):
        async with serving(Watched, ModelSettings(name="m", platform="fails")):
            pass
    assert Counted.gone == ["first", "second"]
    assert not seen[0].accepting


async def test_what_stands_behind_a_front_is_known_by_its_name_and_serves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Counted, "gone", [])
    async with serving(Fronts) as plane:
        front = plane.registry.find("m")
        assert [(one.name, one.known_as) for one in front.behind] == [("m", "m-predictor")] * 2
        assert isinstance(await outcome(plane, rows_of(1)), InferResponse)
    assert Counted.gone == ["first", "second"], "they end with their front"


# Where a model runs


def chosen(execution: Any, cost: Cost | None, instances: int = 1, own: Any = "auto") -> tuple[Any, str, Model]:
    model = type("Made", (Doubler,), {"execution": own})(ModelSettings(name="m"))
    settings = ModelSettings(name="m", execution=execution, instances=instances)
    executor, name = _local_executor(
        model, settings, cost, loop=asyncio.get_running_loop(), clock=asyncio.get_running_loop().time
    )
    return executor, name, model


FAST, SLOW = Cost(0.00001, 0.000001), Cost(0.1, 0.01)


@pytest.mark.parametrize(
    ("execution", "own", "cost", "instances", "name", "kind", "said"),
    [
        ("auto", "auto", FAST, 1, "inline", InlineExecutor, "one row takes 11 us and each further one 1.00 us, so it predicts on the event loop"),
        ("auto", "auto", SLOW, 1, "thread", ThreadExecutor, "one row takes 110000 us, so it predicts in 1 thread(s)"),
        ("auto", "auto", None, 1, "thread", ThreadExecutor, "it was not measured, so it predicts in 1 thread(s)"),
        ("auto", "auto", FAST, 3, "thread", ThreadExecutor, "one row takes 11 us, so it predicts in 3 thread(s)"),
        ("inline", "auto", SLOW, 1, "inline", InlineExecutor, None),
        ("inline", "thread", None, 1, "inline", InlineExecutor, None),
        ("thread", "inline", FAST, 2, "thread", ThreadExecutor, None),
        ("auto", "thread", FAST, 1, "thread", ThreadExecutor, None),
        ("auto", "inline", SLOW, 1, "inline", InlineExecutor, None),
    ],
)  # fmt: skip
async def test_where_a_model_predicts_is_chosen_and_the_reason_is_in_the_log(
    execution: Any, own: Any, cost: Cost | None, instances: int, name: str, kind: type, said: str | None, caplog: Any
):
    caplog.set_level(logging.INFO)
    executor, where, _ = chosen(execution, cost, instances, own)
    assert (where, type(executor)) == (name, kind)
    assert [record.getMessage() for record in caplog.records] == ([f"model 'm': {said}"] if said else [])
    executor.close()


async def test_a_model_that_moves_to_a_thread_says_so_in_its_details_and_in_the_log(caplog: Any):
    executor, _, model = chosen("auto", FAST)
    executor._moved()
    assert model.details["execution"] == "thread"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "model 'm': predicts take much longer than at warm-up; it now predicts in a thread")
    ]
    executor.close()


async def test_a_model_tells_where_it_runs_what_it_costs_and_how_many_there_are():
    settings = ModelSettings(name="m", execution="thread", instances=2)
    async with serving(Doubler, settings) as plane:
        details = model_of(plane).details
        assert (details["execution"], details["instances"]) == ("thread", 2)
        assert details["predict_us"] > 0
        assert details["predict_row_us"] >= 0
    async with serving(Doubler, ModelSettings(name="m", execution="thread", warmup=False)) as plane:
        details = model_of(plane).details
        assert "instances" not in details
        assert "predict_us" not in details, "nothing was measured"


async def test_the_owners_specs_stand_before_the_models():
    x, y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "FP64", (-1, 2))

    class Undeclared(Doubler):
        inputs = ()
        outputs = ()

    async with serving(Undeclared, ModelSettings(name="m", inputs=(x,), outputs=(y,))) as plane:
        metadata = plane.model_metadata("m")
        assert (metadata.inputs, metadata.outputs) == ((x,), (y,))

    labelled = TensorSpec("y", "FP32", (-1, 2), labels=("a", "b"))

    class Labels(Doubler):
        outputs = (labelled,)

    plain = TensorSpec("y", "FP32", (-1, 2))
    async with serving(Labels, ModelSettings(name="m", outputs=(plain,))) as plane:
        assert plane.model_metadata("m").outputs == (labelled,), "the same, and with what the model knows of it"


async def test_a_request_model_is_warmed_up_with_its_own_inputs_unless_told_not_to():
    import numpy as np

    class Warm(RequestModel):
        def __init__(self, settings: ModelSettings) -> None:
            super().__init__(settings)
            self.seen: list[InferRequest] = []

        def warmup_inputs(self) -> Any:
            return {"x": np.ones((1, 2), np.float32)}

        async def infer(self, request: InferRequest) -> InferResponse:
            self.seen.append(request)
            return InferResponse("", ())

    async with serving(Warm) as plane:
        (request,) = model_of(plane).seen
        assert (request.model_name, [tensor.name for tensor in request.inputs]) == ("m", ["x"])
        assert model_of(plane).details["execution"] == "async"
    async with serving(Warm, ModelSettings(name="m", warmup=False)) as plane:
        assert model_of(plane).seen == []
