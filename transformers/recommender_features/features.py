"""Users to the model's tensors, scores to the best items. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .catalogue import Catalogue

__all__ = ["NO_ITEM", "Picks", "candidates", "find_users", "model_inputs", "top_k"]

NO_ITEM = -1
"""Item id where fewer than k items are left for a user."""


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """The best items of each row, best first."""

    numbers: np.ndarray
    """int64 [n, k]: item numbers of the catalogue, 0 where there is no further item."""
    scores: np.ndarray
    """float32 [n, k], 0 where there is no item."""

    def item_ids(self, catalogue: Catalogue) -> np.ndarray:
        """int64 [n, k], `NO_ITEM` where there is none."""
        return np.append(NO_ITEM, catalogue.item_ids)[self.numbers]

    def titles(self, catalogue: Catalogue) -> np.ndarray:
        """Bytes as object [n, k], empty where there is no item or no title."""
        table = np.empty(len(catalogue.item_ids) + 1, object)
        table[:] = (b"", *(catalogue.titles or [b""] * len(catalogue.item_ids)))
        return table[self.numbers]


def find_users(index: dict[int | str, int], ids: Sequence[int | str]) -> np.ndarray:
    """Number of each user in the catalogue, -1 for an unknown one; int64 [n]."""
    return np.array([index.get(one, -1) for one in ids], np.int64)


def candidates(catalogue: Catalogue, users: np.ndarray, *, exclude_seen: bool) -> np.ndarray:
    """Every item, 0 in the place of one that is left out; int64 [n, I].

    As wide as the catalogue for everyone, so that requests of different users have one shape and are predicted together.
    """
    table = np.tile(np.arange(1, len(catalogue.item_ids) + 1), (len(users), 1))
    if exclude_seen:
        for row, user in enumerate(users.tolist()):
            if user >= 0:
                table[row, catalogue.seen_by(user) - 1] = 0
    return table


def model_inputs(catalogue: Catalogue, users: np.ndarray, offered: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors that this version of the model takes, by name, in its order.

    Args:
        catalogue: of the version.
        users: int64 [n], all of them known.
        offered: as `candidates` makes them.
    """
    made = {
        "user": lambda: users,
        "user_features": lambda: catalogue.user_features[users],
        "history": lambda: catalogue.history[users],
        "candidates": lambda: offered,
    }
    return {name: made[name]() for name in catalogue.inputs}


def top_k(offered: np.ndarray, scores: np.ndarray, k: int) -> Picks:
    """The k best candidates of each row; equal scores keep the catalogue's order.

    Args:
        offered: int64 [n, C], 0 for none.
        scores: float32 [n, C]; NaN counts as worst.
        k: at least 1.
    """
    ranked = np.where((offered > 0) & ~np.isnan(scores), scores, -np.inf)
    order = np.argsort(-ranked, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(ranked, order, 1)
    found = best > -np.inf
    numbers = np.where(found, np.take_along_axis(offered, order, 1), 0)
    if numbers.shape[1] < k:
        short = ((0, 0), (0, k - numbers.shape[1]))
        numbers, best, found = (np.pad(each, short) for each in (numbers, best, found))
    return Picks(numbers, np.where(found, best, 0).astype(np.float32))
