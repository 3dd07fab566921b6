"""A small ensemble with a real XGBoost model, in a folder of its own."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np

COLUMNS = ("amount", "amount_ratio_30d", "hour_sin", "km_from_last")

TEXT = """\
schema_version: 1
inputs:
  - {name: features, datatype: FP32, shape: [-1, 4]}
  - {name: amount, datatype: FP64, shape: [-1]}
  - {name: terminal_id, datatype: BYTES, shape: [-1]}
  - {name: count_1d, datatype: FP32, shape: [-1], optional: true}
members:
  - name: xgb
    runtime: xgboost_server:XGBoostModel
    file: xgb.ubj
    inputs: [{tensor: features}]
    outputs: {score: margin}
combiner:
  name: fraud
  parameters:
    blend: {bias: 0.25, members: {xgb: {weight: 0.5, scale: margin, platt: {a: 2.0, b: -0.5}}}}
    thresholds: {review: 0.4, decline: 0.8}
    rules:
      - {rule: velocity_limit, input: count_1d, limit: 10, action: review}
      - {rule: amount_limit, input: amount, limit: 1000, action: review}
      - {rule: blocked_terminal, input: terminal_id, values_file: blocked.txt, action: decline}
    contributions: {member: xgb, top: 2}
"""


@cache
def _booster() -> bytes:
    import xgboost

    rng = np.random.default_rng(7)
    rows = rng.normal(size=(600, 4)).astype(np.float32)
    labels = (rows[:, 0] + 0.5 * rows[:, 1] + rng.normal(scale=0.3, size=600) > 0).astype(int)
    matrix = xgboost.DMatrix(rows, labels, feature_names=list(COLUMNS))
    return bytes(xgboost.train({"objective": "binary:logistic", "max_depth": 3, "seed": 1}, matrix, 15).save_raw("ubj"))


def margins(rows: np.ndarray) -> np.ndarray:
    """What XGBoost itself says: log-odds, float32 [n]."""
    import xgboost

    booster = xgboost.Booster(model_file=bytearray(_booster()))
    return booster.predict(xgboost.DMatrix(rows, feature_names=list(COLUMNS)), output_margin=True)


def write(folder: Path, text: str = TEXT) -> Path:
    """Write a model directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ensemble.yaml").write_text(text)
    (folder / "xgb.ubj").write_bytes(_booster())
    (folder / "blocked.txt").write_text("# stolen\nT-13\nT-66  # since May\n\n")
    return folder


def request(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of `count` rows in which every rule fires somewhere."""
    rng = np.random.default_rng(seed)
    terminals = np.empty(count, dtype=object)
    terminals[:] = [b"T-13" if value < 0.1 else b"T-1" for value in rng.random(count)]
    return {
        "features": rng.normal(size=(count, 4)).astype(np.float32),
        "amount": rng.uniform(1, 1200, count),
        "terminal_id": terminals,
        "count_1d": rng.integers(0, 13, count).astype(np.float32),
    }


def without_rules(text: str = TEXT) -> str:
    """The same file with no rules."""
    return re.sub(r"    rules:\n(      - .*\n)+", "", text)
