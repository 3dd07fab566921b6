"""Fuzz what stands between a model file's arrays and the compiled walks: `model_arrays.py FILE... [--seconds N]`.

The C code trusts the indices of its arrays; Python checks them before (`Forest`, `Forest64`, `MLP`). Any bytes are read as a model's
arrays here, right or wrong. Either they are refused with a ValueError, or the kernels answer as a plain walk in Python does.
Run it with a library that AddressSanitizer watches (`run.py` does, and tests/native/test_fuzz.py).

Without `--seconds` the files are replayed. With it their bytes are changed at random, and what ends otherwise than all before (another
message, another form of model) is changed further.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from serinus.native.dense.mlp_kernel import MLP, Kind, Step
from serinus.native.kernel_library import Library, library_path
from serinus.native.trees.forest import Forest, Trees
from serinus.native.trees.forest64 import Forest64, Sets

T = TypeVar("T")

THRESHOLDS = (0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 1e30, np.inf, -np.inf, np.nan, 3e-36, 33.0)
CELLS = (0.0, -0.0, 0.25, 0.5, 1.0, -1.0, 2.5, 33.0, 1e30, np.inf, -np.inf, np.nan, np.nan)
FAR = {127: 2**62, 126: 2**63 - 1, -128: -(2**62)}
"""What some small numbers stand for where a file has 64 bits for them."""


class Refused(Exception):
    """The arrays make no model, and its maker says so."""


def _made(maker: Callable[..., T], *arrays: Any, **options: Any) -> T:
    try:
        return maker(*arrays, **options)
    except ValueError as error:
        raise Refused(str(error)) from error


class Reader:
    """Small numbers out of bytes; zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def signed(self, count: int) -> np.ndarray:
        """int8 values as int32 [count]."""
        return np.array([(self.byte() + 128) % 256 - 128 for _ in range(count)], np.int32)


def _columns(reader: Reader) -> int:
    chosen = reader.byte()
    return 40_000 if chosen > 250 else chosen % 40  # beyond 2^15 - 1 nodes are the wide ones


def _trees(reader: Reader, dtype: type) -> Trees:
    sizes = [reader.byte() % 24 for _ in range(reader.byte() % 6)]
    total = sum(sizes)
    left, right, feature = reader.signed(total), reader.signed(total), reader.signed(total)
    value = np.array([THRESHOLDS[reader.byte() % len(THRESHOLDS)] for _ in range(total)], dtype)
    default_left = np.array([reader.byte() & 1 for _ in range(total)], bool)
    return Trees(np.cumsum([0, *sizes]), left, right, feature, value, default_left, reader.signed(len(sizes)))


def _rows(reader: Reader, columns: int, dtype: type) -> np.ndarray:
    count = reader.byte() % 80
    draw = np.random.default_rng(reader.byte())
    return draw.choice(np.array(CELLS, dtype), (count, columns))


def _goes_left(x: float, trees: Trees, node: int) -> bool:
    return bool(trees.default_left[node]) if np.isnan(x) else bool(x < trees.value[node])


