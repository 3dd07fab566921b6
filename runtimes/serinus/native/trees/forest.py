"""`Forest`: a float32 tree ensemble as flat arrays, walked by compiled code (`forest.c`). Knows no framework.

Nodes take 8 bytes where feature numbers and distances fit 15 bits, else 12; see walker.py for what happens around them. Trees of
few levels are laid out a second time, complete, for the machine's vector instructions (`forest_vector.c`).
"""

from __future__ import annotations

import ctypes

import numpy as np

from ..kernel_library import Library
from .walker import KernelsMissing, Link, Struct, Trees, Walker, breadth_first, kernels, lay_out, outputs_of

__all__ = ["ENGINE", "Forest", "KernelsMissing", "Link", "Trees", "margin_of"]

ENGINE = 3
"""Version of the walk's arithmetic: raised with any change that could change a result, so that old records lapse."""

_NARROW = np.dtype([("value", "<f4"), ("feature", "<u2"), ("step", "<i2")])
_WIDE = np.dtype([("value", "<f4"), ("feature", "<u4"), ("step", "<i4")])
_NARROW_LIMIT = 0x7FFF
_FLOAT32 = np.dtype(np.float32)
_COMPLETE_LEVELS = 3, 8
"""Fewest and most levels of a complete tree; a tree with fewer is laid out as one of three."""
_COMPLETE_GROUPS = 64
"""SERINUS_SET_GROUPS of forest.h."""
_COMPLETE_SPARE = 32
"""Words after the last tree that a look-up may read."""
_COMPLETE_SIZE = 8
"""Times the space of the nodes that complete trees may take: beyond it most of what is cached would be padding."""


class Forest(Walker):
    """An ensemble in float32, as XGBoost's, ready to predict.

    Args:
        trees: the trees; copied.
        columns: features of a row.
        base: float32 [outputs]: what each output's sum starts from, in margin space.
        link: maps margins to predictions.
        missing: a value that counts as missing, beside NaN.
        threads: most threads of one call.
        lanes: rows that vector instructions may walk side by side (16, 8, 0); None: what the machine can. The results are the same.
        library: the compiled library; None: the installed one.

    Raises:
        KernelsMissing: the compiled kernels are not there.
        ValueError: an index leads out of its tree, out of the row or out of the outputs, or nodes form a ring.
    """

    dtype = np.dtype(np.float32)
    function = "serinus_forest_predict"
    arithmetic = ("engine", ENGINE)

    def __init__(
        self,
        trees: Trees,
        *,
        columns: int,
        base: np.ndarray,
        link: Link = Link.IDENTITY,
        missing: float = float("nan"),
        threads: int = 1,
        lanes: int | None = None,
        library: Library | None = None,
    ) -> None:
        library = library or kernels()
        can = int(library.quick.serinus_forest_lanes())
        lanes = can if lanes is None else min(lanes, can)
        order, roots, depths = breadth_first(trees)
        nodes, wide = _pack(trees, order, columns)
        outputs = outputs_of(trees, len(base))
        arrays = nodes, roots, depths, outputs, np.ascontiguousarray(base, np.float32)
        complete = (
            _complete(trees, order, roots, depths) if lanes and columns and len(base) <= _COMPLETE_GROUPS else None
        )
        struct = Struct(
            *(array.ctypes.data for array in arrays),
            complete=complete[0].ctypes.data if complete else None,
            places=complete[1].ctypes.data if complete else None,
            lanes=lanes if complete else 0,
            trees=len(outputs),
            groups=len(base),
            columns=columns,
            wide=wide,
            link=int(link),
            other_missing=0 if np.isnan(missing) else 1,
            missing=float(missing),
        )
        self.lanes: int = struct.lanes
        """Rows that go down the trees side by side by vector instructions; 0: the trees or the machine do not allow it."""
        super().__init__(
            struct, (*arrays, *(complete or ())), steps_per_row=int(depths.sum()), threads=threads, library=library
        )


def margin_of(link: Link, predictions: np.ndarray) -> np.ndarray:
    """Invert a link in float32, as XGBoost maps a base_score to a margin.

    Args:
        link: SIGMOID or EXP are inverted; the others leave values as they are.
        predictions: float32 [n].

    Raises:
        KernelsMissing: the compiled kernels are not there.
    """
    values = np.array(predictions, _FLOAT32)
    function = kernels().quick.serinus_forest_margin_of
    function.argtypes, function.restype = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int64), None
    function(int(link), values.ctypes.data, len(values))
    return values


def _pack(trees: Trees, order: np.ndarray, columns: int) -> tuple[np.ndarray, int]:
    """Pack the nodes for forest.c; returns them, and 1 where they had to be the wide ones."""
    inner, feature, step = lay_out(trees, order, columns)
    wide = int(max(columns, int(step.max(initial=0))) > _NARROW_LIMIT)
    default_left = inner & trees.default_left[order]
    if np.any(default_left & ~(trees.value[order] > -np.inf)):
        raise ValueError("a missing value goes left at a threshold that is no number above -infinity")
    nodes = np.zeros(len(order), _WIDE if wide else _NARROW)
    nodes["value"] = trees.value[order]
    nodes["feature"] = 2 * feature + default_left
    nodes["step"] = step
    return nodes, wide


def _complete(
    trees: Trees, order: np.ndarray, roots: np.ndarray, depths: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Lay the trees out complete, as forest.h says; None where they are too deep, or so ragged that it would not pay.

    Returns:
        uint32 words of all trees, and the word that each begins at, uint64 [trees].
    """
    fewest, most = _COMPLETE_LEVELS
    levels = np.maximum(depths, fewest).astype(np.int64)
    sizes = 3 << levels
    if len(depths) == 0 or depths.max() > most or sizes.sum() > _COMPLETE_SIZE * 3 * len(order):
        return None
    places = np.cumsum(sizes) - sizes
    words = np.zeros(int(sizes.sum()) + _COMPLETE_SPARE, np.uint32)
    values = words.view(np.float32)
    left = trees.left[order]
    position = np.empty(int(trees.starts[-1]), np.int64)
    position[order] = np.arange(len(order))
    starts = np.asarray(trees.starts, np.int64)[:-1]
    # All trees level by level: `node` is a place in `order`, `number` its number in the complete tree.
    tree, node = np.arange(len(depths)), roots.astype(np.int64)
    number, level = np.zeros(len(depths), np.int64), 0
    while len(node):
        is_leaf = left[node] == -1
        at, leaf, first = tree[is_leaf], node[is_leaf], number[is_leaf] - ((1 << level) - 1)
        spans = 1 << (levels[at] - level)
        begin = places[at] + (2 << levels[at]) + first * spans
        offsets = np.arange(int(spans.sum())) - np.repeat(np.cumsum(spans) - spans, spans)
        values[np.repeat(begin, spans) + offsets] = np.repeat(trees.value[order[leaf]], spans)
        tree, node, number = tree[~is_leaf], node[~is_leaf], number[~is_leaf]
        place = places[tree] + number
        values[place] = trees.value[order[node]]
        words[place + (1 << levels[tree])] = 2 * trees.feature[order[node]] + trees.default_left[order[node]]
        children = starts[tree] + trees.left[order[node]]
        others = starts[tree] + trees.right[order[node]]
        node = position[np.concatenate((children, others))]
        tree, number = np.tile(tree, 2), np.concatenate((2 * number + 1, 2 * number + 2))
        level += 1
    return words, places.astype(np.uint64)
