"""Cases for `programs/cases.c`: what the kernels of some wheel must answer, computed by those of this machine.

What is plain arithmetic must come out to the bit. Links and logarithms are the C library's, whose last bits differ from one processor
to another: those are held to a few units in the last place.
"""

from __future__ import annotations

import ctypes
import random
import struct
from dataclasses import dataclass

import numpy as np

from protocol_support import ODD_NUMBERS, body, random_body, tensor_json
from serinus.native import library
from serinus.native.dense import mlp_kernel
from serinus.native.dense.mlp_kernel import Kind, Step
from serinus.native.trees.forest import Forest, Link, Trees
from serinus.native.trees.forest64 import Forest64, Sets
from serinus.native.trees.walker import Walker
from serinus.protocol.json_kernel import _Area

__all__ = ["LANES", "Case", "all_cases", "answers", "complete_trees", "random_rows", "records"]

JSON_TAKE, FOREST, FOREST64, MLP, LANES = range(5)
LAST_PLACES = 8
"""Units in the last place that the C libraries of two processors may be apart; a softmax divides by their sum."""


@dataclass(frozen=True)
class Case:
    """A call, and what it must answer."""

    name: str
    function: int
    arrays: tuple[bytes, ...]
    expected: tuple[bytes, ...]
    floats: type | None = None
    """Type of the last answer's numbers where they need not be the same to the bit."""

    def check(self, found: list[bytes]) -> None:
        exact = len(self.expected) - (self.floats is not None)
        assert tuple(found[:exact]) == self.expected[:exact], self.name
        if self.floats is not None:
            one, other = (np.frombuffer(answer, self.floats) for answer in (found[-1], self.expected[-1]))
            np.testing.assert_array_equal(np.isnan(one), np.isnan(other), err_msg=self.name)
            numbers = np.isfinite(other)
            np.testing.assert_array_equal(one[~numbers], other[~numbers], err_msg=self.name)
            np.testing.assert_array_max_ulp(one[numbers], other[numbers], LAST_PLACES, self.floats)


def records(cases: list[Case]) -> bytes:
    """All cases as the program reads them."""
    parts = []
    for case in cases:
        parts.append(struct.pack("<II", case.function, len(case.arrays)))
        for array in case.arrays:
            parts += [struct.pack("<Q", len(array)), array]
    return b"".join(parts)


def answers(output: bytes) -> list[bytes]:
    """Cut the program's output into its results."""
    found, at = [], 0
    while at < len(output):
        (size,) = struct.unpack_from("<Q", output, at)
        found.append(output[at + 8 : at + 8 + size])
        at += 8 + size
    return found


