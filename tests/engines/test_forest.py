"""The flat forest by itself: any trees, any nodes' order, any width, any number of threads; and trees that it must refuse."""

from __future__ import annotations

import concurrent.futures
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fuzz
from hypothesis import strategies as st

from representative import every
from serinus.native import build, library
from serinus.native import kernel_library as loader
from serinus.native.trees import walker
from serinus.native.trees.forest import Forest, Link, Trees, margin_of

LANES = [lanes for lanes in (0, 8, 16) if lanes <= library().quick.serinus_forest_lanes()]
"""Every way of this machine to walk a tree: row by row, and by its vector instructions."""


def _random_trees(random: np.random.Generator, count: int, columns: int, depth: int, groups: int) -> Trees:
    """Grow random trees whose nodes lie in a random order, roots first."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("left", "right", "feature", "value", "default_left")}
    starts = [0]
    for _ in range(count):
        children = {0: None}
        frontier = [(0, 0)]
        while frontier:
            node, level = frontier.pop(int(random.integers(len(frontier))))
            if level < depth and random.random() < 0.85:
                left, right = len(children), len(children) + 1
                children[node] = (left, right)
                children[left] = children[right] = None
                frontier += [(left, level + 1), (right, level + 1)]
        size = len(children)
        order = np.concatenate(([0], 1 + random.permutation(size - 1)))
        left, right = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
        for node, pair in children.items():
            if pair is not None:
                left[order[node]], right[order[node]] = order[pair[0]], order[pair[1]]
        parts["left"].append(left)
        parts["right"].append(right)
        parts["feature"].append(random.integers(0, columns, size).astype(np.int32))
        parts["value"].append(random.choice([-1.0, 0.0, 0.5, 1.0, np.inf, -np.inf], size).astype(np.float32))
        parts["value"][-1][left == -1] = random.normal(size=int((left == -1).sum()))
        # Nothing below -infinity could go left there but a missing value, which the engine refuses; see below.
        parts["default_left"].append((random.random(size) < 0.5) & (parts["value"][-1] > -np.inf))
        starts.append(starts[-1] + size)
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return Trees(starts=np.array(starts), outputs=random.integers(0, groups, count).astype(np.int32), **joined)


_NO_TREES = Trees(
    starts=np.zeros(1, np.int64),
    left=np.empty(0, np.int32),
    right=np.empty(0, np.int32),
    feature=np.empty(0, np.int32),
    value=np.empty(0, np.float32),
    default_left=np.empty(0, np.bool_),
    outputs=np.empty(0, np.int32),
)


def _walk(trees: Trees, rows: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Walk the trees as written, node by node, in Python: float32 [n, groups]."""
    sums = np.tile(base.astype(np.float32), (len(rows), 1))
    for number, output in enumerate(trees.outputs):
        start = trees.starts[number]
        for index, row in enumerate(rows):
            node = 0
            while trees.left[start + node] != -1:
                value = row[trees.feature[start + node]]
                left = trees.default_left[start + node] if np.isnan(value) else value < trees.value[start + node]
                node = (trees.left if left else trees.right)[start + node]
            sums[index, output] += trees.value[start + node]
    return sums


def _random_rows(random: np.random.Generator, count: int, columns: int, *, missing: bool) -> np.ndarray:
    values = [-2.0, -1.0, -0.0, 0.0, 0.25, 0.5, 1.0, np.inf, -np.inf] + [np.nan] * (3 * missing)
    return random.choice(values, (count, columns)).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    trees=st.integers(0, 21),
    columns=st.integers(1, 40),
    depth=st.integers(0, 7),
    groups=st.integers(1, 4),
    rows=st.integers(0, 80),
    missing=st.booleans(),
)
@fuzz(max_examples=60, deadline=None)
def test_every_row_ends_in_the_leaf_that_a_plain_walk_finds(
    seed: int, trees: int, columns: int, depth: int, groups: int, rows: int, missing: bool
) -> None:
    random = np.random.default_rng(seed)
    made = _random_trees(random, trees, columns, depth, groups) if trees else _NO_TREES
    base = random.normal(size=groups).astype(np.float32)
    data = _random_rows(random, rows, columns, missing=missing)
    wanted = _walk(made, data, base)
    for lanes in LANES:
        forest = Forest(made, columns=columns, base=base, lanes=lanes)
        np.testing.assert_array_equal(forest.margins(data), wanted, err_msg=f"{lanes} lanes")


