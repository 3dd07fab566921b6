"""Send many rows through the compiled forest and through XGBoost, and report the largest difference.

`python tests/benchmarks/engine_equality.py [--rows 10000000]`, or the part `engine` of `make bench`. The rows are split evenly over
three models (binary, multi-class, Poisson) and are a mixture of random values, values on the models' own thresholds and the
neighbouring floats, missing values and infinities. Exit status 1 where a prediction differs by more than 1e-6 (absolute up to 1, relative above).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from xgboost_server.forest_reader import choose_iterations, compile_forest
from xgboost_server.modelfile import read

FEATURES = 30
BLOCK = 100_000
MODELS = {
    "binary:logistic": {"trees": 200, "depth": 6},
    "multi:softprob": {"trees": 40, "depth": 6, "num_class": 5},
    "count:poisson": {"trees": 200, "depth": 6},
}


def train(objective: str, folder: Path) -> Path:
    """Train one model and save it."""
    settings = dict(MODELS[objective])
    trees, depth = settings.pop("trees"), settings.pop("depth")
    random = np.random.default_rng(11)
    data = random.normal(size=(8000, FEATURES)).astype(np.float32)
    data[random.random(data.shape) < 0.1] = np.nan
    signal = np.nansum(data[:, :5], axis=1) + random.normal(size=len(data))
    labels = {
        "binary:logistic": signal > 0,
        "multi:softprob": np.digitize(signal, [-2, -0.5, 0.5, 2]),
        "count:poisson": np.floor(np.exp(signal / 3)),
    }[objective]
    parameters = {"objective": objective, "max_depth": depth, "nthread": 2, "eta": 0.1, **settings}
    path = folder / f"{objective.replace(':', '-')}.ubj"
    xgboost.train(parameters, xgboost.DMatrix(data, labels.astype(np.float32)), trees).save_model(path)
    return path


def block(random: np.random.Generator, count: int, thresholds: list[np.ndarray]) -> np.ndarray:
    """Make one block of rows."""
    data = (random.standard_normal((count, FEATURES), np.float32) * random.choice([0.3, 1, 30], (count, 1))).astype(
        np.float32
    )
    half = count // 2
    for column, values in enumerate(thresholds):
        if len(values):
            picked = random.choice(values, half)
            toward = random.choice(np.array([-np.inf, np.inf], np.float32), half)
            data[:half, column] = np.where(random.random(half) < 0.5, picked, np.nextafter(picked, toward))
    odd = random.random(data.shape, np.float32)
    share = random.choice([0, 0.02, 0.3], (count, 1))
    data[odd < share] = np.nan
    data[odd > 0.999] = np.inf
    data[(odd > 0.998) & (odd < 0.999)] = -np.inf
    return data


def measure(rows: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Compare `rows` rows in all.

    Returns:
        Of each model its objective, its rows, and the largest differences of margins and of predictions.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for objective in MODELS:
            path = train(objective, Path(folder))
            file = read(path)
            forest = compile_forest(file, choose_iterations(file, "all"), missing=float("nan"), threads=1)
            booster = xgboost.Booster()
            booster.load_model(path)
            booster.set_param({"nthread": 1})
            thresholds = []
            for column in range(FEATURES):
                values = [
                    np.asarray(tree["split_conditions"], np.float32)[
                        (np.asarray(tree["left_children"]) != -1) & (np.asarray(tree["split_indices"]) == column)
                    ]
                    for tree in file.model["trees"]
                ]
                thresholds.append(np.concatenate(values))
            random = np.random.default_rng(12)
            worst = {"margin": 0.0, "value": 0.0}
            done, wanted = 0, rows // len(MODELS)
            while done < wanted:
                data = block(random, min(BLOCK, wanted - done), thresholds)
                for kind, got in zip(worst, forest.both(data), strict=True):
                    expected = booster.inplace_predict(data, predict_type=kind).reshape(got.shape)
                    difference = np.abs(got - expected) / np.maximum(1, np.abs(expected))
                    worst[kind] = max(worst[kind], float(difference.max()))
                done += len(data)
            say(
                f"{objective:16} {done:>10,} rows: largest difference {worst['margin']:.3g} in margin, "
                f"{worst['value']:.3g} in prediction"
            )
            found.append(
                {"objective": objective, "rows": done, "margin": worst["margin"], "prediction": worst["value"]}
            )
    return found


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    options = parser.parse_args()
    started = time.perf_counter()
    found = measure(options.rows, lambda text: print(text, flush=True))
    worst = max(max(row["margin"], row["prediction"]) for row in found)
    print(f"largest of all {worst:.3g}; {time.perf_counter() - started:.0f} s; xgboost {xgboost.__version__}")
    return int(worst > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
