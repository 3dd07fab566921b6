"""The bound on the end of a process, and what signals do, without a process that ends."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serinus.server import exit_bound
from serinus.server.exit_bound import CLOSING_S, ExitBound, ExitStatus, end_with, leave_soon
from serinus.settings import ServerSettings
from waiting import wait_until

LIMIT_S = 600.0
"""Far more than a test takes."""


class Process:
    """What is told of the end of one, which goes on."""

    def __init__(self) -> None:
        self.stops = self.hang_ups = 0
        self.statuses: list[int] = []

    def stop(self) -> None:
        self.stops += 1

    def hang_up(self) -> None:
        self.hang_ups += 1


@pytest.fixture(autouse=True)
def net(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `faulthandler` is asked for: it would end this process."""
    asked: list[Any] = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda timeout, **options: asked.append((timeout, options))
    )
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: asked.append("cancelled"))
    return asked


@contextlib.contextmanager
def bound(limit_s: float = LIMIT_S, **options: Any) -> Iterator[tuple[ExitBound, Process]]:
    process = Process()
    if options.pop("hangs_up", False):
        options["on_hang_up"] = process.hang_up
    one = ExitBound(limit_s, process.stop, leave=process.statuses.append, **options)
    try:
        yield one, process
    finally:
        one.close()


def ended(process: Process) -> list[int]:
    wait_until(lambda: bool(process.statuses))
    return process.statuses


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_for_the_stop_and_the_second_ends_the_process_by_its_number(
    first: signal.Signals, second: signal.Signals, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    message = tmp_path / "message"
    message.touch()
    with bound(message_path=str(message)) as (_, process):
        signal.raise_signal(first)
        wait_until(lambda: process.stops == 1)
        assert process.statuses == []
        signal.raise_signal(second)
        assert ended(process) == [128 + second]
        assert process.stops == 1
    said = f"{second.name} came again: the process ends at once"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [said]
    assert said in message.read_text()


def test_under_a_supervisor_signals_that_come_again_change_nothing():
    with bound(insistent=False) as (one, process):
        for count in (1, 2, 3):
            signal.raise_signal(signal.SIGTERM)
            wait_until(lambda count=count: one._signals == count)
        assert one._signals == 3
        wait_until(lambda: process.stops == 1)
    assert (process.stops, process.statuses) == (1, [])


@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_hang_up_is_told_each_time_where_somebody_wants_to_know_and_stops_nothing(hangs_up: bool):
    others: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: others.append(number))
    try:
        with bound(hangs_up=hangs_up) as (one, process):
            for count in (1, 2):
                signal.raise_signal(signal.SIGHUP)
                wait_until(lambda count=count: process.hang_ups + len(others) == count)
            assert (process.hang_ups, len(others)) == ((2, 0) if hangs_up else (0, 2))
            assert (one._signals, process.stops) == (0, 0)
        signal.raise_signal(signal.SIGHUP)
        assert len(others) == (1 if hangs_up else 3), "as it was before"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_bound_runs_from_its_beginning_once_and_the_net_lies_a_second_below(net: list[Any]):
    with bound() as (one, process):
        one.begin()
        ends = one._ends
        one.begin()
        assert one._ends == ends
        assert process.stops == 1
        assert net == [(LIMIT_S + 1, {"exit": True})]
    assert net[1:] == ["cancelled"]
    assert process.statuses == []


def test_without_a_standard_error_there_is_no_net_and_the_stop_is_asked_for_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(timeout: float, **options: Any) -> None:
        raise RuntimeError("sys.stderr is None")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", refuse)
    with bound() as (one, process):
        one.begin()
        assert process.stops == 1


@pytest.mark.parametrize(
    ("settled", "status", "hangs", "is_reason"),
    [
        (None, 124, "requests are unanswered", True),
        (ExitStatus.CLEAN, 0, "the drain is over, and something else hangs", False),
        (ExitStatus.FAILED, 1, "the drain is over, and something else hangs", True),
        (ExitStatus.CUT, 124, "requests are unanswered", True),
    ],
)
def test_the_bound_ends_the_process_with_the_status_of_its_drain_and_a_reason_unless_it_is_clean(
    settled: int | None,
    status: int,
    hangs: str,
    is_reason: bool,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
):
    message = tmp_path / "message"
    message.touch()
    with bound(0.0, message_path=str(message)) as (one, process):
        if settled is not None:
            one.settle(settled)
        one.begin()
        assert ended(process) == [status]
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said.startswith(f"the bound of 0 s for the end has come: {hangs}; the process ends. Its main thread is at: ")
    assert (message.read_text().strip() == said.strip()) is is_reason


