"""Models, requests and a simulated executor for the data plane's tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np

from serinus import Call, InferRequest, InferResponse, Model, ModelSettings, RequestedOutput, Tensor, TensorSpec
from serinus.dataplane.batching.batcher import Batcher
from serinus.dataplane.batching.deadlines import Deadlines
from serinus.dataplane.batching.pending_request import DONE, Batch, BatchKey, PendingRequest
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.errors import SerinusError
from serinus.settings import BatchSettings


class Doubler(Model):
    """y = 2 x on [n, 2] FP32; 13 anywhere raises; remembers the rows of each predict."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.sizes: list[int] = []

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        x = inputs["x"]
        self.sizes.append(len(x))
        if (x == 13).any():
            raise ValueError("unlucky")
        return {"y": x * 2}


class Echo(Model):
    """Gives back whatever comes, and the call's parameters as BYTES `asked`."""

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return dict(inputs)


def rows_of(value: float, rows: int = 1, name: str = "m", **fields: Any) -> InferRequest:
    """A request for `Doubler`: `rows` rows of `value`."""
    return InferRequest(name, [Tensor.of("x", np.full((rows, 2), value, np.float32))], **fields)


def request_of(name: str = "m", *, outputs: list[str | RequestedOutput] | None = None, **arrays: Any) -> InferRequest:
    """A request with these arrays by name."""
    wanted = [RequestedOutput(o) if isinstance(o, str) else o for o in outputs] if outputs is not None else None
    return InferRequest(name, [Tensor.of(key, np.asarray(array)) for key, array in arrays.items()], outputs=wanted)


@contextlib.asynccontextmanager
async def serving(
    factory: Callable[[ModelSettings], Model], *settings: ModelSettings, **registry: Any
) -> AsyncIterator[Plane]:
    """A plane with these models (one named "m" unless told), closed at the end."""
    plane = Plane(Registry(factory, **registry))
    try:
        await plane.start(settings or [ModelSettings(name="m")])
        yield plane
    finally:
        await plane.close()


def model_of(plane: Plane, name: str = "m", version: str = "") -> Any:
    """The model object behind a name."""
    return plane.registry.find(name, version).model


async def outcome(plane: Plane, request: InferRequest) -> InferResponse | SerinusError:
    """The response or the error."""
    try:
        return await plane.infer(request)
    except SerinusError as error:
        return error


async def outcomes(plane: Plane, *requests: InferRequest) -> list[InferResponse | SerinusError]:
    """Outcomes of requests that are submitted in one turn of the loop."""
    return list(await asyncio.gather(*(outcome(plane, request) for request in requests)))


class SimulatedExecutor:
    """Predicts in simulated time: each batch takes `call_s + rows * row_s`; values in `bad` make a batch fail."""

    def __init__(self, capacity: int = 1, call_s: float = 1.0, row_s: float = 0.0) -> None:
        self.capacity = capacity
        self.call_s = call_s
        self.row_s = row_s
        self.bad: set[Any] = set()
        self.batches: list[list[Any]] = []
        """Labels of the members of each batch, as they were started."""
        self.started: list[float] = []
        self.abandoned: list[list[Any]] = []

    def run(self, batch: Batch, on_finish: Callable[[Batch], None]) -> bool:
        loop = asyncio.get_running_loop()
        labels = [pending.request.id for pending in batch.members]
        self.batches.append(labels)
        self.started.append(loop.time())

        def ended() -> None:
            batch.infer_to = loop.time()
            if self.bad.intersection(labels):
                batch.error = ValueError("bad")
            on_finish(batch)

        loop.call_later(self.call_s + self.row_s * batch.rows, ended)
        return False

    def abandon(self, batch: Batch) -> None:
        self.abandoned.append([pending.request.id for pending in batch.members])


class Told:
    """Who of a batcher's requests was told what and when; nobody twice."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.told: dict[Any, tuple[float, str]] = {}
        """By label, seconds of the loop's time and what."""

    def _answer(self, batch: Batch) -> None:
        for pending in batch.members:
            if pending.state != DONE:
                pending.state = DONE
                self._tell(pending, "answered")

    def _tell(self, pending: PendingRequest, what: str) -> None:
        label = pending.request.id
        assert label not in self.told, f"{label} was told twice"
        self.told[label] = (round(self.loop.time(), 6), what)


class Queue(Told):
    """A batcher over a simulated executor, and a record of who was told what and when."""

    def __init__(self, executor: SimulatedExecutor, *, solo: bool = False, **settings: Any) -> None:
        super().__init__(asyncio.get_running_loop())
        self.executor = executor
        self.gone: list[Any] = []
        self.batcher = Batcher(
            BatchSettings(**settings),
            executor,
            solo=solo,
            answer=self._answer,
            reject=lambda pending, error: self._tell(pending, type(error).__name__),
            dropped=lambda pending: self.gone.append(pending.request.id),
            loop=self.loop,
            clock=self.loop.time,
        )
        self.deadlines = Deadlines(self.loop, self.loop.time, self.batcher.expire)

    def submit(
        self, label: Any, *, rows: int = 1, key: Any = None, level: int = 0, timeout_s: float | None = None
    ) -> PendingRequest:
        now = self.loop.time()
        deadline = None if timeout_s is None else now + timeout_s
        key = BatchKey(key, ("x",), Call())
        pending = PendingRequest(
            InferRequest("m", (), id=label), lambda _: None, now, deadline, self.batcher, key, (), rows, level
        )
        self.batcher.add(pending)
        if deadline is not None:
            self.deadlines.add(pending, deadline)
        return pending

    async def settled(self) -> None:
        """Wait until nothing is queued and nothing runs."""
        while not self.batcher.idle:
            await asyncio.sleep(0.05)  # of simulated time, where the test has it
