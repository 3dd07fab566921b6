"""Small scikit-learn models for the tests of sklearn_server and of what stands on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deferred import Deferred
from serinus.settings import ModelSettings
from sklearn_server import SklearnModel

sklearn = Deferred("sklearn")
skops_io = Deferred("skops.io")

LABELS = np.array(["a", "b", "c"])


def rows(count: int = 200, *, missing: float = 0.0, seed: int = 0) -> np.ndarray:
    """Random rows, float64 [count, 4], a share of them missing (NaN)."""
    random = np.random.default_rng(seed)
    made = random.normal(size=(count, 4))
    made[random.random(made.shape) < missing] = np.nan
    return made


def classes(data: np.ndarray, count: int = 3) -> np.ndarray:
    """Classes 0 to `count` - 1 that the first two columns decide."""
    signal = np.nan_to_num(data[:, 0]) + 0.5 * np.nan_to_num(data[:, 1])
    return np.digitize(signal, [0.0] if count == 2 else [-0.5, 0.5])


def save(model: Any, folder: Path, name: str = "model.skops") -> Path:
    """Save a fitted model; the suffix chooses the format."""
    path = folder / name
    if path.suffix == ".skops":
        skops_io.dump(model, path)
    else:
        import joblib

        joblib.dump(model, path, compress=3 if path.suffix == ".gz" else 0)
    return path


def load(path: Path, **settings: Any) -> SklearnModel:
    """Load a model file or folder; keyword arguments are ModelSettings' or, where it has none of that name, the runtime's own."""
    known = {name: settings.pop(name) for name in list(settings) if name in ModelSettings.__dataclass_fields__}
    model = SklearnModel(ModelSettings(name="m", model_dir=path, extra=settings, **known))
    model.load()
    return model
