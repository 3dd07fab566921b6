"""Read XGBoost's old binary model format into the same document that a JSON model holds.

XGBoost wrote it up to 3.0 (`.bin`, `.model`, `.deprecated`) and reads it no more since 3.1. Layout (little-endian), after
src/learner.cc, src/gbm/gbtree_model.h and include/xgboost/tree_model.h of 2.1:

    ["binf"]  LearnerModelParam (136 bytes)  objective: string  booster: string
    GBTreeModelParam (160)  per tree: TreeParam (148), nodes (20 each), statistics (16 each)
    tree_info: int32 per tree   [dart: weights: vector of float32]   [attributes: vector of string pairs]

A string is a uint64 length and its bytes; a vector a uint64 count and its elements.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

import numpy as np
import orjson

from serinus.native.trees.forest import Link

from .objective import OBJECTIVES

__all__ = ["LegacyError", "decode", "looks_legacy"]

_LEARNER: Final = struct.Struct("<fIiiiIIIi100x")
_BOOSTER: Final = struct.Struct("<iiiiqii128x")
_TREE: Final = struct.Struct("<iiiiii124x")
_NODE: Final = np.dtype([("parent", "<i4"), ("left", "<i4"), ("right", "<i4"), ("split", "<u4"), ("value", "<f4")])
_STATISTICS: Final = np.dtype([("loss", "<f4"), ("hessian", "<f4"), ("weight", "<f4"), ("children", "<i4")])
_DEFAULT_LEFT: Final = 1 << 31
_DELETED: Final = 0xFFFFFFFF
_LEFT_CHILD: Final = 1 << 31
_LARGEST_LIST: Final = 1 << 24


class LegacyError(ValueError):
    """The bytes are not an old binary model, or end too early."""


def looks_legacy(data: bytes) -> bool:
    """Whether bytes that are neither JSON nor UBJSON may be an old binary model: its names are where they belong."""
    start = 4 if data[:4] == b"binf" else 0
    at = start + _LEARNER.size
    if len(data) < at + 8:
        return False
    (size,) = struct.unpack_from("<Q", data, at)
    return 0 < size <= 64 and data[at + 8 : at + 8 + size].replace(b":", b"").isalnum()


def decode(data: bytes) -> dict[str, Any]:
    """Decode a model into the document of XGBoost's JSON schema, trees as NumPy arrays.

    Raises:
        LegacyError: malformed, truncated, or a booster (gblinear) whose layout is another.
    """
    reader = _Reader(data, 4 if data[:4] == b"binf" else 0)
    base_score, features, classes, has_attributes, _, major, _, targets, from_average = reader.fields(_LEARNER)
    objective, booster = reader.text(), reader.text()
    if booster not in ("gbtree", "dart"):
        raise LegacyError(f"booster {booster!r} in the old binary format is not read; save the model as .ubj or .json")
    count, parallel, _, _, _, old_groups, _ = reader.fields(_BOOSTER)
    trees = [_tree(reader, number) for number in range(reader.bounded(count))]
    outputs = reader.array(np.dtype("<i4"), count) if count else np.empty(0, np.int32)
    model = {
        "gbtree_model_param": {"num_trees": str(count), "num_parallel_tree": str(max(1, parallel if major else 1))},
        "trees": trees,
        "tree_info": outputs.tolist(),
    }
    gradient_booster: dict[str, Any] = {"name": "gbtree", "model": model}
    if booster == "dart":
        weights = reader.array(np.dtype("<f4"), reader.size())
        gradient_booster = {"name": "dart", "gbtree": gradient_booster, "weight_drop": weights}
    attributes: dict[str, str] = {}
    if has_attributes:
        for _ in range(reader.size()):
            name = reader.text()
            attributes[name] = reader.text()
    saved = attributes.pop("objective", None)
    attributes.pop("metrics", None)
    if major < 1 and not objective.startswith("multi:"):
        base_score = _prediction(objective, base_score)
    parameters = {
        "base_score": repr(float(np.float32(base_score))),
        "num_feature": str(features),
        "num_class": str(classes),
        "num_target": str(max(1, targets)),
        "boost_from_average": str(from_average),
    }
    return {
        "version": [2, 1, 0],  # of the schema that this document follows
        "learner": {
            "learner_model_param": parameters,
            "objective": orjson.loads(saved) if saved else _objective(objective, classes or old_groups),
            "gradient_booster": gradient_booster,
            "attributes": attributes,
            "feature_names": [],
            "feature_types": [],
        },
    }


def _prediction(objective: str, margin: float) -> float:
    """Map a margin to a prediction: before 1.0 the base_score stored was a margin (learner.cc of 2.1, LoadModel)."""
    link = OBJECTIVES[objective].base_link if objective in OBJECTIVES else Link.IDENTITY
    if link is Link.SIGMOID:
        return 1.0 / (1.0 + math.exp(-margin))
    return math.exp(margin) if link is Link.EXP else margin


def _objective(name: str, classes: int) -> dict[str, Any]:
    """The objective's entry for a file from before 1.0, which holds only its name."""
    name = "reg:squarederror" if name == "reg:linear" else name
    if name.startswith("multi:"):
        return {"name": name, "softmax_multiclass_param": {"num_class": str(classes)}}
    if name == "count:poisson":
        return {"name": name, "poisson_regression_param": {"max_delta_step": "0.7"}}
    if name == "reg:tweedie":
        return {"name": name, "tweedie_regression_param": {"tweedie_variance_power": "1.5"}}
    if name.startswith("rank:"):
        return {"name": name, "lambdarank_param": {}}
    return {"name": name, "reg_loss_param": {"scale_pos_weight": "1"}}


