"""Whether the compiled engine agrees with XGBoost on one model, measured once and kept by checksum.

Theory of operation. `verify` sends rows made to hurt through both: values on the thresholds of the model's own splits and one
float to either side, missing values, infinities, wide and narrow random ones. The verdict names the model file's SHA-256, the
engine's version, the xgboost that was compared with, and the iterations and missing value in force; it holds for exactly those.
It is kept where `serinus.verification_records` says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from serinus import verification_records
from serinus.native.trees.forest import ENGINE, Forest
from serinus.verification_records import TOLERANCE, difference

from .modelfile import ModelFile
from .reference import Reference

__all__ = ["Verdict", "find", "keep", "verify"]

_ROWS: Final = 4096
_SEED: Final = 20240229


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one comparison, and what it was made of."""

    sha256: str
    engine: int
    xgboost: str
    iterations: tuple[int, int]
    missing: str
    """`repr` of the float; NaN has no JSON."""
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
            f"largest difference {self.prediction_difference:.3g} in prediction, {self.margin_difference:.3g} in margin, "
            f"over {self.rows} rows against xgboost {self.xgboost}"
        )


def verify(file: ModelFile, forest: Forest, reference: Reference, *, xgboost: str, missing: float) -> Verdict:
    """Compare the engine with XGBoost.

    Args:
        file: the model.
        forest: the engine's form of it.
        reference: XGBoost's.
        xgboost: version of xgboost.
        missing: the value that counts as missing beside NaN.
    """
    rows = _rows(file, forest.columns, missing)
    margins, predictions = forest.both(rows)
    wanted = reference.margins(rows).reshape(margins.shape)
    got, expected = predictions, reference.predict(rows)
    if expected.size != got.size:  # multi:softmax answers the class
        got = margins.argmax(axis=1).astype(np.float32)
    # One row and few rows take other ways through the code than a block does.
    alone = np.concatenate([forest.both(rows[at : at + 1])[1] for at in range(64)])
    few = np.concatenate([forest.both(rows[at : at + 5])[1] for at in range(0, 65, 5)])
    ways = max(difference(alone, predictions[:64]), difference(few, predictions[:65]))
    return Verdict(
        sha256=file.sha256,
        engine=ENGINE,
        xgboost=xgboost,
        iterations=reference.iterations,
        missing=repr(missing),
        rows=len(rows),
        margin_difference=difference(margins, wanted),
        prediction_difference=max(ways, difference(got.reshape(expected.shape), expected)),
    )


def find(file: ModelFile, *, xgboost: str, iterations: tuple[int, int], missing: float) -> Verdict | None:
    """Find a verdict that holds for this file, these settings and this engine.

    Args:
        file: the model.
        xgboost: version of the installed xgboost; empty: none is installed, and a verdict against any version will do.
        iterations: in use.
        missing: in use.
    """
    for body in verification_records.kept(_places(file)):
        verdict = _parse(body)
        if (
            verdict is not None
            and (verdict.sha256, verdict.engine, verdict.missing) == (file.sha256, ENGINE, repr(missing))
            and verdict.iterations == iterations
            and xgboost in ("", verdict.xgboost)
        ):
            return verdict
    return None


def keep(file: ModelFile, verdict: Verdict) -> Path | None:
    """Write the verdict to the first place that can be written; None: there is none."""
    return verification_records.keep(_places(file), {**dataclasses.asdict(verdict), "agrees": verdict.agrees})


def _places(file: ModelFile) -> Iterator[Path]:
    return verification_records.places(file.path, file.sha256)


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


def _rows(file: ModelFile, columns: int, missing: float) -> np.ndarray:
    """Rows on, beside and far from the model's thresholds: float32 [rows, columns]."""
    random = np.random.default_rng(_SEED)
    # Wide models get fewer rows, so that verification stays within a few hundred MB and a second.
    count = max(256, min(_ROWS, 4_000_000 // max(1, columns)))
    rows = (random.standard_normal((count, columns)) * random.choice([0.1, 1.0, 100.0], (count, 1))).astype(np.float32)
    quarter = count // 4
    for column, thresholds in _thresholds(file, columns).items():
        picked = random.choice(thresholds, 3 * quarter)
        beside = random.integers(-1, 2, len(picked))
        with np.errstate(over="ignore"):
            stepped = np.where(
                beside == 0, picked, np.nextafter(picked, np.where(beside > 0, np.inf, -np.inf).astype(np.float32))
            )
        rows[quarter:, column][: len(stepped)] = stepped
    special = [
        np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        np.finfo(np.float32).max,
        np.finfo(np.float32).min,
        np.finfo(np.float32).tiny,
    ]
    if not math.isnan(missing):
        special.append(missing)
    mask = random.random((count, columns)) < random.choice([0.0, 0.05, 0.5], (count, 1))
    rows[mask] = random.choice(np.array(special, np.float32), int(mask.sum()))
    rows[0], rows[1] = np.nan, 0.0
    return rows


def _thresholds(file: ModelFile, columns: int) -> dict[int, np.ndarray]:
    """Thresholds of the model's splits by column."""
    features, values = [], []
    for tree in file.model["trees"]:
        inner = np.asarray(tree["left_children"]) != -1
        features.append(np.asarray(tree["split_indices"])[inner])
        values.append(np.asarray(tree["split_conditions"], np.float32)[inner])
    if not features:
        return {}
    feature, value = np.concatenate(features), np.concatenate(values)
    if not len(feature):  # every tree is one leaf
        return {}
    order = np.argsort(feature, kind="stable")
    used, starts = np.unique(feature[order], return_index=True)
    parts = np.split(value[order], starts[1:])
    return {int(column): part for column, part in zip(used, parts, strict=True) if column < columns}
