"""LightGBM's text model file, parsed into arrays without lightgbm.

Source: LightGBM's src/boosting/gbdt_model_text.cpp (`SaveModelToString`) and src/io/tree.cpp (`Tree::ToString`). A header of
`key=value` lines ends where the first `Tree=` begins; each tree is such a block too; `end of trees` ends the last one.
A child's number at or above 0 is an inner node, below it is the leaf `~number`.

Theory of operation. LightGBM finds its trees by the byte offsets of `tree_sizes` and parses them in OpenMP threads, where an exception ends
the process: one byte too many, such as the carriage returns of Windows line endings, and every model of the server is gone. So this
reader comes first and checks all that LightGBM will follow: counts, children, columns, sets, depth. LightGBM itself is then given a
text that `modeltext` writes from the checked values, never the file.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from serinus.content.mistaken_content import describe_mistake
from serinus.errors import ConfigError
from serinus.feature_columns import Category

from . import pandas_categories

__all__ = ["PREFERRED", "SUFFIXES", "Linear", "ModelFile", "Tree", "read"]

_log = logging.getLogger("serinus.lightgbm")

SUFFIXES: Final = (".txt", ".bst", ".lgb", ".lightgbm", ".model")
"""Of model files; `.bst` is what KServe's lgbserver looks for."""
PREFERRED: Final = ("model.txt", "model.bst")
"""Names that win where a folder holds several files of those suffixes (labels.txt, requirements.txt)."""

_MOST_DEPTH: Final = 4096
"""Deepest tree taken: LightGBM goes down its trees by recursion, and memory to explain one grows with the square. Trees of a thousand
leaves are a few dozen deep."""
_LINE_END: Final = re.compile(r"(?<!\r)\r*\n|\r")
"""Unix, Windows (also where a tool has put a carriage return before each one twice), and old Mac line endings. Of many carriage returns only the first looks
for the end of them all."""
_OBJECTIVE: Final = re.compile(r"[a-z][a-z0-9_]*( (sqrt|[a-z_]+:[0-9.eE+-]+))*")
"""An `objective=` line as LightGBM writes it."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear models of a tree's leaves."""

    const: np.ndarray
    """float64 [leaves]."""
    counts: np.ndarray
    """int64 [leaves]: features of each leaf's model."""
    features: np.ndarray
    """int64 [sum of counts]: columns."""
    coefficients: np.ndarray
    """float64 [sum of counts]."""


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
    linear: Linear | None
    """Models of the leaves; None: they hold numbers."""
    leaf_counts: np.ndarray | None
    """int64 [leaves]: training rows of each leaf, for contributions; None: the file does not say."""
    inner_counts: np.ndarray | None
    """int64 [inner nodes]: likewise."""


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
    categorical: tuple[int, ...] = ()
    """Columns whose numbers are codes of categories."""
    categories: Mapping[int, tuple[Category, ...]] = field(default_factory=dict)
    """Names of the categories of a pandas DataFrame by column, in the order of their codes."""

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
    except MemoryError:
        raise ConfigError(f"{path}: its {path.stat().st_size} bytes do not fit into memory") from None
    text, mended = _mend(content)
    if text.partition("\n")[0].strip() != "tree":
        raise ConfigError(
            f"{path}: not a LightGBM text model, whose first line is 'tree': {describe_mistake(path)}; write one with booster.save_model(path)"
        )
    body, end, tail = text.partition("\nend of trees")
    if not end:
        raise ConfigError(f"{path}: damaged: the line 'end of trees' is missing; the file was cut off")
    head, *blocks = body.split("\nTree=")
    try:
        header = _fields(head)
        groups, columns, trees = _trees(header, blocks)
        objective = _objective(header, groups)
        categorical, categories = pandas_categories.read(header.get("feature_infos", "").split(), tail)
    except KeyError as error:
        raise ConfigError(f"{path}: damaged: the line {error.args[0]}= is missing") from None
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: damaged: {error}") from None
    if mended:
        _log.warning("%s has %s; it is read without, and LightGBM is given the mended text", path, " and ".join(mended))
    return ModelFile(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        columns=columns,
        groups=groups,
        objective=objective,
        average="average_output" in head.split("\n"),
        feature_names=tuple(header["feature_names"].split()),
        trees=trees,
        categorical=categorical,
        categories=categories,
    )


def _mend(content: bytes) -> tuple[str, list[str]]:
    """Decode a file and undo what editors and copies do to text; returns the text, and what was undone."""
    mended = []
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
        mended.append("a byte order mark")
    if b"\r\n" in content:
        mended.append("Windows line endings (CRLF)")
    elif b"\r" in content:
        mended.append("line endings that are carriage returns (CR)")
    text = content.decode("utf-8", "replace")
    return (_LINE_END.sub("\n", text) if "\r" in text else text), mended


