"""`Forest64`: a float64 tree ensemble as flat arrays, walked by compiled code (`forest64.c`). Knows no framework.

As `Forest`, but values go left where they are `<=` the threshold, nodes may hold sets of categories, leaves may hold vectors, and the
sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernel_library import Library
from .walker import Link, Struct, Trees, Walker, breadth_first, kernels, lay_out, outputs_of

__all__ = ["ENGINE64", "Forest64", "Sets"]

ENGINE64 = 1
"""Version of the walk's arithmetic: raised with any change that could change a result, so that old records lapse."""

_NODE = np.dtype([("value", "<f8"), ("feature", "<u4"), ("step", "<i4")])
_CATEGORY = 1 << 31


@dataclass(frozen=True, slots=True)
class Sets:
    """Which nodes look their category up, and in what."""

    first: np.ndarray
    """int64 [nodes]: where in `bits` a node's words begin; -1: the node compares."""
    words: np.ndarray
    """int64 [nodes]: how many they are."""
    bits: np.ndarray
    """uint32 [n]: category c of a node goes left where bit c % 32 of its word c // 32 is set."""


class Forest64(Walker):
    """An ensemble in float64, as LightGBM's, ready to predict.

    Args:
        trees: the trees; copied. `value` is float64.
        sets: for categorical nodes; None: there are none.
        vectors: float64 [n, groups], what leaves add to the outputs of a row: a leaf's `value` is then the number of its vector, and
            the trees' own outputs are 0. None: a leaf's `value` is added to its tree's output.
        columns: features of a row.
        groups: outputs of a row.
        base: float64 [groups]: what each output's sum starts from; None: 0.
        zeros: bool [columns]: where 0 counts as missing; None: nowhere.
        near_zero: values of at most this size are 0; None: none but 0 is.
        link: maps sums to predictions.
        slope: factor of the sum in the sigmoid.
        divisor: of the sums, before the link.
        threads: most threads of one call.

    Raises:
        KernelsMissing: the compiled kernels are not there.
        ValueError: an index leads out of its tree, out of the row, the sets or the outputs, or nodes form a ring.
    """

    dtype = np.dtype(np.float64)
    function = "serinus_forest64_predict"
    arithmetic = ("engine64", ENGINE64)

    def __init__(
        self,
        trees: Trees,
        *,
        sets: Sets | None = None,
        vectors: np.ndarray | None = None,
        columns: int,
        groups: int,
        base: np.ndarray | None = None,
        zeros: np.ndarray | None = None,
        near_zero: float | None = None,
        link: Link = Link.IDENTITY,
        slope: float = 1.0,
        divisor: float = 1.0,
        threads: int = 1,
        library: Library | None = None,
    ) -> None:
        library = library or kernels()
        zeros = np.zeros(columns, np.uint8) if zeros is None else np.ascontiguousarray(zeros, np.uint8)
        if len(zeros) != columns:
            raise ValueError(f"{len(zeros)} flags for {columns} columns")
        base = np.zeros(groups) if base is None else np.ascontiguousarray(base, np.float64)
        if base.shape != (groups,):
            raise ValueError(f"base has shape {list(base.shape)}, the model has {groups} outputs")
        held = np.empty((0, groups)) if vectors is None else np.ascontiguousarray(vectors, np.float64)
        if held.shape != (len(held), groups):
            raise ValueError(f"the leaves' vectors have shape {list(held.shape)}, the model has {groups} outputs")
        order, roots, depths = breadth_first(trees)
        nodes = _pack(trees, sets, order, columns, None if vectors is None else len(held))
        outputs = outputs_of(trees, groups if vectors is None else 1)
        bits = np.ascontiguousarray(sets.bits if sets else [], np.uint32)
        if sets is not None and not len(
            bits
        ):  # nodes may hold empty sets: the walk that knows of sets is chosen by their pointer
            bits = np.zeros(1, np.uint32)
        arrays = nodes, roots, depths, outputs, base, zeros, bits, held
        struct = Struct(
            *(array.ctypes.data for array in arrays[:6]),
            bits.ctypes.data if len(bits) else None,
            held.ctypes.data if vectors is not None else None,
            trees=len(outputs),
            groups=groups,
            columns=columns,
            link=int(link),
            slope=slope,
            divisor=divisor,
            near_zero=0.0 if near_zero is None else near_zero,
        )
        super().__init__(struct, arrays, steps_per_row=int(depths.sum()), threads=threads, library=library)


def _pack(trees: Trees, sets: Sets | None, order: np.ndarray, columns: int, vectors: int | None) -> np.ndarray:
    """Pack the nodes for forest64.c; vectors: how many there are, where leaves hold one."""
    inner, feature, step = lay_out(trees, order, columns)
    value = np.asarray(trees.value, np.float64)[order]
    if vectors is not None:
        number = np.where(inner, 0.0, value)
        if not np.all((number >= 0) & (number < vectors)):
            raise ValueError(f"a leaf's vector is not one of {vectors}")
        value = np.where(inner, value, number.astype(np.uint64).view(np.float64))
    default_left = inner & trees.default_left[order]
    categorical = np.zeros(len(order), bool)
    if sets is not None:
        if len(sets.first) != len(trees.left) or len(sets.words) != len(trees.left):
            raise ValueError("every node needs its place among the sets of categories, or -1")
        first, words = sets.first[order], sets.words[order]
        categorical = inner & (first >= 0)
        if np.any(categorical & ((words < 0) | (words > len(sets.bits)) | (first > len(sets.bits) - words))):
            raise ValueError("a node's categories lead out of their sets")
        packed = first.astype(np.uint64) | (words.astype(np.uint64) << np.uint64(32))
        value = np.where(categorical, packed.view(np.float64), value)
        default_left &= ~categorical
    if np.any(inner & ~categorical & np.isnan(value)):
        raise ValueError("a threshold is no number")
    nodes = np.zeros(len(order), _NODE)
    # As integers: a float register may change the bits of what is no number but a set's place.
    nodes["value"].view(np.uint64)[...] = value.view(np.uint64)
    nodes["feature"] = 2 * feature + default_left + np.where(categorical, _CATEGORY, 0)
    nodes["step"] = step
    return nodes
