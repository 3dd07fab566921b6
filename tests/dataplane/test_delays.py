"""Delays that follow one another, in simulated time; and what a request that is done still holds."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest

from dataplane_support import Queue, SimulatedExecutor
from serinus import Call, InferRequest, Tensor
from serinus.dataplane.batching.pending_request import DONE, QUEUED, BatchKey, PendingRequest


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_each_batch_has_a_delay_of_its_own_though_the_one_before_had_one():
    queue = Queue(SimulatedExecutor(), max_delay_s=0.5, max_batch_rows=8)
    for label in "abc":
        queue.submit(label)
        await asyncio.sleep(2)
    await queue.settled()
    assert queue.executor.batches == [["a"], ["b"], ["c"]]
    assert queue.executor.started == [0.5, 2.5, 4.5]


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_an_earlier_deadline_brings_the_delay_forward_and_a_later_request_does_not_push_it_back():
    queue = Queue(SimulatedExecutor(), max_delay_s=1.0, max_batch_rows=8)
    queue.submit("a")
    await asyncio.sleep(0.25)
    queue.submit("b")
    queue.submit("c", timeout_s=0.5)
    await queue.settled()
    assert queue.executor.batches == [["a", "b", "c"]]
    assert queue.executor.started == [0.5], "half of the time to the deadline of c"


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_what_comes_while_a_batch_runs_has_had_its_delay_when_the_place_is_free():
    queue = Queue(SimulatedExecutor(call_s=2.0), max_delay_s=0.5, max_batch_rows=8)
    queue.submit("a")
    await asyncio.sleep(1.0)
    queue.submit("b")
    await queue.settled()
    assert queue.executor.started == [0.5, 2.5]


def pending_of(array: np.ndarray, told: list[object]) -> PendingRequest:
    request = InferRequest("m", [Tensor.of("x", array)])
    return PendingRequest(request, told.append, 1.0, 2.0, None, BatchKey(None, ("x",), Call()), (array,), 1, 0)


class Array(np.ndarray):
    """An array that can be seen to go."""


def test_a_released_request_holds_no_tensor_and_can_be_told_nothing():
    array = np.ones(3).view(Array)
    gone = weakref.ref(array)
    told: list[object] = []
    pending = pending_of(array, told)
    del array
    assert gone() is not None
    pending.release()
    gc.collect()
    assert gone() is None
    assert (pending.arrays, pending.batch, pending.task) == ((), None, None)
    with pytest.raises(AssertionError, match="a request was answered twice"):
        pending.on_complete("again")
    assert told == []


def test_a_request_begins_in_the_queue_wants_to_leave_at_once_and_is_done_when_cancelled():
    pending = pending_of(np.ones(3), [])
    assert (pending.state, pending.due, pending.arrived, pending.deadline) == (QUEUED, 1.0, 1.0, 2.0)
    assert (pending.batch, pending.task) == (None, None)
    pending.cancel()
    assert pending.state == DONE
    pending.cancel()


class Noting:
    """A queue that notes who is cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[PendingRequest] = []

    def cancel(self, pending: PendingRequest) -> None:
        self.cancelled.append(pending)

    def expire(self, pending: PendingRequest) -> None:
        """Stands for a queue's."""


def test_a_request_that_waits_is_cancelled_by_its_queue_and_one_that_is_done_by_nobody():
    queue, pending = Noting(), pending_of(np.ones(3), [])
    pending.queue = queue
    pending.cancel()
    assert queue.cancelled == [pending]
    pending.state = DONE
    pending.cancel()
    assert queue.cancelled == [pending]