def test_vectors_are_used_wherever_the_machine_has_them() -> None:
    trees = _random_trees(np.random.default_rng(6), 20, 5, 6, 1)
    for lanes in LANES:
        assert Forest(trees, columns=5, base=np.zeros(1), lanes=lanes).lanes == lanes
    assert Forest(trees, columns=5, base=np.zeros(1)).lanes == max(LANES)


@pytest.mark.parametrize("lanes", [lanes for lanes in (8, 16) if lanes in LANES])
@pytest.mark.parametrize("depth", range(9))
@pytest.mark.parametrize("columns", every(3, [30, 1, 1000]))
def test_vectors_give_the_bits_of_the_plain_walk_at_every_depth_and_width(depth: int, columns: int, lanes: int) -> None:
    random = np.random.default_rng(depth)
    trees = _random_trees(random, 25, columns, depth, 3)
    base = random.normal(size=3).astype(np.float32)
    plain = Forest(trees, columns=columns, base=base, lanes=0)
    made = Forest(trees, columns=columns, base=base, lanes=lanes)
    assert made.lanes == lanes
    for rows in (3, 4, 15, 16, 20, 63, 64, 67, 68, 200):
        for missing in (False, True):
            data = _random_rows(random, rows, columns, missing=missing)
            np.testing.assert_array_equal(made.margins(data), plain.margins(data), err_msg=f"{rows} rows")


def test_trees_too_deep_too_ragged_or_of_too_many_outputs_are_walked_without_vectors() -> None:
    random = np.random.default_rng(7)
    deep = _random_trees(random, 4, 3, 12, 1)
    assert Forest(deep, columns=3, base=np.zeros(1)).lanes == 0
    many = _random_trees(random, 70, 3, 4, 65)
    assert Forest(many, columns=3, base=np.zeros(65)).lanes == 0
    # A chain of eight: 17 nodes, where a complete tree has 511.
    size = 17
    inner = (np.arange(size) % 2 == 0) & (np.arange(size) < size - 1)
    chain = Trees(
        starts=np.array([0, size]),
        left=np.where(inner, np.arange(size) + 1, -1).astype(np.int32),
        right=np.where(inner, np.arange(size) + 2, -1).astype(np.int32),
        feature=np.zeros(size, np.int32),
        value=random.normal(size=size).astype(np.float32),
        default_left=np.zeros(size, np.bool_),
        outputs=np.zeros(1, np.int32),
    )
    data = random.normal(size=(64, 1)).astype(np.float32)
    made = Forest(chain, columns=1, base=np.zeros(1))
    assert made.lanes == 0
    np.testing.assert_array_equal(made.margins(data), _walk(chain, data, np.zeros(1)))


@pytest.mark.parametrize("columns", [0x7FFE, 0x7FFF, 0x8000, 70_000])
def test_wide_rows_take_wide_nodes_and_the_heap(columns: int) -> None:
    random = np.random.default_rng(1)
    trees = _random_trees(random, 9, columns, 4, 1)
    trees.feature[:3] = columns - 1
    data = _random_rows(random, 19, columns, missing=True)
    made = Forest(trees, columns=columns, base=np.zeros(1))
    assert made.bytes == made.nodes * (12 if columns > 0x7FFF else 8)
    np.testing.assert_array_equal(made.margins(data), _walk(trees, data, np.zeros(1)))


