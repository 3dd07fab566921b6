"""Rows to try a model on, made from what it says of its inputs or from a row that it gave: pure, and the same every time.

Floats are normal, of [0, 1) or of [0, 255), as features, probabilities and pixels are, whole numbers with many zeros, as counts and
flags, or some hundreds on both sides of zero. What an integer means is unknown, and most are
indices, which must not be out of range: 0 and 1 first, then 0 to 9, then 1 and 2; those of 8 and 16 bits, which no framework takes
for indices, go up to 255. BYTES are words or digits. A free dimension beyond the first has the same size in every input, since such
sizes mostly belong together, and never one of the row counts that are tried, so that a model that takes one for the other is found out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from ...protocol.datatypes import BYTES, NUMPY_DTYPES
from ...protocol.types import TensorSpec

__all__ = ["ROWS", "Scene", "scenes"]

Rows = Mapping[str, np.ndarray]
_Kind = Literal["normal", "unit", "wide", "whole", "spread"]

ROWS: Final = 5
"""Rows of a scene, and of each kind of neighbours."""
_SIZES: Final[Sequence[tuple[_Kind, int, bool]]] = (
    ("normal", 4, False),
    ("unit", 1, False),
    ("wide", 4, False),
    ("whole", 4, False),
    ("spread", 4, False),
    ("unit", 4, True),
    ("wide", 1, True),
    ("normal", 16, True),
    ("normal", 32, True),
    ("normal", 64, True),
    ("normal", 224, True),
)
"""Kind of numbers, size of the free dimensions, and whether it is only for models that have not answered before. 32 to 224: pictures."""
_HIGH: Final[Mapping[_Kind, tuple[int, int]]] = {
    "normal": (0, 2),
    "unit": (0, 10),
    "wide": (1, 3),
    "whole": (0, 10),
    "spread": (0, 10),
}
_MOST_BYTES: Final = 64 << 20
"""Of a scene; a fallback that would be larger is left out."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Rows that are tried together."""

    label: str
    rows: Rows
    """[ROWS, ...]: alike in magnitude, different in value."""
    loud: Rows
    """[ROWS, ...]: neighbours a thousand times as large, and as small."""
    extreme: Rows
    """[ROWS, ...]: neighbours of NaN, infinities, the largest numbers and zeros, or empty and long strings."""
    fallback: bool = False
    """Only for a model that has given no telling answer yet."""


def scenes(inputs: Sequence[TensorSpec], given: Rows | None) -> Iterator[Scene]:
    """Draw the scenes of a model, the likeliest to be answered first.

    Args:
        inputs: what the model takes; the first dimension of each is the rows'.
        given: an example of the model's own, its first dimension rows; None: it gives none.
    """
    if given and all(array.ndim and len(array) for array in given.values()):
        yield _around(given)
    optional = any(spec.optional for spec in inputs)
    seen = set()
    for kind, size, fallback in _SIZES:
        for whole in (True, False) if optional else (True,):
            tails = {
                spec.name: (spec.datatype, tuple(size if length == -1 else length for length in spec.shape[1:]))
                for spec in inputs
                if whole or not spec.optional
            }
            key = (kind, tuple(tails.items()))
            if key not in seen and tails and not (fallback and _bytes(tails) > _MOST_BYTES):
                seen.add(key)
                label = f"{kind} numbers, free dimensions of {size}" if _free(inputs) else f"{kind} numbers"
                yield _drawn(
                    f"{label}, {'all' if whole else 'required'} inputs" if optional else label, kind, tails, fallback
                )


def _drawn(label: str, kind: _Kind, tails: Mapping[str, tuple[str, tuple[int, ...]]], fallback: bool) -> Scene:
    random = np.random.default_rng(0)
    rows = {name: _plain(random, kind, datatype, tail) for name, (datatype, tail) in tails.items()}
    return _with_neighbours(random, label, rows, fallback)


