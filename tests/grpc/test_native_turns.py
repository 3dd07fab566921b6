"""The native engine's own part: what it takes of the front in a turn of the loop, what waits for clients, and who is closed for it.

The front, which is another project's, is stood in for; nothing here listens, but where a test is about that.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, serving
from grpc_support import run_on_server_loop
from serinus.dataplane.plane import Plane
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import ConfigError, GrpcStatus
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.connections.idle_room import IdleRoom
from serinus.server.connections.unsent_answers import LARGE_BYTES
from serinus.server.grpc import native_engine
from serinus.server.grpc.answers import Failure
from serinus.server.grpc.native_engine import NativeEngine, _Call, _unended
from serinus.server.grpc.relays.relay import Relay
from serinus.server.grpc.relays.size_filter import FrameGuard
from serinus.server.grpc.service import INFER, SERVICE, Service
from serinus.settings import ServerSettings
from waiting import until

HOST = "127.0.0.1"
MIB = 1 << 20


class Front:
    """What pygrpc-native's front is asked and told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.batches: list[list[Any]] = []
        self.asked: list[tuple[int, ...]] = []
        self.takes = True
        self.methods: dict[str, Any] = {}

    def respond(self, number: int, payload: bytes, metadata: Any) -> bool:
        self.told.append((number, pb.ModelInferResponse.FromString(payload).id, metadata))
        return self.takes

    def fail(self, number: int, code: int, message: str, trailing: Any) -> None:
        self.told.append((number, code))

    def recv_batch_details(self, most: int, *wait: int) -> Any:
        self.asked.append((most, *wait))
        return self.batches.pop(0) if self.batches else []

    def metrics(self) -> Any:
        return {"methods": self.methods}

    def has(self, started: int, **ended: tuple[int, int]) -> None:
        """Count so many calls, and of those that ended how many there were and the bytes of their answers, by status."""
        self.methods = {
            "a": {"started": started, "status": {k: {"count": n, "sent": {"sum": b}} for k, (n, b) in ended.items()}},
            "b": {"started": 0, "status": {}},
        }


class Clock:
    """Seconds, as the test has them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(native_engine, "time", found)
    return found


def engine_of(plane: Plane, **settings: Any) -> Any:
    """An engine that does not listen, over a front of the test's."""
    chosen = ServerSettings(host=HOST, **settings)
    engine = NativeEngine(Service(plane, chosen, metrics=plane.metrics), chosen)
    engine.front = Front()
    return engine


def request(identity: str, value: float = 1.0) -> bytes:
    x = np.full((1, 2), value, np.float32)
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])
    message = pb.ModelInferRequest(model_name="m", id=identity, inputs=[entry], raw_input_contents=[x.tobytes()])
    return message.SerializeToString()


def call(number: int, message: bytes, *, method: int = 0, metadata: Any = (), left: float | None = None) -> Any:
    return 0, number, method, message, 7, (metadata, "peer", left)


def gone(number: int) -> Any:
    return 1, number, 0, b"", 7, ((), "peer", None)


def over(plane: Plane | None = None) -> Any:
    return serving(Doubler, metrics=Metrics())


# A turn


async def test_all_calls_of_a_batch_are_begun_and_each_is_answered_by_its_number():
    async with over() as plane:
        engine = engine_of(plane)
        engine._take([call(4, request("a")), call(5, request("b"), metadata=[("x-request-id", "i")])])
        assert (engine.service.pending, sorted(engine.calls)) == (2, [4, 5])
        await until(lambda: not engine.calls)
        assert sorted(engine.front.told) == [(4, "a", None), (5, "b", (("x-request-id", "i"),))]
        assert engine.service.pending == 0


async def test_the_time_that_a_call_has_left_is_its_deadline(clock: Clock):
    clock.now = time.monotonic()
    async with over() as plane:
        engine = engine_of(plane)
        seen: list[Any] = []
        engine.service.infer = lambda message, headers, deadline, answer: seen.append(deadline)
        engine._take([call(1, b"", left=2.5), call(2, b"", left=None), call(3, b"", left=-1.0)])
        assert seen == [clock.now + 2.5, None, clock.now - 1.0]