def _tree(reader: _Reader, number: int) -> dict[str, Any]:
    _, count, deleted, _, features, leaf_size = reader.fields(_TREE)
    nodes, statistics = reader.array(_NODE, count), reader.array(_STATISTICS, count)
    if leaf_size > 1:
        reader.array(np.dtype("<f4"), reader.size())
    split = nodes["split"]
    gone = split == _DELETED
    parents = (nodes["parent"].astype(np.int64) & (_LEFT_CHILD - 1)).astype(np.int32)
    parents[:1] = 2**31 - 1
    return {
        "id": number,
        "tree_param": {
            "num_nodes": str(count),
            "num_deleted": str(deleted),
            "num_feature": str(features),
            "size_leaf_vector": str(max(leaf_size, 1)),
        },
        "left_children": np.ascontiguousarray(nodes["left"]),
        "right_children": np.ascontiguousarray(nodes["right"]),
        "parents": parents,
        "split_indices": np.where(gone, 2**31 - 1, split & (_DEFAULT_LEFT - 1)).astype(np.int32),
        "split_conditions": np.ascontiguousarray(nodes["value"]),
        "default_left": (split >= _DEFAULT_LEFT).astype(np.uint8),
        "split_type": np.zeros(count, np.uint8),
        "base_weights": np.ascontiguousarray(statistics["weight"]),
        "loss_changes": np.ascontiguousarray(statistics["loss"]),
        "sum_hessian": np.ascontiguousarray(statistics["hessian"]),
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
    }


class _Reader:
    """A cursor over the bytes that never reads past them."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def take(self, size: int) -> int:
        start = self.at
        if size < 0 or size > len(self.data) - start:
            raise LegacyError(f"byte {start}: {size} bytes wanted, {len(self.data) - start} are left")
        self.at = start + size
        return start

    def fields(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack_from(self.data, self.take(form.size))

    def bounded(self, count: int) -> int:
        if not 0 <= count <= _LARGEST_LIST:
            raise LegacyError(f"byte {self.at}: a count of {count}")
        return count

    def size(self) -> int:
        (count,) = self.fields(struct.Struct("<Q"))
        return self.bounded(count)

    def text(self) -> str:
        size = self.size()
        start = self.take(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise LegacyError(f"byte {start}: a string is not UTF-8: {error}") from None

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        start = self.take(self.bounded(count) * dtype.itemsize)
        return np.frombuffer(self.data, dtype, count, start)
