"""From a model file to a `serinus.native.trees.forest64.Forest64`, or the reason why there is none."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from serinus.bounds import COLUMNS
from serinus.engines.tree_adapter import NotCovered
from serinus.native.trees.forest import KernelsMissing, Link, Trees
from serinus.native.trees.forest64 import Forest64, Sets

from .modelfile import ModelFile, Tree
from .objective import objective_of

__all__ = ["NEAR_ZERO", "Iterations", "choose_iterations", "compile_forest"]

Iterations = tuple[int, int]
"""First iteration used, and the one after the last."""

NEAR_ZERO: Final = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold: what is not further from 0 is 0."""

_CATEGORICAL: Final = 1
_DEFAULT_LEFT: Final = 2
_MISSING_ZERO: Final = 1
_MISSING_NONE: Final = 0


def choose_iterations(file: ModelFile, start: int, count: int) -> Iterations:
    """Choose the boosting iterations to use.

    Args:
        file: the model. Where training stopped early, LightGBM wrote only those up to the best one.
        start: the first.
        count: how many; below 1: all that follow.

    Raises:
        ValueError: they lead out of the model.
    """
    end = start + count if count > 0 else file.iterations
    if not 0 <= start < end <= file.iterations:
        raise ValueError(f"iterations {start} to {end} are wanted, the model has 0 to {file.iterations}")
    return start, end


def compile_forest(file: ModelFile, chosen: Iterations, *, threads: int) -> Forest64:
    """Build the forest.

    Raises:
        NotCovered: for whatever the engine does not cover, or finds wrong.
    """
    objective = objective_of(file.objective)
    if objective is None:
        raise NotCovered(f"objective {' '.join(file.objective)}")
    if file.columns > COLUMNS:
        raise NotCovered(f"{file.columns} features, more than {COLUMNS}")
    trees = file.trees[chosen[0] * file.groups : chosen[1] * file.groups]
    if any(tree.linear is not None for tree in trees):
        raise NotCovered("linear trees")
    if objective.link is Link.SOFTMAX and file.groups < 2:
        raise NotCovered(f"{file.groups} classes")
    try:
        gathered, sets, zeros = _gather(trees, file.columns, file.groups)
        return Forest64(
            gathered,
            sets=sets,
            columns=file.columns,
            groups=file.groups,
            near_zero=NEAR_ZERO,
            zeros=zeros,
            link=objective.link,
            slope=objective.slope,
            divisor=float(chosen[1] - chosen[0]) if file.average else 1.0,
            threads=threads,
        )
    except (KernelsMissing, ValueError) as error:
        raise NotCovered(str(error)) from None


def _gather(trees: tuple[Tree, ...], columns: int, groups: int) -> tuple[Trees, Sets | None, np.ndarray]:
    """Put the trees one after the other, each one's inner nodes before its leaves."""
    inner_counts = [len(tree.threshold) for tree in trees]
    starts = np.cumsum([0, *(2 * count + 1 for count in inner_counts)])
    total = int(starts[-1])
    left, right = np.full(total, -1, np.int32), np.full(total, -1, np.int32)
    feature, value = np.zeros(total, np.int32), np.zeros(total)
    default_left = np.zeros(total, np.bool_)
    first, words = np.full(total, -1, np.int64), np.zeros(total, np.int64)
    zero, other = np.zeros(columns, np.bool_), np.zeros(columns, np.bool_)
    bits: list[np.ndarray] = []
    held = 0
    for tree, (start, end) in zip(trees, pairwise(starts.tolist()), strict=True):
        count = len(tree.threshold)
        inner = slice(start, start + count)
        value[start + count : end] = tree.leaf
        if not count:
            continue
        for into, child in ((left, tree.left), (right, tree.right)):
            into[inner] = np.where(child >= 0, child, count + ~child)
        feature[inner], value[inner] = tree.feature, tree.threshold
        categorical = tree.decision & _CATEGORICAL != 0
        kind = tree.decision >> 2 & 3
        # Where nothing counts as missing, NaN is taken for 0, and where that goes is known now.
        default_left[inner] = np.where(kind == _MISSING_NONE, tree.threshold >= 0.0, tree.decision & _DEFAULT_LEFT != 0)
        by_zero = ~categorical & (kind == _MISSING_ZERO)
        zero[tree.feature[by_zero]] = True
        other[tree.feature[~by_zero]] = True
        if categorical.any():
            number = tree.threshold[categorical].astype(np.int64)
            at = start + np.flatnonzero(categorical)
            first[at] = held + tree.set_bounds[number]
            words[at] = tree.set_bounds[number + 1] - tree.set_bounds[number]
            bits.append(tree.set_words)
            held += len(tree.set_words)
    if np.any(zero & other):
        raise ValueError(f"zero is missing in some splits of column {int(np.argmax(zero & other))} and not in others")
    outputs = np.tile(np.arange(groups, dtype=np.int32), len(trees) // groups)
    gathered = Trees(starts, left, right, feature, value, default_left, outputs)
    return gathered, Sets(first, words, np.concatenate(bits)) if bits else None, zero
