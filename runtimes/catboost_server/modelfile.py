"""A CatBoost model file, binary or JSON, as trees: read without catboost.

Sources, of CatBoost 1.2: catboost/libs/model/flatbuffers/model.fbs and features.fbs; model.cpp ("CBM1", the size of the core, the core, the tables
of categories); model_export/json_model_helpers.cpp. A condition is `value > border`, in float32. A symmetric tree has one condition a level, and
a leaf's number has the bit of each condition that holds; others are written as nodes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from serinus.errors import ConfigError

from .flatbuffer import Table, root

__all__ = ["MAGIC", "Feature", "ModelFile", "Node", "read"]

MAGIC: Final = b"CBM1"
_DEEPEST: Final = 16
"""Levels of a symmetric tree: CatBoost's own limit of `depth`."""

Node = tuple[int, int, int, float, int]
"""Left and right child (-1: a leaf), column, border, and where the leaf's values begin."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A column of numbers."""

    column: int
    borders: np.ndarray
    """float32."""
    missing: str
    """What NaN is to its conditions: AsIs and AsFalse (above none), AsTrue (above all)."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the engine needs of a model file."""

    path: Path
    sha256: str
    format: str
    """cbm or json."""
    dimension: int
    """Outputs of a row."""
    columns: int
    names: tuple[str, ...]
    """Of the columns; empty: the file has none."""
    categorical: frozenset[int]
    """Columns of categories."""
    others: str
    """What there is beside numbers and categories, and conditions on categories, as a clause; empty: nothing."""
    features: Mapping[int, Feature]
    """By CatBoost's number of the float feature."""
    trees: tuple[tuple[Node, ...], ...]
    """The nodes of each tree, the root first."""
    leaves: np.ndarray
    """float64: the values of all leaves, `dimension` numbers each."""
    scale: float
    bias: tuple[float, ...]
    loss: str
    classes: tuple[Any, ...]
    """Labels; empty: no classifier."""


def read(path: Path) -> ModelFile:
    """Read a model file of either format.

    Raises:
        ConfigError: unreadable, or not a CatBoost model.
    """
    try:
        data = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        made = _binary(data) if data.startswith(MAGIC) else _json(data)
        return ModelFile(path=path, sha256=hashlib.sha256(data).hexdigest(), **made)
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        struct.error,
    ) as error:
        raise ConfigError(f"{path}: no CatBoost model that can be read: {type(error).__name__}: {error}") from None


def _binary(data: bytes) -> dict[str, Any]:
    (size,) = struct.unpack_from("<I", data, len(MAGIC))
    core = data[8 : 8 + size]
    if len(core) < size:
        raise ValueError(f"the core is of {size} bytes, {len(core)} are there")
    top = root(core)
    held = top.table(1)
    if held is None:
        raise ValueError("there are no trees")
    dimension = int(held.number(0, "i"))
    features, names, found = _binary_features(held)
    conditions = [(number, float(border)) for number, one in features.items() for border in one.borders]
    splits, sizes = held.array(1, "<i4").tolist(), held.array(2, "<i4").tolist()
    leaves = held.array(8, "<f8")
    steps = held.array(10, "<u2").reshape(-1, 2).tolist() if not held.array(11, "<u4").size else _steps(held)
    places = held.array(11, "<u4").tolist()
    trees, at, begin, others = [], 0, 0, found["others"]
    for size in sizes:
        own = splits[at : at + size]
        if size < 0 or len(own) < size:
            raise ValueError("a tree's conditions lead out of the file")
        known = [conditions[one] if 0 <= one < len(conditions) else None for one in own]
        if steps:
            nodes, other = _stepped(known, steps[at : at + size], places[at : at + size], features)
        else:
            other = any(one is None for one in known)
            nodes = () if other else _symmetric([one for one in known if one is not None], features, begin, dimension)
            begin += dimension << size
        if other:
            others = others or "conditions on categories"
        trees.append(nodes)
        at += size
    info = {one.text(0): one.text(1) for one in top.tables(2)}
    parameters = _object(info.get("params"))
    biases = held.array(16, "<f8").tolist() or [held.number(15, "d")]
    return _checked(
        format="cbm",
        dimension=dimension,
        names=names,
        features=features,
        trees=tuple(trees),
        leaves=leaves,
        scale=float(held.number(14, "d", 1.0)),
        bias=tuple(biases),
        loss=_loss(parameters),
        classes=_classes(_object(info.get("class_params"))),
        categorical=found["categorical"],
        others=others,
    )


