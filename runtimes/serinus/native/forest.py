"""`Forest`: a tree ensemble as flat arrays, walked by compiled code (`forest.c`). Knows no framework.

Theory of operation. A framework's reader hands over its trees as arrays (`Trees`), in whatever node order its files have.
`Forest` checks every index once, puts each tree's nodes into breadth-first order with siblings side by side, packs them
(8 bytes a node where feature numbers and distances fit 15 bits, else 12), and keeps everything immutable from then on, so that
any number of threads may predict at once. Small calls keep the GIL (giving it up and taking it again can cost more than the walk);
larger ones release it, and the largest are cut into ranges of rows for a few threads.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .loader import Library, library

__all__ = ["ENGINE", "Forest", "KernelsMissing", "Link", "Trees", "margin_of"]

ENGINE = 1
"""Version of the walk's arithmetic: raised with any change that could change a result, so that old verdicts lapse."""

_NARROW = np.dtype([("value", "<f4"), ("feature", "<u2"), ("step", "<i2")])
_WIDE = np.dtype([("value", "<f4"), ("feature", "<u4"), ("step", "<i4")])
_NARROW_LIMIT = 0x7FFF
_WIDE_LIMIT = 0x7FFFFFFF
_FLOAT32 = np.dtype(np.float32)

QUICK_STEPS = 24_000
"""Steps (rows x trees x depth) up to which a call keeps the GIL: ~25 us at ~1 ns a step, about what a switch of threads costs."""
THREAD_STEPS = 1_000_000
"""Steps worth a thread of their own: ~1 ms, some 20 times what handing work to a pool costs (~50 us)."""


class KernelsMissing(RuntimeError):
    """The compiled kernels are not there; see `serinus.native.build`."""


class Link(enum.IntEnum):
    """What maps margins to predictions; the numbers are those of `forest.h`."""

    IDENTITY = 0
    SIGMOID = 1
    EXP = 2
    HINGE = 3
    SOFTMAX = 4


@dataclass(frozen=True, slots=True)
class Trees:
    """Trees in any node order, all nodes of all trees one after the other; each tree's root is its first node."""

    starts: np.ndarray
    """int64 [trees + 1]: where each tree's nodes begin; the last one is the number of nodes."""
    left: np.ndarray
    """int32 [nodes]: left child, counted from the tree's first node; -1: a leaf."""
    right: np.ndarray
    """int32 [nodes]: right child, likewise."""
    feature: np.ndarray
    """int32 [nodes]: column that an inner node compares."""
    value: np.ndarray
    """float32 [nodes]: an inner node's threshold (x < value goes left), a leaf's output."""
    default_left: np.ndarray
    """bool [nodes]: where a missing value goes."""
    outputs: np.ndarray
    """int32 [trees]: the output (class, target) that each tree adds to."""


