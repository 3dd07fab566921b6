"""`MLP`: a multi-layer perceptron in float64 as one call of compiled code (`mlp.c`). Knows no framework."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..kernel_library import Library
from ..trees.walker import kernels

__all__ = ["MLP", "WORKSPACE", "Kind", "Step"]

_QUICK_ROWS = 16
_QUICK_WEIGHTS = 100_000
"""Rows and weights that one call multiplies while it holds the GIL, for some 25 us; more are answered without it."""
WORKSPACE = 2048
"""Numbers that all vectors of one row may take together; as in mlp.c."""


class Kind(enum.IntEnum):
    """What a step does; the numbers are those of mlp.c."""

    SELECT = 0
    """Columns of the row, `first`; always the first step, and only that."""
    ASINH = 1
    AFFINE = 2
    """`first + source * second`"""
    FILL = 3
    """NaN, infinity and -infinity become `numbers`."""
    DENSE = 4
    """`numbers[0] * added + source @ second`; added is `first`, or an earlier step's vector (`other`)."""
    RELU = 5
    NORM = 6
    """Length of the vector; one number."""
    LOG = 7
    SIGMOID = 8
    TANH = 9
    GELU = 10
    """`x / 2 * (1 + erf(x / sqrt(2)))`"""
    GELU_TANH = 11
    """GELU with tanh in place of erf, PyTorch's `approximate="tanh"`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step; its vector is `outputs` wide.

    Args:
        kind: what it does.
        source: number of the step whose vector it takes; -1 for the first.
        outputs: width of its own vector.
        first: see `Kind`.
        second: see `Kind`; of DENSE float64 [inputs, outputs].
        other: step whose vector a DENSE adds; -1: `first`.
        numbers: see `Kind`.
    """

    kind: Kind
    source: int
    outputs: int
    first: np.ndarray | None = None
    second: np.ndarray | None = None
    other: int = -1
    numbers: tuple[float, float, float] = (1.0, 0.0, 0.0)


class _Struct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "source", "other", "target", "width", "outputs")),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in "xyz"),
    )


class MLP:
    """Steps ready to run; any number of threads may.

    Args:
        steps: in order; the last one's vector is the answer.
        row_dtype: of the rows: float32 or float64.

    Raises:
        KernelsMissing: the compiled kernels are not there.
        ValueError: a step's vectors do not fit, or together they are too wide.
    """

    def __init__(
        self, steps: Sequence[Step], *, row_dtype: np.dtype | type = np.float32, library: Library | None = None
    ) -> None:
        library = library or kernels()
        self.columns = _check(steps)
        """Columns that a row must have at least."""
        self.outputs = steps[-1].outputs
        """Numbers of a row's answer."""
        self.row_dtype = np.dtype(row_dtype)
        if self.row_dtype not in (np.float32, np.float64):
            raise ValueError(f"rows are float32 or float64, not {self.row_dtype}")
        self._wide = int(self.row_dtype == np.float64)
        self._arrays: list[np.ndarray] = []
        self._steps = (_Struct * len(steps))()
        starts = np.cumsum([0, *(step.outputs for step in steps)]).tolist()
        for at, step in enumerate(steps):
            first = step.first if step.first is None or step.kind == Kind.SELECT else step.first.astype(np.float64)
            first = first.astype(np.int32) if step.kind == Kind.SELECT and first is not None else first
            second = None if step.second is None else np.ascontiguousarray(step.second, np.float64)
            pointers = [self._keep(array) for array in (first, second)]
            source = max(0, step.source)
            self._steps[at] = _Struct(
                int(step.kind),
                starts[source],
                starts[step.other] if step.other >= 0 else -1,
                starts[at],
                steps[source].outputs,
                step.outputs,
                *pointers,
                *step.numbers,
            )
        weights = sum(step.second.size for step in steps if step.kind == Kind.DENSE and step.second is not None)
        self._quick_rows = max(1, min(_QUICK_ROWS, _QUICK_WEIGHTS // max(1, weights)))
        self._quick, self._long = (one.serinus_mlp_predict for one in (library.quick, library.long))
        for run in (self._quick, self._long):
            run.restype = None
            run.argtypes = (
                ctypes.c_void_p,
                ctypes.c_int32,
                ctypes.c_void_p,
                ctypes.c_int32,
                ctypes.c_int64,
                ctypes.c_int64,
                ctypes.c_void_p,
            )
        self._at = ctypes.addressof(self._steps)
        self._count = len(steps)

    def _keep(self, array: np.ndarray | None) -> int | None:
        if array is None:
            return None
        kept = np.ascontiguousarray(array)
        self._arrays.append(kept)
        return kept.ctypes.data

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Answer rows, ~2 us each.

        Args:
            rows: of `row_dtype`, [n, at least `columns`], in C order.

        Returns:
            float64 [n, outputs].

        Raises:
            ValueError: the rows are not like that.
        """
        if (
            rows.dtype != self.row_dtype
            or rows.ndim != 2
            or rows.shape[1] < self.columns
            or not rows.flags.c_contiguous
        ):
            raise ValueError(
                f"rows must be {self.row_dtype} [n, {self.columns} or more] in C order, not {rows.dtype} {rows.shape}"
            )
        answers = np.empty((len(rows), self.outputs))
        run = self._quick if len(rows) <= self._quick_rows else self._long
        run(self._at, self._count, rows.ctypes.data, self._wide, len(rows), rows.shape[1], answers.ctypes.data)
        return answers


def _check(steps: Sequence[Step]) -> int:
    """Hold every step to the widths that it reads and writes; returns the columns of a row."""
    columns = 0
    for at, step in enumerate(steps):
        if (step.kind == Kind.SELECT) != (at == 0) or step.source >= at or (at and step.source < 0) or step.other >= at:
            raise ValueError(
                f"step {at} ({step.kind.name}): an MLP selects first and only there, and reads what was before"
            )
        if step.kind == Kind.SELECT:
            if step.first is None or step.first.shape != (step.outputs,) or step.first.min(initial=0) < 0:
                raise ValueError("step 0: the columns do not fit")
            columns = int(step.first.max(initial=-1)) + 1
            continue
        width = steps[step.source].outputs
        wanted = {Kind.NORM: 1, Kind.DENSE: step.outputs}.get(step.kind, width)
        vectors = {Kind.AFFINE: ((width,), (width,)), Kind.DENSE: ((step.outputs,), (width, step.outputs))}
        first, second = vectors.get(step.kind, (None, None))
        if step.other >= 0:
            first = None if steps[step.other].outputs == step.outputs else (-1,)
        fits = step.outputs == wanted and all(
            (array is None) if shape is None else (array is not None and array.shape == shape)
            for array, shape in ((step.first, first), (step.second, second))
        )
        if not fits:
            raise ValueError(f"step {at} ({step.kind.name}): its vectors do not fit")
    width = sum(step.outputs for step in steps)
    if not steps or any(step.outputs < 1 for step in steps) or width > WORKSPACE:
        raise ValueError(f"an MLP has steps, whose vectors take {WORKSPACE} numbers at most together, not {width}")
    return columns