def _goes_left64(x: float, trees: Trees, node: int, sets: Sets | None) -> bool:
    if sets is not None and sets.first[node] >= 0:
        if not -1.0 < x < 32.0 * sets.words[node]:
            return False
        return bool(sets.bits[sets.first[node] + int(x) // 32] >> np.uint32(int(x) % 32) & 1)
    return bool(trees.default_left[node]) if np.isnan(x) else bool(x <= trees.value[node])


def _plain(trees: Trees, sums: np.ndarray, rows: np.ndarray, goes_left) -> np.ndarray:
    """Walk node by node, as the arrays say."""
    for tree, output in enumerate(trees.outputs):
        start = int(trees.starts[tree])
        for at, row in enumerate(rows):
            node, steps = start, 0
            while trees.left[node] != -1:
                node = start + int(
                    (trees.left if goes_left(row[trees.feature[node]], trees, node) else trees.right)[node]
                )
                steps += 1
                assert steps <= len(trees.left), "a ring was accepted"
            sums[at, output] += trees.value[node]
    return sums


def forest(reader: Reader, library: Library) -> tuple:
    columns, groups = _columns(reader), reader.byte() % 4
    trees = _trees(reader, np.float32)
    base = np.arange(groups, dtype=np.float32)
    made = _made(Forest, trees, columns=columns, base=base, library=library)
    rows = _rows(reader, columns, np.float32)
    expected = _plain(trees, np.tile(base, (len(rows), 1)), rows, _goes_left)
    np.testing.assert_array_equal(made.margins(rows), expected)
    return made.lanes, made.trees, made.steps_per_row.bit_length(), len(rows).bit_length(), columns > 40


def forest64(reader: Reader, library: Library) -> tuple:
    columns, groups = _columns(reader), reader.byte() % 4
    trees = _trees(reader, np.float64)
    zeros = np.array([reader.byte() & 1 for _ in range(min(columns, 40))] + [0] * max(0, columns - 40), bool)
    sets = None
    if reader.byte() & 1:
        first, words = (
            np.array([FAR.get(n, n) for n in reader.signed(len(trees.left)).tolist()], np.int64) for _ in range(2)
        )
        sets = Sets(first, words, reader.signed(reader.byte() % 8).astype(np.uint32))
    made = _made(
        Forest64,
        trees,
        sets=sets,
        columns=columns,
        groups=groups,
        zeros=zeros,
        near_zero=np.float32(1e-35),
        library=library,
    )
    rows = _rows(reader, columns, np.float64)
    seen = np.where(np.abs(rows) <= np.float32(1e-35), np.where(zeros, np.nan, 0.0), rows)
    expected = _plain(trees, np.zeros((len(rows), groups)), seen, lambda x, t, node: _goes_left64(x, t, node, sets))
    np.testing.assert_array_equal(made.margins(rows), expected)
    return sets is not None, made.trees, made.steps_per_row.bit_length(), len(rows).bit_length(), columns > 40


def _vector(reader: Reader, dtype: type) -> np.ndarray | None:
    rank = reader.byte() % 4
    if rank == 0:
        return None
    shape = tuple(reader.byte() % 80 for _ in range(min(rank, 2)))
    return (reader.signed(1)[0] + np.arange(np.prod(shape, dtype=int))).reshape(shape).astype(dtype)


def network(reader: Reader, library: Library) -> tuple:
    steps = []
    for _ in range(reader.byte() % 12):
        kind, source, outputs = Kind(reader.byte() % len(Kind)), int(reader.signed(1)[0]), reader.byte()
        outputs = 2048 - 250 + outputs if outputs > 245 else outputs  # about as wide as the workspace
        first = _vector(reader, np.int32 if kind == Kind.SELECT else np.float64)
        steps.append(Step(kind, source, outputs, first, _vector(reader, np.float64), int(reader.signed(1)[0])))
    made = _made(MLP, steps, library=library)
    rows = _rows(reader, made.columns + reader.byte() % 2, np.float32)
    answers = made.predict(rows)
    assert len(answers) == len(rows)
    return tuple(sorted({step.kind for step in steps})), len(rows).bit_length()


TARGETS = (forest, forest64, network)


def run(data: bytes, library: Library) -> tuple:
    """Read `data` as a model and use it; returns what kind of end it came to.

    Raises:
        Exception: anything but a ValueError of the model's maker is a finding.
    """
    reader = Reader(data)
    target = TARGETS[reader.byte() % len(TARGETS)]
    try:
        return target.__name__, *target(reader, library)
    except Refused as error:
        return target.__name__, re.sub(r"[-\d.]+", "#", str(error))


def mutate(rnd: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Change a few bytes, now and then also the length."""
    changed = bytearray(data)
    for _ in range(rnd.choice((1, 1, 1, 2, 4, 8))):
        at = rnd.randrange(len(changed) + 1)
        choice = rnd.random()
        if choice < 0.6 and at < len(changed):
            changed[at] = rnd.choice(
                (0, 1, 2, 3, 127, 128, 255, changed[at] ^ 1 << rnd.randrange(8), rnd.randrange(256))
            )
        elif choice < 0.75:
            changed[at:at] = bytes([rnd.randrange(256)])
        elif choice < 0.9:
            del changed[at : at + rnd.randint(1, 3)]
        else:
            other = rnd.choice(others)
            changed[at:] = other[min(at, len(other)) :]
    return bytes(changed[:2048])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0, help="how long to fuzz; 0: replay the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", type=Path, default=library_path(), help="the compiled kernels")
    parser.add_argument(
        "--keep", type=Path, help="folder for what ends otherwise, and for `crash`, the input under way"
    )
    options = parser.parse_args()
    np.seterr(all="ignore")
    library = Library(options.library)
    pool = [path.read_bytes() for path in sorted(options.files)]
    ends = {run(data, library) for data in pool}
    runs, rnd = len(pool), random.Random(options.seed)
    deadline = time.monotonic() + options.seconds
    crash = options.keep / "crash" if options.keep else None
    while time.monotonic() < deadline:
        data = mutate(rnd, rnd.choice(pool), pool)
        if crash is not None:
            crash.write_bytes(data)
        end = run(data, library)
        runs += 1
        if end not in ends:
            ends.add(end)
            pool.append(data)
            if options.keep:
                (options.keep / f"{len(pool):05}").write_bytes(data)
    if crash is not None:
        crash.unlink(missing_ok=True)
    print(f"{runs} inputs, {len(ends)} different ends")


if __name__ == "__main__":
    main()
