"""Tiny ONNX graphs and PyTorch modules, and whether their rows are independent. All leave the first dimension of every tensor free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deferred import Deferred

onnx = Deferred("onnx")
T = Deferred("onnx", "TensorProto")
h = Deferred("onnx.helper")
numpy_helper = Deferred("onnx.numpy_helper")

# onnx.proto's TensorProto.DataType by number, since the tables below are read when tests are collected, without onnx.
F, U8, INT, S, B, H, D = 1, 2, 7, 8, 9, 10, 11


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def constant(name: str, value: Any) -> Any:
    return numpy_helper.from_array(np.asarray(value), name)


def write(folder: Path, nodes: Any, inputs: Any, outputs: Any, constants: Any = ()) -> Path:
    """Write a graph, whose inputs and outputs are (name, type, shape)."""
    info = h.make_tensor_value_info
    graph = h.make_graph(nodes, "g", [info(*i) for i in inputs], [info(*o) for o in outputs], list(constants))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), str(folder / "model.onnx"))
    return folder


def _one(op: str, *inputs: str, out: str = "y", **attributes: Any) -> Any:
    return h.make_node(op, list(inputs), [out], **attributes)


def _mlp(folder: Path) -> Path:
    nodes = [
        _one("MatMul", "x", "w", out="a"),
        _one("Relu", "a", out="b"),
        _one("MatMul", "b", "v", out="c"),
        _one("Softmax", "c", axis=1),
    ]
    given = [constant("w", weights(6, 16)), constant("v", weights(16, 3))]
    return write(folder, nodes, [("x", F, ["n", 6])], [("y", F, ["n", 3])], given)


def _conv(folder: Path) -> Path:
    nodes = [_one("Conv", "x", "w", out="a"), _one("GlobalAveragePool", "a", out="b"), _one("Flatten", "b")]
    given = [constant("w", weights(4, 3, 3, 3))]
    return write(folder, nodes, [("x", F, ["n", 3, "height", "width"])], [("y", F, ["n", 4])], given)


def _embedding(folder: Path) -> Path:
    nodes = [_one("Gather", "w", "ids", out="a"), _one("ReduceSum", "a", "axes", keepdims=0)]
    given = [constant("w", weights(7, 4)), constant("axes", np.int64([1]))]
    return write(folder, nodes, [("ids", INT, ["n", "words"])], [("y", F, ["n", 4])], given)


def _attention(folder: Path) -> Path:
    nodes = [
        _one("Transpose", "x", out="t", perm=[0, 2, 1]),
        _one("MatMul", "x", "t", out="a"),
        _one("Softmax", "a", out="b", axis=2),
        _one("MatMul", "b", "x"),
    ]
    return write(folder, nodes, [("x", F, ["n", "words", 8])], [("y", F, ["n", "words", 8])])


def _lstm(folder: Path, layout: str) -> Path:
    """Batch first (turned to time first for the operator), or time first."""
    given = [constant("w", weights(1, 16, 3)), constant("r", weights(1, 16, 4, seed=1)), constant("one", np.int64([1]))]
    lstm = h.make_node("LSTM", ["t", "w", "r"], ["a"], hidden_size=4)
    if layout == "batch":
        nodes = [_one("Transpose", "x", out="t", perm=[1, 0, 2]), lstm, _one("Squeeze", "a", "one", out="s")]
        nodes.append(_one("Transpose", "s", perm=[1, 0, 2]))
        return write(folder, nodes, [("x", F, ["n", "steps", 3])], [("y", F, ["n", "steps", 4])], given)
    nodes = [_one("Identity", "x", out="t"), lstm, _one("Squeeze", "a", "one")]
    return write(folder, nodes, [("x", F, ["d0", "d1", 3])], [("y", F, ["d0", "d1", 4])], given)


def _unary(op: str, kind: int = F, shape: Any = ("n", 4), out: int | None = None, **attributes: Any) -> Callable:
    def make(folder: Path) -> Path:
        return write(
            folder, [_one(op, "x", **attributes)], [("x", kind, list(shape))], [("y", out or kind, list(shape))]
        )

    return make


def _cumsum(folder: Path) -> Path:
    given = [constant("axis", np.int64(0))]
    return write(folder, [_one("CumSum", "x", "axis")], [("x", F, ["n", 4])], [("y", F, ["n", 4])], given)


def _centred(folder: Path) -> Path:
    nodes = [_one("ReduceMean", "x", out="m", axes=[0], keepdims=1), _one("Sub", "x", "m")]
    return write(folder, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])])


def _most(folder: Path) -> Path:
    """Divided by the largest of all rows, after each was made positive."""
    nodes = [_one("Abs", "x", out="a"), _one("ReduceMax", "a", out="m", keepdims=0), _one("Div", "x", "m")]
    return write(folder, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])])


def _sorted(folder: Path) -> Path:
    nodes = [
        _one("Shape", "x", out="s"),
        _one("Gather", "s", "first", out="k"),
        h.make_node("TopK", ["x", "k"], ["y", "i"], axis=0),
    ]
    return write(folder, nodes, [("x", F, ["n", 1])], [("y", F, ["n", 1])], [constant("first", np.int64([0]))])


def _normalised(folder: Path) -> Path:
    nodes = [h.make_node("BatchNormalization", ["x", "one", "zero", "zero", "one"], ["y", "m", "v"], training_mode=1)]
    given = [constant("one", np.ones(4, np.float32)), constant("zero", np.zeros(4, np.float32))]
    return write(folder, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])], given)


def _batch_norm(folder: Path) -> Path:
    nodes = [_one("BatchNormalization", "x", "one", "zero", "zero", "one")]
    given = [constant("one", np.full(4, 2, np.float32)), constant("zero", np.zeros(4, np.float32))]
    return write(folder, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])], given)


def _int8(folder: Path) -> Path:
    """Dynamic quantisation: one scale for the whole tensor."""
    nodes = [
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        _one("DequantizeLinear", "q", "scale", "zero"),
    ]
    return write(folder, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])])


def _neighbours(folder: Path) -> Path:
    """A graph's nodes: each takes its neighbours' mean over a ring, which is rows before and after it."""
    nodes = [_one("Transpose", "x", out="t", perm=[1, 0]), _one("Unsqueeze", "t", "zero", out="u")]
    nodes += [_one("Conv", "u", "w", out="c", pads=[1, 1], group=4), _one("Squeeze", "c", "zero", out="s")]
    nodes.append(_one("Transpose", "s", perm=[1, 0]))
    given = [constant("zero", np.int64([0])), constant("w", np.full((4, 1, 3), 1 / 3, np.float32))]
    return write(folder, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])], given)


def _cloud(folder: Path) -> Path:
    """A point cloud: every point is told the farthest of all."""
    nodes = [_one("ReduceMax", "x", out="m", axes=[0], keepdims=1), _one("Sub", "m", "x")]
    return write(folder, nodes, [("x", F, ["n", 3])], [("y", F, ["n", 3])])


def _positions(folder: Path) -> Path:
    """Adds the number of the row."""
    nodes = [
        _one("Shape", "x", out="s"),
        _one("Gather", "s", "zero", out="n"),
        _one("Range", "zero", "n", "one", out="r"),
    ]
    nodes += [_one("Cast", "r", out="f", to=F), _one("Add", "x", "f")]
    return write(
        folder,
        nodes,
        [("x", F, ["n"])],
        [("y", F, ["n"])],
        [constant("zero", np.int64(0)), constant("one", np.int64(1))],
    )


def _nonzero(folder: Path) -> Path:
    nodes = [_one("NonZero", "x", out="t"), _one("Transpose", "t", perm=[1, 0])]
    return write(folder, nodes, [("x", F, ["n", 4])], [("y", INT, ["unk__1", 2])])


def _dropout(folder: Path) -> Path:
    nodes = [h.make_node("RandomNormalLike", ["x"], ["noise"]), _one("Add", "x", "noise")]
    return write(folder, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])])


def _fixed_inside(folder: Path) -> Path:
    """Says that rows are free, and takes one at a time: exported without a dynamic batch."""
    nodes = [_one("Reshape", "x", "s", out="a"), _one("Mul", "x", "z", out="b"), _one("Add", "a", "b")]
    given = [constant("s", np.int64([1, 4])), constant("z", np.float32(0))]
    return write(folder, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])], given)


def _always_zero(folder: Path) -> Path:
    return write(
        folder, [_one("Mul", "x", "z")], [("x", F, ["n", 4])], [("y", F, ["n", 4])], [constant("z", np.float32(0))]
    )


def _named(first: str, other: str) -> Callable:
    def make(folder: Path) -> Path:
        return write(folder, [_one("Relu", "x")], [("x", F, [first, 4])], [("y", F, [other, 4])])

    return make


def _time_first(folder: Path) -> Path:
    return write(folder, [_one("Relu", "x")], [("x", F, ["time", "batch", 4])], [("y", F, ["time", "batch", 4])])


def _overlong(folder: Path) -> Path:
    """Takes ids of 0 and 1 only."""
    given = [constant("w", weights(2, 4))]
    return write(folder, [_one("Gather", "w", "ids")], [("ids", INT, ["n"])], [("y", F, ["n", 4])], given)


GOOD: dict[str, Callable[[Path], Path]] = {
    "mlp": _mlp,
    "convolution": _conv,
    "embedding": _embedding,
    "embedding of two ids": _overlong,
    "attention over axis 1": _attention,
    "lstm batch first": lambda folder: _lstm(folder, "batch"),
    "batch norm in inference": _batch_norm,
    "softmax over axis 1": _unary("Softmax", axis=1),
    "half precision": _unary("Sigmoid", H),
    "double precision": _unary("Sqrt", D),
    "logarithm": _unary("Log"),
    "boolean": _unary("Not", B, ("n",)),
    "strings": _unary("Identity", S, ("n",)),
    "integers": _unary("Neg", INT),
    "pixels": _unary("Identity", U8, ("n", 4, 4, 3)),
    "names that an exporter made up": _named("unk__6", "unk__7"),
    "a name that an exporter made up": _named("batch", "Reluy_dim_0"),
}

BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "lstm time first": (lambda folder: _lstm(folder, "time"), "differs from its answer alone"),
    "cumsum over axis 0": (_cumsum, "differs from its answer alone"),
    "softmax over axis 0": (_unary("Softmax", axis=0), "random rows get the same answer|differs from its answer alone"),
    "minus the mean over axis 0": (_centred, "random rows get the same answer|differs from its answer alone"),
    "divided by the largest": (_most, "differs from its answer alone"),
    "sorted rows": (_sorted, "differs from its answer alone"),
    "batch norm in training": (_normalised, "answers differ from call to call|differs from its answer alone"),
    "dynamic int8": (_int8, "scales all rows of a batch by the largest"),
    "nodes of a graph": (_neighbours, "differs from its answer alone"),
    "points of a cloud": (_cloud, "random rows get the same answer|differs from its answer alone"),
    "the row's number": (_positions, "differs from its answer alone"),
    "as many rows as found": (_nonzero, r"output 'y' has shape \[4, 2\] for 1 row"),
    "random numbers": (_dropout, "answers differ from call to call"),
    "one row inside": (_fixed_inside, "answered alone are refused together"),
    "always the same": (_always_zero, "all random rows get the same answer"),
    "named batch and found": (_named("batch", "found"), "'x' is called 'batch' and that of 'y' 'found'"),
    "named time and batch": (_time_first, r"its batch \('batch'\) in another dimension"),
}


TORCH: dict[str, tuple[Callable[[], Any], str]] = {
    "mlp": (Deferred("torch_graphs", "torch_mlp"), ""),
    "lstm batch first": (Deferred("torch_graphs", "BatchFirst"), ""),
    "lstm time first": (Deferred("torch_graphs", "TimeFirst"), "differs from its answer alone"),
    "dropout": (Deferred("torch_graphs", "Dropout"), "answers differ from call to call"),
    "batch norm in training": (Deferred("torch_graphs", "Training"), "refused|differs from its answer alone"),
    "a count of calls": (Deferred("torch_graphs", "Counts"), "answers differ from call to call"),
    "many rows": (Deferred("torch_graphs", "Rare"), "33 in all"),
    "boxes": (Deferred("torch_graphs", "Boxes"), "output 'y'"),
    "dynamic int8": (Deferred("torch_graphs", "torch_int8"), "differs from its answer alone"),
}
"""Module, and why its rows are not joined; empty: they are. x is FP32 [n, 4, 3]."""
