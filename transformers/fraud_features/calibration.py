"""From two members' outputs to one probability and its thresholds: Platt's calibration, stacking, review budgets. NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Blend", "Thresholds", "fit_blend", "fit_thresholds", "platt", "sigmoid"]


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities of log-odds."""
    return 1 / (1 + np.exp(-log_odds))


def platt(margins: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Fit `p = 1 / (1 + exp(-(a * margin + b)))` by Newton's method, with Platt's smoothed targets (Platt 1999, 2.2)."""
    positives = float(labels.sum())
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    a, b = _logistic(margins.astype(np.float64)[:, None], targets)
    return float(a), float(b)


@dataclass(frozen=True, slots=True)
class Blend:
    """`bias + sum(weight_i * z_i)` over the members' calibrated log-odds."""

    bias: float
    weights: tuple[float, ...]

    def log_odds(self, columns: np.ndarray) -> np.ndarray:
        """Blend float64 [n, members]."""
        return self.bias + columns @ np.array(self.weights)


def fit_blend(columns: np.ndarray, labels: np.ndarray) -> Blend:
    """Logistic regression of the labels on the members' log-odds (stacking; Wolpert 1992).

    A member whose weight would be negative is left out (weight 0): an ensemble that prefers what a member calls genuine
    has learnt noise.

    Args:
        columns: float64 [n, members].
        labels: [n], 1 for fraud.
    """
    kept = list(range(columns.shape[1]))
    while True:
        *weights, bias = _logistic(columns[:, kept], labels.astype(np.float64)).tolist()
        worst = int(np.argmin(weights))
        if weights[worst] >= 0 or len(kept) == 1:
            found = dict(zip(kept, weights, strict=True))
            return Blend(bias, tuple(found.get(i, 0.0) for i in range(columns.shape[1])))
        del kept[worst]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Decline where the score is at least `decline`; review where it is at least `review`, or the strangeness above `anomaly`."""

    review: float
    decline: float
    anomaly: float

    def held(self, scores: np.ndarray, strange: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tell what is declined, and what is reviewed: bool [n] each."""
        declined = scores >= self.decline
        return declined, ((scores >= self.review) | (strange > self.anomaly)) & ~declined


def fit_thresholds(
    labels: np.ndarray, scores: np.ndarray, strange: np.ndarray, *, by_score: float, by_anomaly: float
) -> Thresholds:
    """Decline where at least 95 % of what is above is fraud; review shares of all transactions beyond those.

    Args:
        labels: [n], 1 for fraud.
        scores: [n], probabilities of fraud.
        strange: [n], what the anomaly member answers.
        by_score: share that is reviewed for its score.
        by_anomaly: share that is reviewed for its strangeness alone.
    """
    order = np.argsort(-scores, kind="stable")
    precision = np.cumsum(labels[order]) / np.arange(1, len(scores) + 1)
    declined = int(np.flatnonzero(precision >= 0.95)[-1]) + 1
    reviewed = min(len(scores), declined + round(by_score * len(scores))) - 1
    review, decline = round(float(scores[order[reviewed]]), 4), round(float(scores[order[declined - 1]]), 4)
    rest = np.sort(strange[scores < review])
    count = round(by_anomaly * len(scores))
    return Thresholds(review, decline, round(float(rest[-1 - count]), 4) if count else float("inf"))


def _logistic(columns: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Newton's method for weights and, last, bias; targets may be soft."""
    design = np.c_[columns, np.ones(len(columns))]
    weights = np.r_[np.full(columns.shape[1], 1 / columns.shape[1]), 0.0]
    for _ in range(100):
        p = sigmoid(design @ weights)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(len(weights))
        step = np.linalg.solve(hessian, design.T @ (p - targets))
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    return weights