def test_where_the_main_thread_hangs_is_told_innermost_first():
    with bound(12.345) as (one, _):

        def hang() -> str:
            return one._what_hangs()

        said = hang()
    assert said.startswith("the bound of 12.3 s for the end has come: requests are unanswered;")
    places = said.partition(" is at: ")[2].split(", called by ")
    assert [place.partition(" (")[0] for place in places] == [
        "_what_hangs",
        "hang",
        "test_where_the_main_thread_hangs_is_told_innermost_first",
    ]
    assert f"({Path(__file__)}:" in places[1]


def test_a_main_thread_that_is_gone_is_nowhere():
    with bound() as (one, _):
        one._main = 0
        assert one._what_hangs().endswith("Its main thread is at: unknown")


def test_signals_are_heard_again_after_a_loop_has_had_them_written_elsewhere():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        with bound() as (one, process):
            signal.set_wakeup_fd(writer)
            one.listen()
            signal.raise_signal(signal.SIGTERM)
            wait_until(lambda: process.stops == 1)
            os.set_blocking(reader, False)
            with pytest.raises(BlockingIOError):
                os.read(reader, 1)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("begun", [True, False])
def test_after_it_signals_are_as_they_were_and_nothing_of_it_is_left(begun: bool, net: list[Any]):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with bound() as (one, process):
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
        if begun:
            one.begin()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert net[-1] == "cancelled"
    assert not one._thread.is_alive()
    for end in (one._reader, one._writer):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)
    assert process.statuses == []


def test_no_signal_waits_for_room_in_the_pipe():
    with bound() as (one, _):
        assert not os.get_blocking(one._writer)
        assert os.get_blocking(one._reader)


# What ends a process


class Child:
    """A model's process."""

    def __init__(self) -> None:
        self.is_killed = False

    def kill(self) -> None:
        self.is_killed = True


@pytest.mark.parametrize(("reason", "said"), [("why", ["why"]), ("100 %", ["100 %"]), ("", [])])
def test_the_end_says_why_and_takes_the_models_processes_along(
    reason: str, said: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    children, statuses = [Child(), Child()], []
    monkeypatch.setattr(multiprocessing, "active_children", lambda: children)
    end_with(3, reason, leave=lambda status: statuses.append((status, [one.is_killed for one in children])))
    assert statuses == [(3, [True, True])], "they are killed before"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == said


def test_children_that_cannot_be_looked_at_do_not_keep_a_process(monkeypatch: pytest.MonkeyPatch):
    def fail() -> list[Any]:
        raise RuntimeError("dictionary changed size during iteration")

    statuses: list[int] = []
    monkeypatch.setattr(multiprocessing, "active_children", fail)
    end_with(3, "", leave=statuses.append)
    assert statuses == [3]


def test_a_log_that_hangs_does_not_keep_a_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exit_bound, "_SAY_S", 0.01)
    free, statuses = threading.Event(), []
    monkeypatch.setattr(exit_bound._log, "error", lambda *args: free.wait(60))
    try:
        end_with(3, "why", leave=lambda status: statuses.append((status, free.is_set())))
    finally:
        free.set()
    assert statuses == [(3, False)]


class Stream:
    """A standard stream."""

    def __init__(self, *, is_closed: bool) -> None:
        self.is_closed, self.flushes = is_closed, 0

    def flush(self) -> None:
        self.flushes += 1
        if self.is_closed:
            raise ValueError("I/O operation on closed file")


def test_who_leaves_soon_is_ended_after_what_it_has_said(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    over: list[Any] = []
    out, err = Stream(is_closed=True), Stream(is_closed=False)
    monkeypatch.setattr(exit_bound.time, "sleep", waits.append)
    monkeypatch.setattr(exit_bound, "end_with", lambda *args: over.append((args, waits[:], out.flushes, err.flushes)))
    monkeypatch.setattr(exit_bound.sys, "stdout", out)
    monkeypatch.setattr(exit_bound.sys, "stderr", err)
    threads = threading.enumerate()
    assert leave_soon(7) == 7
    for thread in threading.enumerate():
        if thread not in threads:
            assert thread.daemon
            thread.join(60)
    assert over == [((7, ""), [0.5], 1, 1)]


def test_the_statuses_and_the_times_are_those_that_are_told():
    assert {status.name: int(status) for status in ExitStatus} == {
        "CLEAN": 0,
        "FAILED": 1,
        "WRONG_OPTIONS": 2,
        "MEMORY": 75,
        "CUT": 124,
    }
    assert ServerSettings().drain_timeout_s + CLOSING_S == 30 - 4
