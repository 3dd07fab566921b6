"""The relay's own turns: what it does while its guard inflates in a thread, and how it tells the pace of a client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serinus.server.grpc.relays import pace
from serinus.server.grpc.relays import relay as relay_module
from serinus.server.grpc.relays.relay import Relay
from serinus.server.grpc.relays.size_filter import DROPPED_MOST, INFLATED_HERE


class Wire:
    """A transport that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.closing = False
        self.waiting = 0

    def pause_reading(self) -> None:
        self.asked.append("pause")

    def resume_reading(self) -> None:
        self.asked.append("resume")

    def write(self, data: bytes) -> None:
        self.asked.append(data)

    def write_eof(self) -> None:
        self.asked.append("eof")

    def close(self) -> None:
        self.asked.append("close")
        self.closing = True

    def abort(self) -> None:
        self.asked.append("abort")
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.waiting


class Guard:
    """Passes what it is given; what begins with z is work, which the test ends."""

    def __init__(self) -> None:
        self.has_work = self.has_data = False
        self.dropped = 0
        self.most: list[int] = []
        self.work = b""

    def feed(self, data: bytes, inflated_most: int = -1) -> bytes:
        if inflated_most < 0:  # in a thread
            self.has_work = False
            return self.work
        self.most.append(inflated_most)
        self.has_work = data.startswith(b"z")
        if self.has_work:
            self.work = data.upper()
            return b""
        return data


class Threads:
    """Work that is given to threads, which the test ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[asyncio.Future[Any], Any]] = []

        def run(executor: object, work: Any, *args: Any) -> asyncio.Future[Any]:
            assert executor is None
            self.given.append((loop.create_future(), lambda: work(*args)))
            return self.given[-1][0]

        monkeypatch.setattr(loop, "run_in_executor", run)

    async def end(self, error: BaseException | None = None) -> None:
        future, work = self.given.pop(0)
        if error is None:
            future.set_result(work())
        elif isinstance(error, asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)
        await asyncio.sleep(0)


class Joined:
    """A relay between two wires, and what was asked of both, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guard, self.client, self.front = Guard(), Wire(), Wire()
        self.front.asked = self.client.asked
        self.threads = Threads(asyncio.get_running_loop(), monkeypatch)
        guard: Any = self.guard
        self.relay = Relay("/nowhere", guard, set())
        self.relay._client, self.relay._front = self.client, self.front

    def asked(self) -> list[Any]:
        """What was asked since the last look."""
        asked = self.client.asked[:]
        self.client.asked.clear()
        return asked


@pytest.fixture
async def joined(monkeypatch: pytest.MonkeyPatch) -> Joined:
    return Joined(monkeypatch)


async def test_a_client_is_not_read_while_its_message_is_inflated_and_all_comes_out_in_order(joined: Joined):
    relay = joined.relay
    relay.data_received(b"plain")
    assert joined.asked() == [b"plain"]
    relay.data_received(b"z1")
    assert joined.asked() == ["pause"]
    relay.data_received(b"early, ")
    relay.data_received(b"and more")
    assert joined.asked() == ["pause", "pause"], "it may come once more after it was asked to stop"
    await joined.threads.end()
    assert joined.asked() == [b"Z1", b"early, and more", "resume"]
    assert joined.guard.most == [INFLATED_HERE] * 3
    assert joined.threads.given == []


async def test_a_client_whose_next_message_is_to_be_inflated_too_is_read_after_that_one(joined: Joined):
    relay = joined.relay
    relay.data_received(b"z1")
    relay.data_received(b"z2")
    joined.asked()
    await joined.threads.end()
    assert joined.asked() == [b"Z1", "pause"]
    assert len(joined.threads.given) == 1
    await joined.threads.end()
    assert joined.asked() == [b"Z2", "resume"]


async def test_the_end_of_what_a_client_sends_waits_for_what_is_inflated(joined: Joined):
    relay = joined.relay
    relay.data_received(b"z1")
    relay.data_received(b"z2")
    assert relay.eof_received() is True
    assert "eof" not in joined.asked()
    await joined.threads.end()
    assert "eof" not in joined.asked()
    await joined.threads.end()
    assert joined.asked() == [b"Z2", "resume", "eof"]


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_front_that_takes_nothing_more_holds_the_client_after_the_work_too(joined: Joined, goes_on: bool):
    relay = joined.relay
    relay.data_received(b"z1")
    joined.asked()
    relay.hold_client(True)
    if goes_on:
        relay.hold_client(False)
    assert joined.asked() == []
    await joined.threads.end()
    assert joined.asked() == ([b"Z1", "resume"] if goes_on else [b"Z1"])
    relay.hold_client(True)
    relay.hold_client(False)
    assert joined.asked() == ["pause", "resume"]


@pytest.mark.parametrize("error", [None, asyncio.CancelledError()], ids=["done", "cancelled"])
async def test_of_a_client_that_has_gone_meanwhile_nothing_is_passed_on(joined: Joined, error: BaseException | None):
    joined.relay.data_received(b"z1")
    joined.relay.data_received(b"more")
    joined.client.closing = True
    joined.asked()
    await joined.threads.end(error)
    assert joined.asked() == []