def _around(given: Rows) -> Scene:
    """Vary the model's own example: numbers by a tenth, the order of all else."""
    random = np.random.default_rng(1)
    rows = {}
    for name, array in given.items():
        base = np.repeat(np.asarray(array)[:1], ROWS, axis=0)
        if base.dtype.kind == "f":
            noise = random.standard_normal(base.shape)
            rows[name] = (base * (1 + 0.1 * noise) + 0.1 * random.standard_normal(base.shape)).astype(base.dtype)
        else:
            rows[name] = random.permuted(base.reshape(ROWS, -1), axis=1).reshape(base.shape)
    return _with_neighbours(random, "around the model's own example", rows, False)


def _with_neighbours(random: np.random.Generator, label: str, rows: Rows, fallback: bool) -> Scene:
    loud = {name: _loud(random, array) for name, array in rows.items()}
    return Scene(label, rows, loud, {name: _extreme(array) for name, array in rows.items()}, fallback)


def _plain(random: np.random.Generator, kind: _Kind, datatype: str, tail: tuple[int, ...]) -> np.ndarray:
    shape = (ROWS, *tail)
    if datatype == BYTES:
        letters = "0123456789" if kind == "unit" else "abcdefghijklmnopqrstuvwxyz"
        length = 1 if kind == "unit" else 6
        words = ["".join(random.choice(list(letters), length)).encode() for _ in range(int(np.prod(shape)))]
        array = np.empty(len(words), dtype=object)
        array[:] = words
        return array.reshape(shape)
    dtype = NUMPY_DTYPES[datatype]
    if dtype.kind == "f":
        if kind == "whole":
            return ((random.poisson(1.0, shape) + _stagger(shape)) % 10).astype(dtype)
        numbers = random.standard_normal(shape) if kind in ("normal", "spread") else random.random(shape)
        return (numbers * {"wide": 255, "spread": 100}.get(kind, 1)).astype(dtype)
    if dtype.kind == "b":
        numbers = random.integers(0, 2, shape)
        return ((numbers + _stagger(shape)) % 2).astype(dtype)
    low, high = _HIGH[kind]
    if dtype.itemsize < 4 and kind != "unit":
        low, high = 0, min(256, int(np.iinfo(dtype).max) + 1)
    # Shifted by the row, so that rows differ even where each is one number of two.
    numbers = (random.integers(0, high - low, shape) + _stagger(shape)) % (high - low) + low
    return numbers.astype(dtype)


def _stagger(shape: tuple[int, ...]) -> np.ndarray:
    """0, 1, 2 ... by row, in the first element of each."""
    result = np.zeros(shape, np.int64)
    result.reshape(len(result), -1)[:, :1] = np.arange(len(result))[:, None]
    return result


def _loud(random: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    if rows.dtype.kind != "f":
        return rows[::-1].copy()
    factors = np.resize([1e3, 1e-3], len(rows)).reshape(-1, *(1,) * (rows.ndim - 1))
    most = float(np.finfo(rows.dtype).max)
    return np.clip(random.permutation(rows).astype(np.float64) * factors, -most, most).astype(rows.dtype)


def _extreme(rows: np.ndarray) -> np.ndarray:
    result = rows.copy()
    if rows.dtype.kind == "f":
        most = np.finfo(rows.dtype).max / 2
        for row, value in enumerate((np.nan, np.inf, -np.inf, most, 0)):
            result[row] = value
    elif rows.dtype == object:
        for row, text in enumerate((b"", b"x" * 1000, "\u00e9\u4e2d".encode(), b"0", b"-1")):
            result[row] = text
    else:
        result[0], result[1] = rows.min() if rows.size else 0, rows.max() if rows.size else 0
        if rows.dtype.kind in "iu" and rows.dtype.itemsize < 4:  # no indices
            result[2], result[3] = np.iinfo(rows.dtype).max, 0
    return result


def _free(inputs: Sequence[TensorSpec]) -> bool:
    return any(-1 in spec.shape[1:] for spec in inputs)


def _bytes(tails: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    return sum(ROWS * 8 * int(np.prod(tail)) for _, tail in tails.values())
