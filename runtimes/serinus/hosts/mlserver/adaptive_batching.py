"""Adaptive batching of an `MLModel`, as its `max_batch_size` and `max_batch_time` ask for.

Theory of operation. The plane's batcher joins requests that agree in inputs, datatypes, shapes beyond the rows, parameters, wanted outputs and
transport, up to so many rows or so long; they are one request for the class, whose answer is cut by rows. MLServer itself joins whatever
waits, and gives callers each other's rows where the shapes differ or an output has other rows than the inputs. Here such an
answer, and an error, are thrown away, and each request is predicted alone. What a class reads from the headers is the first
request's, as it is some one's under MLServer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import Cancelled, ModelFailed
from ...model import Cancellable
from ...protocol.types import InferRequest, InferResponse, Tensor
from ..transport import is_grpc

__all__ = ["AdaptiveBatching"]

_log = logging.getLogger("serinus.hosts")


class AdaptiveBatching:
    """How one model answers several requests together; see `model.RequestBatching`.

    Args:
        name: of the model.
        predict: makes the coroutine that answers one request, for the server's event loop.
        max_rows: most rows of one batch; a request of more is predicted alone.
        max_delay_s: longest that a request waits for others.
    """

    def __init__(
        self,
        name: str,
        predict: Callable[[InferRequest], Coroutine[Any, Any, InferResponse]],
        *,
        max_rows: int,
        max_delay_s: float,
    ) -> None:
        self.max_rows = max_rows
        self.max_delay_s = max_delay_s
        self._name = name
        self._predict = predict
        self._tasks: set[asyncio.Task[InferResponse]] = set()
        self._told = False

    def key(self, request: InferRequest) -> tuple[Hashable, int] | None:
        """Say what must be equal; None where the inputs have no rows in common, or are a batch by themselves."""
        names = {tensor.name for tensor in request.inputs}
        counts = {tensor.data.shape[0] if tensor.data.ndim else 0 for tensor in request.inputs}
        rows = counts.pop() if len(counts) == 1 else 0
        if not 0 < rows < self.max_rows or len(names) != len(request.inputs):
            return None
        inputs = tuple(
            (tensor.name, tensor.datatype, tensor.shape[1:], tensor.nested, _freeze(tensor.parameters))
            for tensor in request.inputs
        )
        outputs = tuple((output.name, _freeze(output.parameters)) for output in request.outputs or ())
        return (inputs, outputs, _freeze(request.parameters), is_grpc(request.headers)), rows

    def is_of_a_member(self, error: BaseException) -> bool:
        """Whose fault it is, each of them alone will tell."""
        return True

    def infer_batch(
        self, requests: Sequence[InferRequest], on_complete: Callable[[Sequence[InferResponse] | BaseException], None]
    ) -> Cancellable:
        """Answer requests of one key as one."""
        request = requests[0] if len(requests) == 1 else _join(requests)
        task = asyncio.get_running_loop().create_task(self._predict(request))
        self._tasks.add(task)

        def ended(task: asyncio.Task[InferResponse]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                on_complete(Cancelled("the client went away"))
            elif (error := task.exception()) is not None:
                on_complete(error)
            elif len(requests) == 1:
                on_complete([task.result()])
            else:
                on_complete(self._cut(task.result(), requests))

        task.add_done_callback(ended)
        return task

    def _cut(self, response: InferResponse, requests: Sequence[InferRequest]) -> list[InferResponse] | ModelFailed:
        """Give each request its rows of an answer, unless it has other rows than they."""
        counts = [request.inputs[0].data.shape[0] for request in requests]
        total = sum(counts)
        for tensor in response.outputs:
            if not tensor.data.ndim or tensor.data.shape[0] != total:
                if not self._told:
                    self._told = True
                    _log.warning(
                        "model '%s' has max_batch_size, but answered %d rows with %s in output '%s': such requests are predicted alone",
                        *(self._name, total, list(tensor.data.shape), tensor.name),
                    )
                return ModelFailed(f"model '{self._name}' answered {total} rows with {list(tensor.data.shape)}")
        parts = []
        start = 0
        for request, rows in zip(requests, counts, strict=True):
            stop = start + rows
            outputs = [
                Tensor(tensor.name, tensor.datatype, data.shape, data, tensor.parameters)
                for tensor in response.outputs
                for data in (tensor.data[start:stop],)
            ]
            parts.append(replace(response, outputs=outputs, id=request.id))
            start = stop
        return parts


def _freeze(value: Any) -> Hashable:
    return repr(sorted(value.items())) if value else ""


def _join(requests: Sequence[InferRequest]) -> InferRequest:
    first = requests[0]
    inputs = []
    for tensors in zip(*(request.inputs for request in requests), strict=True):
        data = np.concatenate([tensor.data for tensor in tensors])
        inputs.append(replace(tensors[0], shape=data.shape, data=data))
    return replace(first, inputs=inputs, id=None)
