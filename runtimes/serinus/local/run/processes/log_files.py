"""Log files of processes, and the lines of all of them on one terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from io import FileIO
from pathlib import Path

__all__ = ["LogFile"]

MOST_BYTES = 16 << 20
"""A file that grew past it becomes `.1`; the one before is dropped."""

KEPT_LINES = 20
"""Last lines that are kept for `status`: about what a traceback takes."""


class LogFile:
    """Takes a process's output as it comes; writes it to a file and passes on whole lines.

    A file that cannot be written (a full disk) costs its lines, not the process: what is not read from its pipe would block it.

    Args:
        path: the file, appended to.
        title: the process's name in the live log.
        show: gets title and line; None where nobody looks.
    """

    def __init__(self, path: Path, title: str, show: Callable[[str, str], None] | None = None) -> None:
        self.path = path
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        """What came last, the oldest first."""
        self._title = title
        self._show = show
        self._rest = b""
        self._closed = False
        self._file: FileIO | None = None
        self._told = False
        self._open()

    def feed(self, chunk: bytes) -> None:
        """Take output; an unfinished line waits for its end, or for 64 KiB."""
        if self._closed:
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > 65536:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._pass_on(line.decode("utf-8", "replace").rstrip("\r"))
        if lines:
            self._write(b"".join(line + b"\n" for line in lines))

    def flush(self) -> None:
        """Write an unfinished last line."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self.feed(rest + b"\n")

    def note(self, line: str) -> None:
        """Write a line of our own among the process's."""
        self.flush()
        self.feed(f"[serinus] {line}\n".encode())

    def _pass_on(self, line: str) -> None:
        self.last_lines.append(line[:2000])
        if self._show is not None:
            self._show(self._title, line)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self.path, "ab")
        except OSError as error:
            self._tell(error)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._open()
        if self._file is None:
            return
        try:
            while data:
                data = data[self._file.write(data) :]
            self._told = False
            if self._file.tell() > MOST_BYTES:
                self._file.close()
                self._file = None
                self.path.replace(self.path.with_name(self.path.name + ".1"))
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            self._pass_on(f"[serinus] {self.path}: cannot be written: {error.strerror}; lines are lost")

    def close(self) -> None:
        """Write what is left and close the file."""
        if not self._closed:
            self.flush()
            self._closed = True
            if self._file is not None:
                self._file.close()
