"""The life of a server process, in this one: what it says and does from its start to its end, and at its signals."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane_support import Doubler
from http_support import Raw, is_open
from lifecycle_support import HOST, Life, ask, launch_of, note_collections, reasons_of
from rest_support import wire
from serinus.dataplane.access.access_tokens import Tokens
from serinus.dataplane.access.repository_access import OPEN, RepositoryAccess
from serinus.errors import ConfigError, ModelFailed, SerinusError
from serinus.server import lifecycle
from serinus.server.exit_bound import ExitStatus
from serinus.server.lifecycle import Launch
from serinus.server.request_access import RequestAccess
from waiting import turns, until

TOKEN = "a-token-of-a-person-0123456789"


@pytest.fixture(autouse=True)
def collected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return note_collections(monkeypatch)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "serinus")
    return caplog


# Alone


async def test_it_serves_until_it_is_to_stop_and_leaves_nothing(said: pytest.LogCaptureFixture, collected: list[str]):
    left: list[str] = []

    class Leaving(Doubler):
        def unload(self) -> None:
            left.append(self.name)

    life = Life(launch_of("a", "b", factory=Leaving, started=time.monotonic() - 1000))
    port, grpc_port = await life.announced()
    assert grpc_port is None
    assert life.bound.done == ["listen"]
    assert collected == ["collect", "freeze"]
    (line,) = [line for line in said.messages if line.startswith("ready in")]
    assert re.fullmatch(rf"ready in 10\d\d\.\d\d s: REST on {HOST}:{port}; repository control: off", line)
    assert (await ask(port, "/v2/models/a/ready")).json["ready"]
    page = (await ask(port, "/metrics")).body.decode()
    for name in (
        *("serinus_event_loop_lag_seconds_count", "serinus_late_requests_refused_total", "serinus_unsent_answer_bytes"),
        *("serinus_memory_restart_pending", "serinus_loop_held_total"),
    ):
        assert f"\n{name}" in page, name
    assert "serinus_tls_certificate" not in page
    threads = {thread.name for thread in threading.enumerate()}
    assert "loop-watchdog" in threads
    assert await life.ended() == ExitStatus.CLEAN
    assert life.bound.done == ["listen", ExitStatus.CLEAN]
    assert sorted(left) == ["a", "b"]
    assert not await is_open(port)
    assert [line for line in said.messages if line.startswith("stop")] == [
        "stopping: draining for at most 2 s",
        "stopped",
    ]
    assert life.watch._closed
    await until(lambda: "loop-watchdog" not in {thread.name for thread in threading.enumerate()})


class Grpc:
    """Stands for gRPC's server: grpc.aio does not stand several loops in a process."""

    engine, port = "grpcio", 4711

    async def take_waiting(self) -> None:
        pass

    def stop_accepting(self) -> None:
        pass

    async def drain(self, timeout_s: float) -> None:
        pass

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"enable_grpc": True, "grpc": "grpcio"},
            r"REST on H:\d+, gRPC on H:(\d+) \(grpcio\); repository control: off",
        ),
        ({"metrics_port": 0}, r"REST on H:\d+, metrics on H:\d+; repository control: off"),
        ({"health_port": 0}, r"REST on H:\d+, health on H:\d+; repository control: off"),
        ({"access": OPEN}, r"REST on H:\d+; repository control: OPEN to whoever reaches these ports"),
        (
            {"access": RepositoryAccess(mode="loopback")},
            r"REST on H:\d+; repository control: on, for this machine alone",
        ),
        (
            {"access": RepositoryAccess(mode="token", tokens=Tokens([TOKEN]))},
            r"REST on H:\d+; repository control: on, with a token",
        ),
        (
            {"request_access": RequestAccess(Tokens([TOKEN]), frozenset({"metrics", "inference"}))},
            r"REST on H:\d+; repository control: off; a token is needed for inference, metrics",
        ),
    ],
    ids=["grpc", "metrics", "health", "open", "loopback", "token", "request tokens"],
)
async def test_the_line_at_start_says_where_it_listens_and_who_may_what(
    fields: Any, line: str, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    async def start_grpc(*words: Any, **more: Any) -> Grpc:
        return Grpc()

    monkeypatch.setattr(lifecycle, "start_grpc", start_grpc)
    life = Life(launch_of(**fields))
    _, grpc_port = await life.announced()
    (found,) = [line for line in said.messages if line.startswith("ready in")]
    told = re.fullmatch(r"ready in \d+\.\d\d s: " + line.replace("H", re.escape(HOST)), found)
    assert told, found
    assert [str(grpc_port)] == list(told.groups()) if grpc_port else not told.groups()
    assert await life.ended() == ExitStatus.CLEAN


async def test_a_port_that_is_taken_is_found_before_a_model_is_made():
    made: list[Any] = []
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        life = Life(launch_of(http_port=other.getsockname()[1], factory=lambda settings: made.append(settings)))
        with pytest.raises(ConfigError, match="http_port"):
            await life.announced()
    assert made == []


async def test_a_socket_that_is_bound_already_is_served_without_a_look_at_its_port():
    sock = socket.socket()
    sock.bind((HOST, 0))
    sock.setblocking(False)
    port = sock.getsockname()[1]
    life = Life(launch_of(http_socket=sock, http_port=port))
    assert (await life.announced())[0] == port
    assert await life.ended() == ExitStatus.CLEAN


async def test_a_model_that_does_not_load_ends_the_start_and_one_that_may_fail_does_not():
    class Fails(Doubler):
        def load(self) -> None:
            if self.name == "bad":
                raise ValueError("no such file")

    with pytest.raises(SerinusError, match="bad"):
        await Life(launch_of("m", "bad", factory=Fails)).announced()
    for strict, status in ((False, 200), (True, 503)):
        life = Life(
            launch_of(
                *("m", "bad"),
                factory=Fails,
                spared=["bad"],
                broken={"odd": "unreadable"},
                strict_readiness=strict,
                index=list,
            )
        )
        port, _ = await life.announced()
        assert (await ask(port, "/v2/models/m/ready")).status == 200
        assert (await ask(port, "/v2/models/bad/ready")).status != 200
        assert (await ask(port, "/v2/health/ready")).status == status
        reasons = await reasons_of(port)
        assert "unreadable" in reasons["odd"]
        assert "no such file" in reasons["bad"]
        assert await life.ended() == ExitStatus.CLEAN


async def test_a_wish_to_stop_while_models_load_ends_it_at_once(said: pytest.LogCaptureFixture):
    gate, entered = threading.Event(), threading.Event()

    class Loading(Doubler):
        def load(self) -> None:
            entered.set()
            gate.wait(20)

    life = Life(launch_of(factory=Loading))
    try:
        await until(entered.is_set)
        assert await life.ended() == ExitStatus.CLEAN
        assert not life.ports.done()
        assert said.messages == []
        await turns()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody loads on"
    finally:
        gate.set()


@pytest.mark.parametrize(("own", "status"), [(["m"], 503), ([], 200)])
async def test_a_server_without_models_is_ready_where_none_was_asked_for(own: list[str], status: int):
    launch = launch_of(*own)
    life = Life(Launch(server=launch.server, models=launch.models if own else [], factory=Doubler, access=OPEN))
    port, _ = await life.announced()
    if own:
        client = await Raw.open(port)
        await client.send(wire("POST", "/v2/repository/models/m/unload", {}))
        assert (await client.answer()).status == 200
        await client.close()
    assert (await ask(port, "/v2/health/ready")).status == status
    assert await life.ended() == ExitStatus.CLEAN


async def test_requests_in_flight_are_answered_before_it_ends():
    gate, entered = threading.Event(), threading.Event()

    class Slow(Doubler):
        execution = "thread"

        def predict(self, inputs: Any, call: Any) -> Any:
            entered.set()
            gate.wait(20)
            return super().predict(inputs, call)

    life = Life(launch_of(factory=Slow))
    port, _ = await life.announced()
    client = await Raw.open(port)
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    await client.send(wire("POST", "/v2/models/m/infer", body))
    await until(entered.is_set)
    life.wish.ask()
    await until(lambda: "begin" not in life.bound.done)
    await asyncio.sleep(0.02)
    assert not life.status.done()
    gate.set()
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    await client.close()
    assert await asyncio.wait_for(life.status, 20) == ExitStatus.CLEAN


async def test_what_memory_has_ended_is_said_where_the_kubelet_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    file = tmp_path / "termination-log"
    file.touch()
    looked: list[Any] = []

    class Guard:
        """Passed its limit when it is told so."""

        reason = "memory is large"

        def families(self) -> list[Any]:
            return []

        async def run(self) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                looked.append("ended")
                raise

    def guard(settings: Any, stop: Any, worker: Any) -> Any:
        looked.append((stop, worker))
        return Guard()

    monkeypatch.setattr(lifecycle, "_guard_memory", guard)
    life = Life(launch_of(termination_message_path=str(file)))
    await life.announced()
    assert looked == [(life.bound.begin, None)]
    assert await life.ended() == ExitStatus.MEMORY
    assert life.bound.done[-1] == ExitStatus.MEMORY
    assert file.read_text() == "memory is large"
    await until(lambda: looked[-1] == "ended")


async def test_its_tracer_is_made_for_its_service_and_closed_last(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    class Tracer:
        """Takes no span."""

        def close(self) -> None:
            asked.append(threading.current_thread() is not threading.main_thread())

    def start(environ: Any, *, service: str) -> Any:
        asked.append((environ is os.environ, service))
        return Tracer() if environ.get("INFERENCE_SERVICE_NAME") else None

    monkeypatch.setattr(lifecycle, "start_tracing", start)
    for name in ("", "fraud"):
        monkeypatch.setenv("INFERENCE_SERVICE_NAME", name)
        life = Life(launch_of())
        await life.announced()
        await life.ended()
    assert asked == [(True, "serinus"), (True, "fraud"), True]


# The whole, with its signals


@pytest.fixture
def as_before() -> Iterator[None]:
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)


def signals_itself(number: int) -> Callable[[int, int | None], None]:
    return lambda http_port, grpc_port: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it(number: int, as_before: None):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    sys.setswitchinterval(0.005)
    assert lifecycle.run(launch_of(), announce=signals_itself(number)) == 0
    assert sys.getswitchinterval() == pytest.approx(0.0005, rel=0.05)
    assert {each: signal.getsignal(each) for each in before} == before
    assert not [thread for thread in threading.enumerate() if thread.name in ("exit-bound", "serinus-keys")]


@pytest.mark.parametrize("installed", [True, False])
def test_the_loop_is_uvloops_where_that_is_installed(installed: bool, monkeypatch: pytest.MonkeyPatch, as_before: None):
    if installed:
        pytest.importorskip("uvloop")
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    loops: list[str] = []

    async def serve(*words: Any) -> int:
        loops.append(type(asyncio.get_running_loop()).__module__)
        return 7

    monkeypatch.setattr(lifecycle, "_serve", serve)
    assert lifecycle.run(launch_of()) == 7
    assert (loops == ["uvloop"]) is installed


def test_a_shorter_switch_interval_is_left_as_it_is(as_before: None):
    sys.setswitchinterval(0.0001)
    lifecycle.run(launch_of(), announce=signals_itself(signal.SIGTERM))
    assert sys.getswitchinterval() == pytest.approx(0.0001, rel=0.05)


@pytest.mark.parametrize(
    ("error", "problems"),
    [
        (ConfigError(["one", "two"]), ["one", "two"]),
        (ModelFailed("it did not load"), ["it did not load"]),
    ],
)
def test_a_start_that_fails_says_why_where_people_and_the_kubelet_read_it(
    error: Exception,
    problems: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    as_before: None,
):
    file = tmp_path / "termination-log"
    file.touch()

    async def serve(*words: Any) -> int:
        raise error

    monkeypatch.setattr(lifecycle, "_serve", serve)
    assert lifecycle.run(launch_of(termination_message_path=str(file))) == ExitStatus.FAILED
    assert caplog.messages == problems
    assert file.read_text() == "; ".join(problems)
    assert not [thread for thread in threading.enumerate() if thread.name == "exit-bound"]


@pytest.mark.parametrize("control", [False, True])
def test_its_bound_is_what_the_drain_may_take_and_a_second_signal_is_for_who_has_no_supervisor(
    control: bool, monkeypatch: pytest.MonkeyPatch, as_before: None
):
    made: list[Any] = []

    class Noting:
        """Stands for `ExitBound`."""

        def __init__(self, limit_s: float, on_stop: Any, **more: Any) -> None:
            made.append((limit_s, more.pop("insistent"), more.pop("message_path")))

        def close(self) -> None:
            made.append("closed")

    async def serve(*words: Any) -> int:
        return 7

    monkeypatch.setattr(lifecycle, "ExitBound", Noting)
    monkeypatch.setattr(lifecycle, "_serve", serve)
    sock: Any = object()
    launch = launch_of(
        drain_delay_s=2.0, drain_timeout_s=5.0, termination_message_path="x", control=sock if control else None
    )
    assert lifecycle.run(launch) == 7
    assert made == [(8.0, not control, "x"), "closed"]


@pytest.mark.parametrize(
    ("had", "has", "done"), [(True, False, "begin"), (True, True, "reload"), (False, False, "reload")]
)
def test_a_hang_up_has_keys_read_again_and_the_end_of_its_terminal_stops_it(
    had: bool, has: bool, done: str, monkeypatch: pytest.MonkeyPatch, as_before: None
):
    seen, terminals = [], iter([had, has])
    monkeypatch.setattr(lifecycle, "has_terminal", lambda: next(terminals))

    class Noting:
        """Stands for `ExitBound`."""

        def __init__(self, limit_s: float, on_stop: Any, **more: Any) -> None:
            self.on_hang_up = more["on_hang_up"]

        def begin(self) -> None:
            seen.append("begin")

        def close(self) -> None:
            pass

    async def serve(launch: Any, announce: Any, wish: Any, bound: Any, watch: Any) -> int:
        watch.reload_all = lambda: seen.append("reload")
        bound.on_hang_up()
        return 0

    monkeypatch.setattr(lifecycle, "ExitBound", Noting)
    monkeypatch.setattr(lifecycle, "_serve", serve)
    lifecycle.run(launch_of())
    assert seen == [done]
