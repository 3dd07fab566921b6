"""What the supervisor of several workers does as they come up, fall silent and end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serinus.errors import ConfigError
from serinus.server.workers import supervisor as module
from serinus.server.workers.supervisor import Supervisor, bind, supervise
from serinus.settings import ServerSettings
from waiting import turns, until
from worker_group import HOST, IDLE, LOADED, group

# The first round


async def test_nobody_opens_the_ports_before_all_have_loaded(monkeypatch: pytest.MonkeyPatch):
    async with group(monkeypatch) as running:
        first, second = await running.started(0), await running.started(1)
        await first.comes_up()
        await until(lambda: first.known.ready == LOADED)
        await turns()
        assert not first.known.admitted
        await second.comes_up()
        for worker in (first, second):
            assert not worker.known.listening
            await worker.let_in()
            assert worker.known.admitted
        assert running.ends == {}


async def test_what_not_all_of_the_first_round_have_is_unloaded_before_the_ports_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with group(monkeypatch) as running:
        first, second = await running.first_round(LOADED, {"m": {**LOADED["m"], "2": {}}, "n": {"": {}}})
        shared = {"m": {"versions": LOADED["m"], "parameters": {}, "change": 0}}
        question = await second.heard()
        assert (question["type"], question["present"]) == ("restore", shared)
        await turns()
        assert not first.known.admitted, "nothing opens meanwhile"
        second.say(type="restored", id=question["id"], loaded=LOADED, problems=[])
        for worker in (first, second):
            await worker.let_in()
    assert "the workers have loaded different models: what one of them lacks is unloaded on all" in caplog.messages


@pytest.mark.parametrize(
    ("command", "status"), [(("sh", "-c", "exit 3"), 3), (("sh", "-c", "kill -9 $$"), 1), (("true",), 1)]
)
async def test_a_worker_that_ends_in_the_first_round_ends_the_group_with_its_status(
    command: tuple[str, ...], status: int, monkeypatch: pytest.MonkeyPatch
):
    async with group(monkeypatch, command, workers=1) as running:
        worker = await running.started(0)
        await until(lambda: worker.known.process.returncode is not None)
        await worker.hang_up()
        assert await asyncio.wait_for(running.running, 10) == status
        assert running.ends == {}, "it is not replaced"


# What comes later


async def test_one_that_dies_is_replaced_by_one_that_is_told_what_the_others_have(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with group(monkeypatch) as running:
        first, _ = await running.listening()
        await first.die()
        later = await running.next(0)
        assert later.pid != first.pid
        assert running.ends == {"ended": 1}
        assert f"worker 0 (pid {first.pid}) ended with signal SIGKILL; the next starts in 0.0 s" in caplog.messages
        assert running.supervisor._workers[0] is later.known


async def test_one_that_cannot_have_the_models_of_the_others_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with group(monkeypatch) as running:
        first, _ = await running.listening()
        await first.die()
        later = await running.started(0)
        present = running.supervisor._present.document()
        await later.comes_up(present)
        await later.answer("restore", "restored", loaded={}, problems=["model 'm': gone", "another"])
        await until(lambda: later.known.process.returncode is not None)
        await later.hang_up()
        await until(lambda: running.ends == {"ended": 1, "models": 1})
        assert not later.known.admitted
        assert running.supervisor._present.document() == present
    assert (
        f"worker 0 (pid {later.pid}) cannot have the models of the others, and ends: model 'm': gone; another"
    ) in caplog.messages


async def test_where_nobody_has_the_models_any_more_what_a_later_one_has_is_the_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with group(monkeypatch, workers=1) as running:
        (first,) = await running.listening()
        await first.die()
        later = await running.started(0)
        await later.comes_up(running.supervisor._present.document())
        await later.answer("restore", "restored", loaded={"n": {"3": {}}}, problems=["model 'm': gone"])
        await later.let_in()
        assert running.supervisor._present.document() == {"n": {"versions": {"3": {}}, "parameters": {}, "change": 0}}
    assert "no worker has these models any more: model 'm': gone" in caplog.messages


async def test_one_that_ends_while_it_is_brought_to_the_set_is_not_let_in(monkeypatch: pytest.MonkeyPatch):
    async with group(monkeypatch) as running:
        first, _ = await running.listening()
        await first.die()
        later = await running.started(0)
        await later.comes_up(running.supervisor._present.document())
        assert (await later.heard())["type"] == "restore"
        await later.die()
        await running.next(0)
        assert not later.known.admitted
        assert running.ends == {"ended": 2}


# Back-off, in simulated time


class Noting(Supervisor):
    """Past its first round; tells of each worker that it starts."""

    def __init__(self) -> None:
        super().__init__(ServerSettings(host=HOST, workers=1), IDLE)
        self._first_round = False
        self.started: asyncio.Queue[Any] = asyncio.Queue()

    async def _start(self, *words: Any) -> Any:
        worker = await super()._start(*words)
        self.started.put_nowait(worker)
        return worker


async def started_again(count: int, lives_s: float = 0.0, reason: str = "ended") -> dict[str, int]:
    """Have one worker end and start again so often, then stop; why they ended."""
    supervisor = Noting()
    with bind(HOST, 0) as http:
        keeping = asyncio.ensure_future(supervisor._keep(0, http, None))
        for _ in range(count):
            worker = await supervisor.started.get()
            worker.started, worker.reason = asyncio.get_running_loop().time() - lives_s, reason
            worker.process.kill()
        last = await supervisor.started.get()
        supervisor._stopping.set()
        last.process.kill()
        await keeping
    return supervisor._ends


def told_waits(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.rpartition("starts in ")[2] for line in caplog.messages if "the next starts in" in line]


@pytest.mark.looptime
async def test_the_next_starts_later_each_time_up_to_ten_seconds(caplog: pytest.LogCaptureFixture):
    await started_again(9)
    waits = ["0.1 s", "0.2 s", "0.4 s", "0.8 s", "1.6 s", "3.2 s", "6.4 s", "10.0 s", "10.0 s"]
    assert told_waits(caplog) == waits


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("lives_s", "reason", "waits"),
    [
        (29.0, "ended", ["0.1 s", "0.2 s", "0.4 s"]),
        (31.0, "ended", ["0.1 s"] * 3),
        (0.0, "memory", ["0.1 s"] * 3),
        (0.0, "silent", ["0.1 s", "0.2 s", "0.4 s"]),
    ],
)
async def test_one_that_was_well_for_long_or_ends_for_its_memory_is_followed_at_once(
    lives_s: float, reason: str, waits: list[str], caplog: pytest.LogCaptureFixture
):
    ends = await started_again(3, lives_s, reason)
    assert told_waits(caplog) == waits
    assert ends == {"ended": 0, "silent": 0, "memory": 0, "models": 0, reason: 3}


# Signs of life


async def test_one_that_gives_no_sign_of_life_is_killed_and_one_that_does_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with group(monkeypatch, worker_timeout_s=0.1) as running:
        silent, alive = await running.listening()
        while silent.known.process.returncode is None:
            alive.say(type="pong", data=None)
            await asyncio.sleep(0.005)  # a beat
        await silent.hang_up()
        assert alive.known.process.returncode is None
        assert (
            f"worker 0 (pid {silent.pid}) has given no sign of life for 0 s: it is killed, and replaced"
            in caplog.messages
        )
        await until(lambda: running.ends == {"silent": 1} or alive.say(type="pong", data=None))


@pytest.mark.parametrize(("timeout_s", "listens"), [(0.0, True), (0.02, False)], ids=["no limit", "it loads"])
async def test_silence_of_one_that_loads_or_where_there_is_no_limit_is_nothing(
    timeout_s: float, listens: bool, monkeypatch: pytest.MonkeyPatch
):
    async with group(monkeypatch, workers=1, worker_timeout_s=timeout_s) as running:
        (worker,) = await (running.listening() if listens else running.first_round())
        looks: list[float] = []
        look = running.supervisor._pulse.look
        monkeypatch.setattr(running.supervisor._pulse, "look", lambda now: looks.append(now) or look(now))
        await until(lambda: len(looks) > 12)
        assert worker.known.process.returncode is None


async def test_a_stopped_process_is_killed_sooner_though_it_has_not_come_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "_STOPPED_S", 0.02)
    async with group(monkeypatch, workers=1, worker_timeout_s=600) as running:
        (worker,) = await running.first_round()
        os.kill(worker.pid, signal.SIGSTOP)
        await until(lambda: worker.known.process.returncode is not None)
        assert worker.known.reason == "silent"
        await worker.hang_up()
    assert f"worker 0 (pid {worker.pid}) was stopped by a signal for 0 s: it is killed, and replaced" in caplog.messages


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("stopped", "timeout_s", "killed_after_s", "said"),
    [
        (False, 10.0, 11, "has given no sign of life for 11 s"),
        (True, 10.0, 4, "was stopped by a signal for 4 s"),
        (True, 2.0, 3, "was stopped by a signal for 3 s"),  # its limit where that is shorter
        (False, 0.0, None, ""),
        (True, 0.0, None, ""),
    ],
)
async def test_a_silent_worker_is_killed_after_its_time_and_a_stopped_one_after_three_seconds(
    stopped: bool,
    timeout_s: float,
    killed_after_s: int | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    loop, killed = asyncio.get_running_loop(), []
    began = loop.time()
    supervisor = Supervisor(ServerSettings(host=HOST, workers=1, worker_timeout_s=timeout_s), IDLE)
    asked: list[Any] = []
    channel = SimpleNamespace(send=lambda **message: asked.append(message["type"]))
    worker: Any = SimpleNamespace(
        index=0, process=SimpleNamespace(pid=7), listening=True, channel=channel, reason="ended"
    )
    supervisor._workers[0] = worker
    supervisor._pulse.hear(0, began)
    monkeypatch.setattr(module, "is_stopped", lambda pid: stopped)
    monkeypatch.setattr(module, "_kill", lambda one: killed.append((one, loop.time() - began)))
    beating = asyncio.ensure_future(supervisor._beat())
    await asyncio.sleep(11.5 if killed_after_s is None else killed_after_s + 0.5)
    beating.cancel()
    assert [(one is worker, round(after_s, 3)) for one, after_s in killed] == (
        [] if killed_after_s is None else [(True, float(killed_after_s))]
    )
    assert worker.reason == ("ended" if killed_after_s is None else "silent")
    assert asked == ["ping"] * (11 if killed_after_s is None else killed_after_s - 1)
    assert [line.partition(") ")[2] for line in caplog.messages] == (
        [f"{said}: it is killed, and replaced"] if said else []
    )


async def test_a_listening_worker_is_asked_for_signs_of_life_and_one_that_loads_is_not(monkeypatch: pytest.MonkeyPatch):
    async with group(monkeypatch, workers=1) as running:
        (worker,) = await running.first_round()
        messages = worker.channel.messages()
        assert await anext(messages) == {"type": "go"}
        worker.say(type="listening", http_port=1, grpc_port=None)
        for _ in range(3):
            assert await asyncio.wait_for(anext(messages), 10) == {"type": "ping"}


# Memory


async def test_one_that_has_passed_its_memory_ends_when_all_listen_and_the_next_only_when_it_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with group(monkeypatch) as running:
        first, second = await running.first_round()
        await first.let_in()
        first.say(type="memory", reason="the first is large")
        second.say(type="memory", reason="the second is large")
        await until(lambda: running.supervisor._retiring.locked())
        await asyncio.sleep(0.02)  # four beats
        assert "the first is large" not in caplog.text, "the second does not listen yet"
        await second.let_in()
        assert await first.heard() == {"type": "retire"}
        assert f"worker 0 (pid {first.pid}): the first is large" in caplog.messages
        assert "the second is large" not in caplog.text
        await first.die()
        await running.next(0)
        assert await second.heard() == {"type": "retire"}
        assert running.ends == {"memory": 1}


async def test_one_that_has_ended_meanwhile_is_not_told_to(monkeypatch: pytest.MonkeyPatch):
    async with group(monkeypatch) as running:
        first, second = await running.first_round()
        await first.let_in()
        first.say(type="memory", reason="large")
        await until(lambda: running.supervisor._retiring.locked())
        await first.die()
        await until(lambda: running.supervisor._workers.get(0) is not first.known)
        await second.let_in()
        await running.next(0)
        await until(lambda: not running.supervisor._retiring.locked())
        assert running.ends == {"ended": 1}


# The end


async def test_a_signal_goes_to_all_workers_and_the_group_ends_as_they_do(monkeypatch: pytest.MonkeyPatch):
    async with group(monkeypatch) as running:
        workers = await running.listening()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running.stopped() == 0
        assert [worker.known.process.returncode for worker in workers] == [-signal.SIGTERM] * 2
        assert running.ends == {}


def trapping(action: str, folder: Path) -> tuple[str, ...]:
    """A program that does so at SIGTERM; it makes a file in the folder when it is ready to."""
    return ("sh", "-c", f"sleep 600 & trap '{action}' TERM; : > {folder}/$SERINUS_WORKER; wait; wait")


async def test_the_status_is_the_largest_of_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = trapping("kill $!; exit $((SERINUS_WORKER * 3))", tmp_path)
    async with group(monkeypatch, program, workers=3) as running:
        workers = await running.listening()
        await until(lambda: len(list(tmp_path.iterdir())) == 3)
        os.kill(os.getpid(), signal.SIGINT)
        assert await running.stopped() == 6
        for worker in workers:
            await worker.die()


async def test_one_that_does_not_end_in_time_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    monkeypatch.setattr(module, "CLOSING_S", 0.0)
    monkeypatch.setattr(module, "_KILL_MARGIN_S", 0.05)
    async with group(monkeypatch, trapping("", tmp_path), workers=1, drain_timeout_s=0.0) as running:
        (worker,) = await running.listening()
        await until((tmp_path / "0").exists)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running.stopped() == 124
        assert worker.known.process.returncode == -signal.SIGKILL
    assert f"worker 0 (pid {worker.pid}) did not stop in 0 s: killed" in caplog.messages


async def test_a_second_signal_kills_them_and_ends_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ended: list[tuple[int, str]] = []
    monkeypatch.setattr(module, "end_with", lambda status, reason: ended.append((status, reason)))
    async with group(monkeypatch, trapping("", tmp_path)) as running:
        workers = await running.listening()
        await until(lambda: len(list(tmp_path.iterdir())) == 2)
        running.supervisor._signalled(signal.SIGTERM)
        assert ended == []
        running.supervisor._signalled(signal.SIGINT)
        assert ended == [(130, "SIGINT came again: the workers are killed")]
        await running.stopped()
        assert [worker.known.process.returncode for worker in workers] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("how", ["stop", "hang up"])
async def test_a_signal_leaves_it_to_asyncio_to_look_whether_a_worker_has_ended(
    how: str, monkeypatch: pytest.MonkeyPatch
):
    polled: list[int] = []
    poll = subprocess.Popen.poll
    monkeypatch.setattr(subprocess.Popen, "poll", lambda process: polled.append(process.pid) or poll(process))
    supervisor = Supervisor(ServerSettings(host=HOST, workers=1), IDLE)
    process = await asyncio.create_subprocess_exec(*IDLE)
    worker: Any = SimpleNamespace(index=0, process=process, ready=LOADED)
    supervisor._workers[0] = worker
    for _ in range(2):  # the second time it has ended
        if how == "stop":
            await supervisor._stop()
        else:
            supervisor._hang_up(False)
        number = signal.SIGTERM if how == "stop" else signal.SIGHUP
        assert await process.wait() == -number
    assert polled == [], "who looks takes its status away"


async def test_a_hang_up_is_passed_on_to_those_that_are_ready(monkeypatch: pytest.MonkeyPatch):
    async with group(monkeypatch) as running:
        first, second = await running.started(0), await running.started(1)
        await first.comes_up()
        await until(lambda: first.known.ready is not None)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: first.known.process.returncode is not None)
        assert first.known.process.returncode == -signal.SIGHUP
        assert second.known.process.returncode is None
        running.supervisor._hang_up(False)  # and one that has ended is no error


@pytest.mark.parametrize(("had", "has", "stops"), [(True, False, True), (True, True, False), (False, False, False)])
async def test_the_end_of_the_terminal_that_started_it_stops_it(
    had: bool, has: bool, stops: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "has_terminal", lambda: has)
    supervisor = Supervisor(ServerSettings(host=HOST), IDLE)
    supervisor._hang_up(had)
    assert supervisor._stopping.is_set() is stops


# What a worker is given


@pytest.mark.parametrize("enable_grpc", [True, False])
async def test_a_worker_is_told_its_number_and_given_its_channel_and_the_bound_ports(
    enable_grpc: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    program = (
        f"[ -S /dev/fd/$SERINUS_CONTROL_FD ] && [ -S /dev/fd/$SERINUS_HTTP_FD ] && env > {tmp_path}/$SERINUS_WORKER.part"
        f" && mv {tmp_path}/$SERINUS_WORKER.part {tmp_path}/$SERINUS_WORKER; exec sleep 600"
    )
    async with group(monkeypatch, ("sh", "-c", program), enable_grpc=enable_grpc) as running:
        workers = [await running.started(index) for index in range(2)]
        for index, worker in enumerate(workers):
            file = tmp_path / str(index)
            await until(file.exists)
            found = dict(line.split("=", 1) for line in file.read_text().splitlines() if line.startswith("SERINUS_"))
            assert found["SERINUS_WORKER"] == str(index)
            assert ("SERINUS_GRPC_BOUND_PORT" in found) is enable_grpc
            if enable_grpc:
                port = int(found["SERINUS_GRPC_BOUND_PORT"])
                with socket.socket() as other, pytest.raises(OSError, match="in use"):
                    other.bind((HOST, port))
            assert os.getsid(worker.pid) == worker.pid, "what it starts ends with it"


async def test_a_port_that_is_taken_ends_the_start(monkeypatch: pytest.MonkeyPatch):
    with bind(HOST, 0) as other:
        other.listen()
        port = other.getsockname()[1]
        for setting in ("http_port", "grpc_port", "metrics_port"):
            supervisor = Supervisor(ServerSettings(host=HOST, **{"http_port": 0, "grpc_port": 0, setting: port}), IDLE)
            with pytest.raises(ConfigError, match=f"{port}"):
                await supervisor.run()
            assert supervisor._workers == {}


# Binding


@pytest.mark.parametrize("share", [None, False, True])
def test_a_port_is_bound_without_listening_and_shared_where_that_is_asked_for(share: bool | None):
    fields = {} if share is None else {"share": share}
    with bind(HOST, 0, **fields) as sock:
        assert sock.family == socket.AF_INET
        assert not sock.getblocking()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == int(share or False)
        if share:
            bind(HOST, sock.getsockname()[1], share=True).close()


def test_a_port_that_cannot_be_had_is_said_and_no_descriptor_stays():
    with bind(HOST, 0) as other:
        other.listen()
        port, before = other.getsockname()[1], len(os.listdir("/proc/self/fd"))
        with pytest.raises(ConfigError) as refused:
            bind(HOST, port)
        assert (
            str(refused.value)
            == f"cannot listen on {HOST} port {port}: Address already in use; is another server running?"
        )
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_ipv6_address_is_bound_as_one():
    try:
        sock = bind("::1", 0)
    except ConfigError as error:
        pytest.skip(f"this machine has no such address: {error}")
    with sock:
        assert sock.family == socket.AF_INET6


# The command


@pytest.mark.parametrize(
    ("first", "start"),
    [("", ["-m", "serinus.cli"]), (os.getcwd(), ["-m", "serinus.cli"]), ("/elsewhere", ["-c", module._START])],
)
def test_a_worker_is_this_program_again_and_looks_for_modules_where_this_process_does(
    first: str, start: list[str], monkeypatch: pytest.MonkeyPatch
):
    commands: list[list[str]] = []

    class Idle(Supervisor):
        """Starts nobody."""

        async def run(self) -> int:
            commands.append(self._command)
            return 7

    monkeypatch.setattr(module, "Supervisor", Idle)
    monkeypatch.setattr(module.sys, "path", [first, *sys.path])
    assert supervise(ServerSettings(host=HOST), ["--workers", "2"]) == 7
    assert commands == [[sys.executable, *start, "serve", "--workers", "2"]]
