"""What `Forest` and `Forest64` share: trees put in order, calls into the compiled walk, and its threads.

Theory of operation. A framework's reader hands over its trees as arrays (`Trees`), in whatever node order its files have. They
are checked and put into breadth-first order once, packed by the subclass, and immutable from then on, so that any number of
threads may predict at once. Small calls keep the GIL (giving it up and taking it again can cost more than the walk); larger
ones release it, and the largest are cut into ranges of rows for a few threads.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..kernel_library import Library, library

__all__ = ["KernelsMissing", "Link", "Struct", "Trees", "Walker", "breadth_first", "kernels", "lay_out", "outputs_of"]

QUICK_STEPS = 24_000
"""Steps (rows x trees x depth) up to which a call keeps the GIL: ~25 us at ~1 ns a step, about what a switch of threads costs."""
THREAD_STEPS = 1_000_000
"""Steps worth a thread of their own: ~1 ms, some 20 times what handing work to a pool costs (~50 us)."""
VECTOR_SPEED = {0: 1, 8: 2, 16: 3}
"""How many steps vectors of so many rows take in the time of one (tests/benchmarks/engine.py)."""

_LIMIT = 0x3FFFFFFF
"""Largest column and distance: both times two fit 31 bits."""


class KernelsMissing(RuntimeError):
    """The compiled kernels are not there; see `serinus.native.build`."""


def kernels() -> Library:
    """Return the compiled library.

    Raises:
        KernelsMissing: it is not there.
    """
    found = library()
    if found is None:
        raise KernelsMissing("compiled kernels are missing; build them with: python -m serinus.native.build")
    return found


class Link(enum.IntEnum):
    """What maps margins to predictions; the numbers are those of `forest.h`."""

    IDENTITY = 0
    SIGMOID = 1
    EXP = 2
    HINGE = 3
    SOFTMAX = 4
    SQUARE = 5
    """x * |x|; `Forest64` only, as the next."""
    LOG1P_EXP = 6


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
    """float32 (`Forest64`: float64) [nodes]: an inner node's threshold (x < value goes left; `Forest64`: x <= value), a leaf's
    output."""
    default_left: np.ndarray
    """bool [nodes]: where a missing value goes."""
    outputs: np.ndarray
    """int32 [trees]: the output (class, target) that each tree adds to."""


class Struct(ctypes.Structure):
    """`serinus_forest` of forest.h, field by field."""

    _fields_ = [
        ("nodes", ctypes.c_void_p),
        ("roots", ctypes.c_void_p),
        ("depths", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("sets", ctypes.c_void_p),
        ("vectors", ctypes.c_void_p),
        ("complete", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("trees", ctypes.c_uint32),
        ("groups", ctypes.c_uint32),
        ("columns", ctypes.c_uint32),
        ("wide", ctypes.c_uint32),
        ("link", ctypes.c_uint32),
        ("other_missing", ctypes.c_uint32),
        ("missing", ctypes.c_float),
        ("lanes", ctypes.c_uint32),
        ("slope", ctypes.c_double),
        ("divisor", ctypes.c_double),
        ("near_zero", ctypes.c_double),
    ]


class Walker:
    """A packed ensemble ready to predict; made by its subclasses.

    Args:
        struct: what the compiled walk reads.
        arrays: what `struct` points to.
        steps_per_row: comparisons per row, at most.
        threads: most threads of one call.
        library: the compiled library.
    """

    dtype: ClassVar[np.dtype]
    """Of rows, margins and predictions."""
    function: ClassVar[str]
    """Symbol of the walk."""
    arithmetic: ClassVar[tuple[str, int]]
    """Name and version of the walk's arithmetic, as verification records have them: raised with any change that could change a
    result, so that old records lapse."""

    def __init__(
        self, struct: Struct, arrays: tuple[np.ndarray, ...], *, steps_per_row: int, threads: int, library: Library
    ) -> None:
        self.columns: int = struct.columns
        self.groups: int = struct.groups
        self.trees: int = struct.trees
        self.link = Link(struct.link)
        self.steps_per_row = max(1, steps_per_row)
        """Comparisons per row, at most: the sum of the trees' depths."""
        self.nodes, self.bytes = len(arrays[0]), int(arrays[0].nbytes)
        self._arrays, self._struct, self._address = arrays, struct, ctypes.addressof(struct)
        self._quick, self._long = getattr(library.quick, self.function), getattr(library.long, self.function)
        for function in (self._quick, self._long):
            function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
            function.restype = ctypes.c_int32
        speed = VECTOR_SPEED[struct.lanes]
        # Arrays without a byte, of a model without columns or outputs, have no address that `_address` could take.
        is_empty = struct.columns == 0 or struct.groups == 0
        self._quick_rows = 0 if is_empty else max(1, speed * QUICK_STEPS // self.steps_per_row)
        self._thread_rows = max(64, -(-speed * THREAD_STEPS // self.steps_per_row))
        self._threads = max(1, threads)
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()

    def margins(self, rows: np.ndarray) -> np.ndarray:
        """Sum the trees.

        Args:
            rows: of `dtype`, [n, columns], C order; NaN is missing.

        Returns:
            [n, groups], fresh.
        """
        margins = np.empty((len(rows), self.groups), self.dtype)
        self._run(rows, margins, None)
        return margins

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Sum the trees and apply the link: [n, groups], fresh. `rows` as for `margins`."""
        predictions = np.empty((len(rows), self.groups), self.dtype)
        self._run(rows, predictions, predictions)
        return predictions

    def both(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margins and predictions of one walk, each [n, groups], fresh. `rows` as for `margins`."""
        margins = np.empty((len(rows), self.groups), self.dtype)
        predictions = np.empty((len(rows), self.groups), self.dtype)
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
        if rows.shape != (count, self.columns) or rows.dtype != self.dtype or not rows.flags.c_contiguous:
            raise ValueError(
                f"rows must be {self.dtype.name} [n, {self.columns}] in C order, not {rows.dtype.name} {list(rows.shape)}"
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
        item = self.dtype.itemsize
        row_bytes, output_bytes = item * self.columns, item * self.groups
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


def _address(array: np.ndarray, of=ctypes.c_char.from_buffer, address=ctypes.addressof) -> int:
    """Address of a writable, non-empty array: 0.3 us, where `array.ctypes.data` takes 1 us."""
    return address(of(array))


def breadth_first(trees: Trees) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order all nodes tree by tree, each tree breadth first, siblings side by side.

    Returns:
        order: int64 [nodes kept]: old positions in their new order; nodes that no root reaches are left out.
        roots: uint32 [trees]: new position of each root.
        depths: uint32 [trees]: steps to the deepest leaf.
    """
    count = len(trees.outputs)
    starts = np.asarray(trees.starts, np.int64)
    total = int(starts[-1]) if len(starts) else 0
    if len(starts) != count + 1 or starts[0] != 0 or np.any(np.diff(starts) < 1) or len(trees.left) != total:
        raise ValueError("every tree needs at least its root, and `starts` one entry more than there are trees")
    for name in ("right", "feature", "value", "default_left"):
        if len(getattr(trees, name)) != total:
            raise ValueError(f"{name!r} has {len(getattr(trees, name))} entries, the trees have {total} nodes")
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
    # Fewer nodes than there are may be reached, and yet one of them twice: its siblings could not lie beside it both times.
    if np.bincount(order, minlength=total).max() > 1:
        raise ValueError("nodes form a ring, or a node has two parents")
    roots = np.searchsorted(owner[by_tree], np.arange(count)).astype(np.uint32)
    return order, roots, depths


def lay_out(trees: Trees, order: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Say of every node in `order` whether it is an inner one, the column it reads, and the step to its left child.

    Raises:
        ValueError: a column or a distance does not fit.
    """
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
    if furthest > _LIMIT:
        raise ValueError("the model is too large: column numbers and distances between nodes must fit 30 bits")
    return inner, feature, step


def outputs_of(trees: Trees, groups: int) -> np.ndarray:
    """Return the output that each tree adds to: uint32 [trees].

    Raises:
        ValueError: there is no such output.
    """
    outputs = np.ascontiguousarray(trees.outputs, np.uint32)
    if len(outputs) and int(outputs.max()) >= groups:
        raise ValueError(f"a tree adds to output {int(outputs.max())}, the model has {groups}")
    return outputs
