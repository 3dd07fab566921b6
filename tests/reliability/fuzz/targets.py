"""What a fuzz target is: bytes go in; what is refused is refused in the library's own words, and anything else is a finding."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serinus.errors import SerinusError

__all__ = ["TARGETS", "Target", "in_file", "target"]


@dataclass(frozen=True)
class Target:
    """One reader of bytes."""

    name: str
    read: Callable[[bytes], object]
    """Raises a SerinusError for what it refuses."""
    seeds: Callable[[], Sequence[bytes]]
    """Good inputs, to begin with."""

    def __call__(self, data: bytes) -> bool:
        """Read the bytes; says whether they were taken.

        Raises:
            Exception: a finding.
        """
        try:
            self.read(data)
        except SerinusError:
            return False
        return True


TARGETS: dict[str, Target] = {}
_FOLDER = tempfile.TemporaryDirectory(prefix="serinus-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def target(name: str, read: Callable[[bytes], object], seeds: Callable[[], Sequence[bytes]]) -> None:
    """Register a target."""
    TARGETS[name] = Target(name, read, seeds)


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Give the bytes to a reader of files, as a file of that name in a folder of its own, in memory where there is such a one."""

    def given(data: bytes) -> object:
        folder = Path(_FOLDER.name) / name.replace(".", "-")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        return read(folder / name)

    return given
