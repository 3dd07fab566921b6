"""`Estimator`: what a fitted scikit-learn object holds, as plain values, whether it was read from a file or is at hand.

`skops_file` makes one of a `.skops` file without scikit-learn, `describe` one of an object that scikit-learn has loaded. What compiles
a model (`forests`, `linear`, `transforms`, `program`) reads Estimators alone, so that a warm start imports no framework.

`check` holds the trees to their arrays. scikit-learn walks child and feature numbers of a file without looking (skops trusts no `Tree` for
that reason): one that leads out would end the process, and with it every model of the server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from serinus.engines.not_covered import NotCovered
from serinus.native.trees.walker import Trees, breadth_first

__all__ = ["HIST_TREE", "TREE", "Estimator", "Pool", "check", "describe", "hist_tree", "members", "tree"]

TREE: Final = "sklearn.tree._tree.Tree"
HIST_TREE: Final = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
_DEEPEST: Final = 100
"""Nesting of objects that is followed; a pipeline of ensembles has some ten."""
_LEAF: Final = -1

_ENSEMBLES: Final = ("RandomForest", "ExtraTrees", "GradientBoosting")
"""Whose trees all read the ensemble's own columns."""


@dataclass(slots=True)
class Estimator:
    """One object: its class and its attributes.

    Values are numbers, texts, None, arrays (also of objects), lists, tuples, dicts and Estimators; what is none of these is an Estimator
    without attributes.
    """

    kind: str
    """Module and class: "sklearn.ensemble._forest.RandomForestClassifier"."""
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class alone."""
        return self.kind.rpartition(".")[2]

    @property
    def is_sklearn(self) -> bool:
        """It is scikit-learn's own class."""
        return self.kind.startswith("sklearn.")

    @property
    def version(self) -> str:
        """Version of scikit-learn that wrote it; empty: it does not say."""
        found = self.state.get("_sklearn_version")
        return found if isinstance(found, str) else ""

    def get(self, name: str, default: Any = None) -> Any:
        """Give an attribute, or the default where it has none."""
        return self.state.get(name, default)

    def of(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Give an attribute of a type.

        Raises:
            NotCovered: there is none, or another.
        """
        value = self.state.get(name)
        if not isinstance(value, kind):
            raise NotCovered(f"{self.name} without a usable {name}")
        return value

    def numbers(self, name: str) -> np.ndarray:
        """Give an attribute as float64.

        Raises:
            NotCovered: it is nothing of numbers.
        """
        value = self.state.get(name)
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise NotCovered(f"{self.name} without a usable {name}") from None
        if value is None or array.dtype.kind != "f":
            raise NotCovered(f"{self.name} without a usable {name}")
        return array

    def parts(self) -> Iterator[Estimator]:
        """Give this and all within it, each once."""
        seen: set[int] = set()
        waiting: list[Any] = [self]
        while waiting:
            value = waiting.pop()
            if isinstance(value, Estimator | list | tuple | dict | np.ndarray):
                if id(value) in seen:
                    continue
                seen.add(id(value))
            if isinstance(value, Estimator):
                yield value
                waiting.extend(value.state.values())
            elif isinstance(value, dict):
                waiting.extend(value.values())
            elif isinstance(value, list | tuple):
                waiting.extend(value)
            elif isinstance(value, np.ndarray) and value.dtype == object:
                waiting.extend(value.reshape(-1).tolist())


def describe(live: Any) -> Estimator:
    """Tell an object that scikit-learn has loaded as an Estimator. Its methods are not called but those that pickling calls."""
    found = _value(live, {}, 0)
    return found if isinstance(found, Estimator) else Estimator(f"{type(live).__module__}.{type(live).__qualname__}")


def _value(value: Any, seen: dict[int, tuple[Any, Any]], depth: int) -> Any:
    if value is None or isinstance(value, str | bytes | int | float | bool):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if depth > _DEEPEST:
        return Estimator(kind)
    if isinstance(value, np.ndarray):
        made = np.empty(value.shape, object)
        seen[id(value)] = value, made
        made.reshape(-1)[:] = [_value(one, seen, depth + 1) for one in value.reshape(-1)]
        return made
    if type(value) in (list, tuple):
        made = [_value(one, seen, depth + 1) for one in value]
        return tuple(made) if type(value) is tuple else made
    if type(value) is dict:
        return {key: _value(one, seen, depth + 1) for key, one in value.items()}
    if isinstance(value, type) or (callable(value) and not hasattr(value, "fit")):
        return Estimator(kind)
    state: dict[str, Any] = {}
    made = Estimator(kind, state)
    seen[id(value)] = value, made
    held: Any = getattr(value, "__dict__", {})
    if kind == TREE:
        live: Any = value
        held = {**live.__getstate__(), "n_features": live.n_features, "n_outputs": live.n_outputs}
    state.update({name: _value(one, seen, depth + 1) for name, one in held.items() if isinstance(name, str)})
    return made


def tree(part: Estimator) -> tuple[np.ndarray, np.ndarray, int]:
    """Give a tree's nodes, its values [nodes, outputs, classes] and the features that it reads.

    Raises:
        ValueError: they are not a tree's.
    """
    nodes, values, features = part.get("nodes"), part.get("values"), part.get("n_features")
    if not isinstance(nodes, np.ndarray) or not isinstance(values, np.ndarray) or type(features) is not int:
        raise ValueError("a tree has no nodes or values")
    needed = {"left_child", "right_child", "feature", "threshold", "missing_go_to_left"}
    if nodes.ndim != 1 or not needed <= set(nodes.dtype.names or ()):
        raise ValueError("a tree's nodes have other fields than those of scikit-learn 1.3 and later")
    if values.ndim != 3 or len(values) != len(nodes) or values.dtype != np.float64 or not len(nodes):
        raise ValueError(f"a tree of {len(nodes)} nodes has values {values.dtype.name} {list(values.shape)}")
    return nodes, values, features


def hist_tree(part: Estimator) -> tuple[np.ndarray, np.ndarray]:
    """Give a boosted tree's nodes, and the sets of categories that its splits look up.

    Raises:
        ValueError: they are not a tree's.
    """
    nodes, sets = part.get("nodes"), part.get("raw_left_cat_bitsets")
    needed = {
        "value",
        "feature_idx",
        "num_threshold",
        "missing_go_to_left",
        "left",
        "right",
        "is_leaf",
        "is_categorical",
        "bitset_idx",
    }
    if (
        not isinstance(nodes, np.ndarray)
        or nodes.ndim != 1
        or not needed <= set(nodes.dtype.names or ())
        or not len(nodes)
    ):
        raise ValueError("a boosted tree has no nodes")
    if not isinstance(sets, np.ndarray) or sets.ndim != 2 or sets.shape[1:] != (8,) or sets.dtype != np.uint32:
        raise ValueError("a boosted tree has no sets of categories")
    return nodes, sets


@dataclass(slots=True)
class Pool:
    """Trees put one after the other as the compiled walk wants them."""

    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def add(self, part: Estimator) -> None:
        """Add one tree of either kind.

        Raises:
            ValueError: it is none.
        """
        if part.kind == HIST_TREE:
            nodes, _ = hist_tree(part)
            leaf = nodes["is_leaf"] != 0
            left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
            feature, threshold = nodes["feature_idx"], nodes["num_threshold"]
        else:
            nodes, _, _ = tree(part)
            left, right = nodes["left_child"].astype(np.int64), nodes["right_child"].astype(np.int64)
            leaf = left == _LEAF
            feature, threshold = nodes["feature"], nodes["threshold"]
        inside = (left < len(nodes)) & (right < len(nodes)) & (left > 0) & (right > 0)
        if np.any(~leaf & ~inside):
            raise ValueError("a child's index leads out of its tree")
        if np.any(~leaf & ((feature < 0) | (feature > 0x3FFFFFFF))):
            raise ValueError("a node compares a column that there is none of")
        self.parts.append(
            (
                np.where(leaf, -1, left).astype(np.int32),
                np.where(leaf, -1, right).astype(np.int32),
                np.where(leaf, 0, feature).astype(np.int32),
                np.where(leaf, 0.0, threshold),
                ~leaf & (nodes["missing_go_to_left"] != 0),
            )
        )

    def trees(self, value: np.ndarray | None = None, outputs: np.ndarray | None = None) -> Trees:
        """Give all of them.

        Args:
            value: of the leaves, [nodes], where thresholds are not to stay alone.
            outputs: int32 [trees]; None: all 0.
        """
        starts = np.cumsum([0, *(len(part[0]) for part in self.parts)])
        left, right, feature, threshold, default_left = (
            np.concatenate(parts) for parts in zip(*self.parts, strict=True)
        )
        if value is not None:
            threshold = np.where(left == -1, value, threshold)
        if outputs is None:
            outputs = np.zeros(len(self.parts), np.int32)
        return Trees(starts, left, right, feature, threshold, default_left, outputs)


def check(model: Estimator) -> None:
    """Hold every tree of a model to its arrays, and an ensemble's trees to its columns.

    Raises:
        ValueError: saying what leads out; scikit-learn would end the process over it.
    """
    for part in model.parts():
        if part.kind in (TREE, HIST_TREE):
            pool = Pool()
            pool.add(part)
            trees = pool.trees()
            breadth_first(trees)
            most = int(trees.feature.max(initial=0))
            if part.kind == TREE and most >= tree(part)[2]:
                raise ValueError(f"a node compares column {most}, its tree reads {tree(part)[2]}")
            if part.kind == HIST_TREE:
                nodes, sets = hist_tree(part)
                categorical = (nodes["is_leaf"] == 0) & (nodes["is_categorical"] != 0)
                if np.any(categorical & (nodes["bitset_idx"] >= len(sets))):
                    raise ValueError("a node's categories lead out of their sets")
        elif part.is_sklearn:
            _check_columns(part)


def _check_columns(part: Estimator) -> None:
    """Hold the trees directly within an estimator to the columns that it is given rows of."""
    columns = part.get("n_features_in_")
    if type(columns) is not int:
        return
    own = part.get("tree_")
    if isinstance(own, Estimator) and own.kind == TREE and own.get("n_features") != columns:
        raise ValueError(f"{part.name} takes {columns} columns, its tree reads {own.get('n_features')}")
    if any(word in part.name for word in _ENSEMBLES):
        for inner in members(part):
            if inner.kind == HIST_TREE:
                nodes, _ = hist_tree(inner)
                inner_nodes = nodes[nodes["is_leaf"] == 0]
                most = int(inner_nodes["feature_idx"].max(initial=-1))
                if most >= columns:
                    raise ValueError(f"{part.name} takes {columns} columns, a node of its trees compares column {most}")
            elif inner.get("n_features_in_") != columns:
                raise ValueError(
                    f"{part.name} takes {columns} columns, a tree of its takes {inner.get('n_features_in_')}"
                )


def members(part: Estimator) -> list[Estimator]:
    """Give the estimators of an ensemble, or the trees of a histogram-based one, in no order."""
    waiting = [part.get("estimators_"), part.get("_predictors")]
    found = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, Estimator):
            found.append(value)
        elif isinstance(value, np.ndarray) and value.dtype == object:
            waiting.extend(value.reshape(-1).tolist())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
    return found