async def test_other_calls_are_answered_too_by_their_method():
    async with over() as plane:
        engine = engine_of(plane)
        number = engine._paths.index(f"/{SERVICE}/ModelReady")
        asked = pb.ModelReadyRequest(name="none").SerializeToString()
        engine._take([call(8, asked, method=number), call(9, b"\xff", method=number)])
        await until(lambda: not engine.calls)
        assert sorted(engine.front.told) == [(8, GrpcStatus.NOT_FOUND), (9, GrpcStatus.INVALID_ARGUMENT)]
        assert engine.service.pending == 0


async def test_a_client_that_leaves_cancels_its_call_alone():
    async with over() as plane:
        engine = engine_of(plane)
        cancelled: list[str] = []

        def begin(message: bytes, *_: Any) -> Any:
            return SimpleNamespace(cancel=lambda: cancelled.append(message.decode()))

        engine.service.infer = begin
        engine._take([call(1, b"one"), call(2, b"two")])
        engine._take([gone(1), gone(77), call(3, b"three")])
        assert cancelled == ["one"]
        assert (sorted(engine.calls), engine.service.pending) == ([2, 3], 2)
        engine._take([gone(1)])
        assert cancelled == ["one"]


async def test_a_client_that_leaves_another_call_ends_its_task():
    async with over() as plane:
        engine = engine_of(plane)
        engine._take([call(1, b"", method=1)])
        task = engine.calls[1].task
        engine._take([gone(1)])
        await asyncio.wait({task})
        assert task.cancelled()
        assert (engine.calls, engine.service.pending, engine.front.told) == ({}, 0, [])


async def test_a_call_that_cannot_be_begun_is_a_failure_and_the_rest_of_its_batch_goes_on(
    caplog: pytest.LogCaptureFixture,
):
    async with over() as plane:
        engine = engine_of(plane)
        infer = engine.service.infer

        def fails(message: bytes, *words: Any) -> Any:
            if message == b"fails":
                raise ZeroDivisionError
            return infer(message, *words)

        engine.service.infer = fails
        engine._take([call(1, b"fails"), call(2, request("b"))])
        await until(lambda: not engine.calls)
        assert engine.front.told == [(1, GrpcStatus.INTERNAL), (2, "b", None)]
        assert engine.service.pending == 0
    assert "a gRPC call failed" in caplog.text


async def test_an_answer_to_a_call_that_is_over_goes_nowhere():
    async with over() as plane:
        engine = engine_of(plane)
        late = _Call(engine, 3)
        late.respond(b"", None)
        late.fail(Failure(GrpcStatus.INTERNAL, "why"))
        assert (engine.front.told, engine.service.pending, engine.given._bytes) == ([], 0, 0)


@pytest.mark.parametrize("takes", [True, False])
async def test_an_answer_is_counted_where_its_client_is_still_there(takes: bool):
    async with over() as plane:
        engine = engine_of(plane)
        engine.front.takes = takes
        for number in (1, 2):
            engine.calls[number] = _Call(engine, number)
            engine.service.began()
        payload = pb.ModelInferResponse(id="x").SerializeToString()
        engine.calls[1].respond(payload, None)
        assert engine.given._bytes == (len(payload) if takes else 0)
        engine.calls[2].fail(Failure(GrpcStatus.INTERNAL, "why"))
        assert (engine.front.told, engine.service.pending) == ([(1, "x", None), (2, GrpcStatus.INTERNAL)], 0)


# When it looks again


def scheduled(engine: Any) -> list[Any]:
    """Have the engine's loop note what is to be called, and when."""
    found: list[Any] = []
    engine._loop = SimpleNamespace(
        call_soon=lambda work: found.append((0.0, work)), call_later=lambda after, work: found.append((after, work))
    )
    return found


