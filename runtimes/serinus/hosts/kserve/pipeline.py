"""`Pipeline`: a transformer and a model in one process, without the hop that KServe puts between them.

Theory of operation. The transformer is a `kserve.Model`, hosted as any other (`KServeHost`). Where it would call its predictor,
because it does not override `predict` or calls `super().predict()`, its request goes to the model here instead. That
model has a queue of its own (`dataplane.served.ServedModel`), just as if it were served alone: its requests are
checked, the rows of concurrent requests are predicted in one call, deadlines and cancelled requests leave the queue,
one bad request fails alone.

A transformer that knows how to treat the rows of several requests at once has a `RowLane`, which spares one-row requests
most of what hosting costs.

A transformer written for V1 works too: its `{"instances": ...}` become a request for the model, whose answer becomes
`{"predictions": ...}`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

import orjson

from ...dataplane.batching.deadlines import Deadlines
from ...dataplane.batching.pending_request import Ticket, V1Call
from ...dataplane.preparation import load_model
from ...dataplane.served import ServedModel
from ...dataplane.telemetry.statistics import ModelStatistics
from ...errors import NotReady, SerinusError
from ...model import Begun, Model, RequestDone, RequestModel, V1Answer
from ...protocol import v1_codec
from ...protocol.types import InferRequest, InferResponse, ModelMetadata
from ...settings import ModelSettings, PredictorSettings
from .kserve_host import KServeHost
from .row_lane import RowLane, row_transformer

__all__ = ["Pipeline"]

_T = TypeVar("_T")
_log = logging.getLogger("serinus.hosts")


class Pipeline(KServeHost):
    """A transformer in front of a model of this process.

    Args:
        settings: the model's; its name is the pipeline's.
        transformer: the `kserve.Model` instance.
        factory: makes the model behind it; called in a thread.
    """

    platform = "serinus_pipeline"

    def __init__(self, settings: ModelSettings, transformer: Any, factory: Callable[[ModelSettings], Model]) -> None:
        # KServe's own Model.predict wants a predictor_host before it goes where the host catches it.
        super().__init__(settings, transformer, PredictorSettings(host="in-process", protocol="v2"))
        self.predictor = self.client = None
        self._factory = factory
        self._served: ServedModel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lane: RowLane | None = None

    def begin(self, request: InferRequest, done: RequestDone) -> Begun | None:
        """Take the lane where there is one and the request fits."""
        lane = self._lane
        return lane.begin(request, done) if lane is not None and self.hosted.ready else None

    async def start(self) -> None:
        """Load the model and open its queue."""
        self._loop = loop = asyncio.get_running_loop()
        settings = dataclasses.replace(self.settings, inputs=(), outputs=())
        self._served = await load_model(
            self._factory,
            settings,
            statistics=ModelStatistics(settings.name, settings.version),
            deadlines=Deadlines(loop, time.monotonic, _expire),
            loop=loop,
            clock=time.monotonic,
            bounds=self.bounds,
        )
        model = self._served.model
        self.outputs = self.outputs or tuple(model.outputs)
        self.details["model"] = dict(model.details)
        rows = row_transformer(self.hosted)
        if rows is not None and model.batchable and not isinstance(model, RequestModel):
            self._lane = RowLane(
                rows,
                self._served.submit,
                name=self.name,
                version=self.settings.version,
                observe=self.observe_stage,
                loop=loop,
            )
        _log.info(
            "pipeline %s: %s in front of %s, in one process",
            self.name,
            type(self.hosted).__name__,
            type(model).__name__,
        )

    def unload(self) -> None:
        """Stop the transformer, then the model."""
        super().unload()
        served, self._served = self._served, None
        self._lane = None
        if served is not None and self._loop is not None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(served.close)
            served.model.unload()

    async def _predictor(self, question: Coroutine[Any, Any, _T]) -> _T:
        if self._own is None or self._loop is None:
            return await question
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(question, self._loop))

    async def _ask(self, request: InferRequest) -> InferResponse:
        """Ask the model in this process."""
        served = self._served
        if served is None:
            raise NotReady(f"model {self.name!r} is not loaded")
        future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()

        def done(answer: InferResponse | SerinusError) -> None:
            if future.done():
                return
            if isinstance(answer, InferResponse):
                future.set_result(answer)
            else:
                future.set_exception(answer)

        ticket = served.submit(request, done, time.monotonic())
        try:
            return await future
        except asyncio.CancelledError:
            ticket.cancel()
            raise

    async def _ask_v1(
        self, payload: dict[str, Any], headers: Mapping[str, str], deadline: float | None, back: dict[str, str] | None
    ) -> dict[str, Any]:
        """Ask the model in this process with a V1 body."""
        if self._served is None:
            raise NotReady(f"model {self.name!r} is not loaded")
        model = self._served.model
        if isinstance(model, RequestModel):  # a class that speaks V1 itself is asked in V1
            call = V1Call(self.name, (), "", headers=headers, call=partial(model.predict_v1, payload, headers))
            call.deadline = deadline
            answer = (await self._ask(call)).parameters["v1"]
            if isinstance(answer, V1Answer):
                if back is not None:
                    back.update(answer.headers)
                return dict(answer.document)
            if answer is not None:
                return answer
        metadata = ModelMetadata(self.name, (), model.platform, tuple(model.inputs), tuple(model.outputs))
        decoded = v1_codec.decode(orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY))
        request = v1_codec.to_request(decoded, metadata)
        request.headers, request.deadline = headers, deadline
        return orjson.loads(v1_codec.encode(await self._ask(request), decoded))


def _expire(ticket: Ticket) -> None:
    if ticket.batcher is not None:
        ticket.batcher.expire(ticket)
