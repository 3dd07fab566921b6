"""Fits both members, their calibration, their blend and the thresholds, each on days of its own.

Days, in order: history that fills the windows; training; the delay until outcomes are known; a slice that stops the boosting
early; a slice that calibrates; the delay again; the test days. So nothing is judged by days that it has seen, and
nothing is trained on outcomes that could not have been known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .anomaly import Strangeness, strangeness, train_autoencoder
from .calibration import Blend, Thresholds, fit_blend, fit_thresholds, platt, sigmoid
from .evaluation import average_precision, recall_at_review_rate
from .features import FEATURE_NAMES

try:
    import xgboost
except ImportError as error:  # pragma: no cover # the environments that train have it
    raise ImportError("fraud_features.fitting needs XGBoost: pip install 'serinus[xgboost-server]'") from error

__all__ = ["CALIBRATE", "REVIEW", "STOP", "TEST", "TRAIN", "Ensemble", "figures", "fit", "policy", "within"]

TRAIN: Final = (37, 75)
STOP: Final = (82, 87)
CALIBRATE: Final = (87, 92)
TEST: Final = (99, 110)
REVIEW: Final = {"by_score": 0.015, "by_anomaly": 0.005}
"""Shares of all transactions that go to review: a quarter of the budget for what is strange, whatever its score."""

_PARAMETERS: Final[dict[str, Any]] = {
    "objective": "binary:logistic",
    "eval_metric": "aucpr",
    "tree_method": "hist",
    "max_depth": 6,
    "eta": 0.1,
    "min_child_weight": 5,
    "subsample": 0.8,
    "colsample_bytree": 0.6,
    "lambda": 2.0,
    "nthread": 2,
}
_ROUNDS: Final = 300
_PATIENCE: Final = 30


def within(day: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """Tell which days lie in a span: bool [n]."""
    return (day >= span[0]) & (day < span[1])


@dataclass(frozen=True)
class Ensemble:
    """What was fitted."""

    booster: xgboost.Booster
    anomaly: Strangeness
    xgb_platt: tuple[float, float]
    anomaly_platt: tuple[float, float]
    blend: Blend
    thresholds: Thresholds

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both members' own answers, float64 [n] each: XGBoost's log-odds, and the strangeness."""
        matrix = xgboost.DMatrix(features, feature_names=list(FEATURE_NAMES))
        margins = self.booster.predict(matrix, output_margin=True).astype(np.float64)
        return margins, strangeness(self.anomaly, features)

    def calibrated(self, margins: np.ndarray, strange: np.ndarray) -> np.ndarray:
        """Their calibrated log-odds: float64 [n, 2]."""
        return _calibrated(margins, strange, self.xgb_platt, self.anomaly_platt)

    def scores(self, columns: np.ndarray) -> np.ndarray:
        """The blend of calibrated log-odds, as probabilities of fraud."""
        return sigmoid(self.blend.log_odds(columns))


def _calibrated(
    margins: np.ndarray, strange: np.ndarray, xgb: tuple[float, float], anomaly: tuple[float, float]
) -> np.ndarray:
    return np.stack([xgb[0] * margins + xgb[1], anomaly[0] * strange + anomaly[1]], 1)


def fit(features: np.ndarray, labels: np.ndarray, day: np.ndarray, seed: int, known: np.ndarray) -> Ensemble:
    """Fit everything.

    Args:
        features: float32 [n, F].
        labels: [n], 1 for fraud.
        day: of the stream; [n].
        seed: of both members.
        known: bool [n]; other rows are used for nothing.
    """

    def matrix(rows: np.ndarray) -> xgboost.DMatrix:
        return xgboost.DMatrix(features[rows], labels[rows], feature_names=list(FEATURE_NAMES))

    training, stopping, calibrating = (within(day, span) & known for span in (TRAIN, STOP, CALIBRATE))
    booster = xgboost.train(
        {**_PARAMETERS, "seed": seed},
        matrix(training),
        _ROUNDS,
        evals=[(matrix(stopping), "stop")],
        early_stopping_rounds=_PATIENCE,
        verbose_eval=False,
    )
    booster = booster[: booster.best_iteration + 1]
    anomaly = train_autoencoder(features[training & (labels == 0)], seed)
    truth = labels[calibrating]
    margins = booster.predict(matrix(calibrating), output_margin=True).astype(np.float64)
    strange = strangeness(anomaly, features[calibrating])
    xgb_platt, anomaly_platt = platt(margins, truth), platt(strange, truth)
    columns = _calibrated(margins, strange, xgb_platt, anomaly_platt)
    blend = fit_blend(columns, truth)
    thresholds = fit_thresholds(truth, sigmoid(blend.log_odds(columns)), strange, **REVIEW)
    return Ensemble(booster, anomaly, xgb_platt, anomaly_platt, blend, thresholds)


def figures(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """How good probabilities are."""
    return {
        "auc_pr": rounded(average_precision(labels, scores)),
        "recall_at_1_percent_review": rounded(recall_at_review_rate(labels, scores, 0.01)),
        "recall_at_5_percent_review": rounded(recall_at_review_rate(labels, scores, 0.05)),
        "brier": rounded(np.mean((scores - labels) ** 2)),
    }


def policy(labels: np.ndarray, declined: np.ndarray, reviewed: np.ndarray) -> dict[str, float]:
    """What thresholds make of transactions."""
    return {
        "declined_share": rounded(declined.mean()),
        "declined_precision": rounded(labels[declined].mean()),
        "reviewed_share": rounded(reviewed.mean()),
        "reviewed_precision": rounded(labels[reviewed].mean()),
        "frauds_declined_or_reviewed": rounded(labels[declined | reviewed].sum() / labels.sum()),
        "genuine_declined_or_reviewed": rounded((declined | reviewed)[labels == 0].mean()),
    }


def rounded(value: Any) -> float:
    """Four digits are enough for a report."""
    return round(float(value), 4)
