"""When files that an operator exchanges are read again, look by look, and by a thread that goes on whatever they hold."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serinus.errors import ConfigError
from serinus.server.file_watch import FileWatch, has_terminal
from waiting import wait_until


class Reads:
    """Counts reads, and fails those that it is told to."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: set[str] = set()
        self.error: Exception | None = None

    def __call__(self) -> None:
        self.count += 1
        self.threads.add(threading.current_thread().name)
        if self.error is not None:
            raise self.error


class Looks:
    """A watch whose looks the test makes: its own thread looks once an hour."""

    def __init__(self, *files: Path) -> None:
        self.watch = FileWatch(period_s=3600)
        self.reads = Reads()
        self.watch.add("the keys", files, self.reads)

    def look(self, *, force: bool = False) -> int:
        for watched in self.watch._watched:
            self.watch._look(watched, force=force)
        return self.reads.count


def write(path: Path, text: str) -> None:
    """Exchange a file as the kubelet does, by another one of its name."""
    new = path.with_name("..new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def looks(tmp_path: Path) -> Iterator[Looks]:
    for name in ("a", "b"):
        write(tmp_path / name, name)
    found = Looks(tmp_path / "a", tmp_path / "b")
    yield found
    found.watch.close()


def test_what_has_not_changed_is_not_read(looks: Looks):
    assert [looks.look() for _ in range(3)] == [0, 0, 0]


def test_a_change_is_read_once_two_looks_have_found_the_same(looks: Looks, tmp_path: Path):
    write(tmp_path / "b", "new")
    assert [looks.look() for _ in range(4)] == [0, 1, 1, 1]


def test_what_is_still_being_changed_is_left_alone(looks: Looks, tmp_path: Path):
    for number, name in enumerate("abab"):
        write(tmp_path / name, f"new {number}")
        assert looks.look() == 0
    assert looks.look() == 1


def change_size(path: Path) -> None:
    path.write_text("longer than it was")


def change_time(path: Path) -> None:
    os.utime(path, ns=(5, 5))


def change_file(path: Path) -> None:
    write(path, "a")


def change_target(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("a")
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("change", [change_size, change_time, change_file, change_target, Path.unlink])
def test_each_kind_of_change_is_seen(change: Any, looks: Looks, tmp_path: Path):
    change(tmp_path / "a")
    assert [looks.look() for _ in range(3)] == [0, 1, 1]


def test_a_link_is_followed_at_each_look(looks: Looks, tmp_path: Path):
    change_target(tmp_path / "a")
    assert [looks.look() for _ in range(2)] == [0, 1]
    (tmp_path / "target").write_text("another")
    assert [looks.look() for _ in range(2)] == [1, 2]


def test_what_is_not_good_is_said_and_read_again_at_the_next_change_only(
    looks: Looks, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    looks.reads.error = ConfigError("no key")
    write(tmp_path / "a", "bad")
    assert [looks.look() for _ in range(4)] == [0, 1, 1, 1]
    looks.reads.error = RuntimeError("unforeseen")
    write(tmp_path / "a", "bad too")
    assert [looks.look() for _ in range(3)] == [1, 2, 2]
    looks.reads.error = None
    write(tmp_path / "a", "good")
    caplog.set_level(logging.INFO, "serinus.keys")
    assert [looks.look() for _ in range(3)] == [2, 3, 3]
    assert [(record.levelno, record.getMessage(), bool(record.exc_info)) for record in caplog.records] == [
        (logging.ERROR, "the keys: not taken, what was read before stays: no key", False),
        (logging.ERROR, "the keys: not taken, what was read before stays", True),
        (logging.INFO, "the keys: read again", False),
    ]


def test_what_is_forced_is_read_changed_or_not_and_not_once_more_for_the_same(looks: Looks, tmp_path: Path):
    assert looks.look(force=True) == 1
    write(tmp_path / "a", "new")
    assert looks.look(force=True) == 2
    assert [looks.look() for _ in range(2)] == [2, 2]


def test_the_thread_reads_all_at_once_where_it_is_told_to_and_only_then(looks: Looks, tmp_path: Path):
    other = Reads()
    looks.watch.add("others", [tmp_path / "none"], other)
    assert sum(thread.name == "serinus-keys" for thread in threading.enumerate()) >= 1
    looks.watch.reload_all()
    wait_until(lambda: (looks.reads.count, other.count) == (1, 1))
    assert looks.reads.threads == other.threads == {"serinus-keys"}
    looks.watch.reload_all()
    wait_until(lambda: (looks.reads.count, other.count) == (2, 2))
    wait_until(lambda: not looks.watch._wake.is_set())


def test_the_thread_looks_each_period_until_it_is_closed(tmp_path: Path):
    reads = Reads()
    watch = FileWatch(period_s=0.01)
    watch.close()  # before its thread there is nothing to end
    watch = FileWatch(period_s=0.01)
    watch.add("the keys", [tmp_path / "a"], reads)
    thread = watch._thread
    assert thread is not None
    reads.error = RuntimeError("unforeseen")
    write(tmp_path / "a", "new")
    wait_until(lambda: reads.count)
    reads.error = None
    write(tmp_path / "a", "newer")
    wait_until(lambda: reads.count == 2)
    watch.close()
    wait_until(lambda: not thread.is_alive())
    assert reads.count == 2


def test_a_thread_that_sleeps_is_woken_by_its_end(tmp_path: Path):
    looks = Looks(tmp_path / "a")
    thread = looks.watch._thread
    assert thread is not None
    assert thread.daemon
    looks.watch._period_s = 3600
    looks.watch.close()
    assert not thread.is_alive()
    assert looks.reads.count == 0


@pytest.mark.parametrize("error", [None, OSError("no such device")])
def test_a_terminal_is_there_where_it_can_be_opened_and_is_closed_again(
    error: OSError | None, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, int]] = []
    closed: list[int] = []

    def opened(path: str, flags: int) -> int:
        asked.append((path, flags))
        if error is not None:
            raise error
        return 777

    monkeypatch.setattr("serinus.server.file_watch.os.open", opened)
    monkeypatch.setattr("serinus.server.file_watch.os.close", closed.append)
    assert has_terminal() is (error is None)
    assert asked == [("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)]
    assert closed == ([777] if error is None else [])