def _steps(held: Table) -> list[list[int]]:
    """Read the nodes' steps, structs of two 16-bit numbers, whose count is of structs."""
    start, count = held._vector(10)  # of this package
    if 4 * count > len(held.data) - start:
        raise ValueError("the nodes lead out of the file")
    return np.frombuffer(held.data, "<u2", 2 * count, start).reshape(-1, 2).tolist()


def _binary_features(held: Table) -> tuple[dict[int, Feature], dict[int, str], dict[str, Any]]:
    features, names = {}, {}
    treatments = ("AsIs", "AsFalse", "AsTrue")
    for one in held.tables(5):
        number, column = int(one.number(1, "i", -1)), int(one.number(2, "i", -1))
        features[number] = Feature(column, one.array(3, "<f4"), treatments[int(one.number(5, "b"))])
        names[column] = one.text(4)
    categorical = set()
    for one in held.tables(4):
        column = int(one.number(1, "i", -1))
        categorical.add(column)
        names[column] = one.text(2)
    others = ""
    for field, what in ((12, "texts"), (18, "embeddings")):
        for one in held.tables(field):
            names[int(one.number(1, "i", -1))] = one.text(2)
            others = others or what
    return features, names, {"categorical": frozenset(categorical), "others": others}


def _json(data: bytes) -> dict[str, Any]:
    held = orjson.loads(data)
    about = held["features_info"]
    features, names = {}, {}
    for one in about.get("float_features", ()):
        features[one["feature_index"]] = Feature(
            int(one["flat_feature_index"]),
            np.array(one.get("borders") or [], np.float32),
            one.get("nan_value_treatment", "AsIs"),
        )
        names[int(one["flat_feature_index"])] = one.get("feature_id") or ""
    categorical, others = set(), ""
    for one in about.get("categorical_features", ()):
        categorical.add(int(one["flat_feature_index"]))
        names[int(one["flat_feature_index"])] = one.get("feature_id") or ""
    for what in ("text_features", "embedding_features"):
        for one in about.get(what, ()):
            names[int(one["flat_feature_index"])] = one.get("feature_id") or ""
            others = others or what.replace("_", " ")
    scale, bias = held["scale_and_bias"]
    biases = [float(one) for one in (bias if isinstance(bias, list) else [bias])]
    leaves: list[float] = []
    trees: list[tuple[Node, ...]] = []
    dimension = max(1, len(biases))
    for tree in held.get("oblivious_trees", ()):
        begin = len(leaves)
        leaves += tree["leaf_values"]
        known = [_condition(split) for split in tree["splits"] or ()]
        dimension = len(tree["leaf_values"]) >> len(known)
        if any(one is None for one in known):
            others = others or "conditions on categories"
            trees.append(())
        else:
            trees.append(_symmetric([one for one in known if one is not None], features, begin, dimension))
    for tree in held.get("trees", ()):
        nodes, other = _nested(tree, features, leaves)
        others = others or ("conditions on categories" if other else "")
        trees.append(nodes)
    info = held.get("model_info", {})
    return _checked(
        format="json",
        dimension=dimension,
        names=names,
        features=features,
        trees=tuple(trees),
        leaves=np.array(leaves, np.float64),
        scale=float(scale),
        bias=tuple(biases),
        loss=_loss(_object(info.get("params"))),
        classes=_classes(_object(info.get("class_params"))),
        categorical=frozenset(categorical),
        others=others,
    )


def _condition(split: Mapping[str, Any]) -> tuple[int, float] | None:
    if split["split_type"] != "FloatFeature":
        return None
    return int(split["float_feature_index"]), float(np.float32(split["border"]))


