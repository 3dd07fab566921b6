"""Frozen TorchScript of a small dense network as compiled steps, for few rows; None for all else.

Theory of operation. PyTorch takes ~2 us an operation where its code is warm, and several times that where a server has done
other things since the last request; the arithmetic of a small network takes 1 us. So a graph of the operations below, in
float64, from one float32 [n, F] tensor to one number a row, is also run by `serinus.native.dense.mlp`. The steps are held against
PyTorch's own answers before they are used, on rows of many sizes with missing and infinite values; they differ in the last bits at
most, because libraries add and take logarithms differently. Larger batches stay with PyTorch.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from serinus.native.dense.mlp import Kind, Network, Step
from serinus.native.trees.walker import KernelsMissing

__all__ = ["MOST_ROWS", "compiled"]

MOST_ROWS: Final = 16
"""Beyond it PyTorch's matrix products are quicker."""

_ROWS: Final = 512
_TOLERANCE: Final = 1e-10
_DOUBLE: Final = 7
"""PyTorch's number of float64 (c10/core/ScalarType.h)."""
_UNKNOWN: Final = object()
_PLAIN: Final = {"aten::asinh": Kind.ASINH, "aten::relu": Kind.RELU, "aten::log": Kind.LOG}


def compiled(module: Any, columns: int) -> tuple[Network, list[Step]] | None:
    """Make steps of a module and hold them against it; None where it is of another kind, or they differ.

    Args:
        module: frozen TorchScript on the CPU.
        columns: F.
    """
    if not isinstance(module, torch.jit.ScriptModule) or columns <= 0:
        return None
    try:
        steps = _steps(module.graph)
        network = Network(steps)
    except (_Other, KernelsMissing, ValueError, RuntimeError):
        return None
    return (network, steps) if network.columns <= columns and _same(network, module, columns) else None


class _Other(Exception):
    """The graph has something that the steps cannot do."""


def _steps(graph: Any) -> list[Step]:
    inputs = list(graph.inputs())
    if len(inputs) != 2:  # the module itself, and one tensor
        raise _Other
    places: dict[str, int] = {}  # of the steps' vectors
    constants: dict[str, Any] = {}
    row, selected = inputs[1].debugName(), ""
    steps: list[Step] = []

    def vector(value: Any) -> np.ndarray:
        tensor = constants.get(value.debugName())
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64:
            raise _Other
        return tensor.detach().numpy()

    def number(value: Any) -> float:
        found = constants.get(value.debugName())
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise _Other
        return float(found)

    for node in graph.nodes():
        kind, name = node.kind(), node.output().debugName() if node.outputsSize() == 1 else ""
        values = list(node.inputs())
        if kind == "prim::Constant":
            constants[name] = node.output().toIValue()
            continue
        arguments = [constants.get(value.debugName(), _UNKNOWN) for value in values]
        if kind == "prim::ListConstruct":
            constants[name] = arguments
            continue
        place = places.get(values[0].debugName(), -1) if values else -1
        if kind == "aten::index_select":
            index = arguments[2]
            if values[0].debugName() != row or arguments[1] != 1 or not isinstance(index, torch.Tensor) or steps:
                raise _Other
            steps.append(Step(Kind.SELECT, -1, len(index), first=index.numpy()))
            selected = name
            continue
        if kind == "aten::to":
            if values[0].debugName() != selected or arguments[1] != _DOUBLE:
                raise _Other
            places[name] = 0
            continue
        if kind == "aten::addcmul":
            place = places.get(values[1].debugName(), -1)
            shift, scale = vector(values[0]), vector(values[2])
            if number(values[3]) != 1 or place < 0:
                raise _Other
            step = Step(Kind.AFFINE, place, len(shift), first=shift, second=scale)
        elif kind == "aten::addmm":
            weights = vector(values[2])
            source = places.get(values[1].debugName(), -1)
            if number(values[4]) != 1 or source < 0 or weights.ndim != 2:
                raise _Other
            bias = None if place >= 0 else vector(values[0])
            factor = (number(values[3]), 0.0, 0.0)
            step = Step(Kind.DENSE, source, weights.shape[1], first=bias, second=weights, other=place, numbers=factor)
        elif place < 0:
            raise _Other
        elif kind in _PLAIN:
            step = Step(_PLAIN[kind], place, steps[place].outputs)
        elif kind == "aten::nan_to_num":
            numbers = (number(values[1]), number(values[2]), number(values[3]))
            step = Step(Kind.FILL, place, steps[place].outputs, numbers=numbers)
        elif kind == "aten::linalg_vector_norm" and arguments[1:] == [2, [1], False, None]:
            step = Step(Kind.NORM, place, 1)
        else:
            raise _Other
        places[name] = len(steps)
        steps.append(step)
    (output,) = graph.outputs()
    if places.get(output.debugName()) != len(steps) - 1 or not any(step.kind == Kind.NORM for step in steps):
        raise _Other
    return steps


def _same(network: Network, module: Any, columns: int) -> bool:
    """Hold the steps against PyTorch: rows of sizes from 1e-6 to 1e6, zeros, and with missing and infinite values among them."""
    draw = np.random.default_rng(0)
    rows = (draw.normal(size=(_ROWS, columns)) * 10.0 ** draw.uniform(-6, 6, (_ROWS, 1))).astype(np.float32)
    rows[draw.random(rows.shape) < 0.05] = 0
    for value in (np.nan, np.inf, -np.inf):
        rows[draw.random(rows.shape) < 0.02] = value
    rows[:4] = np.array([0, np.nan, np.inf, -np.inf], np.float32)[:, None]
    with torch.inference_mode():
        expected = module(torch.from_numpy(rows)).numpy()
    found = network.predict(rows)
    return expected.shape == found.shape and np.allclose(found, expected, _TOLERANCE, _TOLERANCE, equal_nan=True)
