"""A PyTorch graph as the steps of a multi-layer perceptron: from `torch_graphs.Graph` to `serinus.engines.mlp.MLPGraph`.

Covered are layers in any order from one float32 or float64 matrix [n, F] to [n, outputs] or [n]: `Linear` and its matrix products,
`relu`, `sigmoid`, `tanh`, `gelu` in both forms, `asinh`, `log`, `nan_to_num`, the length of a row (`vector_norm`), sums and products with
constant vectors or numbers (so `BatchNorm1d` in evaluation mode, too), `Dropout` and other operations that do nothing when serving, and
`index_select` of the input's columns. Whatever else is declined with its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from serinus.engines.mlp import MLPGraph
from serinus.engines.not_covered import NotCovered
from serinus.native.dense.mlp_kernel import Kind, Step

from .mlp_builder import NUMPY, MLPBuilder, Value
from .torch_graphs import Graph, Operation, Ref

__all__ = ["read_mlp"]

_DTYPES: Final = {
    6: torch.float32,  # c10/core/ScalarType.h, as TorchScript has them
    7: torch.float64,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
_ELEMENTWISE: Final = {
    "aten::relu": Kind.RELU,
    "aten::sigmoid": Kind.SIGMOID,
    "aten::tanh": Kind.TANH,
    "aten::asinh": Kind.ASINH,
    "aten::log": Kind.LOG,
}
_NOTHING: Final = ("aten::contiguous", "aten::detach", "aten::alias", "aten::clone")
_WEIGHTS: Final = {"aten::linear": (1, 1), "aten::mm": (1, 0), "aten::matmul": (1, 0), "aten::addmm": (2, 0)}
"""Which argument is a layer's weights, and which of their dimensions its inputs'."""
_CASTS: Final = ("aten::to", "aten::_to_copy")


def read_mlp(graph: Graph, columns: int) -> MLPGraph:
    """Turn a graph into steps.

    Args:
        graph: of the module.
        columns: F, where it is known from elsewhere; 0: it is not.

    Raises:
        NotCovered: an operation that the steps do not have, or arguments that they do not take.
    """
    if len(graph.inputs) != 1:
        raise NotCovered(f"{len(graph.inputs)} inputs")
    reader = _Reader(graph.inputs[0], columns or _first_width(graph))
    for operation in graph.operations:
        reader.read(operation)
    return reader.finish(graph.output)


def _first_width(graph: Graph) -> int:
    """Inputs of the first layer, which are the row's columns where all before it keeps the width; 0: there is none."""
    for operation in graph.operations:
        place, dimension = _WEIGHTS.get(operation.name, (0, 0))
        weights = operation.arguments[place] if place else None
        if isinstance(weights, torch.Tensor) and weights.ndim == 2:
            return weights.shape[dimension]
    return 0


