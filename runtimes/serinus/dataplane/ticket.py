"""One request inside the data plane, and one batch of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import SerinusError
from ..model import Call
from ..protocol.types import InferRequest, InferResponse

if TYPE_CHECKING:
    from .batcher import Batcher

__all__ = ["DONE", "QUEUED", "RUNNING", "Done", "Form", "Ticket", "V1Call", "Work"]

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


class V1Call(InferRequest):
    """A V1 body for a model that speaks V1: takes its place in the queue, and `call()` answers it.

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

    async def answer(self) -> InferResponse:
        """Run the call."""
        return InferResponse(self.model_name, (), parameters={"v1": await self.call()})


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
