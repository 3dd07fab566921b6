"""Verdicts on an engine of ours: was it compared with the framework on this very file, and did they agree?

Theory of operation. A runtime that walks a framework's trees with compiled code compares the two once per model file. What it finds
is a JSON object, kept beside the model where that folder can be written (image build, laptop), else in a cache folder
(`SERINUS_CACHE_DIR`, `$XDG_CACHE_HOME/serinus`, `~/.cache/serinus`), so that a warm start imports no framework. The runtime
puts into it all that it holds for, the file's SHA-256 first, and checks that when it reads it again. A verdict says only
that a file was checked: it is as trustworthy as the model file beside it, and cannot speak for another.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

__all__ = ["TOLERANCE", "difference", "keep", "kept", "places"]

TOLERANCE: Final = 1e-6
"""Largest difference taken for agreement: absolute up to 1 (a probability), relative above (a regression's value)."""


def places(model: Path, sha256: str, about: str = "") -> Iterator[Path]:
    """Where the verdict on a model file may lie, the best place first.

    Args:
        model: the file.
        sha256: what the verdict holds for; its name in the cache folder.
        about: what it is about, in the name beside the model; empty: an engine.
    """
    yield model.with_name(f"{model.name}{about and f'.{about}'}.verdict.json")
    folder = os.environ.get("SERINUS_CACHE_DIR")
    if not folder:
        cache = os.environ.get("XDG_CACHE_HOME")
        with contextlib.suppress(RuntimeError):  # no home folder
            folder = str((Path(cache) if cache else Path.home() / ".cache") / "serinus")
    if folder:
        yield Path(folder) / "verdicts" / f"{sha256}.json"


def kept(where: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Read what was kept; what is absent or damaged is passed over."""
    for path in where:
        try:
            body = orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(body, dict):
            yield body


def keep(where: Iterable[Path], verdict: Mapping[str, Any]) -> Path | None:
    """Write a verdict to the first place that can be written, in one step; None: there is none."""
    body = orjson.dumps(verdict, option=orjson.OPT_INDENT_2)
    for path in where:
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


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference, absolute up to 1 and relative above; equal infinities and equal NaN differ by 0."""
    if not got.size:
        return 0.0
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(b)))
    return float(np.where(np.isnan(apart), np.inf, apart).max())