def _trees(header: Mapping[str, str], blocks: list[str]) -> tuple[int, int, tuple[Tree, ...]]:
    """Trees of an iteration, features of a row, and the trees."""
    groups, columns = int(header["num_tree_per_iteration"]), int(header["max_feature_idx"]) + 1
    announced = len(header["tree_sizes"].split()) if "tree_sizes" in header else len(blocks)
    if announced != len(blocks):
        raise ValueError(f"{len(blocks)} trees came, {announced} are announced")
    if groups < 1 or columns < 1 or len(blocks) % groups:
        raise ValueError(f"{len(blocks)} trees, {groups} an iteration, over {columns} features")
    trees = tuple(_tree(_fields(block), columns) for block in blocks)
    if (named := len(header["feature_names"].split())) != columns:
        raise ValueError(f"feature_names has {named} names, max_feature_idx says {columns} features")
    if int(header.get("num_class", str(groups))) != groups:
        raise ValueError(f"num_class is {header['num_class']}, num_tree_per_iteration is {groups}")
    return groups, columns, trees


def _objective(header: Mapping[str, str], groups: int) -> tuple[str, ...]:
    """Words of the `objective=` line; a multiclass one's number of classes is how many numbers LightGBM writes for a row."""
    line = " ".join(header.get("objective", "").split())
    if line and not _OBJECTIVE.fullmatch(line):
        raise ValueError(f"objective {line[:60]!r} is not as LightGBM writes it")
    words = tuple(line.split())
    classes = [word.partition(":")[2] for word in words if word.startswith("num_class:")]
    several = bool(words) and words[0].startswith("multiclass")
    if (several and classes != [str(groups)]) or (not several and classes) or (words and not several and groups != 1):
        raise ValueError(f"objective {line!r} does not fit {groups} trees an iteration")
    return words


def _fields(block: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for key, equals, value in (line.partition("=") for line in block.split("\n")):
        if equals and key in fields:
            raise ValueError(f"the line {key[:40]}= is there twice")
        if equals:
            fields[key] = value
    return fields


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

    def counts(key: str, count: int) -> np.ndarray | None:
        if not inner or not fields.get(key, "").strip():
            return None
        found = numbers(key, count)
        if np.any((found < 0) | (found >= 2**31)):
            raise ValueError(f"{key} has a count that is none")
        return found

    if sets < 0:
        raise ValueError(f"num_cat is {sets}")
    bounds = numbers("cat_boundaries", sets + 1) if sets else np.zeros(1, np.int64)
    words = numbers("cat_threshold", None, np.uint32) if sets else np.empty(0, np.uint32)
    if bounds[0] != 0 or bounds[-1] != len(words) or np.any(np.diff(bounds) < 0):
        raise ValueError("cat_boundaries do not fit cat_threshold")
    feature, decision = numbers("split_feature", inner), numbers("decision_type", inner)
    threshold = numbers("threshold", inner, np.float64)
    if np.any((feature < 0) | (feature >= columns)):
        raise ValueError(f"split_feature leads to column {int(feature.max())}, the model has {columns}")
    if np.any((decision < 0) | (decision > 15)):
        raise ValueError("decision_type has a value that is none")
    looked_up = threshold[decision & 1 != 0]
    if not np.all((looked_up >= 0) & (looked_up < sets)):
        raise ValueError(f"a categorical node's set is not one of {sets}")
    left, right = numbers("left_child", inner), numbers("right_child", inner)
    _check_children(left, right)
    return Tree(
        feature=feature,
        threshold=threshold,
        decision=decision,
        left=left,
        right=right,
        leaf=numbers("leaf_value", leaves, np.float64),
        set_bounds=bounds,
        set_words=words,
        linear=_linear(fields, leaves, columns, numbers),
        leaf_counts=counts("leaf_count", leaves),
        inner_counts=counts("internal_count", inner),
    )


def _check_children(left: np.ndarray, right: np.ndarray) -> None:
    """Go down a tree level by level: each node and each leaf must be reached once, and none too deep.

    Raises:
        ValueError: a child that is none, one with two parents (so every ring), or more levels than `_MOST_DEPTH`.
    """
    inner = len(left)
    if not inner:
        return
    children = np.concatenate((left, right))
    if np.any((children >= inner) | (children < -inner - 1)):
        raise ValueError(f"a child is not one of {inner} nodes and {inner + 1} leaves")
    if len(np.unique(children)) != len(children) or np.any(children == 0):
        raise ValueError("a node has two parents, or the root has one: its nodes form a ring")
    level, depth = np.zeros(1, np.int64), 0
    reached = 1
    while len(level := np.concatenate((left[level], right[level]))):
        level = level[level >= 0]
        reached += len(level)
        depth += 1
        if depth > _MOST_DEPTH:
            raise ValueError(f"a tree is deeper than {_MOST_DEPTH} levels")
    if reached != inner:
        raise ValueError(f"{inner - reached} nodes of a tree hang on no other: its nodes form a ring")


def _linear(fields: Mapping[str, str], leaves: int, columns: int, numbers: Callable[..., np.ndarray]) -> Linear | None:
    """Read the linear models of a tree's leaves; None: it has none."""
    if fields.get("is_linear", "0").strip() in ("0", ""):
        return None
    counts = numbers("num_features", leaves)
    if np.any(counts < 0):
        raise ValueError("num_features has a count below 0")
    total = int(counts.sum())
    features, coefficients = numbers("leaf_features", total), numbers("leaf_coeff", total, np.float64)
    if np.any((features < 0) | (features >= columns)):
        raise ValueError(f"leaf_features lead out of the model's {columns} columns")
    return Linear(numbers("leaf_const", leaves, np.float64), counts, features, coefficients)