@pytest.mark.parametrize(("refusing", "after"), [(False, 0.0), (True, 0.001)])
async def test_the_loop_looks_again_in_its_next_turn_or_soon_where_calls_are_refused(refusing: bool, after: float):
    async with over() as plane:
        engine = engine_of(plane)
        found = scheduled(engine)
        if refusing:
            plane.full["m"] = plane.registry.find("m")
        engine.front.batches.append([gone(9)])
        engine._woken([gone(8)])
        engine._poll()
        assert found == [(after, engine._poll)] * 2
        assert engine.front.asked == [(256, 0)], "without waiting"
        plane.full.clear()


async def test_where_nothing_has_come_the_thread_waits_again_and_while_calls_are_refused_not_so_soon():
    async with over() as plane:
        engine = engine_of(plane)
        found = scheduled(engine)
        engine._poll()
        assert engine._look_again.acquire(blocking=False)
        assert found == []
        plane.full["m"] = plane.registry.find("m")
        for _ in range(20):
            engine._poll()
            assert not engine._look_again.acquire(blocking=False)
        engine.front.batches.append([gone(9)])
        for _ in range(21):  # what has come counts anew
            engine._poll()
            assert not engine._look_again.acquire(blocking=False)
        engine._poll()
        assert engine._look_again.acquire(blocking=False)
        assert len(found) == 41
        plane.full.clear()


async def test_the_thread_wakes_the_loop_once_and_waits_until_it_is_told_to():
    async with over() as plane:
        engine = engine_of(plane)
        front, came = engine.front, []
        front.batches = [["first"], ["second"], None]
        engine._woken = came.append
        thread = threading.Thread(target=engine._wait_for_calls, daemon=True)
        thread.start()
        await until(lambda: came == [["first"]])
        await asyncio.sleep(0.005)
        assert len(front.asked) == 1, "the loop looks now"
        engine._look_again.release()
        await until(lambda: came == [["first"], ["second"]])
        engine._look_again.release()
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
        assert front.asked == [(256,)] * 3
        front.batches = [["late"]]
        engine._loop = asyncio.new_event_loop()
        engine._loop.close()
        engine._wait_for_calls()  # which returns: nobody is there any more
        assert len(front.asked) == 4


# What waits for clients


def connection(
    engine: Any,
    *,
    sent: int = 0,
    closing: bool = False,
    called: bool = False,
    at_work: bool = True,
    heard: float = 0.0,
) -> Any:
    """A connection of the engine's, of which so much has gone to its client."""

    class Known(Relay):
        """Without a socket."""

        is_closing, has_called, is_at_work, aborted = closing, called, at_work, 0  # type: ignore[assignment] # as a real one would say

        def abort(self) -> None:
            self.aborted += 1

    relay: Any = Known("", FrameGuard(1, b"m"), engine.relays)
    relay.heard_at, relay._sent = heard, sent
    relay.moved_at = relay.marked_at = native_engine.time.monotonic()
    engine.relays.add(relay)
    return relay


async def test_answers_of_all_sizes_are_counted_large_ones_at_once_and_others_by_the_megabyte():
    async with over() as plane:
        engine = engine_of(plane)
        given, account = engine.given, engine.service.unsent
        given.add(LARGE_BYTES)
        assert account.waiting_bytes == 0
        given.add(LARGE_BYTES + 1)
        assert account.waiting_bytes == LARGE_BYTES + 1
        given.add(5)
        small = LARGE_BYTES + 5
        while small + LARGE_BYTES <= MIB:
            given.add(LARGE_BYTES)
            small += LARGE_BYTES
        given.add(MIB - small)
        assert account.waiting_bytes == LARGE_BYTES + 1, "a megabyte is told when it is passed"
        given.add(1)
        assert account.waiting_bytes == LARGE_BYTES + 1 + MIB + 1
        given.add(3)
        assert account.waiting_bytes == LARGE_BYTES + 1 + MIB + 1
        assert given._bytes == LARGE_BYTES + 1 + MIB + 1 + 3
        assert given._largest == LARGE_BYTES + 1


