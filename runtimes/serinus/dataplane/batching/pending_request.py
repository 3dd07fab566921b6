"""One request inside the data plane, and one batch of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...errors import ModelFailed, SerinusError
from ...model import Call, RequestModel
from ...protocol.types import InferRequest, InferResponse
from ..response_stream import Pipe, closing

if TYPE_CHECKING:
    from .batcher import Batcher

__all__ = ["DONE", "QUEUED", "RUNNING", "Done", "Form", "ModelCall", "StreamCall", "Ticket", "V1Call", "Work"]

Done = Callable[[InferResponse | SerinusError], None]
"""Told the outcome of a request, once, on the loop's thread; never from within `submit`, never after a cancel."""

QUEUED: Final = 0
RUNNING: Final = 1
DONE: Final = 2


class Form:
    """What must be equal for two requests to share a batch: names, shapes beyond the rows, datatypes, parameters, outputs."""

    __slots__ = ("call", "key", "names")

    def __init__(self, key: Any, names: tuple[str, ...], call: Call) -> None:
        self.key = key
        self.names = names
        """Inputs present, in the order of `Ticket.arrays`."""
        self.call = call


class Ticket:
    """A request in flight. Transports know one method: `cancel`."""

    __slots__ = (
        "arrays",
        "arrived",
        "batcher",
        "deadline",
        "done",
        "due",
        "form",
        "level",
        "request",
        "rows",
        "state",
        "work",
    )

    def __init__(
        self,
        request: InferRequest,
        done: Done,
        arrived: float,
        deadline: float | None,
        batcher: Batcher | None,
        form: Form,
        arrays: tuple[np.ndarray, ...],
        rows: int,
        level: int,
    ) -> None:
        self.request = request
        self.done = done
        self.arrived = arrived
        """Clock of the plane, seconds."""
        self.deadline = deadline
        """The same clock; None: waits as long as its client does."""
        self.batcher = batcher
        """None: the request was refused before it reached a queue."""
        self.form = form
        self.arrays: tuple[np.ndarray, ...] = arrays
        self.rows = rows
        self.level = level
        """Priority level, 0 the highest."""
        self.state = QUEUED
        self.work: Work | None = None
        self.due = arrived
        """Latest moment at which it wants to leave the queue where `max_delay_s` makes requests wait."""

    def cancel(self) -> None:
        """Forget the request: its client is gone.

        `done` will not be called. Queued rows are not predicted; a prediction that runs goes on for its neighbours.
        """
        if self.state != DONE:
            if self.batcher is None:
                self.state = DONE
            else:
                self.batcher.cancel(self)

    def release(self) -> None:
        """Drop what the request holds, so that a dead ticket in a queue or heap costs no tensors."""
        self.arrays = ()
        self.work = None
        self.request = _NO_REQUEST
        self.done = _told_already


class ModelCall(InferRequest):
    """What a `RequestModel` is asked beside `infer`: takes its place in the queue like any request."""

    __slots__ = ()

    async def answer(self, model: RequestModel) -> InferResponse:
        """Run the call."""
        raise NotImplementedError


class V1Call(ModelCall):
    """A V1 body for a model that speaks V1: `call()` answers it.

    The answer travels as the response's parameter "v1": an object, or None where the model would rather have V2.
    """

    __slots__ = ("call",)

    def __init__(
        self,
        model_name: str,
        inputs: Sequence[Any],
        model_version: str,
        *,
        headers: Mapping[str, str],
        call: Callable[[], Awaitable[Any]],
    ) -> None:
        super().__init__(model_name, inputs, model_version, headers=headers)
        self.call = call

    async def answer(self, model: RequestModel) -> InferResponse:  # `call` knows it
        """Run the call."""
        return InferResponse(self.model_name, (), parameters={"v1": await self.call()})


class StreamCall(ModelCall):
    """A request that the model answers with any number of responses, and perhaps further requests of the same client.

    Args:
        first: the request that opens the stream; its deadline, priority and timeout are the whole stream's.
        further: those that follow.
        pipe: takes the responses.
        complete: makes a response of the model's the client's.
    """

    __slots__ = ("complete", "first", "further", "pipe")

    def __init__(
        self,
        first: InferRequest,
        further: AsyncIterator[InferRequest] | None,
        pipe: Pipe[InferResponse],
        complete: Callable[[InferResponse, InferRequest], InferResponse],
    ) -> None:
        super().__init__(
            first.model_name,
            first.inputs,
            first.model_version,
            first.id,
            first.parameters,
            headers=first.headers,
            deadline=first.deadline,
            priority=first.priority,
        )
        self.first = first
        self.further = further
        self.pipe = pipe
        self.complete = complete

    async def answer(self, model: RequestModel) -> InferResponse:
        """Pass on what the model answers, until it has ended."""
        responses = model.infer_stream(self._requests())
        async with closing(responses):
            async for response in responses:
                if not isinstance(response, InferResponse):
                    raise ModelFailed(
                        f"model '{self.model_name}' answered a {type(response).__name__} in its stream; "
                        "an InferResponse was expected"
                    )
                await self.pipe.put(self.complete(response, self.first))
        return InferResponse(self.model_name, ())

    async def _requests(self) -> AsyncIterator[InferRequest]:
        yield self.first
        if self.further is not None:
            async for request in self.further:
                yield request


_NO_REQUEST: Final = InferRequest("", ())


def _told_already(_: InferResponse | SerinusError) -> None:
    raise AssertionError("a request was answered twice")


class Work:
    """Tickets that are predicted together."""

    __slots__ = ("error", "infer_from", "infer_to", "outputs", "rows", "started", "task", "tickets")

    def __init__(self, tickets: Sequence[Ticket], rows: int, started: float) -> None:
        self.tickets = tickets
        self.rows = rows
        self.started = started
        """When the batch left the queue; the end of its requests' queue time."""
        self.infer_from = started
        """When its inputs were ready."""
        self.infer_to = started
        self.outputs: Mapping[str, np.ndarray] | InferResponse | None = None
        self.error: BaseException | None = None
        self.task: Any = None
        """The asyncio task of a `RequestModel`."""
