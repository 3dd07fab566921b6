"""Whether a compiled program agrees with scikit-learn on one model file: compared once, recorded, found again.

Theory of operation. Rows made to hurt (`serinus.engines.tree_verification.make_rows`: on, beside and far from what the trees compare with, read
back through the scalers; missing, infinite, unknown categories) go through both, alone and together. What the program refuses must be refused
by scikit-learn, too. Probabilities, margins and numbers must agree to `TOLERANCE`; labels must be the same but where two classes are as
near to one another. Most trees agree to the last bit, and the record says how far apart anything was. It holds for the file's SHA-256, the
version of the arithmetic and scikit-learn's version, and lies where `serinus.verification_records` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from serinus import verification_records
from serinus.engines.tree_verification import largest_difference, make_rows
from serinus.errors import InvalidInput
from serinus.native.trees.forest64 import ENGINE64

from .columns import Columns
from .modelfile import ModelFile
from .predictor import Predictor
from .program import ARITHMETIC, Program

__all__ = ["TOLERANCE", "Verification", "find", "save", "verify"]

TOLERANCE: Final = 1e-9
"""Largest difference taken for agreement, in float64: absolute up to 1, relative above. A product of 10,000 columns may round so in another order."""

_KNOWN: Final = 0.9
"""Share of rows whose numbers are among the categories of their column."""
_SEED: Final = 20240229
_REFUSALS: Final = 12
"""Refused rows that scikit-learn is asked, each alone."""
_LARGEST: Final = 1e12
"""Of numbers given to models that multiply: beyond it sums lose what the order of additions decides."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of one comparison."""

    holds_for: Mapping[str, Any]
    rows: int
    difference: float
    """Largest, absolute up to 1 and relative above; infinite where labels or refusals differ."""

    @property
    def agrees(self) -> bool:
        """Whether the program may serve this model."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        how = "equal to the last bit" if self.difference == 0 else f"largest difference {self.difference:.3g}"
        return f"{how} over {self.rows} rows against scikit-learn {self.holds_for['sklearn']}"


def identity(file: ModelFile, version: str) -> dict[str, Any]:
    """What a record must name."""
    return {"sha256": file.sha256, "sklearn_program": ARITHMETIC, "engine64": ENGINE64, "sklearn": version}


def verify(file: ModelFile, program: Program, columns: Columns, predictor: Predictor) -> Verification:
    """Compare the program with scikit-learn."""
    holds_for = identity(file, predictor.version)
    wanted = frozenset(program.outputs)
    if not wanted <= set(predictor.outputs):
        return Verification(holds_for, 0, np.inf)
    rows = _rows(program, columns)
    alone: list[dict[str, np.ndarray]] = []
    taken, refused = [], []
    for at in range(len(rows)):
        try:
            alone.append(program.run(rows[at : at + 1], wanted))
            taken.append(at)
        except InvalidInput:
            refused.append(at)
    for at in refused[:: max(1, len(refused) // _REFUSALS)]:
        try:
            predictor.run(rows[at : at + 1], wanted)
        except InvalidInput:
            continue
        return Verification(holds_for, len(rows), np.inf)  # it answers what the program would refuse
    if not taken:
        return Verification(holds_for, 0, np.inf)
    some = rows[taken]
    try:
        expected = predictor.run(some, wanted)
    except InvalidInput:
        return Verification(holds_for, len(rows), np.inf)
    together = program.run(some, wanted)
    each = {name: np.concatenate([one[name] for one in alone]) for name in wanted}
    difference = max(_difference(got, expected) for got in (together, each))
    return Verification(holds_for, len(some), difference)


def find(file: ModelFile, version: str) -> Verification | None:
    """Find a record that holds for this file and this version.

    Args:
        file: the model's.
        version: of the installed scikit-learn; empty: none is installed, and a record of any version will do.
    """
    wanted = identity(file, version)
    for body in verification_records.load(verification_records.paths(file.path, file.sha256)):
        held = {name: body.get(name) for name in wanted}
        if not isinstance(held["sklearn"], str) or (version and held["sklearn"] != version):
            continue
        if any(held[name] != value for name, value in wanted.items() if name != "sklearn"):
            continue
        rows, difference = body.get("rows"), body.get("difference")
        if type(rows) is int and (difference is None or isinstance(difference, int | float)):
            # A difference that JSON could not hold (infinity) was written as null.
            return Verification(held, rows, np.inf if difference is None else float(difference))
    return None


def save(file: ModelFile, found: Verification, *, replace: bool = False) -> Path | None:
    """Save the record; arguments and result as of `serinus.verification_records.save`."""
    body = {**found.holds_for, "rows": found.rows, "difference": found.difference, "agrees": found.agrees}
    return verification_records.save(verification_records.paths(file.path, file.sha256), body, replace=replace)


def _difference(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    worst = 0.0
    for name, wanted in expected.items():
        own = got[name]
        if own.shape != wanted.shape:
            return np.inf
        if (own.dtype.kind == "f" and name != "predict") or (name == "predict" and len(expected) == 1):
            worst = max(worst, largest_difference(own, wanted))
            continue
        other = own != wanted
        if np.any(other) and not _is_tie(expected, other):
            return np.inf
    return worst


def _is_tie(expected: Mapping[str, np.ndarray], rows: np.ndarray) -> bool:
    """Whether the two nearest classes of these rows are equal but for rounding."""
    scores = expected.get("decision_function", expected.get("predict_proba"))
    if scores is None:
        return False
    if scores.ndim == 1:
        return bool(np.all(np.abs(scores[rows]) <= TOLERANCE))
    ordered = np.sort(scores[rows], axis=1)
    return bool(np.all(ordered[:, -1] - ordered[:, -2] <= TOLERANCE))


def _rows(program: Program, columns: Columns) -> np.ndarray:
    """Make rows that hurt."""
    splits = program.splits()
    made = make_rows(np.dtype(np.float64), program.columns, splits)
    if program.head.rounds:
        # Beside the thresholds as float32 has them, and between two of these, which rounding decides.
        narrow = make_rows(np.dtype(np.float32), program.columns, splits).astype(np.float64)
        made = np.concatenate((narrow[::2], made[::2]))
    if not program.head.splits:
        large = np.abs(made) > _LARGEST
        made[large & np.isfinite(made)] = _LARGEST
    random = np.random.default_rng(_SEED)
    if not columns.is_frame:
        for place, known in columns.samples.items():  # numbers that are looked up, which others would hardly meet
            codes = np.array([np.nan if one is None else one for one in known], np.float64)
            meets = random.random(len(made)) < _KNOWN
            made[meets, place] = random.choice(codes, int(meets.sum()))
        return made
    made = made[: len(made) // 2]
    rows = made.astype(object)
    for place in range(program.columns):
        known = columns.samples.get(place)
        if known is None and place not in columns.texts:
            continue
        choices: Sequence[Any] = [
            *(known or (b"a", b"b")),
            None,
            b"no such category" if place in columns.texts else -1.5,
        ]
        odds = np.r_[np.full(len(choices) - 2, 1.0), 0.02 * len(choices), 0.02 * len(choices)]
        picked = random.choice(len(choices), len(rows), p=odds / odds.sum())
        for row, which in enumerate(picked.tolist()):
            rows[row, place] = choices[which]
    return rows
