"""A log that nobody reads holds up nobody: pipes, sockets, terminals and files that take nothing, or little."""

from __future__ import annotations

import contextlib
import gc
import os
import pty
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serinus import impatient_stream
from serinus.impatient_stream import MOST_KEPT_BYTES, ImpatientStream
from waiting import wait_until

LINE = "x" * 199 + "\n"


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@contextlib.contextmanager
def _socket() -> Iterator[tuple[int, int]]:
    one, other = socket.socketpair()
    with one, other:
        yield one.fileno(), other.fileno()


@contextlib.contextmanager
def _terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def _read_all(reader: int, done: Callable[[], bool], *, handed_on_s: float = 1.0) -> str:
    """Read until nothing more comes though all is written; a terminal hands on what is written when the kernel has time, a pipe at once."""
    pieces = []
    while True:
        written = done()
        ready, _, _ = select.select([reader], [], [], handed_on_s if written else 0.05)
        if ready:
            pieces.append(os.read(reader, 65536))
        elif written:
            return b"".join(pieces).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("anew", [True, False], ids=["opened-anew", "by-poll"])
@pytest.mark.slow  # waits two seconds for nobody
@pytest.mark.parametrize("make", [_pipe, _socket, _terminal])
def test_what_nobody_reads_is_kept_in_order_then_dropped_and_counted(
    make: Callable[[], contextlib.AbstractContextManager[tuple[int, int]]], anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not anew:
        if make is _terminal:
            pytest.skip("a terminal's poll does not say how much it takes")
        monkeypatch.setattr(impatient_stream, "_open_anew", lambda descriptor: None)
    with make() as (reader, writer):
        stream = ImpatientStream(writer)
        written = 3 * MOST_KEPT_BYTES // len(LINE)
        for number in range(written):  # it would stand still here for ever
            stream.write(f"{number:8} {LINE}")
        assert not stream.settle(0)
        lines = _read_all(reader, lambda: stream.settle(0)).splitlines()
        kept = [int(line.split()[0]) for line in lines[:-1]]
        # A terminal takes some more when the kernel has time, and a later line has their room.
        assert kept == (sorted(set(kept)) if make is _terminal else list(range(len(kept))))
        assert len(kept) >= MOST_KEPT_BYTES // (len(LINE) + 9)
        assert lines[-1].startswith(f"serinus: {written - len(kept)} lines of the log were lost")
        stream.write("again\n")
        assert _read_all(reader, lambda: stream.settle(0)) == "again\n"


def test_what_is_logged_in_the_midst_of_a_write_does_not_wait_for_its_end() -> None:
    """As by a finaliser that the collector runs there: asyncio's of a task whose exception nobody asked for."""
    with _pipe() as (reader, writer):
        stream = ImpatientStream(writer)
        met: list[str] = []

        def finalise(phase: str, _: object) -> None:
            if phase == "start" and len(met) < 1000:
                met.append(phase)
                stream.write("met\n")

        def fill() -> None:
            while stream.settle(0):
                stream.write(LINE)

        filling = threading.Thread(target=fill, daemon=True)
        thresholds = gc.get_threshold()
        gc.callbacks.append(finalise)
        gc.set_threshold(1)
        try:
            filling.start()
            filling.join(30)
        finally:
            gc.set_threshold(*thresholds)
            gc.callbacks.remove(finalise)
        assert not filling.is_alive()
        assert _read_all(reader, lambda: stream.settle(0), handed_on_s=0).count("met\n") == len(met) > 0


def test_the_descriptor_of_others_waits_as_before() -> None:
    with _pipe() as (_, writer):
        ImpatientStream(writer).write("line\n")
        assert os.get_blocking(writer)


def test_a_text_is_written_before_write_returns_where_there_is_room() -> None:
    with _pipe() as (reader, writer):
        ImpatientStream(writer).write("line \udcff\n")
        assert os.read(reader, 100) == b"line \\udcff\n"


@pytest.mark.parametrize("make", [_pipe, _socket])
def test_a_reader_that_has_gone_costs_the_lines(
    make: Callable[[], contextlib.AbstractContextManager[tuple[int, int]]],
) -> None:
    reader, writer = os.pipe() if make is _pipe else tuple(each.detach() for each in socket.socketpair())
    stream = ImpatientStream(writer)
    for _ in range(5000):
        stream.write(LINE)
    os.close(reader)
    stream.write(LINE)
    assert stream.settle(10)
    stream.write(LINE)
    os.close(writer)


def test_a_closed_descriptor_takes_all() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    os.close(reader)
    assert ImpatientStream(writer).write(LINE) == len(LINE)


def test_lines_of_many_threads_are_whole(tmp_path: Path) -> None:
    with _pipe() as (reader, writer):
        stream = ImpatientStream(writer)
        threads = [threading.Thread(target=lambda: [stream.write(LINE) for _ in range(300)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        text = _read_all(
            reader, lambda: not any(map(threading.Thread.is_alive, threads)) and stream.settle(0), handed_on_s=0
        )
        assert text == LINE * 2400


def test_a_full_disk_is_told_when_there_is_room(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    target = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    here = os.dup(target)
    stream = ImpatientStream(here)
    os.dup2(full, here)
    stream.write("lost\n")
    os.dup2(target, here)
    stream.write("kept\n")
    wait_until(lambda: (tmp_path / "log").read_text().count("\n") == 2)
    assert (tmp_path / "log").read_text().startswith("kept\nserinus: 1 lines of the log were lost")
    for each in (full, target, here):
        os.close(each)
