"""`Pipeline`: a transformer and a model in one process, without the hop that KServe puts between them.

Theory of operation. The transformer is a `kserve.Model`, hosted as any other (`KServeHost`). Where it would call its predictor,
because it does not override `predict` or calls `super().predict()`, its request goes to the model here instead. That
model is served like any other (`RequestModel.serve_behind`): its requests are
checked, the rows of concurrent requests are predicted in one call, deadlines and cancelled requests leave the queue,
one bad request fails alone, and its statistics are on the pages of metrics and statistics.

A transformer that knows how to treat the rows of several requests at once has a `RowBatching`, which spares one-row requests
most of what hosting costs.

A transformer written for V1 works too: its `{"instances": ...}` are a V1 request for the model, whose answer comes back as V1.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import orjson

from ...errors import ConfigError, NotReady
from ...model import Behind, Model
from ...protocol.types import InferRequest, InferResponse
from ...settings import ModelSettings, PredictorSettings
from .kserve_host import KServeHost
from .row_batching import RowBatching, row_transformer

__all__ = ["IN_PROCESS", "Pipeline"]

_T = TypeVar("_T")
_log = logging.getLogger("serinus.hosts")

IN_PROCESS: Final = {
    "predictor_host": "in-process",
    "protocol": "v2",
    "predictor_protocol": "v2",
    "use_ssl": False,
    "predictor_use_ssl": False,
}
"""For constructors that must be told of a predictor, as in KServe's documents: there is one, and the host goes to it."""


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
        super().__init__(settings, transformer, PredictorSettings(host=IN_PROCESS["predictor_host"], protocol="v2"))
        self.predictor = self.client = None
        self._factory = factory
        self._behind: Behind | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Load the model and open its queue."""
        self._loop = asyncio.get_running_loop()
        if self.serve_behind is None:
            raise ConfigError(
                f"the pipeline {self.name!r} is not served by a data plane, which has to serve its model too"
            )
        settings = dataclasses.replace(self.settings, inputs=(), outputs=())
        self._behind = behind = await self.serve_behind(self._factory, settings)
        model = behind.model
        self.outputs = self.outputs or tuple(model.outputs)
        self.details["model"] = dict(model.details)
        rows = row_transformer(self.hosted)
        if rows is not None and behind.batchable:
            self.request_batching = RowBatching(
                rows,
                behind,
                name=self.name,
                version=self.settings.version,
                observe=self.observe_stage,
                is_open=lambda: self.hosted.ready,
            )
        _log.info(
            "pipeline %s: %s in front of %s, in one process",
            self.name,
            type(self.hosted).__name__,
            type(model).__name__,
        )

    async def _predictor(self, question: Coroutine[Any, Any, _T]) -> _T:
        if self._loop_thread is None or self._loop is None:
            return await question
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(question, self._loop))

    async def _ask(self, request: InferRequest) -> InferResponse:
        """Ask the model in this process."""
        return await self._behind_or_refuse().infer(request)

    async def _ask_v1(
        self, payload: dict[str, Any], headers: Mapping[str, str], deadline: float | None, back: dict[str, str] | None
    ) -> dict[str, Any]:
        """Ask the model in this process with a V1 body."""
        body = orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY)
        answer = await self._behind_or_refuse().predict_v1(body, headers, deadline=deadline)
        if back is not None:
            back.update(answer.headers)
        document = answer.document
        return orjson.loads(document) if isinstance(document, bytes) else dict(document)

    def _behind_or_refuse(self) -> Behind:
        if self._behind is None:
            raise NotReady(f"model {self.name!r} is not loaded")
        return self._behind
