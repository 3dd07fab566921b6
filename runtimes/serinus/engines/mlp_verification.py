"""Whether compiled steps answer as the network's framework does, to the rounding of the framework's own arithmetic.

Theory of operation. The framework adds in an order of its own, which differs between one row and many, and rounds every operation to
the network's precision. So its answer is itself off by a known amount: each step adds a few units of rounding of what it sums, and
passes on what came with its inputs times how steep it is (Higham, Accuracy and Stability of Numerical Algorithms, 3.1: n + 2 units
of the sum of sizes for an inner product in any order). `_bounds` follows that amount through the steps, row by row; an answer that is
further from the framework's than `_SLACK` times it is another network's. Rows are of sizes from 1e-6 to 1e6, with zeros.

Infinite and missing values are held to the same: both sides must answer the same infinity or NaN. Where only they differ (PyTorch's
float32 GELU of infinity depends on the number of values), the framework keeps such rows (`finite_only`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from ..native.dense.mlp_kernel import Kind, Step
from .mlp import CompiledMLP, MLPGraph
from .not_covered import NotCovered

__all__ = ["verify"]

_ROWS: Final = 512
_SLACK: Final = 4.0
_UNITS: Final = 8.0
"""Units of rounding of an elementary function in any library, its arguments' rounding included."""


def verify(graph: MLPGraph, answer: Callable[[np.ndarray], np.ndarray], columns: int) -> CompiledMLP:
    """Compile a network and hold it against its framework.

    Args:
        graph: the network.
        answer: the framework's answers to rows [n, columns] of the graph's `row_dtype`.
        columns: of a row.

    Raises:
        NotCovered: too large, or they differ; the message says by how much.
    """
    compiled = CompiledMLP(graph)
    if not compiled.takes(np.empty((1, columns), graph.row_dtype)):
        raise NotCovered(f"columns of a row that are not {columns}")
    draw = np.random.default_rng(0)
    rows = (draw.normal(size=(_ROWS, columns)) * 10.0 ** draw.uniform(-6, 6, (_ROWS, 1))).astype(graph.row_dtype)
    rows[draw.random(rows.shape) < 0.05] = 0
    rows[0] = 0
    _compare(compiled, answer, rows)
    for value in (np.nan, np.inf, -np.inf):
        rows[draw.random(rows.shape) < 0.02] = value
    rows[1:4] = np.array([np.nan, np.inf, -np.inf])[:, None]
    try:
        _compare(compiled, answer, rows)
    except NotCovered:
        return CompiledMLP(graph, finite_only=True)
    return compiled


def _compare(compiled: CompiledMLP, answer: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> None:
    graph = compiled.graph
    # The framework takes one row, few and many by other ways.
    expected = answer(rows)
    found = compiled.predict(rows)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise NotCovered(
            f"answers {found.dtype}{list(found.shape)} where the framework has {expected.dtype}{list(expected.shape)}"
        )
    few = np.concatenate([answer(rows[at : at + 1]) for at in range(8)] + [answer(rows[8:16])])
    bounds = _bounds(graph.steps, rows.astype(np.float64))
    limits = np.finfo(graph.precision)
    tolerance = _SLACK * float(limits.eps) / 2 * bounds.reshape(found.shape) + 16 * float(limits.tiny)
    for got, wanted, allowed in ((found, expected, tolerance), (found[:16], few, tolerance[:16])):
        with np.errstate(invalid="ignore"):
            apart = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
        same = (got == wanted) | (np.isnan(got) & np.isnan(wanted)) | (apart <= allowed)
        if not same.all():
            at = np.unravel_index(int(np.argmin(same)), same.shape)
            raise NotCovered(f"the compiled steps differ: {got[at]} where the framework has {wanted[at]}")


def _bounds(steps: tuple[Step, ...], rows: np.ndarray) -> np.ndarray:
    """How far any framework's answers may be from the exact ones, in units of rounding: float64 [n, outputs]."""
    values: list[np.ndarray] = []
    errors: list[np.ndarray] = []
    with np.errstate(all="ignore"):
        for step in steps:
            x, e = (values[step.source], errors[step.source]) if step.source >= 0 else (rows, np.zeros_like(rows))
            value, error = _step(step, x, e, values, errors)
            values.append(value)
            # Of what is infinite or missing, only that it is is compared.
            errors.append(np.where(np.isfinite(value) & np.isfinite(error), error, 0.0))
    return errors[-1]


def _step(
    step: Step, x: np.ndarray, e: np.ndarray, values: list[np.ndarray], errors: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A step's value for every row, and the units of rounding that it may be off by."""
    kind, (a, b, c) = step.kind, step.numbers
    first = np.zeros(step.outputs) if step.first is None else step.first
    if kind == Kind.SELECT:
        return x[:, first.astype(np.int64)], np.zeros((len(x), step.outputs))
    if kind == Kind.DENSE and step.second is not None:
        sizes = np.abs(step.second)
        added, passed = (values[step.other], errors[step.other]) if step.other >= 0 else (first, np.zeros_like(first))
        value = a * added + x @ step.second
        summed = np.abs(a * added) + np.abs(x) @ sizes
        return value, abs(a) * passed + e @ sizes + (len(step.second) + 2) * summed
    if kind == Kind.AFFINE and step.second is not None:
        scaled = x * step.second
        return first + scaled, np.abs(step.second) * e + 4 * (np.abs(first) + np.abs(scaled))
    if kind == Kind.NORM:
        value = np.sqrt((x * x).sum(axis=1, keepdims=True))
        return value, np.sqrt((e * e).sum(axis=1, keepdims=True)) + (x.shape[1] + 4) * value
    if kind == Kind.FILL:
        value = np.where(np.isnan(x), a, np.where(x == np.inf, b, np.where(x == -np.inf, c, x)))
        return value, e
    if kind == Kind.RELU:
        return np.where(x < 0, 0.0, x), e
    if kind == Kind.LOG:
        value = np.log(x)
        return value, e / np.abs(x) + _UNITS * (np.abs(value) + 1)
    if kind == Kind.ASINH:
        value = np.arcsinh(x)
        return value, e + _UNITS * np.abs(value)
    if kind == Kind.SIGMOID:
        value = 1 / (1 + np.exp(-x))
        return value, e / 4 + _UNITS * value
    if kind == Kind.TANH:
        value = np.tanh(x)
        return value, e + _UNITS * np.abs(value)
    # GELU, whose steepest slope is 1.13; both forms differ by less than matters to what they pass on.
    value = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return value, 1.13 * e + _UNITS * np.abs(x)
