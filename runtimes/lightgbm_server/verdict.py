"""Whether the compiled engine agrees with LightGBM on one model, measured once and kept by checksum.

Theory of operation. `verify` sends rows made to hurt through both: values on the thresholds of the model's own splits and one
float to either side, zeros and what LightGBM takes for them, missing values, infinities, and categories inside, outside and
beside the model's sets. The verdict names the model file's SHA-256, the engine's version, the lightgbm that was compared with, and
the iterations; it holds for exactly those. It is kept where `serinus.verification_records` says.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import numpy as np

from serinus import verification_records
from serinus.native.trees.forest64 import ENGINE64, Forest64
from serinus.verification_records import TOLERANCE, difference

from .forest import Iterations
from .modelfile import ModelFile
from .reference import Reference

__all__ = ["Verdict", "find", "keep", "verify"]

_ROWS: Final = 4096
_SEED: Final = 20240229
_ZERO: Final = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold: what is not further from 0 is 0."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one comparison, and what it was made of."""

    sha256: str
    engine64: int
    lightgbm: str
    iterations: Iterations
    rows: int
    margin_difference: float
    """Largest, absolute up to 1 and relative above."""
    prediction_difference: float

    @property
    def agrees(self) -> bool:
        """Whether the engine may serve this model."""
        return max(self.margin_difference, self.prediction_difference) <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"largest difference {self.prediction_difference:.3g} in prediction, {self.margin_difference:.3g} in raw score, "
            f"over {self.rows} rows against lightgbm {self.lightgbm}"
        )


def verify(file: ModelFile, forest: Forest64, reference: Reference, *, lightgbm: str) -> Verdict:
    """Compare the two engines on rows made from the model."""
    rows = _rows(file)
    margins, predictions = forest.both(rows)
    expected = reference.predict(rows).reshape(predictions.shape)
    # One row and few rows take other ways through the code than a block does.
    alone = np.concatenate([forest.both(rows[at : at + 1])[1] for at in range(64)])
    few = np.concatenate([forest.both(rows[at : at + 5])[1] for at in range(0, 65, 5)])
    ways = max(difference(alone, predictions[:64]), difference(few, predictions[:65]))
    return Verdict(
        sha256=file.sha256,
        engine64=ENGINE64,
        lightgbm=lightgbm,
        iterations=reference.iterations,
        rows=len(rows),
        margin_difference=difference(margins, reference.margins(rows).reshape(margins.shape)),
        prediction_difference=max(ways, difference(predictions, expected)),
    )


def find(file: ModelFile, *, lightgbm: str, iterations: Iterations) -> Verdict | None:
    """Find a verdict that holds for this file, these iterations and this engine.

    Args:
        file: the model.
        lightgbm: version of the installed lightgbm; empty: none is installed, and a verdict against any version will do.
        iterations: in use.
    """
    for body in verification_records.kept(verification_records.places(file.path, file.sha256)):
        verdict = _parse(body)
        if (
            verdict is not None
            and (verdict.sha256, verdict.engine64, verdict.iterations) == (file.sha256, ENGINE64, iterations)
            and lightgbm in ("", verdict.lightgbm)
        ):
            return verdict
    return None


def keep(file: ModelFile, verdict: Verdict) -> Path | None:
    """Write the verdict to the first place that can be written; None: there is none."""
    return verification_records.keep(
        verification_records.places(file.path, file.sha256), {**dataclasses.asdict(verdict), "agrees": verdict.agrees}
    )


def _parse(body: dict[str, Any]) -> Verdict | None:
    try:
        body.pop("agrees", None)
        first, end = body.pop("iterations")
        verdict = Verdict(**body, iterations=(int(first), int(end)))
    except (ValueError, TypeError, KeyError):
        return None
    # A difference that JSON could not hold (NaN, infinity) was written as null.
    held = all(isinstance(value, float | int) for value in (verdict.margin_difference, verdict.prediction_difference))
    return verdict if held else None


def _rows(file: ModelFile) -> np.ndarray:
    """Rows on, beside and far from the model's thresholds and categories: float64 [rows, columns]."""
    random = np.random.default_rng(_SEED)
    # Wide models get fewer rows, so that verification stays within a few hundred MB and a second.
    count = max(66, min(_ROWS, max(4_000_000 // file.columns, min(256, 40_000_000 // file.columns))))
    rows = random.standard_normal((count, file.columns)) * random.choice([0.1, 1.0, 100.0], (count, 1))
    quarter = count // 4
    for column, values in _values(file).items():
        picked = random.choice(values, count - quarter)
        beside = random.integers(-1, 2, len(picked))
        with np.errstate(over="ignore"):
            stepped = np.nextafter(picked, np.where(beside > 0, np.inf, -np.inf))
        rows[quarter:, column] = np.where(beside == 0, picked, stepped)
    largest = np.finfo(np.float64).max
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, _ZERO, -_ZERO, np.nextafter(_ZERO, 1), 5e-324, largest, -largest]
    mask = random.random((count, file.columns)) < random.choice([0.0, 0.05, 0.5], (count, 1))
    rows[mask] = random.choice(np.array(special), int(mask.sum()))
    rows[0], rows[1] = np.nan, 0.0
    return rows


def _values(file: ModelFile) -> dict[int, np.ndarray]:
    """What the model's splits compare with, by column: thresholds, and every category of a set's words and a few beyond."""
    found: dict[int, list[np.ndarray]] = {}
    categories: dict[int, int] = {}
    for tree in file.trees:
        categorical = tree.decision & 1 != 0
        for column in np.unique(tree.feature[~categorical]):
            found.setdefault(int(column), []).append(tree.threshold[~categorical & (tree.feature == column)])
        for column, number in zip(tree.feature[categorical], tree.threshold[categorical].astype(int), strict=True):
            words = int(tree.set_bounds[number + 1] - tree.set_bounds[number])
            categories[int(column)] = max(categories.get(int(column), 0), 32 * words)
    for column, end in categories.items():
        found.setdefault(column, []).append(np.append(np.arange(-2.0, end + 3.0), [0.5, -0.5, 2.0**31, 1e300]))
    return {column: np.concatenate(parts) for column, parts in found.items()}
