"""What a model's files are at the moment of its load, so that another process can tell whether it would load the same.

Up to 64 MiB the contents are compared, beyond that sizes and times of change. Only what was there counts: a file that a model or its runtime writes
beside it later makes it no other model, nor do records (`*.verdict.json`), hidden files and Python's caches.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

__all__ = ["fingerprint", "is_unchanged"]

_MOST_HASHED_BYTES: Final = 64 << 20
"""50 ms of SHA-256 on a core of today."""
_MOST_FILES: Final = 1024
"""Of a larger folder one digest of all names, sizes and times stands for all files."""


def fingerprint(path: Path | None) -> dict[str, str]:
    """Read what tells a model's files from others.

    Args:
        path: a file or a folder; None, or one that is not there: the model has no files.

    Returns:
        Name within the folder to a digest.
    """
    if path is None:
        return {}
    found = [(str(each.relative_to(path)) if each != path else each.name, each) for each in _files(path)]
    try:
        sizes = {name: each.stat() for name, each in found}
        if sum(stat.st_size for stat in sizes.values()) <= _MOST_HASHED_BYTES and len(found) <= _MOST_FILES:
            return {name: hashlib.sha256(each.read_bytes()).hexdigest()[:16] for name, each in found}
    except OSError:  # it goes while it is looked at: the load says what is wrong
        return {}
    told = {name: f"{stat.st_size} {stat.st_mtime_ns}" for name, stat in sizes.items()}
    if len(found) <= _MOST_FILES:
        return told
    return {"": hashlib.sha256("\n".join(f"{name} {text}" for name, text in sorted(told.items())).encode()).hexdigest()}


def is_unchanged(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether every file that was there then is the same now."""
    return all(now.get(name) == digest for name, digest in then.items())


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        for name in sorted(names):
            each = Path(folder, name)
            if not name.startswith(".") and not name.endswith(".verdict.json") and each.is_file():
                yield each
