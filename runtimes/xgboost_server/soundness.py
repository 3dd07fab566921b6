"""Whether XGBoost may be given a model: its own readers follow the file's indices unchecked, and an index that leads out ends the process.

Source: src/tree/tree_model.cc (`LoadModelImpl`, `LoadCategoricalSplit`), src/tree/multi_target_tree_model.cc, src/gbm/gbtree_model.cc
(`LoadModel`) and src/gbm/gblinear_model.cc of XGBoost 3.2. Node 0 is the root; -1 is no child; what was pruned stays in the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

__all__ = ["MOST_COLUMNS", "check", "check_readable"]

MOST_COLUMNS: Final = 1 << 24
"""Most features of a row taken: 64 MiB in float32. A file can announce billions, and every buffer of rows would follow."""
_MOST_OUTPUTS: Final = 1 << 16
"""Of a row. XGBoost makes room for those that a file announces before it looks for their trees: 8 GB for a billion."""
_MOST_CATEGORY: Final = 1 << 24
"""XGBoost's own limit (src/common/categorical.h, OutOfRangeCat); a set takes a bit for each category up to its largest."""
_MOST_DEPTH: Final = 4096
"""Explaining takes memory that grows with the square of the depth, by recursion."""
_NO_PARENT: Final = 2**31 - 1


def check(model: Mapping[str, Any], *, booster: str, columns: int, groups: int, weights: np.ndarray | None) -> None:
    """Check all that XGBoost will follow.

    Args:
        model: of the gradient booster: trees, or a linear model's weights.
        booster: gbtree, dart or gblinear.
        columns: features of a row; 0: the file does not say.
        groups: outputs of a row.
        weights: dart's, one a tree.

    Raises:
        ValueError: something leads out, forms a ring, or is as long as it should not be.
        KeyError: something is missing.
    """
    if not 0 <= columns <= MOST_COLUMNS:
        raise ValueError(f"num_feature is {columns}; at most {MOST_COLUMNS} are taken")
    if not 1 <= groups <= _MOST_OUTPUTS:
        raise ValueError(f"num_class or num_target is {groups}; at most {_MOST_OUTPUTS} outputs are taken")
    if booster == "gblinear":
        if len(model["weights"]) != (columns + 1) * groups:
            raise ValueError(f"{len(model['weights'])} weights for {columns} features and {groups} outputs")
        return
    trees = model["trees"]
    announced = int(model["gbtree_model_param"]["num_trees"])
    if announced != len(trees):
        raise ValueError(f"{len(trees)} trees came, {announced} are announced")
    outputs = _integers(model, "tree_info")
    if len(outputs) != len(trees) or np.any((outputs < 0) | (outputs >= groups)):
        raise ValueError(f"tree_info does not give each of {len(trees)} trees one of {groups} outputs")
    if weights is not None and len(weights) != len(trees):
        raise ValueError(f"{len(weights)} weights for {len(trees)} trees")
    for number, tree in enumerate(trees):
        try:
            _check_tree(tree, columns, groups, number)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"tree {number}: {error}") from None