async def test_small_answers_that_add_up_close_who_is_too_slow(clock: Clock):
    async with over() as plane:
        engine = engine_of(plane, max_unsent_bytes=1000, send_timeout_s=10.0)
        engine.service.unsent._clock = clock.monotonic
        slow = connection(engine)
        engine.front.has(100)
        for _ in range(40):
            clock.now += 1
            for _ in range(17):
                engine.given.add(LARGE_BYTES)
        assert slow.aborted > 0


@pytest.mark.parametrize(
    ("answers", "started", "ended", "waits"),
    [
        ([500, 300], 2, {}, 800),
        ([500, 300], 2, {"0": (1, 300)}, 500),
        ([500, 300], 2, {"0": (1, 500)}, 300),
        ([500, 300], 2, {"0": (2, 800)}, 0),
        ([500, 300], 9, {"0": (5, 900), "8": (3, 100)}, 0),
        ([500, 300], 1, {}, 500),  # no more than as many of the largest as wait
        ([500, 300], 3, {"0": (2, 300), "1": (0, 0)}, 500),
        ([500], 0, {"0": (3, 0)}, 0),
    ],
)
async def test_what_waits_is_what_was_given_less_what_is_over(
    answers: list[int], started: int, ended: Any, waits: int, clock: Clock
):
    async with over() as plane:
        engine = engine_of(plane)
        for size in answers:
            engine.given.add(size)
        engine.front.has(started, **ended)
        assert engine.given.unsent() == waits


async def test_calls_that_are_not_answered_yet_wait_for_no_client(clock: Clock):
    async with over() as plane:
        engine = engine_of(plane)
        engine.given.add(500)
        engine.calls.update({number: _Call(engine, number) for number in range(3)})
        engine.front.has(3)
        assert engine.given.unsent() == 0
        engine.given.add(500)
        engine.front.has(4)
        assert engine.given.unsent() == 500


async def test_when_nothing_waits_the_count_begins_anew(clock: Clock):
    async with over() as plane:
        engine = engine_of(plane)
        engine.given.add(500)
        engine.front.has(1, **{"0": (1, 480)})  # a client that left has not been counted whole
        assert engine.given.unsent() == 0
        engine.given.add(40)
        engine.front.has(2, **{"0": (1, 480)})
        assert engine.given.unsent() == 40
        engine.front.has(3, **{"0": (1, 480)})
        engine.given.add(60)
        assert engine.given.unsent() == 100
        engine.front.has(3, **{"0": (2, 520)})
        assert engine.given.unsent() == 60


async def test_which_connections_something_goes_to_is_looked_at_twice_a_second(clock: Clock):
    async with over() as plane:
        engine = engine_of(plane)
        engine.front.has(1)
        relay = connection(engine)
        began = clock.now
        engine.given.unsent()
        for after, sent, moved in (
            (0.4, 10, 0.0),
            (0.5, 10, 0.0),
            (0.6, 10, 0.6),
            (1.0, 20, 0.6),
            (1.2, 20, 1.2),
            (2.0, 20, 1.2),
        ):
            clock.now, relay._sent = began + after, sent
            engine.given.unsent()
            assert relay.moved_at == pytest.approx(began + moved), after


async def test_connections_to_which_nothing_goes_are_closed_and_others_are_not(clock: Clock):
    async with over() as plane:
        engine = engine_of(plane, send_timeout_s=10.0)
        began = clock.now
        stuck, reading = connection(engine), connection(engine)
        for after, closed in ((10.0, False), (10.1, True)):
            clock.now = began + after
            reading.moved_at = clock.now
            assert engine.given.give_up() is closed
            assert (stuck.aborted, reading.aborted) == (int(closed), 0)


