"""The record of processes: what is in it is told apart from whoever has the pid now, damaged files cost lines, and groups end whole."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from local_support import is_running
from serinus.local.run.processes import process_record
from serinus.local.run.processes.process_record import FILE, ProcessRecord, end_processes, identify, read_record

SLEEP = "import time; print(1, flush=True); time.sleep(120)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(120)"
LEAVES_A_CHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)']); print(1, flush=True)"


@pytest.fixture
def start() -> Iterator[object]:
    started: list[subprocess.Popen[str]] = []

    def begin(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield begin
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def test_what_began_and_has_not_ended_is_in_the_file(tmp_path: Path, start) -> None:
    record = ProcessRecord(tmp_path, pytest.fail)
    one, two = start(SLEEP), start(SLEEP)
    record.began(one.pid, "one")
    record.began(two.pid, "two")
    assert [each.title for each in read_record(tmp_path)] == ["one", "two"]
    record.ended(one.pid)
    record.ended(one.pid)
    (left,) = read_record(tmp_path)
    assert (left.title, left.pid, left.is_running) == ("two", two.pid, True)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("code", [SLEEP, DEAF], ids=["heeds SIGTERM", "deaf"])
@pytest.mark.parametrize("stopped", [False, True], ids=["runs", "stopped"])
def test_a_recorded_process_is_ended(start, code: str, stopped: bool) -> None:
    process = start(code)
    found = identify(process.pid, "it")
    assert found is not None
    if stopped:
        os.kill(process.pid, signal.SIGSTOP)
    assert end_processes([found], grace_s=0.3) == [found]
    assert not is_running(process.pid)


def test_a_group_without_its_first_process_is_ended(start) -> None:
    process = start(LEAVES_A_CHILD)
    found = identify(process.pid, "it")
    assert found is not None
    process.wait(10)
    assert found.is_running, "its child is there"
    end_processes([found], grace_s=5.0)
    assert not found.is_running


def test_another_process_with_the_same_pid_is_left_alone(start) -> None:
    process = start(SLEEP)
    found = identify(process.pid, "it")
    assert found is not None
    for other in (replace(found, start=found.start - 1), replace(found, boot="another"), replace(found, pid=1 << 22)):
        assert not other.is_running
        assert end_processes([other]) == []
    assert process.poll() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[]\n{}\nnull\n3\n",
        b'{"pid": "x", "start": 1, "boot": "b", "title": "t"}',
        b'{"pid": 0, "start": 1, "boot": "b", "title": "t"}',
    ],
)
def test_lines_that_say_nothing_are_passed_over(tmp_path: Path, content: bytes) -> None:
    good = json.dumps({"pid": 77, "start": 5, "boot": "b", "title": "good", "of a later version": [1]}).encode()
    (tmp_path / FILE).write_bytes(content + b"\n" + good + b"\n" + good[: len(good) // 2])
    assert [(each.pid, each.title) for each in read_record(tmp_path)] == [(77, "good")]


def test_there_is_none_where_nothing_ran(tmp_path: Path) -> None:
    assert read_record(tmp_path) == []


def test_a_record_that_cannot_be_written_is_told_once(tmp_path: Path, start) -> None:
    told: list[str] = []
    record = ProcessRecord(tmp_path / "gone", told.append)
    one, two = start(SLEEP), start(SLEEP)
    record.began(one.pid, "one")
    record.began(two.pid, "two")
    assert len(told) == 1
    assert os.strerror(errno.ENOENT) in told[0]
    (tmp_path / "gone").mkdir()
    record.ended(one.pid)
    assert [each.title for each in read_record(tmp_path / "gone")] == ["two"]


def test_a_system_without_proc_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_record, "_stat", lambda pid: (None, ""))
    ProcessRecord(tmp_path, pytest.fail).began(os.getpid(), "me")
    assert read_record(tmp_path) == []
