"""Whether the compiled walk agrees with its framework on one model file: compared once, recorded, found again.

Theory of operation. `verify` sends rows made to hurt through both: values that the model's own splits compare with and one float to
either side, missing values, infinities, zeros, extremes, wide and narrow random numbers; as a block, a few at a time and one by one,
since those take different ways through the code. Margins, outputs and predictions (a class that ties decide, too) must be the same to
`TOLERANCE`. The `Verification` names the model file's SHA-256, the walk's version, the framework's version, and whatever else the
adapter says that answers depend on; it holds for exactly those. `verification_records` says where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from .. import verification_records
from ..native.trees.walker import Walker
from .tree_adapter import FrameworkPredictor, TreeAdapter
from .tree_predictions import CompiledPredictions

__all__ = ["TOLERANCE", "Verification", "find", "largest_difference", "make_rows", "save", "verify"]

TOLERANCE: Final = 1e-6
"""Largest difference taken for agreement: absolute up to 1 (a probability), relative above (a regression's value)."""

_ROWS: Final = 4096
_SEED: Final = 20240229


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of one comparison, and what it was made of."""

    holds_for: Mapping[str, Any]
    """File, versions and settings, as the record has them."""
    rows: int
    margin_difference: float
    """Largest, absolute up to 1 and relative above."""
    prediction_difference: float
    text: str
    """In a sentence."""

    @property
    def agrees(self) -> bool:
        """Whether the walk may serve this model."""
        return max(self.margin_difference, self.prediction_difference) <= TOLERANCE

    def __str__(self) -> str:
        return self.text


def verify(adapter: TreeAdapter, forest: Walker, predictor: FrameworkPredictor) -> Verification:
    """Compare the walk with the framework's predictor."""
    rows = make_rows(adapter.input_dtype, forest.columns, adapter.split_values(), adapter.special_values())
    compiled = CompiledPredictions(adapter, forest)
    margins, outputs = compiled.scores(rows)
    expected = predictor.predict(rows)
    got = compiled.predict(rows).reshape(expected.shape)
    margin_difference = 0.0
    if adapter.facts.offers_margin:
        margin_difference = largest_difference(margins, predictor.margins(rows).reshape(margins.shape))
    wanted = predictor.outputs(rows) if adapter.facts.predicts_class else expected
    alone = np.concatenate([compiled.scores(rows[at : at + 1])[1] for at in range(64)])
    few = np.concatenate([compiled.scores(rows[at : at + 5])[1] for at in range(0, 65, 5)])
    prediction_difference = max(
        largest_difference(got, expected),
        largest_difference(outputs, wanted.reshape(outputs.shape)),
        largest_difference(alone, outputs[:64]),
        largest_difference(few, outputs[:65]),
    )
    holds_for = _identity(adapter, forest, adapter.installed_version())
    return _verification(adapter, holds_for, len(rows), margin_difference, prediction_difference)


def find(adapter: TreeAdapter, forest: Walker, version: str) -> Verification | None:
    """Find a record that holds for this file, these settings, this walk and this framework.

    Args:
        adapter: of the model file.
        forest: its compiled form.
        version: of the installed framework; empty: none is installed, and a record of any version will do.
    """
    facts = adapter.facts
    wanted = _identity(adapter, forest, version)
    for body in verification_records.load(verification_records.paths(facts.path, facts.sha256)):
        found = _parse(adapter, wanted, body)
        if found is not None and version in ("", found.holds_for[adapter.framework]):
            return found
    return None


def save(adapter: TreeAdapter, verification: Verification, *, replace: bool = False) -> Path | None:
    """Save the record; arguments and result as of `verification_records.save`."""
    facts = adapter.facts
    body = {
        **verification.holds_for,
        "rows": verification.rows,
        "margin_difference": verification.margin_difference,
        "prediction_difference": verification.prediction_difference,
        "agrees": verification.agrees,
    }
    return verification_records.save(verification_records.paths(facts.path, facts.sha256), body, replace=replace)


def largest_difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference, absolute up to 1 and relative above; equal infinities and equal NaN differ by 0."""
    if not got.size:
        return 0.0
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(b)))
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _identity(adapter: TreeAdapter, forest: Walker, version: str) -> dict[str, Any]:
    """What a record must name."""
    engine, number = forest.arithmetic
    return {
        "sha256": adapter.facts.sha256,
        engine: number,
        adapter.framework: version,
        **adapter.facts.holds_for,
    }


def _verification(
    adapter: TreeAdapter, holds_for: Mapping[str, Any], rows: int, margin: float, prediction: float
) -> Verification:
    text = (
        f"largest difference {prediction:.3g} in prediction, {margin:.3g} in {adapter.score}, "
        f"over {rows} rows against {adapter.framework} {holds_for[adapter.framework]}"
    )
    return Verification(holds_for, rows, margin, prediction, text)


def _parse(adapter: TreeAdapter, wanted: Mapping[str, Any], body: Mapping[str, Any]) -> Verification | None:
    """Read a record; None: it is none, or of something else than wanted, the framework's version apart."""
    holds_for = {name: body.get(name) for name in wanted}
    outcome = ("rows", "margin_difference", "prediction_difference")
    if set(body) - {"agrees"} != {*wanted, *outcome}:
        return None
    if any(holds_for[name] != value for name, value in wanted.items() if name != adapter.framework):
        return None
    # A difference that JSON could not hold (NaN, infinity) was written as null.
    if not isinstance(body["rows"], int) or not all(isinstance(body[name], float | int) for name in outcome[1:]):
        return None
    return _verification(adapter, holds_for, body["rows"], *(float(body[name]) for name in outcome[1:]))


def make_rows(
    dtype: np.dtype, columns: int, splits: Mapping[int, np.ndarray], special: Sequence[float] = ()
) -> np.ndarray:
    """Make rows on, beside and far from what a model's splits compare with.

    Args:
        dtype: of the rows.
        columns: of a row.
        splits: the values that are compared with, by column.
        special: further values that the framework treats in a way of its own.

    Returns:
        [rows, columns], the same each time.
    """
    random = np.random.default_rng(_SEED)
    # Wide models get fewer rows, so that verification stays within a few hundred MB and a second.
    wide = max(1, columns)
    count = max(66, min(_ROWS, max(4_000_000 // wide, min(256, 40_000_000 // wide))))
    rows = (random.standard_normal((count, columns)) * random.choice([0.1, 1.0, 100.0], (count, 1))).astype(dtype)
    quarter = count // 4
    with np.errstate(over="ignore"):
        for column, values in splits.items():
            picked = random.choice(values, count - quarter).astype(dtype)
            beside = random.integers(-1, 2, len(picked))
            stepped = np.nextafter(picked, np.where(beside > 0, np.inf, -np.inf).astype(dtype))
            rows[quarter:, column] = np.where(beside == 0, picked, stepped)
        odd = np.array(_special_values(dtype, special), np.float64).astype(dtype)
    mask = random.random((count, columns)) < random.choice([0.0, 0.05, 0.5], (count, 1))
    rows[mask] = random.choice(odd, int(mask.sum()))
    rows[0], rows[1] = np.nan, 0.0
    return rows


def _special_values(dtype: np.dtype, own: Sequence[float]) -> list[float]:
    limits = np.finfo(dtype)
    largest, smallest = float(limits.max), float(limits.tiny)
    return [np.nan, np.inf, -np.inf, 0.0, -0.0, largest, -largest, smallest, *own]
