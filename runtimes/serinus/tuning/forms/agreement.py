"""How far a form's outputs are from the original's, and whether that is near enough for its precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .model_forms import Precision

__all__ = ["TOLERANCES", "Agreement", "compare"]

TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2, "int8": 1e-1}
"""Largest relative difference by precision. fp32: order of summation over thousands of terms. fp16 and bf16: ten units in the
last place (2^-11, 2^-8), as errors grow over layers. int8: 1/127 a layer, likewise."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One form against the original."""

    max_abs: float
    """Largest absolute difference of any output."""
    max_rel: float
    """The same, relative to the largest value of its output in the original: not misled by values near 0."""
    top1: float | None
    """Share of rows whose largest score is at the same place; None: the outputs are no scores of classes."""
    problem: str = ""
    """Why the outputs cannot be compared."""

    def within(self, tolerance: float, least_top1: float) -> bool:
        """Whether the form is near enough."""
        return not self.problem and self.max_rel <= tolerance and (self.top1 is None or self.top1 >= least_top1)


def compare(reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Agreement:
    """Compare outputs by name, or by place where both have one only.

    Args:
        reference: of the original.
        outputs: of the form, for the same rows.
    """
    if set(reference) != set(outputs) and len(reference) == len(outputs) == 1:
        outputs = dict(zip(reference, outputs.values(), strict=True))
    missing = sorted(set(reference) - set(outputs))
    if missing:
        return Agreement(np.inf, np.inf, None, f"output {missing[0]!r} is missing; there are {', '.join(outputs)}")
    max_abs = max_rel = 0.0
    top1: float | None = None
    for name, wanted in reference.items():
        found = outputs[name]
        if found.shape != wanted.shape:
            return Agreement(
                np.inf, np.inf, None, f"output {name!r} is {list(found.shape)} instead of {list(wanted.shape)}"
            )
        if wanted.dtype.kind not in "fiub":
            differs = float((found != wanted).mean())
            max_rel = max(max_rel, differs)
            continue
        a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        # An infinity or NaN that both have is no difference; one that only one has is an infinite one.
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(a - b))
        difference = np.where(np.isnan(difference), np.inf, difference)
        largest = float(difference.max(initial=0.0))
        finite = np.abs(b[np.isfinite(b)])
        scale = float(finite.max(initial=0.0))
        max_abs = max(max_abs, largest)
        max_rel = max(max_rel, largest / scale if scale else (np.inf if largest else 0.0))
        if wanted.dtype.kind == "f" and wanted.ndim == 2 and wanted.shape[1] > 1:
            share = float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
            top1 = share if top1 is None else min(top1, share)
    return Agreement(max_abs, max_rel, top1)
