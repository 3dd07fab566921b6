"""Log files of processes, and the lines of all of them on one terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["LogFile"]

MOST_BYTES = 16 << 20
"""A file that grew past it becomes `.1`; the one before is dropped."""


class LogFile:
    """Takes a process's output as it comes; writes it to a file and passes on whole lines.

    Args:
        path: the file, appended to.
        title: the process's name in the live log.
        show: gets title and line; None where nobody looks.
    """

    def __init__(self, path: Path, title: str, show: Callable[[str, str], None] | None = None) -> None:
        self.path = path
        self._title = title
        self._show = show
        self._rest = b""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def feed(self, chunk: bytes) -> None:
        """Take output; an unfinished line waits for its end, or for 64 KiB."""
        if self._file.closed:
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > 65536:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._write(line)
        self._file.flush()
        if self._file.tell() > MOST_BYTES:
            self._file.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self._file = self.path.open("ab")

    def flush(self) -> None:
        """Write an unfinished last line."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self.feed(rest + b"\n")

    def note(self, line: str) -> None:
        """Write a line of our own among the process's."""
        self.flush()
        self.feed(f"[serinus] {line}\n".encode())

    def _write(self, line: bytes) -> None:
        self._file.write(line + b"\n")
        if self._show is not None:
            self._show(self._title, line.decode("utf-8", "replace").rstrip("\r"))

    def close(self) -> None:
        """Write what is left and close the file."""
        if not self._file.closed:
            self.flush()
            self._file.close()
