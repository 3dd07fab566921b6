"""ONNX graphs whose outputs have other numbers of rows than their inputs, and rows to ask them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batching_graphs import constant, write
from deferred import Deferred

onnxruntime = Deferred("onnxruntime")
h = Deferred("onnx.helper")

# onnx.proto's TensorProto.DataType, as in batching_graphs.
F, INT, B = 1, 7, 9


def _found(folder: Path, rows: str, found: str) -> Path:
    """Places and values of what is not zero: a detector."""
    nodes = [
        h.make_node("NonZero", ["image"], ["at"]),
        h.make_node("Transpose", ["at"], ["boxes"], perm=[1, 0]),
        h.make_node("GatherND", ["image", "boxes"], ["scores"]),
    ]
    outputs = [("boxes", INT, [found, 2]), ("scores", F, [found])]
    return write(folder, nodes, [("image", F, [rows, 4])], outputs)


def _named(folder: Path) -> Path:
    return _found(folder, "batch", "found")


def _anonymous(folder: Path) -> Path:
    return _found(folder, "", "")


def _kept(folder: Path) -> Path:
    """The rows whose sum is positive, as all that say of their first dimension what the input says."""
    nodes = [
        h.make_node("ReduceSum", ["image", "axes"], ["sums"], keepdims=0),
        h.make_node("Greater", ["sums", "nothing"], ["wanted"]),
        h.make_node("Compress", ["image", "wanted"], ["kept"], axis=0),
    ]
    given = [constant("axes", np.array([1], np.int64)), constant("nothing", np.float32(0))]
    return write(folder, nodes, [("image", F, ["n", 4])], [("kept", F, ["n", 4])], given)


def _grown(folder: Path) -> Path:
    """Each row three times."""
    given = [constant("times", np.array([3, 1], np.int64))]
    outputs = [("grown", F, ["n", 4])]
    return write(folder, [h.make_node("Tile", ["image", "times"], ["grown"])], [("image", F, ["n", 4])], outputs, given)


def _scalars(folder: Path) -> Path:
    """One number, and one list, whatever the rows."""
    nodes = [
        h.make_node("ReduceSum", ["image"], ["total"], keepdims=0),
        h.make_node("Shape", ["image"], ["sizes"]),
        h.make_node("Size", ["image"], ["size"]),
    ]
    outputs = [("total", F, []), ("sizes", INT, [2]), ("size", INT, [])]
    return write(folder, nodes, [("image", F, ["n", 4])], outputs)


def _suppressed(folder: Path) -> Path:
    """Non-maximum suppression over the rows, which are boxes [y1, x1, y2, x2] of one picture."""
    nodes = [
        h.make_node("Unsqueeze", ["image", "first"], ["boxes"]),
        h.make_node("ReduceMax", ["image"], ["highest"], axes=[1], keepdims=0),
        h.make_node("Unsqueeze", ["highest", "firsts"], ["scores"]),
        h.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["chosen"]),
    ]
    given = [
        constant("first", np.array([0], np.int64)),
        constant("firsts", np.array([0, 1], np.int64)),
        constant("most", np.array([10], np.int64)),
        constant("overlap", np.array([0.5], np.float32)),
    ]
    return write(folder, nodes, [("image", F, ["n", 4])], [("chosen", INT, ["", 3])], given)


def _beside(folder: Path) -> Path:
    """One output of a row each, and one that has others."""
    nodes = [h.make_node("Neg", ["image"], ["negated"]), h.make_node("NonZero", ["image"], ["at"])]
    return write(folder, nodes, [("image", F, ["n", 4])], [("negated", F, ["n", 4]), ("at", INT, [2, "found"])])


GRAPHS: dict[str, Callable[[Path], Path]] = {
    "named": _named,
    "anonymous": _anonymous,
    "kept": _kept,
    "grown": _grown,
    "scalars": _scalars,
    "suppressed": _suppressed,
    "beside": _beside,
}
EQUAL_ROWS = ("named", "anonymous", "kept", "grown", "suppressed")
"""Graphs whose outputs have as many rows as one another, so that V1's row format can answer."""

PICTURES: tuple[Sequence[Sequence[float]], ...] = (
    ((0, 1, 0, 2),),
    ((0, 0, 0, 0),),
    ((5, 6, 7, 8),),
    ((0, 0, 2, 2), (0, 0, 2, 2.125), (4, 4, 6, 6)),
    ((-1, -2, 0, 0), (1, 0, 0, 0)),
)
"""Inputs: fewer rows out than in, more, as many, and none."""


def answers(folder: Path) -> list[dict[str, np.ndarray]]:
    """What ONNX Runtime answers to each picture alone."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    found: list[dict[str, Any]] = []
    for picture in PICTURES:
        values = session.run(None, {"image": np.array(picture, np.float32)})
        found.append({name: np.asarray(value) for name, value in zip(names, values, strict=True)})
    return found
