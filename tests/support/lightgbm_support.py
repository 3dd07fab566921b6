"""Small LightGBM models to serve: every objective, missing kind and split kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deferred import Deferred
from lightgbm_server import LightGBMModel
from serinus.settings import ModelSettings

lightgbm = Deferred("lightgbm")

OBJECTIVES: dict[str, dict[str, Any]] = {
    "binary": {"sigmoid": 0.7},
    "multiclass": {"num_class": 4},
    "multiclassova": {"num_class": 4, "sigmoid": 1.3},
    "cross_entropy": {},
    "cross_entropy_lambda": {},
    "regression": {},
    "regression_l1": {},
    "huber": {},
    "fair": {},
    "quantile": {"alpha": 0.8},
    "mape": {},
    "poisson": {},
    "gamma": {},
    "tweedie": {},
    "lambdarank": {},
    "rank_xendcg": {},
}
"""Every objective that the compiled engine covers, with parameters that are not the defaults where it has some."""


def rows(count: int, *, seed: int = 0, missing: float = 0.1, zeros: float = 0.1) -> np.ndarray:
    """Random rows, float64 [count, 6]: four numbers, two categories (codes 0 to 5 and 0 to 69)."""
    random = np.random.default_rng(seed)
    made = random.normal(size=(count, 6))
    made[:, 4], made[:, 5] = random.integers(0, 6, count), random.integers(0, 70, count)
    made[random.random(made.shape) < zeros] = 0.0
    made[random.random(made.shape) < missing] = np.nan
    return made


def train(
    objective: str = "binary",
    *,
    trees: int = 8,
    leaves: int = 12,
    seed: int = 0,
    categorical: bool = False,
    data: np.ndarray | None = None,
    **parameters: Any,
) -> lightgbm.Booster:
    """Train a small Booster whose labels suit its objective."""
    data = rows(500, seed=seed) if data is None else data
    random = np.random.default_rng(seed + 1)
    signal = np.nansum(data[:, :3], axis=1) + 0.3 * random.normal(size=len(data))
    if categorical:
        signal += 2 * np.isin(data[:, 4], [1, 4]) - 2 * (np.nan_to_num(data[:, 5]) % 3 == 0)
    settings = {
        "objective": objective,
        "num_leaves": leaves,
        "min_data_in_leaf": 3,
        "min_data_per_group": 3,
        "cat_smooth": 1.0,
        "num_threads": 1,
        "verbosity": -1,
        "seed": seed,
        **OBJECTIVES.get(objective, {}),
        **parameters,
    }
    groups = None
    if objective.startswith("multiclass"):
        label = np.digitize(signal, [-1.0, 0.0, 1.0])
    elif objective in ("binary", "lambdarank", "rank_xendcg"):
        label = (signal > 0).astype(int)
        groups = [20] * (len(data) // 20) if objective != "binary" else None
    elif objective.startswith("cross_entropy"):
        label = 1 / (1 + np.exp(-signal))
    elif objective in ("poisson", "gamma", "tweedie"):
        label = np.exp(signal / 3) + 0.1
    else:
        label = signal
    names = [f"f{column}" for column in range(data.shape[1])]
    made = lightgbm.Dataset(
        data, label, group=groups, feature_name=names, categorical_feature=[4, 5] if categorical else []
    )
    return lightgbm.train(settings, made, trees)


def save(booster: lightgbm.Booster, folder: Path, name: str = "model.txt") -> Path:
    """Save a Booster."""
    booster.save_model(folder / name)
    return folder / name


def load(path: Path, **settings: Any) -> LightGBMModel:
    """Load a model file or folder; keyword arguments are ModelSettings' or, where it has none of that name, the runtime's own."""
    known = {name: settings.pop(name) for name in list(settings) if name in ModelSettings.__dataclass_fields__}
    model = LightGBMModel(ModelSettings(name="m", model_dir=path, extra=settings, **known))
    model.load()
    return model


def hurtful(booster: lightgbm.Booster, *, seed: int = 0) -> np.ndarray:
    """Rows on the model's thresholds and one float to either side, around zero, infinite, missing, and odd categories."""
    table = booster.trees_to_dataframe()
    random = np.random.default_rng(seed)
    made = rows(600, seed=seed)
    for column in range(6):
        splits = table[(table["split_feature"] == f"f{column}") & (table["decision_type"] == "<=")]["threshold"]
        if len(splits):
            picked = random.choice(splits.to_numpy(np.float64), 400)
            made[100:500, column] = np.nextafter(picked, picked + random.integers(-1, 2, 400))
    zero = float(np.float32(1e-35))
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, zero, -zero, np.nextafter(zero, 1), 5e-324, 1e300, -0.5, 0.5, -1, 64, 70]
    mask = random.random(made.shape) < 0.1
    made[mask] = random.choice(odd, int(mask.sum()))
    return made