async def test_a_client_that_is_dropped_by_what_was_inflated_is_not_read_on(joined: Joined):
    joined.relay.data_received(b"z1")
    joined.relay.eof_received()
    joined.asked()
    joined.guard.dropped = DROPPED_MOST + 1
    await joined.threads.end()
    assert joined.asked() == [b"Z1", "abort"]


async def test_work_that_fails_ends_the_connection_and_the_log_says_so(
    joined: Joined, caplog: pytest.LogCaptureFixture
):
    joined.relay.data_received(b"z1")
    joined.asked()
    await joined.threads.end(ZeroDivisionError("ours"))
    assert joined.asked() == ["abort"]
    (record,) = caplog.records
    assert record.getMessage() == "a gRPC connection is closed: its messages could not be measured"
    assert record.exc_info is not None


@pytest.mark.parametrize(("over", "is_dropped"), [(0, False), (1, True)])
async def test_a_client_is_dropped_beyond_the_most_that_is_dropped_of_it(joined: Joined, over: int, is_dropped: bool):
    joined.guard.dropped = DROPPED_MOST + over
    joined.relay.data_received(b"plain")
    assert joined.asked() == [b"plain", "abort"] if is_dropped else [b"plain"]


# The pace


@pytest.mark.parametrize(
    ("sent", "marked_at", "now", "pace"),
    [
        (1000, 10.0, 12.0, 500.0),
        (1000, 10.0, 10.5, 2000.0),
        (1000, 10.0, 10.0 + 2e-3, 500_000.0),
        (1000, 10.0, 10.0 + 5e-4, 1_000_000.0),
        (1000, 10.0, 10.0, 1_000_000.0),
        (0, 10.0, 12.0, 0.0),
    ],
)
async def test_a_pace_is_bytes_a_second_since_the_mark_and_over_a_millisecond_at_least(
    joined: Joined, sent: int, marked_at: float, now: float, pace: float
):
    joined.relay.from_front(b"before the mark")
    joined.relay.mark(marked_at)
    assert joined.relay.marked_at == marked_at
    if sent:
        joined.relay.from_front(bytes(sent // 2))
        joined.relay.from_front(bytes(sent - sent // 2))
    assert joined.relay.pace(now) == pytest.approx(pace)


async def test_progress_is_noted_where_something_has_gone_out_since_the_last_look(joined: Joined):
    relay = joined.relay
    begun = relay.moved_at
    relay.note_progress(begun + 1)
    assert relay.moved_at == begun
    relay.from_front(b"x")
    for now in (2.0, 3.0):
        relay.note_progress(begun + now)
        assert relay.moved_at == begun + 2.0
    relay.from_front(b"x")
    relay.note_progress(begun + 4.0)
    assert relay.moved_at == begun + 4.0


# Who does not read


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("left", "closed_after_s"),
    [([100], 30.0), ([100, 100], 30.0), ([100, 99], 60.0), ([100, 99, 98], 90.0), ([100, 101], 30.0)],
)
async def test_a_client_that_takes_nothing_for_its_time_is_closed(left: list[int], closed_after_s: float):
    loop = asyncio.get_running_loop()
    told: list[float] = []
    guard: Any = Guard()
    relay = Relay("/nowhere", guard, set(), 30.0, lambda: told.append(loop.time()))
    client: Any = Wire()
    relay._client = relay._front = client
    client.waiting = left[0]
    begun = loop.time()
    relay.pause_writing()
    for number, waiting in enumerate(left[1:]):
        loop.call_later(30.0 * number + 1, setattr, client, "waiting", waiting)
    await asyncio.sleep(200)
    assert [at - begun for at in told] == [pytest.approx(closed_after_s)]
    assert client.asked == ["pause", "abort"]


@pytest.mark.looptime
async def test_a_client_that_reads_again_is_not_closed():
    told: list[str] = []
    guard: Any = Guard()
    relay = Relay("/nowhere", guard, set(), 30.0, lambda: told.append("stalled"))
    client: Any = Wire()
    relay._client = relay._front = client
    relay.pause_writing()
    await asyncio.sleep(29)
    relay.resume_writing()
    await asyncio.sleep(100)
    assert (told, client.asked) == ([], ["pause", "resume"])


@pytest.mark.looptime
@pytest.mark.parametrize("takes_all", [True, False])
async def test_what_the_front_has_left_waits_for_its_client_no_longer_than_any_other_answer(takes_all: bool):
    guard: Any = Guard()
    relays: set[Relay] = set()
    relay = Relay("/nowhere", guard, relays, 30.0)
    relays.add(relay)
    client: Any = Wire()
    relay._client = client
    client.waiting = 10
    relay.front_left()
    relay.front_left()
    assert client.asked == ["close", "close"]
    await asyncio.sleep(29)
    assert client.asked == ["close", "close"]
    if takes_all:
        relay.connection_lost(None)
    await asyncio.sleep(60)
    assert client.asked == ["close", "close"] + ([] if takes_all else ["abort"])


def test_the_rest_and_the_shortest_time_of_a_pace_are_those_that_are_told():
    assert (relay_module._REST_S, pace._SOON_S) == (0.1, 0.001)
