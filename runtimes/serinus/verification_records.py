"""Records of verifications: which file was compared with its framework, by which versions, and what came out.

Theory of operation. An engine of ours answers in a framework's place only after the two were compared on the very file. What came
out is a JSON object, saved beside the model where that folder can be written (image build, laptop), else in a cache folder
(`SERINUS_CACHE_DIR`, `$XDG_CACHE_HOME/serinus`, `~/.cache/serinus`), so that a warm start imports no framework. The engine puts
into it all that it holds for, the file's SHA-256 first, and checks that when it loads it again. A record says only that a file was
checked: it is as trustworthy as the model file beside it, and cannot speak for another.

A record beside the model that is of this very file, but by other versions or settings, came with the model (a checkout, an image, a shared
folder) and is in force where it came from. Serving leaves it and goes on to the cache folder; only who asks for a record (`verify`)
replaces it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from .small_file import read_bytes

__all__ = ["SUFFIX", "load", "paths", "save"]

SUFFIX: Final = ".verdict.json"
"""Of a record beside its model, after the model file's whole name; the name that records on disk have."""
_MOST_BYTES: Final = 64 << 20
"""Largest record that is read: one with a small network's steps takes some megabytes."""


def paths(model: Path, sha256: str, about: str = "") -> Iterator[Path]:
    """Yield where the record of a model file may lie, the best place first.

    Args:
        model: the file.
        sha256: what the record holds for; its name in the cache folder.
        about: what it is about, in the name beside the model; empty: an engine.
    """
    yield model.with_name(f"{model.name}{about and f'.{about}'}{SUFFIX}")
    folder = os.environ.get("SERINUS_CACHE_DIR")
    if not folder:
        cache = os.environ.get("XDG_CACHE_HOME")
        with contextlib.suppress(RuntimeError):  # no home folder
            folder = str((Path(cache) if cache else Path.home() / ".cache") / "serinus")
    if folder:
        yield Path(folder) / "verdicts" / f"{sha256}.json"


def load(where: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Load the records that are there; what is absent or damaged is passed over."""
    for path in where:
        try:
            body = orjson.loads(read_bytes(path, most_bytes=_MOST_BYTES))
        except (OSError, ValueError):
            continue
        if isinstance(body, dict):
            yield body


def save(where: Iterable[Path], record: Mapping[str, Any], *, replace: bool = False) -> Path | None:
    """Write a record to the first place that can be written, in one step; None: there is none.

    Args:
        where: the places, that beside the model first.
        record: a JSON object with the SHA-256 of what it is about as `files_sha256` or `sha256`.
        replace: write beside the model even where that replaces a record of the same file by other versions, which else is the
            last place.
    """
    candidates = list(where)
    if not replace and any(_is_of_same_file(body, record) for body in load(candidates[:1])):
        candidates.append(candidates.pop(0))
    body = orjson.dumps(record, option=orjson.OPT_INDENT_2)
    for path in candidates:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "wb") as out:
                    out.write(body + b"\n")
                os.chmod(name, 0o644)
                os.replace(name, path)
            except OSError:
                os.unlink(name)
                raise
            return path
    return None


def _is_of_same_file(body: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    name = "files_sha256" if "files_sha256" in record else "sha256"
    return name in record and body.get(name) == record[name]