def _json_case(document: bytes) -> Case:
    native = library()
    assert native is not None
    take = native.quick.serinus_json_take
    take.argtypes, take.restype = (ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(_Area)), ctypes.c_int32
    skeleton, values = np.zeros(65536, np.uint8), np.zeros(4 * len(document) + 64, np.uint8)
    aligned = np.zeros(len(values) // 8 + 1, np.float64).view(np.uint8)
    area = _Area(skeleton.ctypes.data, len(skeleton), aligned.ctypes.data, 4 * len(document) + 64, 0, -1, 0, 0)
    used = int(take(document, len(document), ctypes.byref(area)))
    expected = (struct.pack("<q", used),)
    if used >= 0:
        learnt = struct.pack("<4q", area.id_offset, area.id_length, area.tensors, area.values_used)
        expected += (learnt, skeleton[:used].tobytes(), aligned[: area.values_used].tobytes())
    return Case(f"JSON {document[:200]!r}", JSON_TAKE, (document,), expected)


def _json_cases() -> list[Case]:
    rnd = random.Random(5)
    bodies = [random_body(rnd) for _ in range(3000)]
    numbers = [
        repr(value)
        for value in np.random.default_rng(6).integers(0, 2**64, 20_000, np.uint64).view(np.float64).tolist()
    ]
    numbers = [text for text in numbers if "n" not in text]
    numbers += [f"{float(text):.{digits}g}" for digits in (3, 15, 19) for text in numbers[:5000]]
    for datatype in ("FP64", "FP32"):
        bodies.append(b'{"inputs":[{"datatype":"%b","data":[%b]}]}' % (datatype.encode(), ",".join(numbers).encode()))
        bodies += [
            b'{"inputs":[{"datatype":"%b","data":[%b]}]}' % (datatype.encode(), text.encode())
            for text in (*ODD_NUMBERS, "0." + "0" * 100_000 + "1e100001", "1" + "9" * 400 + "e-400")
        ]
    for datatype in ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"):
        info = np.iinfo(datatype.lower())
        bodies.append(body(tensor_json(datatype, [2], [int(info.min), int(info.max)]), id="é"))
    return [_json_case(document) for document in bodies]


def complete_trees(count: int, depth: int, columns: int, groups: int, dtype: type, draw: np.random.Generator) -> Trees:
    """Trees with every node down to `depth`, and random columns, thresholds and leaves."""
    size = 2 ** (depth + 1) - 1
    numbers = np.arange(size)
    inner = numbers < 2**depth - 1
    value = draw.choice(np.array([-1.0, 0.0, 0.5, 1.0, np.inf], dtype), count * size)
    leaves = np.tile(~inner, count)
    value[leaves] = draw.normal(size=int(leaves.sum()))
    return Trees(
        starts=np.arange(count + 1) * size,
        left=np.tile(np.where(inner, 2 * numbers + 1, -1), count).astype(np.int32),
        right=np.tile(np.where(inner, 2 * numbers + 2, -1), count).astype(np.int32),
        feature=draw.integers(0, columns, count * size).astype(np.int32),
        value=value,
        default_left=draw.random(count * size) < 0.5,
        outputs=draw.integers(0, groups, count).astype(np.int32),
    )


def random_rows(count: int, columns: int, dtype: type, missing: bool, draw: np.random.Generator) -> np.ndarray:
    """Rows of few different values, infinities among them, and NaN where `missing`."""
    cells = [-2.0, -1.0, -0.0, 0.0, 0.25, 0.5, 1.0, 37.0, np.inf, -np.inf] + [np.nan] * (3 * missing)
    return draw.choice(np.array(cells, dtype), (count, columns))


def _forest_case(made: Walker, function: int, rows: np.ndarray, name: str) -> Case:
    arrays = [array.tobytes() for array in made._arrays[:7]]
    if function == FOREST:
        arrays[5:] = [b"", b""]
    margins, predictions = made.both(rows)
    return Case(
        f"{name}, {made.trees} trees, {rows.shape} rows, {made.link.name}",
        function,
        (bytes(made._struct), *arrays, rows.tobytes()),
        (margins.tobytes(), predictions.tobytes()),
        rows.dtype.type,
    )


def _forest_cases() -> list[Case]:
    draw = np.random.default_rng(8)
    cases = []
    for link in Link:
        for columns, depth, groups in ((1, 0, 1), (7, 3, 3), (30, 6, 2), (3000, 5, 1), (40_000, 2, 1)):
            for count, missing in ((1, False), (3, True), (67, False), (67, True)):
                if link not in (Link.SQUARE, Link.LOG1P_EXP):
                    trees = complete_trees(19, depth, columns, groups, np.float32, draw)
                    made = Forest(trees, columns=columns, base=draw.normal(size=groups), link=link)
                    cases.append(
                        _forest_case(made, FOREST, random_rows(count, columns, np.float32, missing, draw), "float32")
                    )
                if link == Link.HINGE:
                    continue
                trees = complete_trees(19, depth, columns, groups, np.float64, draw)
                nodes = len(trees.left)
                sets = None
                if missing:
                    first = np.where(draw.random(nodes) < 0.3, draw.integers(0, 3, nodes), -1)
                    sets = Sets(first, np.where(first >= 0, 2, 0), draw.integers(0, 2**32, 4, np.uint32))
                zeros = draw.random(columns) < 0.3
                exact = Forest64(
                    trees,
                    sets=sets,
                    columns=columns,
                    groups=groups,
                    zeros=zeros,
                    near_zero=1e-35,
                    link=link,
                    slope=1.5,
                    divisor=2.0,
                )
                cases.append(
                    _forest_case(exact, FOREST64, random_rows(count, columns, np.float64, missing, draw), "float64")
                )
    return cases


def _network_case(steps: list[Step], rows: np.ndarray, name: str, *, exact: bool) -> Case:
    made = mlp_kernel.MLP(steps)
    places = {array.ctypes.data: array for array in made._arrays}
    data, offsets = b"", {}
    for address, array in places.items():
        offsets[address] = len(data) + 1
        data += array.tobytes() + b"\0" * (-array.nbytes % 8)
    structs = type(made._steps).from_buffer_copy(bytes(made._steps))
    for step in structs:
        step.first, step.second = (offsets[at] if at else None for at in (step.first, step.second))
    answer = made.predict(rows).tobytes()
    arrays = bytes(structs), data, rows.tobytes(), struct.pack("<q", rows.shape[1])
    return Case(name, MLP, arrays, (answer,), None if exact else np.float64)


def _network_cases() -> list[Case]:
    draw = np.random.default_rng(9)
    cases = []
    for width, hidden in ((1, 1), (5, 16), (9, 64), (13, 67), (3, 33)):
        for logarithms in (False, True):
            select = Step(Kind.SELECT, -1, width, draw.permutation(14)[:width])
            steps = [select, Step(Kind.ASINH if logarithms else Kind.RELU, 0, width)]
            steps += [
                Step(Kind.AFFINE, 1, width, draw.normal(size=width), draw.normal(size=width)),
                Step(Kind.FILL, 2, width, numbers=(0.5, 3.0, -3.0)),
                Step(Kind.DENSE, 3, hidden, draw.normal(size=hidden), draw.normal(size=(width, hidden))),
                Step(Kind.RELU, 4, hidden),
                Step(Kind.DENSE, 5, width, None, draw.normal(size=(hidden, width)), 3, (-1.0, 0.0, 0.0)),
                Step(Kind.NORM, 6, 1),
            ]
            steps += [Step(Kind.LOG, 7, 1)] if logarithms else []
            rows = random_rows(20, 14, np.float32, True, draw)
            cases.append(_network_case(steps, rows, f"network {width} x {hidden}", exact=not logarithms))
    return cases


def all_cases() -> list[Case]:
    """Every kernel over many inputs."""
    return [*_json_cases(), *_forest_cases(), *_network_cases()]