def test_a_tree_too_broad_for_narrow_nodes_takes_wide_ones() -> None:
    depth = 16
    size = 2 ** (depth + 1) - 1
    inner = np.arange(size) < 2**depth - 1
    random = np.random.default_rng(2)
    trees = Trees(
        starts=np.array([0, size]),
        left=np.where(inner, 2 * np.arange(size) + 1, -1).astype(np.int32),
        right=np.where(inner, 2 * np.arange(size) + 2, -1).astype(np.int32),
        feature=random.integers(0, 3, size).astype(np.int32),
        value=random.normal(size=size).astype(np.float32),
        default_left=random.random(size) < 0.5,
        outputs=np.zeros(1, np.int32),
    )
    data = random.normal(size=(40, 3)).astype(np.float32)
    made = Forest(trees, columns=3, base=np.zeros(1))
    assert made.bytes == 12 * size
    np.testing.assert_array_equal(made.margins(data), _walk(trees, data, np.zeros(1)))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_rows_shared_among_threads_come_back_in_their_places(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walker, "THREAD_STEPS", 1)
    monkeypatch.setattr(walker, "QUICK_STEPS", 1)
    random = np.random.default_rng(3)
    trees = _random_trees(random, 12, 5, 5, 2)
    made = Forest(trees, columns=5, base=np.zeros(2), threads=threads, link=Link.SIGMOID)
    alone = Forest(trees, columns=5, base=np.zeros(2), link=Link.SIGMOID)
    for count in (1, 63, 64, 65, 129, 1000):
        data = _random_rows(random, count, 5, missing=True)
        for got, wanted in zip(made.both(data), alone.both(data), strict=True):
            np.testing.assert_array_equal(got, wanted)
    made.close()


def test_many_callers_at_once_do_not_disturb_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walker, "THREAD_STEPS", 1)
    monkeypatch.setattr(walker, "QUICK_STEPS", 1)
    random = np.random.default_rng(4)
    trees = _random_trees(random, 30, 5, 6, 1)
    made = Forest(trees, columns=5, base=np.zeros(1), threads=3)
    blocks = [_random_rows(random, 200, 5, missing=True) for _ in range(32)]
    wanted = [_walk(trees, block, np.zeros(1)) for block in blocks[:4]]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(made.margins, blocks[:4] * 20))
    for index, margins in enumerate(got):
        np.testing.assert_array_equal(margins, wanted[index % 4])
    made.close()


def test_another_missing_value_goes_where_nan_goes() -> None:
    random = np.random.default_rng(5)
    trees = _random_trees(random, 10, 4, 5, 1)
    data = _random_rows(random, 50, 4, missing=True)
    marked = np.where(np.isnan(data), np.float32(0.25), data)
    made = Forest(trees, columns=4, base=np.zeros(1), missing=0.25)
    np.testing.assert_array_equal(
        made.margins(marked), _walk(trees, np.where(marked == 0.25, np.nan, marked), np.zeros(1))
    )


def _tree(**changed: object) -> Trees:
    """A tree of one split, with some arrays replaced."""
    arrays: dict = {
        "starts": [0, 3],
        "left": [1, -1, -1],
        "right": [2, -1, -1],
        "feature": [0, 0, 0],
        "value": [0.0, 1.0, 2.0],
        "default_left": [True, False, False],
        "outputs": [0],
        **changed,
    }
    kinds = {"starts": np.int64, "value": np.float32, "default_left": np.bool_}
    return Trees(**{name: np.array(array, kinds.get(name, np.int32)) for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"left": [3, -1, -1]}, "leads out of its tree"),
        ({"left": [-2, -1, -1]}, "leads out of its tree"),
        ({"right": [-1, -1, -1]}, "leads out of its tree"),
        ({"left": [0, -1, -1]}, "leads out of its tree"),
        ({"left": [1, 2, 1], "right": [2, 1, 2]}, "ring"),
        ({"feature": [1, 0, 0]}, "compares column 1, the model has 1"),
        ({"feature": [-1, 0, 0]}, "compares column"),
        ({"outputs": [1]}, "adds to output 1, the model has 1"),
        ({"outputs": [-1]}, "adds to output"),
        ({"starts": [0, 0, 3], "outputs": [0, 0]}, "every tree needs at least its root"),
        ({"starts": [0, 9]}, "every tree needs"),
    ],
    ids=str,
)
def test_an_index_that_would_lead_the_walk_astray_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Forest(_tree(**changed), columns=1, base=np.zeros(1))


