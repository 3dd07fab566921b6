"""Places of one stream's requests, without an engine: their order, their bound, what an error's message holds, and who is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from serinus.errors import GrpcStatus, InvalidInput, TimedOut
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.grpc import streams
from serinus.server.grpc.answers import Failure
from serinus.server.grpc.streams import infer_stream
from waiting import turns

NO = Failure(GrpcStatus.INVALID_ARGUMENT, "no")


def asked(number: int) -> bytes:
    return pb.ModelInferRequest(model_name="m", id=str(number)).SerializeToString()


def payload(text: str) -> bytes:
    return pb.ModelInferResponse(model_name="m", id=text).SerializeToString()


class Pending:
    """A request at its model."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Desk:
    """Takes requests as `Service` does, and answers when the test says."""

    def __init__(self, *, whole: Any = None) -> None:
        self.open = 0
        self.whole = whole
        self.taken: list[tuple[bytes, Any, Pending]] = []
        self.asked: list[tuple[Any, ...]] = []

    def began(self) -> None:
        self.open += 1

    def ended(self) -> None:
        self.open -= 1

    def infer(self, message: bytes, headers: Any, deadline: float | None, answer: Any, *, stream: bool) -> Pending:
        self.asked.append((headers, deadline, stream))
        self.taken.append((message, answer, Pending()))
        return self.taken[-1][2]

    def is_laborious(self, message: bytes) -> bool:
        return False

    def parsed(self, message: bytes) -> Any:
        if message == b"worse":
            raise InvalidInput("damaged")
        return pb.ModelInferRequest.FromString(message)

    async def whole_stream(self, first: bytes, further: Any, headers: Any, deadline: float | None) -> Any:
        return self.whole


class Several:
    """What a model that streams answers to one request."""

    def __init__(self, *items: Any, final_wanted: bool = False) -> None:
        self.items = list(items)
        self.final_wanted = final_wanted
        self.request = SimpleNamespace(model_name="m", id="7")
        self.is_cancelled = False

    def __aiter__(self) -> Several:
        return self

    async def __anext__(self) -> bytes:
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        return payload(item)

    def cancel(self) -> None:
        self.is_cancelled = True


async def messages(*sent: bytes) -> AsyncIterator[bytes]:
    for message in sent:
        yield message


def stream_of(desk: Any, *sent: bytes, deadline: float | None = None) -> Any:
    return infer_stream(desk, messages(*sent), {"a": "b"}, deadline)


def told(message: bytes) -> Any:
    """An answer's id, whether it is its request's last, and its error."""
    found = pb.ModelStreamInferResponse.FromString(message)
    final = found.infer_response.parameters["triton_final_response"].bool_param
    return found.infer_response.id, final, found.error_message


async def test_answers_come_in_the_order_of_the_requests_whatever_order_they_are_given_in():
    desk = Desk()
    answers = stream_of(desk, *map(asked, range(3)), deadline=5.0)
    first = asyncio.ensure_future(anext(answers))
    await turns()
    assert desk.asked == [({"a": "b"}, 5.0, True)] * 3
    assert desk.open == 3
    desk.taken[2][1].fail(NO)
    desk.taken[1][1].begin(Several("x", "y", final_wanted=True))
    await turns()
    assert not first.done()
    desk.taken[0][1].respond(payload("0"), None)
    found = [told(await first), *[told(answer) async for answer in answers]]
    assert found == [("0", True, ""), ("x", False, ""), ("y", False, ""), ("7", True, ""), ("2", True, "no")]
    assert desk.open == 0


async def test_no_more_than_the_window_is_taken_of_one_stream():
    """One is at its turn, 64 wait behind it, and one more has been read that finds no room."""
    desk = Desk()
    answers = stream_of(desk, *map(asked, range(200)))
    first = asyncio.ensure_future(anext(answers))
    await turns(500)
    assert len(desk.taken) == desk.open == 1 + 64 + 1
    desk.taken[0][1].respond(payload("0"), None)
    await first
    await turns(500)
    assert len(desk.taken) == 66, "the next is looked at when it is asked for"
    second = asyncio.ensure_future(anext(answers))
    await turns(500)
    assert len(desk.taken) == 67
    second.cancel()
    await turns()
    await answers.aclose()


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_who_leaves_takes_all_of_its_requests_along(taken: int):
    desk = Desk()
    answers = stream_of(desk, *map(asked, range(200)))
    reading = asyncio.ensure_future(anext(answers))
    await turns(500)
    for number in range(taken):
        desk.taken[number][1].respond(payload("x"), None)
        await reading
        reading = asyncio.ensure_future(anext(answers))
        await turns()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await answers.aclose()
    await turns()
    assert desk.open == 0
    assert [pending.is_cancelled for _, _, pending in desk.taken][:taken] == [False] * taken
    assert all(pending.is_cancelled for _, _, pending in desk.taken[taken:])


class Begun(Desk):
    """Answers each request with responses that never come."""

    def infer(self, message: bytes, headers: Any, deadline: float | None, answer: Any, *, stream: bool) -> Pending:
        class Never(Several):
            async def __anext__(self) -> bytes:
                return await asyncio.get_running_loop().create_future()

        pending = super().infer(message, headers, deadline, answer, stream=stream)
        answer.begin(Never())
        return pending


@pytest.mark.parametrize("count", [1, 2, 65, 66, 200])
async def test_who_leaves_takes_responses_along_that_nobody_has_begun_to_read(count: int):
    desk = Begun()
    answers = stream_of(desk, *map(asked, range(count)))
    reading = asyncio.ensure_future(anext(answers))
    await turns(500)
    assert len(desk.taken) == desk.open == min(count, 66)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await answers.aclose()
    await turns()
    assert desk.open == 0
    assert all(pending.is_cancelled for _, _, pending in desk.taken)


