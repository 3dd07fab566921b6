"""Files of settings, labels and records, which somebody else may have written: read whole, and only where they are small and regular.

A model directory may hold a FIFO, whose `open` waits for a writer that never comes, a device without an end, or a sparse file of a terabyte
that takes no room on the disk. None of them may hold up a start, or a listing of the repository.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["MOST_BYTES", "is_folder", "is_there", "read_bytes", "read_text"]

MOST_BYTES: Final = 16 << 20
"""Largest of these files: a list of half a million labels, some hundred times the largest `model-settings.json` that we know."""


def read_bytes(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a small regular file.

    Args:
        path: the file.
        most_bytes: largest that is read.

    Raises:
        OSError: it is not there, cannot be read, is no regular file, or is larger.
    """
    handle = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # O_NONBLOCK: a FIFO opens at once, and is told by its mode
    with os.fdopen(handle, "rb") as opened:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"is {status.st_size} bytes, {most_bytes} at most were expected", str(path))
        body = opened.read(most_bytes + 1)
        if len(body) > most_bytes:  # it has grown, or is one of /proc, whose sizes are 0
            raise OSError(errno.EFBIG, f"is more than {most_bytes} bytes", str(path))
        return body


def read_text(path: Path, *, errors: str = "strict") -> str:
    r"""Read a small regular file of UTF-8 text, its line ends as `\n`.

    Raises:
        OSError: as of `read_bytes`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path).decode("utf-8", errors).replace("\r\n", "\n").replace("\r", "\n")


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; one whose name is longer than any may be is not, where pathlib raises.

    Raises:
        OSError: it may not be looked at.
    """
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder, as `is_there`."""
    return is_there(path) and path.is_dir()
