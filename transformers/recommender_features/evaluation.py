"""How good recommendations are on held-out items: recall@k and NDCG@k with one relevant item, and their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["interval", "ndcg", "ranks", "recall"]


def ranks(scores: np.ndarray, relevant: np.ndarray, seen: Sequence[np.ndarray]) -> np.ndarray:
    """Rank of each user's held-out item among all items that the user had not rated before; 0 is the first.

    Args:
        scores: float32 [n, I + 1], column 0 stands for no item.
        relevant: int64 [n], the held-out item of each row.
        seen: items of each row that were rated before, left out of its ranking.

    Returns:
        int64 [n]. Ties count against the model.
    """
    allowed = np.ones(scores.shape, np.bool_)
    allowed[:, 0] = False
    for row, items in enumerate(seen):
        allowed[row, items] = False
    rows = np.arange(len(scores))
    allowed[rows, relevant] = False
    return np.sum((scores >= scores[rows, relevant][:, None]) & allowed, axis=1)


def recall(found: np.ndarray, k: int) -> np.ndarray:
    """1 where the held-out item is among the first k; with one relevant item this is the hit rate."""
    return (found < k).astype(np.float64)


def ndcg(found: np.ndarray, k: int) -> np.ndarray:
    """1 / log2(rank + 2) among the first k, else 0; the ideal ranking has 1 (Järvelin and Kekäläinen 2002)."""
    return np.where(found < k, 1 / np.log2(found + 2.0), 0.0)


def interval(values: np.ndarray, seed: int, rounds: int = 4000) -> tuple[float, float]:
    """95 % bootstrap interval (percentiles) of a mean over users; of paired differences where `values` are such."""
    picks = np.random.default_rng(seed).integers(0, len(values), (rounds, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)