async def test_a_request_that_is_answered_twice_or_after_it_was_left_is_answered_once():
    desk = Desk()
    answers = stream_of(desk, asked(0), asked(1))
    first = asyncio.ensure_future(anext(answers))
    await turns()
    answer = desk.taken[0][1]
    answer.respond(payload("0"), None)
    answer.fail(NO)
    answer.begin(Several("late"))
    answer.cancel()
    assert (desk.open, desk.taken[0][2].is_cancelled) == (1, False)
    assert told(await first) == ("0", True, "")
    other = desk.taken[1][1]
    other.cancel()
    other.cancel()
    other.respond(payload("1"), None)
    assert (desk.open, desk.taken[1][2].is_cancelled) == (0, True)
    with pytest.raises(asyncio.CancelledError):
        await anext(answers)


@pytest.mark.parametrize(
    ("items", "final_wanted", "expected"),
    [
        ((), False, []),
        ((), True, [("7", True, "")]),
        (("x",), False, [("x", False, "")]),
        (("x", InvalidInput("no more")), True, [("x", False, ""), ("3", True, "no more")]),
        ((InvalidInput("none"),), False, [("3", True, "none")]),
    ],
)
async def test_a_stream_of_responses_is_marked_as_going_on_and_its_end_is_told_to_who_wants_it(
    items: Any, final_wanted: bool, expected: list[Any]
):
    desk = Desk()
    reading = asyncio.ensure_future(_all(stream_of(desk, asked(3))))
    await turns()
    desk.taken[0][1].begin(Several(*items, final_wanted=final_wanted))
    assert [told(answer) for answer in await reading] == expected
    assert desk.open == 0


async def _all(answers: AsyncIterator[bytes]) -> list[bytes]:
    return [answer async for answer in answers]


@pytest.mark.parametrize(
    ("message", "identity"),
    [(asked(12345), "12345"), (b"\xff\xff", ""), (b"worse", ""), (b"", "")],
    ids=["a request", "no protobuf", "damaged", "nothing"],
)
async def test_an_error_says_its_request_once_and_is_no_answer_to_a_client_of_mlservers(message: bytes, identity: str):
    desk = Desk()
    reading = asyncio.ensure_future(_all(stream_of(desk, message)))
    await turns()
    desk.taken[0][1].fail(NO)
    (answer,) = await reading
    assert told(answer) == (identity, True, "no")
    assert answer.count(b"triton_final_response") == 1
    assert not identity or answer.count(identity.encode()) == 1
    with pytest.raises(DecodeError):
        pb.ModelInferResponse.FromString(answer)


@pytest.mark.parametrize(
    "size", [0, 1, 100, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 130, 300, 16_370, 16_381, 16_390]
)
def test_a_response_is_wrapped_as_protobuf_wraps_it(size: int):
    response = pb.ModelInferResponse(id="x" * size)
    wrapped = streams._response(response.SerializeToString())
    assert wrapped == pb.ModelStreamInferResponse(infer_response=response).SerializeToString()
    assert pb.ModelStreamInferResponse.FromString(wrapped).infer_response == response


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "00"),
        (1, "01"),
        (0x7E, "7e"),
        (0x7F, "7f"),
        (0x80, "8001"),
        (0x81, "8101"),
        (0x3FFF, "ff7f"),
        (0x4000, "808001"),
        (300, "ac02"),
        ((1 << 32) - 1, "ffffffff0f"),
    ],
)
def test_a_length_is_a_varint(value: int, written: str):
    assert streams._varint(value).hex() == written


LATE = Failure(GrpcStatus.DEADLINE_EXCEEDED, "too late")


@pytest.mark.parametrize(
    ("failure", "deadline", "now", "ends"),
    [
        (LATE, None, 100.0, False),
        (LATE, 10.0, 9.0, False),
        (LATE, 10.0, 9.98, False),
        (LATE, 10.0, 9.995, True),
        (LATE, 10.0, 11.0, True),
        (NO, 10.0, 11.0, False),
    ],
)
async def test_the_deadline_of_a_stream_is_its_end_and_no_answer(
    failure: Failure, deadline: float | None, now: float, ends: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "time", SimpleNamespace(monotonic=lambda: now))
    desk = Desk()
    reading = asyncio.ensure_future(_all(stream_of(desk, asked(1), deadline=deadline)))
    await turns()
    desk.taken[0][1].fail(failure)
    if ends:
        with pytest.raises(TimedOut, match="too late"):
            await reading
    else:
        assert [told(answer) for answer in await reading] == [("1", True, failure.message)]
    assert desk.open == 0


# Streams as a whole


async def test_a_stream_without_a_request_has_no_answer():
    desk = Desk()
    assert await _all(stream_of(desk)) == []
    assert (desk.open, desk.taken) == (0, [])


@pytest.mark.parametrize("read", [0, 1, 2, 3])
async def test_a_whole_stream_is_passed_on_as_it_is_and_left_at_its_end_or_before(read: int):
    whole = Several("x", "y")
    desk = Desk(whole=whole)
    answers = stream_of(desk, asked(0), asked(1))
    found = []
    for _ in range(read):
        found.append(await anext(answers, None))
        assert desk.open == (1 if found[-1] is not None else 0)
    await answers.aclose()
    assert found == [payload("x"), payload("y"), None][:read]
    assert (desk.open, desk.taken) == (0, [])
    assert whole.is_cancelled is (read > 0)