async def test_where_too_much_has_waited_for_long_the_connection_that_took_the_least_is_closed_one_at_a_time(
    clock: Clock,
):
    async with over() as plane:
        engine = engine_of(plane, send_timeout_s=10.0)
        began = clock.now
        slow, fast = connection(engine), connection(engine, sent=50)
        outcomes = []
        for after in (0.0, 4.0, 8.0, 10.0, 10.5, 10.9, 11.1):
            clock.now = began + after
            for relay, pace in ((slow, 10), (fast, 1000)):
                relay._sent += pace
                relay.moved_at = clock.now
            outcomes.append((engine.given.give_up(), slow.aborted, fast.aborted))
        assert outcomes == [*[(False, 0, 0)] * 4, (True, 1, 0), (False, 1, 0), (True, 2, 0)]
        engine.relays.discard(slow)
        clock.now = began + 12
        fast.moved_at = clock.now
        assert engine.given.give_up()
        assert fast.aborted == 1


async def test_after_a_while_without_too_much_the_patience_is_whole_again(clock: Clock):
    async with over() as plane:
        engine = engine_of(plane, send_timeout_s=10.0)
        relay = connection(engine)
        began = clock.now
        for after in (0.0, 4.0, 8.0, 13.1, 18.0, 22.0):  # between 8.0 and 13.1 all was well
            clock.now = relay.moved_at = began + after
            assert not engine.given.give_up(), after
            relay._sent += 1
        clock.now = relay.moved_at = began + 23.2
        assert engine.given.give_up()


def test_calls_whose_status_is_not_on_its_way_are_counted_over_all_methods():
    assert _unended([]) == 0
    methods: Any = [
        {"started": 5, "status": {"0": {"count": 2}, "8": {"count": 1}}},
        {"started": 3, "status": {}},
    ]
    assert _unended(methods) == 5


async def test_calls_that_the_front_has_not_sent_are_counted():
    async with over() as plane:
        engine = engine_of(plane)
        engine.front.has(5, **{"0": (2, 100), "8": (1, 0)})
        assert engine.unsent_calls() == 2


# Room for new connections


async def test_the_idlest_is_who_has_called_nothing_then_who_has_no_open_call_then_who_was_silent_for_long():
    async with over() as plane:
        engine = engine_of(plane)
        assert engine._idlest() is None
        now = engine._loop.time()
        busy = connection(engine, called=True, heard=now)
        assert engine._idlest() is None
        silent = connection(engine, called=True, heard=now - native_engine._SILENT_S - 5)
        quiet = connection(engine, called=True, heard=now - native_engine._SILENT_S - 1)
        connection(engine, heard=now - 10_000, closing=True, at_work=False)
        since, close = engine._idlest()
        assert since >= now, "after everybody who is known to be idle"
        close()
        served = [connection(engine, called=True, at_work=False, heard=now - ago) for ago in (3, 4)]
        assert engine._idlest()[0] == served[1].heard_at
        late, early = connection(engine, heard=now - 1), connection(engine, heard=now - 2)
        since, close = engine._idlest()
        assert since == early.heard_at
        close()
        assert not {early, silent} & engine.relays
        assert [one.aborted for one in (early, late, silent, quiet, busy, *served)] == [1, 0, 1, 0, 0, 0, 0]


async def test_a_connection_that_has_not_begun_goes_first_where_it_is_older():
    async with over() as plane:
        engine = engine_of(plane)
        handshakes: list[Any] = [None]
        engine._listener = SimpleNamespace(idlest=lambda: handshakes[0])
        assert engine._idlest() is None
        handshakes[0] = (500.0, "close it")
        assert engine._idlest() == (500.0, "close it")
        silent = connection(engine, called=True, heard=engine._loop.time() - native_engine._SILENT_S - 5)
        assert engine._idlest() == (500.0, "close it")
        engine.relays.discard(silent)
        for heard, first in ((499.0, "ours"), (500.0, "ours"), (501.0, "theirs")):
            ours = connection(engine, heard=heard)
            since, close = engine._idlest()
            assert (since, close == "close it") == (min(heard, 500.0), first == "theirs")
            engine.relays.discard(ours)