class _Struct(ctypes.Structure):
    """`serinus_forest` of forest.h, field by field."""

    _fields_ = [
        ("nodes", ctypes.c_void_p),
        ("roots", ctypes.c_void_p),
        ("depths", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("trees", ctypes.c_uint32),
        ("groups", ctypes.c_uint32),
        ("columns", ctypes.c_uint32),
        ("wide", ctypes.c_uint32),
        ("link", ctypes.c_uint32),
        ("other_missing", ctypes.c_uint32),
        ("missing", ctypes.c_float),
    ]


class Forest:
    """An ensemble ready to predict.

    Args:
        trees: the trees; copied.
        columns: features of a row.
        base: float32 [outputs]: what each output's sum starts from, in margin space.
        link: maps margins to predictions.
        missing: a value that counts as missing, beside NaN.
        threads: most threads of one call.
        kernels: the compiled library; None: the installed one.

    Raises:
        KernelsMissing: the compiled kernels are not there.
        ValueError: an index leads out of its tree, out of the row or out of the outputs, or nodes form a ring.
    """

    def __init__(
        self,
        trees: Trees,
        *,
        columns: int,
        base: np.ndarray,
        link: Link = Link.IDENTITY,
        missing: float = float("nan"),
        threads: int = 1,
        kernels: Library | None = None,
    ) -> None:
        kernels = kernels or library()
        if kernels is None:
            raise KernelsMissing("compiled kernels are missing; build them with: python -m serinus.native.build")
        order, roots, depths = _breadth_first(trees)
        nodes, wide = _pack(trees, order, columns)
        self.columns = columns
        self.groups = len(base)
        self.trees = len(trees.outputs)
        self.link = link
        self.nodes = len(nodes)
        self.bytes = int(nodes.nbytes)
        outputs = np.ascontiguousarray(trees.outputs, np.uint32)
        if len(outputs) and int(outputs.max()) >= self.groups:
            raise ValueError(f"a tree adds to output {int(outputs.max())}, the model has {self.groups}")
        self.steps_per_row = max(1, int(depths.sum()))
        """Comparisons per row, at most: the sum of the trees' depths."""
        self._arrays = nodes, roots, depths, outputs, np.ascontiguousarray(base, np.float32)
        pointers = [array.ctypes.data for array in self._arrays]
        self._struct = _Struct(
            *pointers, self.trees, self.groups, columns, wide, int(link), 0 if np.isnan(missing) else 1, float(missing)
        )
        self._address = ctypes.addressof(self._struct)
        self._quick, self._long = kernels.quick.serinus_forest_predict, kernels.long.serinus_forest_predict
        for function in (self._quick, self._long):
            function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
            function.restype = ctypes.c_int32
        self._quick_rows = max(1, QUICK_STEPS // self.steps_per_row)
        self._thread_rows = max(64, -(-THREAD_STEPS // self.steps_per_row))
        self._threads = max(1, threads)
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()

    def margins(self, rows: np.ndarray) -> np.ndarray:
        """Sum the trees.

        Args:
            rows: float32 [n, columns], C order; NaN is missing.

        Returns:
            float32 [n, groups], fresh.
        """
        margins = np.empty((len(rows), self.groups), _FLOAT32)
        self._run(rows, margins, None)
        return margins

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Sum the trees and apply the link: float32 [n, groups], fresh. `rows` as for `margins`."""
        predictions = np.empty((len(rows), self.groups), _FLOAT32)
        self._run(rows, predictions, predictions)
        return predictions

    def both(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margins and predictions of one walk, each float32 [n, groups], fresh. `rows` as for `margins`."""
        margins = np.empty((len(rows), self.groups), _FLOAT32)
        predictions = np.empty((len(rows), self.groups), _FLOAT32)
        self._run(rows, margins, predictions)
        return margins, predictions

    def close(self) -> None:
        """End the threads; the forest may not predict afterwards."""
        with self._pool_lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _run(self, rows: np.ndarray, margins: np.ndarray, predictions: np.ndarray | None) -> None:
        count = len(rows)
        if rows.shape != (count, self.columns) or rows.dtype != _FLOAT32 or not rows.flags.c_contiguous:
            raise ValueError(
                f"rows must be float32 [n, {self.columns}] in C order, not {rows.dtype.name} {list(rows.shape)}"
            )
        if count == 0:
            return
        if count <= self._quick_rows:
            # A small copy is cheaper than the pointer of a read-only array, which only a slow attribute gives.
            source = rows if rows.flags.writeable else rows.copy()
            into = _address(margins)
            status = self._quick(
                self._address,
                _address(source),
                count,
                into,
                into if predictions is margins else None if predictions is None else _address(predictions),
            )
            if status != 0:
                raise MemoryError("no memory for one block of rows")
            return
        origin, into = rows.ctypes.data, margins.ctypes.data
        onto = 0 if predictions is None else predictions.ctypes.data
        parts = min(self._threads, -(-count // self._thread_rows))
        if parts == 1:
            self._range(origin, into, onto, 0, count)
            return
        # Whole blocks of 64 rows to each thread, so that none walks a ragged one but the last.
        size = -(-count // parts // 64) * 64
        cuts = [(start, min(size, count - start)) for start in range(0, count, size)]
        tasks = [self._executor().submit(self._range, origin, into, onto, *cut) for cut in cuts[1:]]
        try:
            self._range(origin, into, onto, *cuts[0])
        finally:
            for task in tasks:  # before the arrays may go
                task.exception()
        for task in tasks:
            task.result()

    def _range(self, origin: int, into: int, onto: int, start: int, count: int) -> None:
        row_bytes, output_bytes = 4 * self.columns, 4 * self.groups
        status = self._long(
            self._address,
            origin + start * row_bytes,
            count,
            into + start * output_bytes,
            onto + start * output_bytes if onto else None,
        )
        if status != 0:
            raise MemoryError("no memory for one block of rows")

    def _executor(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="serinus-forest")
            return self._pool


def margin_of(link: Link, predictions: np.ndarray) -> np.ndarray:
    """Invert a link in float32, as XGBoost maps a base_score to a margin.

    Args:
        link: SIGMOID or EXP are inverted; the others leave values as they are.
        predictions: float32 [n].

    Raises:
        KernelsMissing: the compiled kernels are not there.
    """
    kernels = library()
    if kernels is None:
        raise KernelsMissing("compiled kernels are missing; build them with: python -m serinus.native.build")
    values = np.array(predictions, _FLOAT32)
    function = kernels.quick.serinus_forest_margin_of
    function.argtypes, function.restype = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int64), None
    function(int(link), values.ctypes.data, len(values))
    return values


def _address(array: np.ndarray, of=ctypes.c_char.from_buffer, address=ctypes.addressof) -> int:
    """Address of a writable, non-empty array: 0.3 us, where `array.ctypes.data` takes 1 us."""
    return address(of(array))


def _breadth_first(trees: Trees) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order all nodes tree by tree, each tree breadth first, siblings side by side.

    Returns:
        order: int64 [nodes kept]: old positions in their new order; nodes that no root reaches are left out.
        roots: uint32 [trees]: new position of each root.
        depths: uint32 [trees]: steps to the deepest leaf.
    """
    count = len(trees.outputs)
    starts = np.asarray(trees.starts, np.int64)
    total = int(starts[-1]) if len(starts) else 0
    if len(starts) != count + 1 or np.any(np.diff(starts) < 1) or len(trees.left) != total:
        raise ValueError("every tree needs at least its root, and `starts` one entry more than there are trees")
    depths = np.zeros(count, np.uint32)
    frontier, owner = starts[:-1], np.arange(count)
    levels, owners, seen = [], [], 0
    level = 0
    while len(frontier):
        seen += len(frontier)
        if seen > total:
            raise ValueError("nodes form a ring, or a node has two parents")
        levels.append(frontier)
        owners.append(owner)
        depths[owner] = level
        inner = trees.left[frontier] != -1
        parent, owner = frontier[inner], owner[inner]
        children = np.stack((trees.left[parent], trees.right[parent]), axis=1).astype(np.int64)
        sizes = (starts[owner + 1] - starts[owner])[:, None]
        if np.any((children < 1) | (children >= sizes)):
            raise ValueError("a child's index leads out of its tree")
        frontier = (children + starts[owner][:, None]).reshape(-1)
        owner = np.repeat(owner, 2)
        level += 1
    if not levels:
        return np.empty(0, np.int64), np.empty(0, np.uint32), depths
    owner = np.concatenate(owners)
    by_tree = np.argsort(owner, kind="stable")
    order = np.concatenate(levels)[by_tree]
    roots = np.searchsorted(owner[by_tree], np.arange(count)).astype(np.uint32)
    return order, roots, depths


def _pack(trees: Trees, order: np.ndarray, columns: int) -> tuple[np.ndarray, int]:
    """Pack the nodes for forest.c; returns them, and 1 where they had to be the wide ones."""
    starts = np.asarray(trees.starts, np.int64)
    left = trees.left[order]
    inner = left != -1
    feature = trees.feature[order].astype(np.int64)
    if np.any(inner & ((feature < 0) | (feature >= columns))):
        raise ValueError(
            f"a node compares column {int(feature[inner].max(initial=0))}, the model has {columns} columns"
        )
    position = np.full(int(starts[-1]) if len(starts) else 0, -1, np.int64)
    position[order] = np.arange(len(order))
    first = starts[np.searchsorted(starts, order, side="right") - 1] if len(order) else order
    step = np.full(len(order), -1, np.int64)
    step[inner] = position[first[inner] + left[inner]] - np.flatnonzero(inner)
    feature = np.where(inner, feature, columns)
    furthest = max(columns, int(step.max(initial=0)))
    if furthest > _WIDE_LIMIT:
        raise ValueError("the model is too large: column numbers and distances between nodes must fit 31 bits")
    wide = int(furthest > _NARROW_LIMIT)
    dtype, default = (_WIDE, 1 << 31) if wide else (_NARROW, 1 << 15)
    nodes = np.zeros(len(order), dtype)
    nodes["value"] = trees.value[order]
    nodes["feature"] = feature | np.where(inner & trees.default_left[order], default, 0)
    nodes["step"] = step
    return nodes, wide
