"""Small multi-layer perceptrons as compiled steps in a framework's place: what a reader hands over, and what answers.

Theory of operation. A framework takes ~2 us an operation where its code is warm, and several times that where a server has done other
things since the last request; the arithmetic of a small network takes 1 us. So a framework's reader (`torch_server.mlp_reader`)
turns a graph of the steps below into an `MLPGraph`, or raises `NotCovered` with the reason. `mlp_verification` holds the steps against the
framework on the very file, and `mlp_records` saves them with that, so that a later start needs no framework at all.

The steps compute in float64, whatever the network does: a float32 network's answers are rounded once, at the end, and differ from
the framework's by no more than the rounding of the framework's own sums (see `mlp_verification`). A row's answer never depends on
the rows beside it.

How to add a framework: turn its graph into `Step`s in the order of execution, the first one a SELECT of the input's columns, and
refuse what they cannot say exactly. Nothing here knows where a graph came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ..native.dense.mlp_kernel import MLP, WORKSPACE, Kind, Step
from ..native.trees.walker import KernelsMissing
from .not_covered import NotCovered

__all__ = ["MOST_WEIGHTS", "CompiledMLP", "MLPGraph"]

MOST_WEIGHTS: Final = 65_536
"""More weights than these are a framework's matter: one row then takes longer than its dispatch, and many rows far longer."""
_BREAK_EVEN: Final = 100_000
_MOST_ROWS: Final = 16
"""Rows that the steps answer as fast as PyTorch does, and weights times rows likewise (README of torch_server)."""


@dataclass(frozen=True, slots=True)
class MLPGraph:
    """A network as its file has it."""

    steps: tuple[Step, ...]
    columns: int
    """Columns that a row has; 0: any number that the first step's columns fit."""
    row_dtype: np.dtype
    """float32 or float64."""
    output_dtype: np.dtype
    precision: np.dtype
    """What the framework computes in: the narrowest type on the way. It bounds what its answers are worth."""
    is_flat: bool
    """Answers are [n], of networks that end in one number a row; else [n, outputs]."""

    @property
    def weights(self) -> int:
        """Multiplications of one row."""
        return sum(step.second.size for step in self.steps if step.kind == Kind.DENSE and step.second is not None)

    @property
    def most_rows(self) -> int:
        """Rows up to which the steps are as quick as a framework that is loaded anyway."""
        return max(1, min(_MOST_ROWS, _BREAK_EVEN // max(1, self.weights)))


class CompiledMLP:
    """A network ready to answer; any number of threads may ask.

    Args:
        graph: the network.
        finite_only: rows with infinite or missing values are left to the framework.

    Raises:
        NotCovered: the compiled kernels are not there, or the network is too large for them.
    """

    def __init__(self, graph: MLPGraph, *, finite_only: bool = False) -> None:
        if graph.weights > MOST_WEIGHTS:
            raise NotCovered(f"{graph.weights:,} weights; compiled are at most {MOST_WEIGHTS:,}")
        width = sum(step.outputs for step in graph.steps)
        if width > WORKSPACE:
            raise NotCovered(f"layers that are {width:,} wide together; compiled are at most {WORKSPACE:,}")
        try:
            self._mlp = MLP(graph.steps, row_dtype=graph.row_dtype)
        except (KernelsMissing, ValueError) as error:
            raise NotCovered(str(error)) from None
        self.graph = graph
        self.finite_only = finite_only
        self.most_rows = graph.most_rows
        self._row_dtype = graph.row_dtype
        self._columns = graph.columns
        self._rounds = graph.output_dtype != np.float64
        self._flat = graph.is_flat

    def takes(self, array: np.ndarray) -> bool:
        """Whether the steps answer this tensor; the framework takes others, or refuses them in its own words."""
        if array.dtype != self._row_dtype or array.ndim != 2:
            return False
        columns = array.shape[1]
        fits = columns == self._columns if self._columns else columns >= self._mlp.columns
        return fits and not (self.finite_only and not np.isfinite(array).all())

    def predict(self, array: np.ndarray) -> np.ndarray:
        """Answer rows that `takes` accepts: [n] or [n, outputs], of the graph's `output_dtype`."""
        answers = self._mlp.predict(np.ascontiguousarray(array))
        if self._flat:
            answers = answers[:, 0]
        if self._rounds:
            with np.errstate(over="ignore", under="ignore"):
                return answers.astype(self.graph.output_dtype)
        return answers
