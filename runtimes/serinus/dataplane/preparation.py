"""From settings to a model that takes requests: make, load, warm up, measure, choose what serves it and where it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, cast

from ..bounds import ModelBounds
from ..errors import ConfigError
from ..model import Behind, Model, RequestModel
from ..protocol.types import InferRequest, Tensor, TensorSpec
from ..settings import ModelSettings
from .batching.deadlines import Deadlines
from .execution.executor import Cost, InlineExecutor, Predict, ThreadExecutor
from .execution.process_pool import ProcessPool
from .execution.warmup import INLINE_ROW_S, measure
from .joining.decision import settle
from .servables.array_servable import ArrayServable
from .servables.checks import RequestChecks
from .servables.request_servable import RequestServable
from .servables.servable import Servable
from .sizes import check_inputs, check_settings
from .telemetry.metrics import Metrics

__all__ = ["BEHIND", "Preparation"]

_log = logging.getLogger("serinus.model")

BEHIND: Final = "-predictor"
"""What the name of a model behind another one ends in: KServe's name for a predictor behind its transformer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Makes servables of settings, for one registry.

    Attributes:
        factory: makes a model; called in a thread.
        metrics: gives the statistics of a name and version.
        deadlines: of all requests of the loop.
        clock: seconds, monotonic.
        bounds: of what a model may size.
    """

    factory: Callable[[ModelSettings], Model]
    metrics: Metrics
    deadlines: Deadlines
    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    bounds: ModelBounds

    async def prepare(self, settings: ModelSettings) -> Servable:
        """Load a model in a thread, and those that it stands in front of, and warm them up.

        Raises:
            ConfigError: the settings or the model's files are wrong, or beyond the bounds.
            Exception: whatever the model's own code raises.
        """
        return await self._prepare(self.factory, settings, settings.name)

    async def _prepare(
        self, factory: Callable[[ModelSettings], Model], settings: ModelSettings, known_as: str
    ) -> Servable:
        check_settings(settings, self.bounds)
        # A thread of its own, which ends. OpenMP gives each thread that computes a team of workers for as long as it lives, and libgomp
        # lets workers wait asleep, not spinning, once there are more of them than CPUs: with a second team left over from loading,
        # PyTorch's ResNet-50 took 62 ms a picture on 2 CPUs instead of 49.
        loader = ThreadPoolExecutor(1, thread_name_prefix=f"load-{settings.name}")
        try:
            model, pool, cost = await self.loop.run_in_executor(
                loader, _load, factory, settings, self.clock, self.bounds
            )
        finally:
            loader.shutdown(wait=False)
        statistics = self.metrics.statistics(known_as, settings.version)
        model.observe_stage = statistics.stage
        _check_score(model, behind=known_as.endswith(BEHIND))
        model.bounds = self.bounds
        if model.answers == "requests":
            return await self._of_requests(cast("RequestModel", model), settings, known_as)
        try:
            if pool is not None:
                executor = ThreadExecutor(
                    f"serinus-{model.name}", pool.predicts, loop=self.loop, clock=self.clock, on_close=pool.close_soon
                )
                restarts = "serinus_model_process_restarts_total"
                for reason in ("ended", "hung"):
                    self.metrics.events.expect(restarts, known_as, model.version, reason)
                pool.on_restart = partial(self._count, restarts, known_as, model.version)
                execution = "process"
            else:
                self.metrics.events.expect("serinus_model_moved_total", known_as, model.version)
                moved = partial(self._count, "serinus_model_moved_total", known_as, model.version)
                executor, execution = _local_executor(
                    model, settings, cost, loop=self.loop, clock=self.clock, count_moved=moved
                )
        except BaseException:
            if pool is not None:
                pool.close()
            raise
        model.details["execution"] = execution
        if cost is not None:
            model.details["predict_us"] = round(1e6 * cost.of(1), 1)
            model.details["predict_row_us"] = round(1e6 * cost.row_s, 3)
        if settings.instances > 1 and execution in ("thread", "process"):
            model.details["instances"] = settings.instances
        servable = ArrayServable(
            model,
            executor,
            execution=execution,
            cost=cost,
            settings=settings.batch,
            statistics=statistics,
            deadlines=self.deadlines,
            loop=self.loop,
            clock=self.clock,
            processes=pool,
        )
        model.ask = servable.infer
        return servable

    def _count(self, event: str, *labels: str) -> None:
        self.metrics.events.count(event, *labels)

    async def _of_requests(self, model: RequestModel, settings: ModelSettings, known_as: str) -> Servable:
        behind: list[Servable] = []

        async def serve_behind(factory: Callable[[ModelSettings], Model], own: ModelSettings) -> Behind:
            servable = await self._prepare(factory, own, known_as + BEHIND)
            servable.known_as = known_as + BEHIND
            behind.append(servable)
            return servable

        model.serve_behind = serve_behind
        try:
            await model.start()
            if settings.warmup:
                await _warm_up(model)
        except BaseException:
            for servable in behind:
                servable.close()
                await self.loop.run_in_executor(None, servable.model.unload)
            raise
        model.details["execution"] = "async"
        servable = RequestServable(
            model,
            settings=settings.batch,
            max_concurrency=settings.max_concurrency,
            statistics=self.metrics.statistics(known_as, settings.version),
            deadlines=self.deadlines,
            loop=self.loop,
            clock=self.clock,
        )
        servable.behind = behind
        model.ask = servable.infer
        return servable


def _check_score(model: Model, *, behind: bool) -> None:
    """Refuse a score that is none of the outputs; of a model behind another it is the other's that is meant.

    Raises:
        ConfigError: with the outputs that there are. Models that do not say theirs are believed.
    """
    score = model.settings.score
    names = [spec.name for spec in model.outputs]
    if score is None or score.output in names or not names:
        return
    if behind:
        model.settings = replace(model.settings, score=None)
        return
    raise ConfigError(
        f"model '{model.name}': score_output '{score.output}' is none of its outputs, which are {', '.join(names)}"
    )


def _load(
    factory: Callable[[ModelSettings], Model],
    settings: ModelSettings,
    clock: Callable[[], float],
    bounds: ModelBounds,
) -> tuple[Model, ProcessPool | None, Cost | None]:
    """Do the blocking part, in a thread."""
    model = factory(settings)
    where = settings.execution if settings.execution != "auto" else model.execution
    pool = None
    if where == "process" and model.answers == "arrays":
        pool = ProcessPool(factory, settings, settings.instances)
        try:
            pool.start(model)
        except BaseException:
            pool.close()
            raise
    else:
        model.load()
    # A model that took these itself may have added to them: labels of the classes.
    if settings.inputs and _plain(model.inputs) != _plain(settings.inputs):
        model.inputs = settings.inputs
    if settings.outputs and _plain(model.outputs) != _plain(settings.outputs):
        model.outputs = settings.outputs
    cost = None
    try:
        if model.answers == "arrays":
            trial = _apart(factory, settings) if pool is None and model.checks_apart else None
            predict = pool.predicts[0] if pool is not None else model.predict
            settle(
                model,
                settings,
                lambda: trial if trial is not None else contextlib.nullcontext(predict),
                clock,
                told=pool.join_rows if pool is not None else None,
            )
        if settings.warmup and model.answers == "arrays":
            check_inputs(model.name, model.inputs, bounds)
            batchable = RequestChecks(model).batchable
            for predict in pool.predicts if pool is not None else (model.predict,):
                cost = measure(model, predict, clock, batchable=batchable, max_rows=settings.batch.max_batch_rows)
    except BaseException:
        if pool is not None:
            pool.close()
        raise
    return model, pool, cost


@contextlib.contextmanager
def _apart(factory: Callable[[ModelSettings], Model], settings: ModelSettings) -> Iterator[Predict]:
    """Load the model once more, in a process that ends afterwards."""
    pool = ProcessPool(factory, settings, 1)
    try:
        pool.start(factory(settings))
        pool.join_rows(False)
        yield pool.predicts[0]
    finally:
        pool.close()


def _plain(specs: Sequence[TensorSpec]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(spec.name, spec.datatype, spec.shape) for spec in specs]


def _local_executor(
    model: Model,
    settings: ModelSettings,
    cost: Cost | None,
    *,
    loop: asyncio.AbstractEventLoop,
    clock: Callable[[], float],
    count_moved: Callable[[], None] = lambda: None,
) -> tuple[InlineExecutor | ThreadExecutor, str]:
    """Choose between the loop and threads, and say why in the log."""
    where = settings.execution if settings.execution != "auto" else model.execution
    name = f"serinus-{model.name}"

    def moved(why: str) -> None:
        model.details["execution"] = "thread"
        count_moved()
        _log.warning("model '%s': %s; it now predicts in a thread", model.name, why)

    def slower() -> None:
        moved("predicts take much longer than at warm-up")

    def held(seconds: float) -> None:
        moved(f"a predict held the event loop for {seconds:.2g} s, and every probe with it")

    spill = ThreadExecutor(name, (model.predict,), loop=loop, clock=clock)
    if where == "inline":
        executor = InlineExecutor(model.predict, clock=clock, cost=cost or Cost(), spill=None, refuge=spill, held=held)
        return executor, "inline"
    if where == "auto" and settings.instances == 1 and cost is not None and cost.of(1) < INLINE_ROW_S:
        _log.info(
            "model '%s': one row takes %.0f us and each further one %.2f us, so it predicts on the event loop",
            model.name,
            1e6 * cost.of(1),
            1e6 * cost.row_s,
        )
        slow = model.slow_outputs
        return InlineExecutor(
            model.predict, clock=clock, cost=cost, spill=spill, slow_outputs=slow, moved=slower, held=held
        ), "inline"
    if where == "auto":
        reason = f"one row takes {1e6 * cost.of(1):.0f} us" if cost is not None else "it was not measured"
        _log.info("model '%s': %s, so it predicts in %d thread(s)", model.name, reason, settings.instances)
    return ThreadExecutor(name, (model.predict,) * settings.instances, loop=loop, clock=clock), "thread"


async def _warm_up(model: RequestModel) -> None:
    """Send a `RequestModel` its own warm-up inputs, where it gives any."""
    inputs = model.warmup_inputs()
    if inputs is not None:
        await model.infer(InferRequest(model.name, [Tensor.of(name, array) for name, array in inputs.items()]))
