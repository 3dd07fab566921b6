"""LightGBM's text model file, parsed into arrays without lightgbm.

Source: LightGBM's src/boosting/gbdt_model_text.cpp (`SaveModelToString`) and src/io/tree.cpp (`Tree::ToString`). A header of
`key=value` lines ends where the first `Tree=` begins; each tree is such a block too; `end of trees` ends the last one.
A child's number at or above 0 is an inner node, below it is the leaf `~number`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from serinus.errors import ConfigError

__all__ = ["PREFERRED", "SUFFIXES", "ModelFile", "Tree", "read"]

SUFFIXES: Final = (".txt", ".bst", ".lgb", ".lightgbm", ".model")
"""Of model files; `.bst` is what KServe's lgbserver looks for."""
PREFERRED: Final = ("model.txt", "model.bst")
"""Names that win where a folder holds several files of those suffixes (labels.txt, requirements.txt)."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree, as the file has it."""

    feature: np.ndarray
    """int64 [inner nodes]: column compared."""
    threshold: np.ndarray
    """float64 [inner nodes]: a value <= it goes left; of a categorical node, the number of its set."""
    decision: np.ndarray
    """int64 [inner nodes]: bit 0 categorical, bit 1 a missing value goes left, bits 2 and 3 what is missing: 0 nothing,
    1 zero, 2 NaN."""
    left: np.ndarray
    """int64 [inner nodes]."""
    right: np.ndarray
    """int64 [inner nodes]."""
    leaf: np.ndarray
    """float64 [leaves]."""
    set_bounds: np.ndarray
    """int64 [sets + 1]: where each set's words begin."""
    set_words: np.ndarray
    """uint32 [words]."""
    linear: bool
    """Leaves hold linear models."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file and what it says."""

    path: Path
    sha256: str
    columns: int
    """Features of a row."""
    groups: int
    """Trees of an iteration, which are the outputs of a row."""
    objective: tuple[str, ...]
    """Name and parameters, "binary", "sigmoid:1"; empty: the objective was the trainer's own."""
    average: bool
    """The output is the trees' mean (random forests)."""
    feature_names: tuple[str, ...]
    trees: tuple[Tree, ...]

    @property
    def iterations(self) -> int:
        """Boosting iterations in the file."""
        return len(self.trees) // self.groups

    @property
    def objective_name(self) -> str:
        """Name of the objective; "custom" where the file names none."""
        return self.objective[0] if self.objective else "custom"


def read(path: Path) -> ModelFile:
    """Read a model file.

    Raises:
        ConfigError: it cannot be read, is no LightGBM text model, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if content.split(b"\n", 1)[0].strip() != b"tree":
        raise ConfigError(
            f"{path}: not a LightGBM text model, whose first line is 'tree'; write one with booster.save_model(path)"
        )
    text = content.decode("utf-8", "replace").replace("\r\n", "\n")
    body, end, _ = text.partition("\nend of trees")
    if not end:
        raise ConfigError(f"{path}: damaged: the line 'end of trees' is missing; the file was cut off")
    head, *blocks = body.split("\nTree=")
    header = _fields(head)
    try:
        groups, columns, trees = _trees(header, blocks)
    except KeyError as error:
        raise ConfigError(f"{path}: damaged: the line {error.args[0]}= is missing") from None
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: damaged: {error}") from None
    return ModelFile(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        columns=columns,
        groups=groups,
        objective=tuple(header.get("objective", "").split()),
        average="average_output" in head.split("\n"),
        feature_names=tuple(header.get("feature_names", "").split()),
        trees=trees,
    )


def _trees(header: Mapping[str, str], blocks: list[str]) -> tuple[int, int, tuple[Tree, ...]]:
    """Trees of an iteration, features of a row, and the trees."""
    groups, columns = int(header["num_tree_per_iteration"]), int(header["max_feature_idx"]) + 1
    trees = tuple(_tree(_fields(block), columns) for block in blocks)
    announced = len(header["tree_sizes"].split()) if "tree_sizes" in header else len(trees)
    if announced != len(trees):
        raise ValueError(f"{len(trees)} trees came, {announced} are announced")
    if groups < 1 or columns < 1 or len(trees) % groups:
        raise ValueError(f"{len(trees)} trees, {groups} an iteration, over {columns} features")
    return groups, columns, trees


def _fields(block: str) -> dict[str, str]:
    return {key: value for key, equals, value in (line.partition("=") for line in block.split("\n")) if equals}


def _tree(fields: Mapping[str, str], columns: int) -> Tree:
    leaves = int(fields["num_leaves"])
    inner = leaves - 1
    if leaves < 1:
        raise ValueError(f"a tree of {leaves} leaves")
    sets = int(fields.get("num_cat", "0")) if inner else 0

    def numbers(key: str, count: int | None, dtype: type = np.int64) -> np.ndarray:
        if count == 0:
            return np.empty(0, dtype)
        words = fields[key].split()
        if count is not None and len(words) != count:
            raise ValueError(f"{key} has {len(words)} values, not {count}")
        return np.array(
            [float(word) for word in words] if dtype is np.float64 else [int(word) for word in words], dtype
        )

    bounds = numbers("cat_boundaries", sets + 1) if sets else np.zeros(1, np.int64)
    words = numbers("cat_threshold", None, np.uint32) if sets else np.empty(0, np.uint32)
    if bounds[0] != 0 or bounds[-1] != len(words) or np.any(np.diff(bounds) < 0):
        raise ValueError("cat_boundaries do not fit cat_threshold")
    feature, decision = numbers("split_feature", inner), numbers("decision_type", inner)
    threshold = numbers("threshold", inner, np.float64)
    if np.any((feature < 0) | (feature >= columns)):
        raise ValueError(f"split_feature leads to column {int(feature.max())}, the model has {columns}")
    looked_up = threshold[decision & 1 != 0]
    if not np.all((looked_up >= 0) & (looked_up < sets)):
        raise ValueError(f"a categorical node's set is not one of {sets}")
    return Tree(
        feature=feature,
        threshold=threshold,
        decision=decision,
        left=numbers("left_child", inner),
        right=numbers("right_child", inner),
        leaf=numbers("leaf_value", leaves, np.float64),
        set_bounds=bounds,
        set_words=words,
        linear=fields.get("is_linear", "0").strip() not in ("0", ""),
    )