class _Reader(MLPBuilder):
    """Collects steps, operation by operation."""

    def __init__(self, row: str, columns: int) -> None:
        super().__init__(row, columns)
        self._held: dict[str, torch.Tensor] = {}
        """Constants that the graph makes of constants."""
        self._readers: dict[str, Callable[[Operation], Value]] = {
            "aten::index_select": self._select,
            "aten::linear": self._linear,
            "aten::addmm": self._addmm,
            "aten::mm": self._matmul,
            "aten::matmul": self._matmul,
            "aten::add": self._add,
            "aten::sub": self._sub,
            "aten::mul": self._mul,
            "aten::div": self._div,
            "aten::addcmul": self._addcmul,
            "aten::batch_norm": self._batch_norm,
            "aten::gelu": self._gelu,
            "aten::nan_to_num": self._fill,
            "aten::linalg_vector_norm": self._norm,
            "aten::squeeze": self._squeeze,
            "aten::flatten": self._flatten,
            "aten::dropout": self._dropout,
            **dict.fromkeys(("aten::view", "aten::reshape"), self._reshape),
            **dict.fromkeys(_ELEMENTWISE, self._elementwise),
            **dict.fromkeys(_NOTHING, self._nothing),
            **dict.fromkeys(_CASTS, self._cast),
        }

    def read(self, operation: Operation) -> None:
        """Take one operation."""
        self.operation = operation.name
        if operation.name in ("aten::t", "aten::permute", "aten::transpose"):
            self._fold(operation)
            return
        reader = self._readers.get(operation.name)
        if reader is None:
            raise self.declined()
        self.values[operation.result] = reader(operation)

    def _fold(self, operation: Operation) -> None:
        """A constant matrix, turned: `aten::t` of weights."""
        weights = operation.arguments[0]
        held = self._held.get(weights.name) if isinstance(weights, Ref) else weights
        if not isinstance(held, torch.Tensor) or held.ndim != 2:
            raise self.declined("a tensor that is not constant")
        if operation.name != "aten::t" and sorted(operation.arguments[1:], key=str) not in ([[1, 0]], [0, 1]):
            raise self.declined(f"dimensions {operation.arguments[1:]}")
        self._held[operation.result] = held.t()

    def _select(self, operation: Operation) -> Value:
        value, dimension, index = self.value_of(operation.arguments[0]), operation.arguments[1], operation.arguments[2]
        if value.step >= 0 or self.steps or dimension not in (1, -1) or not isinstance(index, torch.Tensor):
            raise self.declined("something else than constant columns of the input")
        columns = index.numpy().astype(np.int32)
        return self.push(Step(Kind.SELECT, -1, len(columns), first=columns), value)

    def _cast(self, operation: Operation) -> Value:
        value, wanted = self.value_of(operation.arguments[0]), operation.arguments[1]
        dtype = _DTYPES.get(wanted) if isinstance(wanted, (int, torch.dtype)) else None
        if dtype is None:
            raise self.declined("something else than float32 or float64")
        if value.dtype is None:
            # The narrower of the two that the cast takes; float64 rows are PyTorch's.
            self.row_dtype = self.row_dtype or torch.float32
        self.dtypes.add(dtype)
        return replace(value, dtype=dtype)

    def _matrix(self, argument: Any) -> torch.Tensor:
        held = self._held.get(argument.name) if isinstance(argument, Ref) else argument
        if not isinstance(held, torch.Tensor) or held.ndim != 2 or held.dtype not in NUMPY:
            raise self.declined("weights that are not a constant float32 or float64 matrix")
        return held.detach()

    def _dense(self, argument: Any, weights: torch.Tensor, bias: Any, *, factor: float = 1.0, other: int = -1) -> Value:
        """weights: [inputs, outputs]."""
        value = self.place(self.value_of(argument), weights.dtype, weights.shape[0])
        width, outputs = weights.shape
        if value.is_flat or self.width_of(value) != width:
            raise self.declined(f"weights of {width} inputs")
        added = None if other >= 0 else self.vector_of(0.0 if bias is None else bias, outputs, weights.dtype)
        second = np.ascontiguousarray(weights.to(torch.float64).numpy())
        step = Step(Kind.DENSE, value.step, outputs, added, second, other, (factor, 0.0, 0.0))
        return self.push(step, value)

    def _linear(self, operation: Operation) -> Value:
        source, weights, bias = operation.arguments
        return self._dense(source, self._matrix(weights).t(), bias)

    def _matmul(self, operation: Operation) -> Value:
        source, weights = operation.arguments
        return self._dense(source, self._matrix(weights), None)

    def _addmm(self, operation: Operation) -> Value:
        added, source, weights, beta, alpha = operation.arguments
        if self.number_of(alpha) != 1:
            raise self.declined(f"alpha {alpha}")
        matrix, factor = self._matrix(weights), self.number_of(beta)
        if not isinstance(added, Ref):
            return self._dense(source, matrix, added, factor=factor)
        other = self.place(self.value_of(added), matrix.dtype)
        if other.is_flat or self.width_of(other) != matrix.shape[1]:
            raise self.declined("an added tensor of another width")
        return self._dense(source, matrix, None, factor=factor, other=other.step)

    def _affine(self, argument: Any, shift: Any, scale: Any, *, shifts: float = 1.0, inverse: bool = False) -> Value:
        """The value times `scale` (divided by it) plus `shifts` times `shift`, each a constant."""
        tensors = [one for one in (shift, scale) if isinstance(one, torch.Tensor) and one.ndim]
        dtype = tensors[0].dtype if tensors else None
        value = self.value_of(argument)
        width = self.width_of(value) or max((one.numel() for one in tensors), default=0)
        value = self.place(value, dtype, width)
        width = self.width_of(value)
        factor = self.vector_of(scale, width, dtype)
        if inverse:
            with np.errstate(divide="ignore"):
                factor = 1 / factor
        return self.push(
            Step(Kind.AFFINE, value.step, width, shifts * self.vector_of(shift, width, dtype), factor), value
        )

    def _add(self, operation: Operation) -> Value:
        first, second, alpha = operation.arguments
        factor = self.number_of(alpha)
        if isinstance(first, Ref) and not isinstance(second, Ref):
            return self._affine(first, second, 1.0, shifts=factor)
        return self._affine(second, first, factor)

    def _sub(self, operation: Operation) -> Value:
        first, second, alpha = operation.arguments
        return self._affine(first, second, 1.0, shifts=-self.number_of(alpha))

    def _mul(self, operation: Operation) -> Value:
        first, second = operation.arguments
        if isinstance(first, Ref) and not isinstance(second, Ref):
            return self._affine(first, 0.0, second)
        return self._affine(second, 0.0, first)

    def _div(self, operation: Operation) -> Value:
        if len(operation.arguments) != 2:  # with rounding
            raise self.declined("a rounding")
        first, second = operation.arguments
        return self._affine(first, 0.0, second, inverse=True)

    def _addcmul(self, operation: Operation) -> Value:
        shift, source, scale, factor = operation.arguments
        if self.number_of(factor) != 1:
            raise self.declined(f"value {factor}")
        return self._affine(source, shift, scale)

    def _batch_norm(self, operation: Operation) -> Value:
        source, weight, bias, mean, variance, training, _, epsilon, _ = operation.arguments
        if training is not False or not isinstance(mean, torch.Tensor) or not isinstance(variance, torch.Tensor):
            raise self.declined("the batch's own mean")
        scale = 1 / torch.sqrt(variance.double() + self.number_of(epsilon))
        scale = scale if weight is None else scale * weight.double()
        shift = -mean.double() * scale if bias is None else bias.double() - mean.double() * scale
        value = self.place(self.value_of(source), mean.dtype, len(mean))
        if self.width_of(value) != len(mean):
            raise self.declined(f"a mean of {len(mean)}")
        return self.push(
            Step(Kind.AFFINE, value.step, len(mean), shift.detach().numpy(), scale.detach().numpy()), value
        )

    def _elementwise(self, operation: Operation) -> Value:
        return self._apply(_ELEMENTWISE[operation.name], operation.arguments[0])

    def _gelu(self, operation: Operation) -> Value:
        kind = {"none": Kind.GELU, "tanh": Kind.GELU_TANH}.get(operation.arguments[1])
        if kind is None:
            raise self.declined(f"approximate {operation.arguments[1]!r}")
        return self._apply(kind, operation.arguments[0])

    def _fill(self, operation: Operation) -> Value:
        nan, positive, negative = (self.number_of(one) for one in operation.arguments[1:])
        return self._apply(Kind.FILL, operation.arguments[0], (nan, positive, negative))

    def _apply(self, kind: Kind, argument: Any, numbers: tuple[float, float, float] = (1.0, 0.0, 0.0)) -> Value:
        value = self.place(self.value_of(argument), None)
        return self.push(Step(kind, value.step, self.width_of(value), numbers=numbers), value)

    def _norm(self, operation: Operation) -> Value:
        source, order, dimensions, keeps, dtype = operation.arguments
        value = self.place(self.value_of(source), None)
        if order != 2 or dimensions not in ([1], [-1]) or dtype is not None or value.is_flat:
            raise self.declined(f"order {order} over {dimensions}")
        return self.push(Step(Kind.NORM, value.step, 1), value, is_flat=not keeps)

    def _squeeze(self, operation: Operation) -> Value:
        value = self.value_of(operation.arguments[0])
        if (
            len(operation.arguments) != 2
            or operation.arguments[1] not in (1, -1, [1], [-1])
            or self.width_of(value) != 1
        ):
            raise self.declined("another dimension than a width of 1")
        return replace(value, is_flat=True)

    def _reshape(self, operation: Operation) -> Value:
        value = self.value_of(operation.arguments[0])
        if operation.arguments[1] != [-1] or value.step < 0 or self.width_of(value) != 1:
            raise self.declined(f"shape {operation.arguments[1]}")
        return replace(value, is_flat=True)

    def _flatten(self, operation: Operation) -> Value:
        value, *dimensions = self.value_of(operation.arguments[0]), *operation.arguments[1:]
        if value.is_flat or dimensions not in ([1, -1], [1, 1]):
            raise self.declined(f"dimensions {dimensions}")
        return value

    def _dropout(self, operation: Operation) -> Value:
        if operation.arguments[2] is not False:
            raise self.declined("training")
        return self.value_of(operation.arguments[0])

    def _nothing(self, operation: Operation) -> Value:
        return self.value_of(operation.arguments[0])
