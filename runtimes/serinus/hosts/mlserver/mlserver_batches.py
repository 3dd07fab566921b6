"""Adaptive batching of an `MLModel`, as its `max_batch_size` and `max_batch_time` ask for.

Theory of operation. Requests of one form (inputs, datatypes, shapes beyond the rows, parameters, wanted outputs, transport) wait for each
other, up to so many rows or so long, and are one request for the class, whose answer is cut by rows. MLServer itself joins whatever
waits, and gives callers each other's rows where the forms differ or an output has other rows than the inputs. Here such an
answer, and an error, are thrown away, and each request is predicted alone. What a class reads from the headers is the first
request's, as it is some one's under MLServer.

Everything here runs on the model's own loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ...protocol.types import InferRequest, InferResponse, Tensor
from ..transport import is_grpc

__all__ = ["Batches"]

_log = logging.getLogger("serinus.hosts")


class _Waiting(NamedTuple):
    request: InferRequest
    rows: int
    answer: asyncio.Future[InferResponse]


class Batches:
    """The requests of one model that wait for each other.

    Args:
        name: of the model.
        predict: answers one request.
        max_rows: most rows of one batch; a request of more is predicted alone.
        max_delay_s: longest that a request waits for others.
    """

    def __init__(
        self,
        name: str,
        predict: Callable[[InferRequest], Awaitable[InferResponse]],
        *,
        max_rows: int,
        max_delay_s: float,
    ) -> None:
        self._name = name
        self._predict = predict
        self._max_rows = max_rows
        self._max_delay_s = max_delay_s
        self._groups: dict[Hashable, list[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = False

    async def answer(self, request: InferRequest) -> InferResponse:
        """Answer a request, perhaps together with others."""
        rows = _rows(request)
        if not 0 < rows < self._max_rows:
            return await self._predict(request)
        loop = asyncio.get_running_loop()
        key = _form(request)
        group = self._groups.get(key)
        if group is not None and sum(one.rows for one in group) + rows > self._max_rows:
            self._send(key, group)
            group = None
        if group is None:
            group = self._groups[key] = []
            loop.call_later(self._max_delay_s, self._send, key, group)
        waiting = _Waiting(request, rows, loop.create_future())
        group.append(waiting)
        if sum(one.rows for one in group) == self._max_rows:
            self._send(key, group)
        return await waiting.answer

    def _send(self, key: Hashable, group: list[_Waiting]) -> None:
        """Predict a group, unless that was done when it was full."""
        if self._groups.get(key) is group:
            del self._groups[key]
            task = asyncio.get_running_loop().create_task(self._predict_group(group))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _predict_group(self, group: Sequence[_Waiting]) -> None:
        left = [one for one in group if not one.answer.done()]  # the others' clients have gone
        if len(left) > 1:
            try:
                parts = self._cut(await self._predict(_joined(left)), left)
            except Exception:  # noqa: BLE001 # whose fault it is, each of them alone will tell
                parts = None
            if parts is not None:
                for one, part in zip(left, parts, strict=True):
                    if not one.answer.done():
                        one.answer.set_result(part)
                return
        await asyncio.gather(*(self._predict_alone(one) for one in left))

    async def _predict_alone(self, one: _Waiting) -> None:
        try:
            response = await self._predict(one.request)
        except Exception as error:  # noqa: BLE001 # the request's own
            if not one.answer.done():
                one.answer.set_exception(error)
        else:
            if not one.answer.done():
                one.answer.set_result(response)

    def _cut(self, response: InferResponse, group: Sequence[_Waiting]) -> list[InferResponse] | None:
        """Give each request its rows of an answer; None: it has other rows than they."""
        total = sum(one.rows for one in group)
        for tensor in response.outputs:
            if not tensor.data.ndim or tensor.data.shape[0] != total:
                if not self._told:
                    self._told = True
                    _log.warning(
                        "model '%s' has max_batch_size, but answered %d rows with %s in output '%s': such requests are predicted alone",
                        *(self._name, total, list(tensor.data.shape), tensor.name),
                    )
                return None
        parts = []
        start = 0
        for one in group:
            stop = start + one.rows
            outputs = [
                Tensor(tensor.name, tensor.datatype, data.shape, data, tensor.parameters)
                for tensor in response.outputs
                for data in (tensor.data[start:stop],)
            ]
            parts.append(replace(response, outputs=outputs, id=one.request.id))
            start = stop
        return parts


def _rows(request: InferRequest) -> int:
    """Count the rows; 0 where the inputs have none in common."""
    counts = {tensor.data.shape[0] if tensor.data.ndim else 0 for tensor in request.inputs}
    return counts.pop() if len(counts) == 1 else 0


def _form(request: InferRequest) -> Hashable:
    inputs = tuple(
        (tensor.name, tensor.datatype, tensor.shape[1:], tensor.nested, _frozen(tensor.parameters))
        for tensor in request.inputs
    )
    outputs = tuple((output.name, _frozen(output.parameters)) for output in request.outputs or ())
    return inputs, outputs, _frozen(request.parameters), is_grpc(request.headers)


def _frozen(value: Any) -> Hashable:
    return repr(sorted(value.items())) if value else ""


def _joined(group: Sequence[_Waiting]) -> InferRequest:
    first = group[0].request
    inputs = []
    for tensors in zip(*(one.request.inputs for one in group), strict=True):
        data = np.concatenate([tensor.data for tensor in tensors])
        inputs.append(replace(tensors[0], shape=data.shape, data=data))
    return replace(first, inputs=inputs, id=None)
