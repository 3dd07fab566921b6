"""One request inside the data plane, and one batch of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from ...model import Call
from ...protocol.types import InferRequest

__all__ = ["DONE", "QUEUED", "RUNNING", "Batch", "BatchKey", "Outcome", "PendingRequest", "Queue", "held_bytes"]

Outcome = Callable[[Any], None]
"""Told the answer of a request or the `SerinusError` in its place, once, on the loop's thread; never from within the call that began
it, never after a cancel."""

QUEUED: Final = 0
RUNNING: Final = 1
DONE: Final = 2

_OBJECT_BYTES: Final = 41
"""Of a value of BYTES beside its bytes: its head (33, CPython 3.11 on 64 bits) and the array's pointer to it."""


def held_bytes(array: np.ndarray) -> int:
    """Bytes that a tensor holds in memory; of BYTES, those of the values and of the objects that they are."""
    if not array.dtype.hasobject:
        return array.nbytes
    try:
        return sum(map(len, array.flat)) + _OBJECT_BYTES * array.size
    except TypeError:  # numbers and nulls, which KServe's classes are given as they were sent
        return sum(len(value) for value in array.flat if isinstance(value, bytes)) + _OBJECT_BYTES * array.size


class BatchKey:
    """What must be equal for two requests to share a batch: names, shapes beyond the rows, datatypes, parameters, outputs."""

    __slots__ = ("call", "names", "row_bytes", "value")

    def __init__(self, value: Any, names: tuple[str, ...], call: Call, row_bytes: int = 0) -> None:
        self.value = value
        self.names = names
        """Inputs present, in the order of `PendingRequest.arrays`."""
        self.call = call
        self.row_bytes = row_bytes
        """Of all inputs together, where it is the same for every request; 0: it is not, and the arrays are asked."""


class Queue(Protocol):
    """Where a request waits."""

    def cancel(self, pending: PendingRequest) -> None:
        """Take out a request whose client has gone."""

    def expire(self, pending: PendingRequest) -> None:
        """Answer a request whose deadline has come."""


class PendingRequest:
    """A request in flight. Transports know one method: `cancel`."""

    __slots__ = (
        "ahead",
        "arrays",
        "arrived",
        "batch",
        "deadline",
        "due",
        "is_stream",
        "key",
        "level",
        "on_complete",
        "queue",
        "request",
        "rows",
        "size",
        "state",
        "task",
    )

    def __init__(
        self,
        request: InferRequest,
        on_complete: Outcome,
        arrived: float,
        deadline: float | None,
        queue: Queue | None,
        key: BatchKey,
        arrays: tuple[np.ndarray, ...],
        rows: int,
        level: int,
        task: Callable[[], Awaitable[Any]] | None = None,
        size: int = 0,
    ) -> None:
        self.request = request
        self.on_complete = on_complete
        self.arrived = arrived
        """Clock of the plane, seconds."""
        self.deadline = deadline
        """The same clock; None: waits as long as its client does."""
        self.queue = queue
        """None: the request was refused before it reached one."""
        self.key = key
        self.arrays: tuple[np.ndarray, ...] = arrays
        self.rows = rows
        self.level = level
        """Priority level, 0 the highest."""
        self.size = size
        """Bytes that it holds until it is answered: its tensors, or its body."""
        self.ahead: int
        """Set when it is queued: the rows that are before it and its own, less, for a lower level, what had ever come above it."""
        self.is_stream = False
        """It takes as long as its client reads, and says nothing of how busy the model is."""
        self.state = QUEUED
        self.batch: Batch | None = None
        self.due = arrived
        """Latest moment at which it wants to leave the queue where `max_delay_s` makes requests wait."""
        self.task = task
        """What answers it in place of the model's `infer`: a V1 body, a stream. None: `infer` does."""

    def cancel(self) -> None:
        """Forget the request: its client is gone.

        `on_complete` will not be called. Queued rows are not predicted; a prediction that runs goes on for its neighbours.
        """
        if self.state != DONE:
            if self.queue is None:
                self.state = DONE
            else:
                self.queue.cancel(self)

    def release(self) -> None:
        """Drop what the request holds, so that a dead one in a queue or heap costs no tensors."""
        self.arrays = ()
        self.batch = None
        self.task = None
        self.request = _NO_REQUEST
        self.on_complete = _refuse_second_answer


_NO_REQUEST: Final = InferRequest("", ())


def _refuse_second_answer(_: Any) -> None:
    raise AssertionError("a request was answered twice")


class Batch:
    """Requests that are predicted together."""

    __slots__ = ("error", "infer_from", "infer_to", "members", "outputs", "rows", "running", "started")

    def __init__(self, members: Sequence[PendingRequest], rows: int, started: float) -> None:
        self.members = members
        self.rows = rows
        self.started = started
        """When the batch left the queue; the end of its requests' queue time."""
        self.infer_from = started
        """When its inputs were ready."""
        self.infer_to = started
        self.outputs: Mapping[str, np.ndarray] | Any = None
        """Arrays by name; of a model that answers requests, the responses in the members' order."""
        self.error: BaseException | None = None
        self.running: Any = None
        """What stops it before its end, where that is possible: has `cancel()`."""
