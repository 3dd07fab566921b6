"""The compiled float64 forest beside LightGBM: us per call for 1 to 4096 rows, with and without missing values.

`python tests/benchmarks/engine64.py`

Each cell is the best of several repeats, one thread on both sides. The model is a binary classifier of 200 trees with 31 leaves
over 30 FP64 features. Raw scores are compared first, and must be equal to the last bit.
"""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path

import lightgbm
import numpy as np
from engine import best_us

from lightgbm_server.forest_reader import choose_iterations, compile_forest
from lightgbm_server.modelfile import read

FEATURES, TREES, LEAVES = 30, 200, 31
ROWS = (1, 4, 16, 64, 256, 1024, 4096)


def model(folder: Path) -> Path:
    """Train the model: noisy labels, so that every tree grows to its leaves."""
    random = np.random.default_rng(7)
    data = random.normal(size=(6000, FEATURES))
    labels = (data[:, :5].sum(axis=1) + 2 * random.normal(size=len(data)) > 0).astype(int)
    settings = {"objective": "binary", "num_leaves": LEAVES, "learning_rate": 0.05, "num_threads": 1, "verbosity": -1}
    path = folder / "model.txt"
    lightgbm.train(settings, lightgbm.Dataset(data, labels), TREES).save_model(path)
    return path


def main() -> None:
    """Run from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        path = model(Path(folder))
        file = read(path)
        booster = lightgbm.Booster(model_file=str(path))
    forest = compile_forest(file, choose_iterations(file, 0, -1), threads=1)
    random = np.random.default_rng(8)
    print(f"lightgbm {lightgbm.__version__}, Python {platform.python_version()}, {platform.machine()}; us per call")
    print("| rows | no value missing | 10 % of the values missing |\n| ---: | ---: | ---: |")
    for count in ROWS:
        cells = []
        for missing in (0.0, 0.1):
            data = random.normal(size=(count, FEATURES))
            data[random.random(data.shape) < missing] = np.nan
            if not np.array_equal(forest.margins(data)[:, 0], booster.predict(data, raw_score=True)):
                raise SystemExit(f"engine64: {count} rows: raw scores differ")
            ours = best_us(lambda data=data: forest.predict(data), 0.25)
            theirs = best_us(lambda data=data: booster.predict(data, num_threads=1), 0.25)
            cells.append(f"{ours:,.1f} / {theirs:,.1f}")
        print(f"| {count} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