def test_nodes_that_no_root_reaches_are_left_out() -> None:
    made = Forest(_tree(starts=[0, 4], left=[1, -1, -1, -1], right=[2, -1, -1, -1], feature=[0] * 4, value=[0, 1, 2, 9],
                        default_left=[False] * 4), columns=1, base=np.zeros(1))  # fmt: skip
    assert made.nodes == 3
    np.testing.assert_array_equal(made.margins(np.array([[-1], [1], [np.nan]], np.float32)), [[1], [2], [2]])


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((2, 2), np.float32),
        np.zeros((2, 1)),
        np.zeros(2, np.float32),
        np.zeros((1, 4), np.float32)[:, ::4].T[:0],
    ],
    ids=["columns", "float64", "rank", "no-columns"],
)
def test_rows_of_another_form_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"rows must be float32 \[n, 1\]"):
        Forest(_tree(), columns=1, base=np.zeros(1)).predict(rows if rows.size else np.zeros((3, 0), np.float32))


@pytest.mark.parametrize(
    ("link", "plain"),
    [
        (Link.IDENTITY, lambda x: x),
        (Link.SIGMOID, lambda x: 1 / (1 + np.exp(-x))),
        (Link.EXP, np.exp),
        (Link.HINGE, lambda x: (x > 0).astype(float)),
        (Link.SOFTMAX, lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)),
    ],
    ids=["identity", "sigmoid", "exp", "hinge", "softmax"],
)
def test_links_are_what_they_are_called(link: Link, plain) -> None:
    margins = np.array([[-3.0, 0.0, 2.5], [80.0, -80.0, 1e-3]], np.float32)
    for row in margins:
        made = Forest(
            _tree(starts=[0, 1], left=[-1], right=[-1], feature=[0], value=[0.0], default_left=[False]),
            columns=1,
            base=row,
            link=link,
        )
        got = made.predict(np.zeros((1, 1), np.float32))
        np.testing.assert_allclose(got, plain(row[None].astype(np.float64)), rtol=3e-7, atol=1e-30)


def test_margin_of_inverts_the_links() -> None:
    values = np.array([0.0, 0.2, 0.5, 1.0], np.float32)
    np.testing.assert_allclose(margin_of(Link.SIGMOID, values)[1:3], [np.log(0.25), 0], atol=1e-7)
    assert np.isfinite(margin_of(Link.SIGMOID, values)).all()
    np.testing.assert_allclose(margin_of(Link.EXP, values[1:]), np.log(values[1:]), rtol=1e-6)
    np.testing.assert_array_equal(margin_of(Link.IDENTITY, values), values)


@pytest.mark.slow  # a process that imports XGBoost
def test_without_the_compiled_kernels_the_booster_serves(tmp_path: Path) -> None:
    from xgboost_support import save, train

    path = save(train(trees=2), tmp_path)
    script = (
        "import sys; sys.modules.update(sklearn=None, pandas=None)\n"  # XGBoost imports them where they are
        "from pathlib import Path; from xgboost_server import XGBoostModel\n"
        "from serinus.settings import ModelSettings\n"
        "model = XGBoostModel(ModelSettings(name='m', model_dir=Path(sys.argv[1]))); model.load()\n"
        "print(model.details['engine'], model.details['engine_reason'])\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "SERINUS_NATIVE": "0", "SERINUS_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("booster compiled kernels are missing")


def test_every_exported_symbol_is_one_that_the_loader_asks_for() -> None:
    folder = Path(build.__file__).parent
    exported = {
        match
        for path in (*folder.rglob("*.h"), *folder.rglob("*.c"))
        for match in re.findall(r"SERINUS_EXPORT \w+ \*?(\w+)\(", path.read_text())
    }
    assert exported == {"serinus_abi", *loader.SYMBOLS}


def test_a_missing_value_that_goes_left_below_minus_infinity_is_refused() -> None:
    with pytest.raises(ValueError, match="no number above -infinity"):
        Forest(
            _tree(value=[-np.inf, 1.0, 2.0], default_left=[True, False, False]),
            columns=1,
            base=np.zeros(1),
        )
