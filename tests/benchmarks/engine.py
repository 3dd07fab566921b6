"""The compiled forest beside XGBoost: us per call for rows 1..4096 and trees 50..2000.

`python tests/benchmarks/engine.py [--quick] [--json FILE]`, or the part `engine` of `make bench`.

Each cell is the best of several repeats, one thread on both sides: on a noisy machine the best is what the code costs. The
model is a binary classifier over 30 FP32 features, depth 6, as in the project's other figures. Every answer is compared first.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import timeit
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from xgboost_server.forest_reader import choose_iterations, compile_forest
from xgboost_server.modelfile import read

FEATURES, DEPTH = 30, 6
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
TREES = (50, 200, 500, 1000, 2000)


def model(trees: int, folder: Path) -> Path:
    """Train the model of one column: noisy labels, so that every tree grows to its depth."""
    random = np.random.default_rng(7)
    data = random.normal(size=(6000, FEATURES)).astype(np.float32)
    labels = (data[:, :5].sum(axis=1) + 2 * random.normal(size=len(data)) > 0).astype(np.float32)
    settings = {"objective": "binary:logistic", "max_depth": DEPTH, "eta": 0.05, "tree_method": "hist", "nthread": 2}
    booster = xgboost.train(settings, xgboost.DMatrix(data, labels), trees)
    path = folder / f"{trees}.ubj"
    booster.save_model(path)
    return path


def best_us(call: Any, budget_s: float) -> float:
    """Best time of one call in us, over as many repeats as fit the budget."""
    once = min(timeit.repeat(call, number=1, repeat=3))
    number = max(1, int(budget_s / 5 / max(once, 1e-7)))
    return 1e6 * min(timeit.repeat(call, number=number, repeat=5)) / number


def measure(trees: int, rows: tuple[int, ...], folder: Path, budget_s: float) -> list[dict[str, float]]:
    """Measure one number of trees at every number of rows, with and without missing values."""
    path = model(trees, folder)
    file = read(path)
    forest = compile_forest(file, choose_iterations(file, "all"), missing=float("nan"), threads=1)
    booster = xgboost.Booster()
    booster.load_model(path)
    booster.set_param({"nthread": 1})
    random = np.random.default_rng(8)
    cells = []
    for count in rows:
        for missing in (0.0, 0.1):
            data = random.normal(size=(count, FEATURES)).astype(np.float32)
            data[random.random(data.shape) < missing] = np.nan
            difference = float(np.abs(forest.predict(data)[:, 0] - booster.inplace_predict(data)).max())
            if difference > 1e-6:
                raise SystemExit(f"engine: {trees} trees, {count} rows: answers differ by {difference}")
            ours = best_us(lambda data=data: forest.predict(data), budget_s)
            theirs = best_us(lambda data=data: booster.inplace_predict(data), budget_s)
            cells.append(
                {
                    "trees": trees,
                    "rows": count,
                    "missing": missing,
                    "forest_us": ours,
                    "xgboost_us": theirs,
                    "difference": difference,
                }
            )
    return cells


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cells, shorter repeats")
    parser.add_argument("--json", type=Path, help="file to write the cells to")
    options = parser.parse_args()
    rows, trees = ((1, 64, 1024), (50, 200)) if options.quick else (ROWS, TREES)
    print(
        f"xgboost {xgboost.__version__}, Python {platform.python_version()}, {platform.machine()}; us per call, one thread"
    )
    print(f"{'trees':>6} {'rows':>6} {'missing':>8} {'forest':>10} {'xgboost':>10} {'ratio':>7}")
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for count in trees:
            for cell in measure(count, rows, Path(folder), 0.05 if options.quick else 0.25):
                cells.append(cell)
                ratio = cell["xgboost_us"] / cell["forest_us"]
                print(
                    f"{cell['trees']:>6} {cell['rows']:>6} {cell['missing']:>8.0%} {cell['forest_us']:>10.1f} "
                    f"{cell['xgboost_us']:>10.1f} {ratio:>6.1f}x"
                )
                sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
