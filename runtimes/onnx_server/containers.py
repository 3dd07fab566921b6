"""Outputs of an ONNX graph that are no tensors: maps of classes to scores, sequences of tensors, optional tensors; served as tensors.

Theory of operation. Converters of scikit-learn, LightGBM and others end a classifier in a ZipMap, whose output is a map for each row,
`seq(map(int64, tensor(float)))`. It is served as a matrix [rows, classes] whose columns stand in the order of the classes that the ZipMap was
given, which are the columns of the scores that go into it; ONNX Runtime's maps are sorted by key. That order is in the file alone, so
the file is read for it (onnx.proto: ModelProto.graph, GraphProto.node, NodeProto.attribute), without the package onnx.

A sequence of tensors of one shape is served as one tensor, its first dimension the sequence's.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from serinus.errors import ModelFailed
from serinus.protocol.datatypes import NUMPY_DTYPES

from .message_fields import fields, varint

__all__ = ["CONTAINERS", "Maps", "OptionalTensor", "Sequenced", "read_classes"]

CONTAINERS: Final = {
    "maps": re.compile(r"seq\(map\((?:int64|string),(tensor\(\w+\))\)\)"),
    "sequence": re.compile(r"seq\((tensor\(\w+\))\)"),
    "optional": re.compile(r"optional\((tensor\(\w+\))\)"),
}
"""By kind, what ONNX Runtime calls its type, and therein the type of its values."""

Classes = tuple[int, ...] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Maps:
    """A map of classes to scores for each row."""

    name: str
    classes: Classes
    """In the order of the columns."""
    datatype: str

    def array(self, value: Sequence[Mapping[Any, Any]]) -> np.ndarray:
        """Make the matrix [rows, classes].

        Raises:
            ModelFailed: a row has other classes.
        """
        classes = self.classes
        try:
            rows = [[row[one] for one in classes] for row in value]
        except KeyError as error:
            raise ModelFailed(
                f"output '{self.name}': a row has no class {error}, its columns are {', '.join(map(repr, classes))}"
            ) from None
        for row in value:
            if len(row) != len(classes):
                extra = next(one for one in row if one not in classes)
                raise ModelFailed(
                    f"output '{self.name}': a row has the class {extra!r}, its columns are {', '.join(map(repr, classes))}"
                )
        return np.array(rows, NUMPY_DTYPES[self.datatype]).reshape(len(rows), len(classes))


@dataclass(frozen=True, slots=True)
class Sequenced:
    """A sequence of tensors."""

    name: str
    datatype: str
    rank: int
    """Dimensions of each tensor."""

    def array(self, value: Sequence[Any]) -> np.ndarray:
        """Make one tensor of all, [length, ...].

        Raises:
            ModelFailed: they have different shapes.
        """
        arrays = [np.asarray(one) for one in value]
        if not arrays:
            return np.zeros((0,) * (1 + self.rank), NUMPY_DTYPES[self.datatype])
        shapes = list(dict.fromkeys(array.shape for array in arrays))
        if len(shapes) > 1:
            raise ModelFailed(
                f"output '{self.name}': a sequence whose tensors have different shapes ({list(shapes[0])}, {list(shapes[1])}) makes no "
                "tensor; let the graph join or pad them (ConcatFromSequence)"
            )
        return np.stack(arrays)


@dataclass(frozen=True, slots=True)
class OptionalTensor:
    """A tensor that may be missing."""

    name: str

    def array(self, value: Any) -> np.ndarray:
        """Give the tensor.

        Raises:
            ModelFailed: there is none.
        """
        if value is None:
            raise ModelFailed(f"output '{self.name}' is optional, and the graph gave none for this request")
        return np.asarray(value)


def read_classes(file: Path) -> dict[str, Classes]:
    """Read the classes of the ZipMaps of a graph, by the names of their outputs.

    Args:
        file: ONNX, of at least one byte; only its graph's nodes are looked at. What is damaged has no classes.
    """
    found: dict[str, Classes] = {}
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as body:
        try:
            for number, start, end in fields(body, 0, len(body)):
                if number == 7:  # ModelProto.graph
                    for part, node_start, node_end in fields(body, start, end):
                        if part == 1:  # GraphProto.node
                            found.update(_zipmap(body[node_start:node_end]))
        except (IndexError, ValueError):
            return found
    return found


def _zipmap(node: bytes) -> dict[str, Classes]:
    """Read one NodeProto; nothing where it is another operator."""
    if b"ZipMap" not in node:
        return {}
    outputs: list[str] = []
    operator = ""
    ints: list[int] = []
    texts: list[str] = []
    for number, start, end in fields(node, 0, len(node)):
        if number == 2:
            outputs.append(node[start:end].decode())
        elif number == 4:
            operator = node[start:end].decode()
        elif number == 5:  # AttributeProto: of `ints` and `strings`, the one that is there
            _attribute(node[start:end], ints, texts)
    classes: Classes = tuple(texts) or tuple(ints)
    return {outputs[0]: classes} if operator == "ZipMap" and outputs and classes else {}


def _attribute(attribute: bytes, ints: list[int], texts: list[str]) -> None:
    for number, start, end in fields(attribute, 0, len(attribute)):
        if number == 9:
            texts.append(attribute[start:end].decode())
        elif number == 8:  # one varint a field, or packed: all in one
            at = start
            while at < end:
                value, at = varint(attribute, at)
                ints.append(value - (1 << 64) if value >= 1 << 63 else value)
