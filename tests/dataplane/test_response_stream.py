"""The pieces of one answer between a model and its reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from serinus.dataplane.response_stream import ROOM, ResponseStream, closing
from serinus.errors import Cancelled, ModelFailed

pytestmark = pytest.mark.asyncio


class Source:
    """Counts how often it was cancelled."""

    def __init__(self) -> None:
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1


class Numbers:
    """An iterator that remembers that it was closed."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left

    async def aclose(self) -> None:
        self.closed += 1


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def read(stream: ResponseStream[int]) -> list[int]:
    return [piece async for piece in stream]


async def test_pieces_come_in_order_and_then_it_is_over():
    stream: ResponseStream[int] = ResponseStream()
    for piece in range(3):
        await stream.put(piece)
    stream.end()
    assert await read(stream) == [0, 1, 2]
    assert await read(stream) == [], "over once is over for good"


async def test_the_error_comes_after_the_pieces_that_were_there_and_once():
    stream: ResponseStream[int] = ResponseStream()
    await stream.put(1)
    stream.end(ModelFailed("first"))
    stream.end(ModelFailed("second"))
    assert await stream.__anext__() == 1
    with pytest.raises(ModelFailed, match="first"):
        await stream.__anext__()
    assert await read(stream) == []


async def test_only_so_many_pieces_lie_between_and_each_one_read_makes_room_for_one():
    stream: ResponseStream[int] = ResponseStream()
    put: list[int] = []

    async def fill() -> None:
        for piece in range(ROOM + 3):
            await stream.put(piece)
            put.append(piece)
        stream.end()

    task = asyncio.ensure_future(fill())
    await turns()
    assert len(put) == ROOM == 16
    assert await stream.__anext__() == 0
    await turns()
    assert len(put) == ROOM + 1
    assert await read(stream) == list(range(1, ROOM + 3))
    await task


async def test_a_reader_waits_for_a_piece_or_the_end():
    stream: ResponseStream[int] = ResponseStream()
    first = asyncio.ensure_future(stream.__anext__())
    await turns()
    assert not first.done()
    await stream.put(7)
    assert await first == 7
    rest = asyncio.ensure_future(read(stream))
    await turns()
    assert not rest.done()
    stream.end()
    assert await rest == []


@pytest.mark.parametrize("full", [False, True])
async def test_a_model_whose_reader_has_left_is_told_at_the_next_piece(full: bool):
    stream: ResponseStream[int] = ResponseStream()
    for piece in range(ROOM if full else 1):
        await stream.put(piece)
    waiting = asyncio.ensure_future(stream.put(99)) if full else None
    await turns()
    stream.cancel()
    with pytest.raises(Cancelled, match="the client went away"):
        await (waiting or stream.put(99))
    assert await read(stream) == [], "what was not read is dropped"


async def test_leaving_cancels_the_request_once_and_forgets_the_error():
    stream, source = ResponseStream[int](), Source()
    stream.source = source
    stream.end(ModelFailed("late"))
    await stream.aclose()
    stream.cancel()
    assert source.cancels == 1
    assert stream.source is None
    assert await read(stream) == []


async def test_a_model_that_ends_is_not_cancelled_and_what_comes_later_changes_nothing():
    stream, source = ResponseStream[int](), Source()
    stream.source = source
    stream.end()
    stream.end(ModelFailed("late"))
    assert await read(stream) == []
    assert source.cancels == 0


async def test_the_only_piece_of_a_model_that_gives_one_is_the_stream():
    stream: ResponseStream[int] = ResponseStream()
    stream.end_with_only(5)
    assert await read(stream) == [5]
    failed: ResponseStream[int] = ResponseStream()
    failed.end_with_only(ModelFailed("no"))
    with pytest.raises(ModelFailed, match="no"):
        await read(failed)


async def test_the_outcome_of_the_request_ends_the_stream_with_its_error_or_with_none():
    stream: ResponseStream[int] = ResponseStream()
    await stream.put(1)
    stream.end_with_request("whatever a task returns")
    assert await read(stream) == [1]
    failed: ResponseStream[int] = ResponseStream()
    failed.end_with_request(ModelFailed("no"))
    with pytest.raises(ModelFailed, match="no"):
        await read(failed)


async def test_an_iterator_is_emptied_into_the_stream_and_closed():
    stream, numbers = ResponseStream[int](), Numbers(3)
    await stream.fill(numbers)
    stream.end()
    assert (await read(stream), numbers.closed) == ([2, 1, 0], 1)


async def test_an_iterator_is_closed_when_the_reader_leaves_in_the_middle():
    stream, numbers = ResponseStream[int](), Numbers(100)
    task = asyncio.ensure_future(stream.fill(numbers))
    await turns()
    assert not task.done()
    stream.cancel()
    with pytest.raises(Cancelled):
        await task
    assert numbers.closed == 1
    assert numbers.left == 100 - ROOM - 1


async def test_what_cannot_be_closed_is_left_alone():
    class Plain:
        def __aiter__(self):
            return self

        async def __anext__(self):
            raise StopAsyncIteration

    async with closing(Plain()):
        pass
