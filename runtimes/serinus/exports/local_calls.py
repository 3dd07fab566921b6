"""A serinus `Model` called one request at a time, for servers that are not ours: the data plane's checks, without its queue."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np

from ..dataplane.servables.checks import OutputChecks, RequestChecks
from ..model import Model, RequestModel
from ..protocol.types import InferRequest, InferResponse, ModelMetadata, Tensor

__all__ = ["LocalCalls"]


class LocalCalls:
    """Answers requests with a loaded model; `predict` runs in a thread, so that the server's event loop stays free.

    Args:
        model: loaded.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        if model.batching == "earned" and model.batchable:
            model.join_rows(False)  # nothing was checked here, and nothing is joined
        self._checks = RequestChecks(model)
        self._output_checks = OutputChecks(model, batchable=self._checks.batchable)

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself."""
        model = self.model
        versions = (model.version,) if model.version else ()
        return ModelMetadata(
            model.name,
            versions,
            model.platform,
            tuple(model.inputs),
            tuple(model.outputs),
            dict(model.details),
            column_names=model.columns.names if model.columns is not None else (),
        )

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request.

        Raises:
            SerinusError: the request does not fit the model, or the answer does not fit what the model promised.
            Exception: what the model raises.
        """
        model = self.model
        if isinstance(model, RequestModel):
            return await model.infer(request)
        form, arrays, rows = self._checks.admit(request)
        inputs: Mapping[str, np.ndarray] = dict(zip(form.names, arrays, strict=True))
        answer = await asyncio.get_running_loop().run_in_executor(None, model.predict, inputs, form.call)
        outputs = self._output_checks.check(answer, rows, form.call.outputs)
        return InferResponse(
            model.name,
            [Tensor(name, datatype, array.shape, array) for name, datatype, array, _ in outputs],
            model.version,
            request.id,
        )