def _integers(tree: Mapping[str, Any], name: str) -> np.ndarray:
    """int64 of a list of whole numbers."""
    found = np.asarray(tree[name])
    if not len(found):
        return np.empty(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iub":
        raise ValueError(f"{name} holds more than whole numbers")
    return found.astype(np.int64)


def _numbers(tree: Mapping[str, Any], name: str, *counts: int) -> None:
    found = np.asarray(tree[name])
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iuf") or len(found) not in counts:
        raise ValueError(f"{name} holds {len(found)} values, and {counts[0]} numbers were expected")


def check_readable(model: Mapping[str, Any], version: str) -> None:
    """Check that the installed XGBoost reads leaves of several numbers as the file has them: since 3.1 in leaf_weights, without a look whether that is there.

    Args:
        model: of the gradient booster, checked.
        version: of XGBoost.

    Raises:
        ValueError: it would end the process.
    """
    if tuple(map(int, version.split(".")[:2])) < (3, 1):
        return
    for number, tree in enumerate(model.get("trees", ())):
        if _width(tree) > 1 and "leaf_weights" not in tree:
            raise ValueError(
                f"tree {number}: leaf_weights is missing; an XGBoost before 3.1 has written these leaves of {_width(tree)} numbers, {version} does not read "
                "them: train the model anew, or serve it with xgboost 3.0"
            )


def _width(tree: Mapping[str, Any]) -> int:
    """Numbers of a leaf."""
    width = int(tree["tree_param"].get("size_leaf_vector", 1))
    if width < 0:
        raise ValueError(f"size_leaf_vector is {width}")
    return max(1, width)


def _check_tree(tree: Mapping[str, Any], columns: int, groups: int, number: int) -> None:
    parameters = tree["tree_param"]
    left, right, parents = (_integers(tree, name) for name in ("left_children", "right_children", "parents"))
    count, width = len(left), _width(tree)
    if width not in (1, groups):
        raise ValueError(f"size_leaf_vector is {width}, the model has {groups} outputs")
    if int(parameters["num_nodes"]) != count or not count:
        raise ValueError(f"num_nodes is {parameters['num_nodes']}, and {count} came")
    if columns and int(parameters["num_feature"]) > columns:
        raise ValueError(f"num_feature is {parameters['num_feature']}, the model's is {columns}")
    if "id" in tree and int(tree["id"]) != number:
        raise ValueError(f"its id is {tree['id']}")
    features, default_left = _integers(tree, "split_indices"), _integers(tree, "default_left")
    for name, values in (("right_children", right), ("parents", parents), ("split_indices", features)):
        if len(values) != count:
            raise ValueError(f"{name} has {len(values)} values for {count} nodes")
    if len(default_left) != count or np.any((default_left != 0) & (default_left != 1)):
        raise ValueError("default_left does not say 0 or 1 of each node")
    _numbers(tree, "split_conditions", count)
    for name in ("loss_changes", "sum_hessian"):
        if name in tree:
            _numbers(tree, name, count)
    for name in ("base_weights", "leaf_weights"):
        if name in tree:
            most = count * width
            _numbers(tree, name, *({most, count} if name == "base_weights" else range(0, most + 1, width)))
    if width > 1 and "leaf_weights" in tree:  # a leaf's right child is the place of its values
        places = right[left == -1]
        if np.any((places < 0) | ((places + 1) * width > len(tree["leaf_weights"]))):
            raise ValueError("a leaf's values lead out of leaf_weights")
        right = np.where(left == -1, -1, right)
    if np.any((left == -1) != (right == -1)):
        raise ValueError("a node has one child")
    if np.any((np.concatenate((left, right)) < -1) | (np.concatenate((left, right)) >= count)):
        raise ValueError(f"a child is not one of {count} nodes")
    inner = _reached(left, right, parents)
    if columns and np.any((features[inner] < 0) | (features[inner] >= columns)):
        raise ValueError(f"split_indices lead out of the model's {columns} features")
    if np.any((features < 0) | (features >= 2**32)):
        raise ValueError("split_indices hold what is no column")
    _check_categories(tree, count, inner)


def _reached(left: np.ndarray, right: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Go down from the root, level by level; returns the inner nodes that it leads to."""
    count = len(left)
    if parents[0] not in (_NO_PARENT, -1):
        raise ValueError("the root has a parent")
    if np.any((parents[1:] < 0) | (parents[1:] >= count)):
        raise ValueError(f"a parent is not one of {count} nodes")
    level, found, reached = np.zeros(1, np.int64), [], 1
    while len(level := level[left[level] != -1]):
        found.append(level)
        for children in (left[level], right[level]):
            if np.any(parents[children] != level) or np.any(children == 0):
                raise ValueError("parents and children disagree: its nodes form a ring, or one has two parents")
        level = np.concatenate((left[level], right[level]))
        reached += len(level)
        if reached > count or len(found) > _MOST_DEPTH:
            raise ValueError(f"its nodes form a ring, or it is deeper than {_MOST_DEPTH} levels")
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _check_categories(tree: Mapping[str, Any], count: int, inner: np.ndarray) -> None:
    kinds = _integers(tree, "split_type") if "split_type" in tree else np.zeros(count, np.int64)
    if "categories_nodes" not in tree:
        if np.any(kinds):
            raise ValueError("split_type has categories, and there are none")
        return
    nodes, sizes = _integers(tree, "categories_nodes"), _integers(tree, "categories_sizes")
    segments, categories = _integers(tree, "categories_segments"), _integers(tree, "categories")
    if len(kinds) not in (0, count) or np.any((kinds != 0) & (kinds != 1)):
        raise ValueError("split_type does not say 0 or 1 of each node")
    if (
        not len(nodes) == len(sizes) == len(segments)
        or np.any((nodes < 0) | (nodes >= count))
        or np.any(np.diff(nodes) < 1)
    ):
        raise ValueError("categories_nodes do not name nodes, in order, with a segment each")
    if np.any((sizes < 1) | (segments < 0) | (segments + sizes > len(categories))):
        raise ValueError("categories_segments lead out of the categories")
    if np.any((categories < 0) | (categories >= _MOST_CATEGORY)):
        raise ValueError(f"a category is not between 0 and {_MOST_CATEGORY}")
    categorical = np.zeros(count, bool)
    categorical[nodes] = True
    kinds = kinds if len(kinds) else np.zeros(count, np.int64)
    if np.any((kinds[inner] == 1) & ~categorical[inner]) or np.any(categorical[inner] & (kinds[inner] != 1)):
        raise ValueError("split_type and categories_nodes disagree")