async def test_each_connection_has_three_descriptors_and_one_that_is_given_up_is_counted():
    async with over() as plane:
        engine = engine_of(plane)
        assert engine._descriptors() == 0
        connection(engine)
        engine._listener = SimpleNamespace(beginning=2)
        assert engine._descriptors() == 9
        engine._closed_slow()
        assert engine.service.unsent.closed == 1


# Beginning and end


def on_the_loop_of_servers(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test there: grpc.aio does not stand several loops in a process."""

    @functools.wraps(test)
    def run(*fixtures: Any, **named: Any) -> None:
        run_on_server_loop(test(*fixtures, **named))

    return run


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where an engine makes its folder; pytest's own paths may be too long for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(native_engine.tempfile, "tempdir", folder)
        yield Path(folder)


@on_the_loop_of_servers
async def test_an_engine_that_is_closed_leaves_no_folder_no_thread_and_no_port(folders: Path):
    pytest.importorskip("pygrpc_native")
    async with over() as plane:
        settings = ServerSettings(host=HOST)
        room = IdleRoom()
        engine = NativeEngine(Service(plane, settings, metrics=plane.metrics), settings, room)
        assert engine.room is room
        assert engine.listeners == ()
        await engine.start(HOST, 0)
        (folder,) = folders.iterdir()
        assert sorted(file.name for file in folder.iterdir()) == ["front.sock", "streams.sock"]
        assert engine.listeners[0].getsockname() == (HOST, engine.port)
        thread = engine._thread
        assert thread is not None
        assert thread.is_alive()
        engine.stop_accepting()
        assert engine.service.draining
        await engine.drain(10)
        await engine.close()
        assert not thread.is_alive()
        assert list(folders.iterdir()) == []
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect((HOST, engine.port))
        await engine.close()  # again: nothing is left to end


@on_the_loop_of_servers
async def test_the_front_is_asked_for_its_limits_and_told_where_streams_are_served(
    folders: Path, monkeypatch: pytest.MonkeyPatch
):
    pygrpc_native = pytest.importorskip("pygrpc_native")
    asked: list[Any] = []

    class Noted(Front):
        """Serves nobody."""

        def __init__(self, address: str, methods: Any, **options: Any) -> None:
            super().__init__()
            asked.append((address, methods, options))

        def set_fallback(self, path: str) -> None:
            asked.append(path)

        def start(self) -> None:
            asked.append("start")

        def recv_batch_details(self, most: int, *wait: int) -> Any:
            return None

        def close(self) -> None:
            asked.append("close")

    monkeypatch.setattr(pygrpc_native, "NativeGrpcFront", Noted)
    async with over() as plane:
        settings = ServerSettings(host=HOST)
        service = Service(plane, settings, metrics=plane.metrics)
        engine = NativeEngine(service, settings)
        await engine.start(HOST, 0)
        (folder,) = folders.iterdir()
        (address, methods, options), *then = asked
        assert address == f"unix:{folder}/front.sock"
        assert methods == [(path, False) for path in (INFER, *service.unary)]
        assert options == {
            "io_threads": 1,
            "call_details": True,
            "metrics": True,
            "keepalive_time_ms": 60_000,
            "keepalive_timeout_ms": 20_000,
            "max_concurrent_streams": 1024,
            "max_metadata_size": 65536,
        }
        assert then == [f"{folder}/streams.sock", "start"]
        await engine.close()
        assert asked[-1] == "close"


@on_the_loop_of_servers
async def test_one_that_is_closed_at_once_takes_nobody_in_meanwhile(folders: Path):
    pytest.importorskip("pygrpc_native")
    async with over() as plane:
        settings = ServerSettings(host=HOST)
        engine = NativeEngine(Service(plane, settings, metrics=plane.metrics), settings)
        await engine.start(HOST, 0)
        closing = asyncio.ensure_future(engine.close())
        await asyncio.sleep(0)
        assert engine.service.draining
        assert engine.listeners == () or engine.listeners[0].fileno() == -1, "before its streams have ended"
        await closing
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect((HOST, engine.port))


@on_the_loop_of_servers
async def test_a_port_that_is_taken_ends_the_start_and_leaves_nothing(folders: Path):
    pytest.importorskip("pygrpc_native")
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        async with over() as plane:
            settings = ServerSettings(host=HOST)
            engine = NativeEngine(Service(plane, settings, metrics=plane.metrics), settings)
            with pytest.raises(ConfigError) as refused:
                await engine.start(HOST, port)
            assert str(refused.value) == (
                f"cannot listen on {HOST}:{port} for gRPC: Address already in use; is another server running?"
            )
            assert list(folders.iterdir()) == []
            assert engine._thread is None


async def test_what_is_left_at_the_end_is_cancelled(folders: Path):
    async with over() as plane:
        engine = engine_of(plane)
        engine.front = None
        cancelled: list[int] = []
        for number in (1, 2):
            engine.calls[number] = left = _Call(engine, number)
            left.pending = SimpleNamespace(cancel=lambda number=number: cancelled.append(number))
            engine.service.began()
        await engine.close()
        assert (cancelled, engine.calls, engine.service.pending) == ([1, 2], {}, 0)
        assert engine.service.draining


@pytest.mark.looptime
async def test_connections_have_a_moment_at_the_end_and_are_closed_then():
    async with over() as plane:
        engine = engine_of(plane)
        engine.front = None
        relay, loop = connection(engine), asyncio.get_running_loop()
        began = loop.time()
        await engine.close()
        assert relay.aborted == 1
        assert loop.time() - began == pytest.approx(1.0, abs=0.02)


@pytest.mark.looptime
@pytest.mark.parametrize(("sent_after_s", "took_s"), [(None, 0.5), (0.2, 0.2), (0.0, 0.0)])
async def test_a_drain_waits_for_answers_that_the_front_has_not_sent_and_not_beyond_its_time(
    sent_after_s: float | None, took_s: float
):
    async with over() as plane:
        engine = engine_of(plane)
        loop = asyncio.get_running_loop()
        engine.front.has(1)
        if sent_after_s is not None:
            loop.call_later(sent_after_s, lambda: engine.front.has(1, **{"0": (1, 5)}))
        began = loop.time()
        await asyncio.sleep(0)
        await engine.drain(0.5)
        assert engine.service.draining
        assert loop.time() - began == pytest.approx(took_s, abs=0.02)


class Asking(socket.socket):
    """Notes what is asked of the kernel."""

    asked: list[tuple[Any, ...]]

    def setsockopt(self, *words: Any) -> None:
        self.asked.append(words)
        super().setsockopt(*words)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("host", "family", "both"),
    [(HOST, socket.AF_INET, False), ("::1", socket.AF_INET6, False), ("::", socket.AF_INET6, True)],
)
async def test_a_port_is_bound_as_that_of_rest_and_shared_by_workers(
    host: str, family: int, both: bool, workers: int, monkeypatch: pytest.MonkeyPatch
):
    async with over() as plane:
        engine = engine_of(plane, workers=workers)
        try:
            engine._bind(host, 0).close()
        except OSError as error:
            pytest.skip(f"this machine has no such address: {error}")
        Asking.asked = []
        monkeypatch.setattr(native_engine.socket, "socket", Asking)
        with engine._bind(host, 0) as sock:
            assert (sock.family, sock.proto) == (family, socket.IPPROTO_TCP)
            assert sock.getsockname()[1]
        assert (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1) in Asking.asked
        assert ((socket.SOL_SOCKET, socket.SO_REUSEPORT, 1) in Asking.asked) is (workers > 1)
        assert ((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0) in Asking.asked) is both


async def test_one_that_cannot_be_bound_leaves_no_descriptor():
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        async with over() as plane:
            engine = engine_of(plane)
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(OSError, match="in use") as refused:
                engine._bind(HOST, other.getsockname()[1])
            assert refused.value is not None
            assert len(os.listdir("/proc/self/fd")) == before, "the error itself may be kept for long"
