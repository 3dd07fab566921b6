"""Small XGBoost models, trained in a moment, for the tests of xgboost_server and of what stands on it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from deferred import Deferred
from serinus.settings import ModelSettings
from xgboost_server import XGBoostModel

xgboost = Deferred("xgboost")

LEGACY = Path(__file__).parents[1] / "data" / "xgboost_legacy"
"""Models in the old binary format with what the XGBoost that wrote them answered; one file per version."""

OBJECTIVES: dict[str, dict[str, Any]] = {
    "binary:logistic": {},
    "binary:logitraw": {},
    "binary:hinge": {},
    "reg:logistic": {},
    "reg:squarederror": {},
    "reg:squaredlogerror": {},
    "reg:pseudohubererror": {},
    "reg:absoluteerror": {},
    "reg:quantileerror": {"quantile_alpha": [0.2, 0.8]},
    "reg:gamma": {},
    "reg:tweedie": {},
    "count:poisson": {},
    "survival:cox": {},
    "survival:aft": {},
    "rank:pairwise": {},
    "rank:ndcg": {},
    "rank:map": {},
    "multi:softprob": {"num_class": 4},
    "multi:softmax": {"num_class": 4},
}
"""Every objective that the compiled engine covers, with the parameters it needs."""


def rows(count: int, features: int = 6, *, seed: int = 0, missing: float = 0.1) -> np.ndarray:
    """Random rows, float32 [count, features], a share of them missing (NaN)."""
    random = np.random.default_rng(seed)
    made = random.normal(size=(count, features)).astype(np.float32)
    made[random.random(made.shape) < missing] = np.nan
    return made


def train(
    objective: str = "binary:logistic",
    *,
    trees: int = 8,
    depth: int = 4,
    features: int = 6,
    seed: int = 0,
    **parameters: Any,
) -> xgboost.Booster:
    """Train a small Booster whose labels suit its objective."""
    data = rows(400, features, seed=seed)
    random = np.random.default_rng(seed + 1)
    signal = np.nansum(data[:, :3], axis=1) + 0.3 * random.normal(size=len(data))
    settings = {
        "objective": objective,
        "max_depth": depth,
        "nthread": 1,
        "seed": seed,
        **OBJECTIVES.get(objective, {}),
        **parameters,
    }
    matrix = xgboost.DMatrix(data)
    if objective.startswith("multi:"):
        matrix.set_label(np.digitize(signal, [-1.0, 0.0, 1.0]))
    elif objective.startswith("rank:"):
        matrix.set_label((signal > 0).astype(np.float32))
        matrix.set_group([20] * 20)
    elif objective == "survival:aft":
        matrix.set_float_info("label_lower_bound", np.exp(signal).astype(np.float32))
        matrix.set_float_info("label_upper_bound", np.exp(signal).astype(np.float32) + 1)
    elif objective.startswith(("binary:", "reg:logistic")):
        matrix.set_label((signal > 0).astype(np.float32))
    elif objective.startswith(("reg:gamma", "reg:tweedie", "count:", "survival:cox", "reg:squaredlogerror")):
        matrix.set_label(np.ceil(np.abs(signal)) + 1)
    else:
        matrix.set_label(signal)
    return xgboost.train(settings, matrix, trees)


def save(booster: xgboost.Booster, folder: Path, name: str = "model.ubj") -> Path:
    """Save a Booster; the suffix chooses the format."""
    path = folder / name
    booster.save_model(path)
    return path


def load(path: Path, **settings: Any) -> XGBoostModel:
    """Load a model file or folder; keyword arguments are ModelSettings' or, where it has none of that name, the runtime's own."""
    known = {name: settings.pop(name) for name in list(settings) if name in ModelSettings.__dataclass_fields__}
    model = XGBoostModel(ModelSettings(name="m", model_dir=path, extra=settings, **known))
    model.load()
    return model


def legacy_cases() -> list[tuple[str, str]]:
    """Version and name of every old binary model."""
    return [
        (path.stem, name) for path in sorted(LEGACY.glob("*.json")) for name in json.loads(path.read_text())["models"]
    ]


def legacy(version: str, name: str, folder: Path) -> tuple[Path, np.ndarray, np.ndarray, np.ndarray]:
    """Write an old binary model; returns its path, rows, and what its XGBoost predicted: values and margins."""
    held = json.loads((LEGACY / f"{version}.json").read_text())
    path = folder / f"{name}.bin"
    path.write_bytes(base64.b64decode(held["models"][name]["file"]))
    data = np.array([[np.nan if value is None else value for value in row] for row in held["rows"]], np.float32)
    answers = (np.array(held["models"][name][kind], np.float32) for kind in ("predictions", "margins"))
    return path, data, *answers
