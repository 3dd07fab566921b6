"""Text for standard output and standard error that nobody waits to write: a server must not stand still because its log is not read.

Theory of operation. Whoever reads our output may stop: a terminal after Ctrl-S, a pager, a log driver that blocks (Docker's default mode), a full
disk behind it. Then the pipe fills (64 KiB on Linux), and a `write` waits for as long as the reader likes: on an event loop, so do all requests and
probes. Here a text is written at once where there is room for it; where there is none, it is kept and a thread writes it later, in order; beyond
`MOST_KEPT_BYTES` whole texts are dropped and counted, and the count is told when there is room again.

O_NONBLOCK belongs to what a descriptor has open, which other processes share (the shell, the other workers), so it is never set on theirs: a pipe or a
terminal is opened anew by its name in /proc. Where that is not allowed (a pipe of another user), `poll` says whether there is room for PIPE_BUF bytes.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from typing import Final

__all__ = ["MOST_KEPT_BYTES", "ImpatientStream"]

MOST_KEPT_BYTES: Final = 1 << 20
"""Of texts that wait for a reader: some thousands of lines."""
_PIECE_BYTES: Final = select.PIPE_BUF
"""What a pipe takes without waiting where poll says that it takes anything (pipe(7), select.PIPE_BUF)."""


class ImpatientStream:
    """A text stream of UTF-8 over a descriptor; its writes return at once. Safe from any thread.

    Args:
        descriptor: where texts go; it stays the caller's. One that is closed takes all, and nothing comes of it.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int) -> None:
        if not _is_open(descriptor):
            descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._theirs = descriptor
        self._own = _open_anew(descriptor)
        self._socket = _as_socket(descriptor)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        # As logging's own: a signal's handler or a finaliser may log in the midst of a write, on the thread that holds it.
        self._lock = threading.RLock()
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._lost = 0
        self._emptied = threading.Condition(self._lock)
        """Told when nothing is kept any more."""
        self._has_writer = False
        """A thread writes what is kept."""

    def write(self, text: str) -> int:
        """Write a text, now or later; returns its length, as a file does."""
        data = text.encode(self.encoding, self.errors)
        with self._lock:
            before, rest = self._lost, data if self._kept else self._put(data)
            if not rest:
                if self._lost == before:
                    self._tell_lost()
                return len(text)
            if self._kept_bytes + len(rest) > MOST_KEPT_BYTES:
                self._lost += 1
                return len(text)
            self._kept.append(rest)
            self._kept_bytes += len(rest)
            if not self._has_writer:
                self._has_writer = True  # before: what is logged while the thread is made starts no other
                try:
                    # threading.Thread waits until the thread runs, which may have to log by then, and so wait for us.
                    _thread.start_new_thread(self._write_kept, ())
                except RuntimeError:  # the system gives no more threads: the next text tries again
                    self._has_writer = False
        return len(text)

    def flush(self) -> None:
        """Do nothing: what can be written has been."""

    def settle(self, timeout_s: float) -> bool:
        """Wait until all is written, at the end of a process; whether it is."""
        with self._emptied:
            return self._emptied.wait_for(lambda: not self._kept, timeout_s)

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return os.isatty(self._theirs)

    def fileno(self) -> int:
        """The descriptor."""
        return self._theirs

    def _put(self, data: bytes) -> bytes:
        """Write what there is room for; gives the rest. What cannot be written (its reader has gone, a full disk) is lost."""
        try:
            while data:
                data = data[self._put_some(data) :]
        except BlockingIOError:
            return data
        except OSError:
            self._lost += 1
        return b""

    def _put_some(self, data: bytes) -> int:
        if self._own is not None:
            return os.write(self._own, data)
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._is_file:
            return os.write(self._theirs, data)
        if not self._has_room(0):
            raise BlockingIOError
        return os.write(self._theirs, data[:_PIECE_BYTES])

    def _has_room(self, timeout_ms: int | None) -> bool:
        return bool(self._poll.poll(timeout_ms))

    def _write_kept(self) -> None:
        """Be the thread that writes what is kept, until nothing is."""
        while True:
            self._has_room(None)
            with self._lock:
                before, first = self._lost, self._kept.popleft()
                rest = self._put(first)
                self._kept_bytes -= len(first) - len(rest)
                if rest:
                    self._kept.appendleft(rest)
                elif not self._kept and self._lost == before:
                    self._tell_lost()
                if not self._kept:
                    self._has_writer = False
                    self._emptied.notify_all()
                    return
            if rest == first:
                time.sleep(0.01)  # poll and write disagree: a terminal that is stopped

    def _tell_lost(self) -> None:
        """Say how much was lost, now that there is room again."""
        if self._lost:
            told = f"serinus: {self._lost} lines of the log were lost: nobody read them in time, or they could not be written\n".encode()
            self._lost = 0
            if rest := self._put(told):
                self._kept.append(rest)
                self._kept_bytes += len(rest)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _open_anew(descriptor: int) -> int | None:
    """Open the same pipe or terminal for ourselves, so that O_NONBLOCK is ours alone; None where it is neither, or must not be opened."""
    if not (stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor)):
        return None
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    return None


def _as_socket(descriptor: int) -> socket.socket | None:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return None
    return socket.socket(fileno=os.dup(descriptor))