def _symmetric(
    conditions: list[tuple[int, float]], features: Mapping[int, Feature], begin: int, dimension: int
) -> tuple[Node, ...]:
    """Write a symmetric tree out: the last condition at the root, so that leaves come in their order."""
    depth = len(conditions)
    if depth > _DEEPEST:
        raise ValueError(f"a symmetric tree of {depth} levels")
    nodes: list[Node] = []
    for level in range(depth):
        number, border = conditions[depth - 1 - level]
        column, first = features[number].column, (1 << level) - 1
        nodes += [(2 * at + 1, 2 * at + 2, column, border, 0) for at in range(first, first + (1 << level))]
    nodes += [(-1, -1, 0, 0.0, begin + leaf * dimension) for leaf in range(1 << depth)]
    return tuple(nodes)


def _stepped(
    conditions: list[tuple[int, float] | None],
    steps: list[list[int]],
    places: list[int],
    features: Mapping[int, Feature],
) -> tuple[tuple[Node, ...], bool]:
    """Give the nodes of a tree that is not symmetric. A step of 0 ends at the node itself, whose leaf is the answer."""
    size = len(conditions)
    if len(steps) < size or len(places) < size:
        raise ValueError("a tree's nodes lead out of the file")
    nodes: list[Node] = []
    extra: list[Node] = []
    for at, (condition, (left, right)) in enumerate(zip(conditions, steps, strict=True)):
        if not left and not right:
            nodes.append((-1, -1, 0, 0.0, places[at]))
            continue
        if condition is None:
            return (), True
        children = []
        for step in (left, right):
            if step:
                children.append(at + step)
            else:
                children.append(size + len(extra))
                extra.append((-1, -1, 0, 0.0, places[at]))
        nodes.append((children[0], children[1], features[condition[0]].column, condition[1], 0))
    return (*nodes, *extra), False


def _nested(
    tree: Mapping[str, Any], features: Mapping[int, Feature], leaves: list[float]
) -> tuple[tuple[Node, ...], bool]:
    """Give the nodes of a tree of JSON objects; adds its leaves' values."""
    nodes: list[Node | None] = [None]
    waiting = [(0, tree)]
    while waiting:
        at, one = waiting.pop()
        if "split" not in one:
            value = one["value"]
            nodes[at] = (-1, -1, 0, 0.0, len(leaves))
            leaves += value if isinstance(value, list) else [value]
            continue
        condition = _condition(one["split"])
        if condition is None:
            return (), True
        left = len(nodes)
        nodes += [None, None]
        nodes[at] = (left, left + 1, features[condition[0]].column, condition[1], 0)
        waiting += [(left, one["left"]), (left + 1, one["right"])]
    return tuple(node for node in nodes if node is not None), False


def _checked(
    *, dimension: int, names: Mapping[int, str], leaves: np.ndarray, bias: tuple[float, ...], others: str, **made: Any
) -> dict[str, Any]:
    """Hold the parts to one another; what is not to be compiled is CatBoost's own to check.

    Raises:
        ValueError: they do not fit.
    """
    columns = max(names, default=-1) + 1
    if min(names, default=0) < 0 or not 0 < columns <= len(names):
        raise ValueError(f"{len(names)} features stand for {columns} columns")
    if dimension < 1 or len(bias) not in (1, dimension):
        raise ValueError(f"{len(bias)} biases for {dimension} outputs")
    if not others and any(
        node[0] == -1 and node[4] + dimension > len(leaves) for tree in made["trees"] for node in tree
    ):
        raise ValueError("a leaf's values lead out of the file")
    listed = tuple(names[column] for column in range(columns))
    return {
        **made,
        "dimension": dimension,
        "columns": columns,
        "names": listed if all(listed) and len(set(listed)) == columns else (),
        "leaves": leaves,
        "bias": bias if len(bias) == dimension else bias * dimension,
        "others": others,
    }


def _object(value: Any) -> Mapping[str, Any]:
    """Give an object, which the binary format holds as a text."""
    if isinstance(value, str) and value:
        value = orjson.loads(value)
    return value if isinstance(value, dict) else {}


def _loss(parameters: Mapping[str, Any]) -> str:
    function = _object(parameters.get("loss_function"))
    return str(function.get("type", ""))


def _classes(parameters: Mapping[str, Any]) -> tuple[Any, ...]:
    names = parameters.get("class_names")
    return tuple(names) if isinstance(names, list) else ()
