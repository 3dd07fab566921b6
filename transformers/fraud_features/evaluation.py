"""How good scores are against labels: what `training` reports, and what a demo may show."""

from __future__ import annotations

import numpy as np

__all__ = ["average_precision", "recall_at_review_rate"]


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve, as the step-wise sum (scikit-learn's `average_precision_score`).

    Args:
        labels: [n], 1 for fraud, 0 otherwise.
        scores: [n], higher means more suspicious; equal scores count as one step.

    Returns:
        0 to 1; the share of frauds for random scores, NaN without any fraud.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # the end of each run of equal scores
    hits = hits[last]
    if not hits[-1]:
        return float("nan")
    precision = hits / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * precision))


def recall_at_review_rate(labels: np.ndarray, scores: np.ndarray, rate: float) -> float:
    """Share of all frauds among the `rate` (0 to 1) most suspicious transactions; arguments as above."""
    top = np.argsort(-scores, kind="stable")[: max(1, round(rate * len(scores)))]
    return float(labels[top].sum() / max(1, labels.sum()))
