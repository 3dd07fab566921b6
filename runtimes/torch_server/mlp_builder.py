"""The steps of a perceptron while they are collected: which values there are, of what type and width, and where each is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from serinus.engines.mlp import MLPGraph
from serinus.engines.not_covered import NotCovered
from serinus.native.dense.mlp_kernel import Kind, Step

from .torch_graphs import Ref

__all__ = ["NUMPY", "MLPBuilder", "Value"]

NUMPY: Final = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


@dataclass(frozen=True, slots=True)
class Value:
    """What a name in the graph stands for."""

    step: int
    """Number of the step that makes it; -1: the input as it came."""
    dtype: torch.dtype | None
    """None: the input's, which nothing has said yet."""
    is_flat: bool = False
    """[n] instead of [n, width]."""


class MLPBuilder:
    """Steps, and the values that they make.

    Args:
        row: name of the input.
        columns: its columns, where something tells; 0: nothing does.
    """

    def __init__(self, row: str, columns: int) -> None:
        self.values: dict[str, Value] = {row: Value(-1, None)}
        self.steps: list[Step] = []
        self.operation = ""
        """The one at hand, for messages."""
        self.row_dtype: torch.dtype | None = None
        """Of the input, once something says it."""
        self.dtypes: set[torch.dtype] = set()
        """In which something is computed."""
        self._known_columns = columns
        self._columns = 0

    def finish(self, output: Any) -> MLPGraph:
        """Put the steps together, and hold them to what an MLP is."""
        value = self.values.get(output.name) if isinstance(output, Ref) else None
        if value is None or value.step < 0:
            raise NotCovered("something else than one tensor made of the input")
        if not any(step.kind in (Kind.DENSE, Kind.NORM) for step in self.steps):
            raise NotCovered("no layer that sums")
        if value.dtype is None or self.row_dtype is None:
            raise NotCovered("no weights, which would say what it computes in")
        if value.step != len(self.steps) - 1:
            raise NotCovered("operations after the one whose result it returns")
        return MLPGraph(
            steps=tuple(self.steps),
            columns=self._columns,
            row_dtype=NUMPY[self.row_dtype],
            output_dtype=NUMPY[value.dtype],
            precision=NUMPY[torch.float32 if torch.float32 in self.dtypes else torch.float64],
            is_flat=value.is_flat,
        )

    def declined(self, why: str = "") -> NotCovered:
        """The refusal of the operation at hand."""
        return NotCovered(f"operation {self.operation}" + (f" with {why}" if why else ""))

    def value_of(self, argument: Any) -> Value:
        """What an argument stands for, which must be a tensor of the network's."""
        if not isinstance(argument, Ref) or argument.name not in self.values:
            raise self.declined("a tensor that is none of the network's")
        return self.values[argument.name]

    def vector_of(self, argument: Any, width: int, dtype: torch.dtype | None) -> np.ndarray:
        """A constant vector or number, for each of `width`: float64."""
        if isinstance(argument, (int, float)) and not isinstance(argument, bool):
            return np.full(width, float(argument))
        if not isinstance(argument, torch.Tensor) or (dtype is not None and argument.dtype != dtype):
            raise self.declined("a tensor that is not constant, or of another type")
        array = argument.detach().to(torch.float64).numpy()
        if array.size not in (1, width) or array.ndim > 2 or (array.ndim == 2 and array.shape[0] != 1):
            raise self.declined(f"a constant of shape {list(array.shape)}")
        return np.broadcast_to(array.reshape(-1), (width,)).copy()

    def number_of(self, argument: Any) -> float:
        """A constant number."""
        if isinstance(argument, bool) or not isinstance(argument, (int, float)):
            raise self.declined("a number that is not constant")
        return float(argument)

    def place(self, value: Value, dtype: torch.dtype | None, width: int = 0) -> Value:
        """The value as a step's, of the type that its partner has; the input becomes its first `width` columns."""
        if dtype is not None and dtype not in NUMPY:
            raise self.declined(f"a constant of {dtype}")
        if value.dtype is None and dtype is not None:
            value = replace(value, dtype=dtype)
            self.row_dtype = self.row_dtype or dtype
        if dtype is not None and value.dtype != dtype:
            raise self.declined(f"{value.dtype} and {dtype}")
        if value.dtype is not None:
            self.dtypes.add(value.dtype)
        if value.step >= 0:
            return value
        width = width or self._known_columns
        if not width:
            raise NotCovered("an input whose columns nothing tells")
        if not self.steps:
            self._columns = width
            self.steps.append(Step(Kind.SELECT, -1, width, first=np.arange(width, dtype=np.int32)))
        elif self._columns != width:
            raise self.declined(f"{width} columns of an input that was taken otherwise before")
        return replace(value, step=0)

    def push(self, step: Step, value: Value, *, is_flat: bool | None = None) -> Value:
        """Add a step that takes `value` and makes the value that is returned."""
        self.steps.append(step)
        return replace(value, step=len(self.steps) - 1, is_flat=value.is_flat if is_flat is None else is_flat)

    def width_of(self, value: Value) -> int:
        """Numbers of a row of it; 0: the input, whose columns nothing told yet."""
        return self.steps[value.step].outputs if value.step >= 0 else self._known_columns
