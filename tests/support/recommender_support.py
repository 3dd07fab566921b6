"""Support of the recommender's tests: made-up ratings, and both models trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recommender_features.dataset import Ratings

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "inferenceservices" / "recommender"
USERS, ITEMS = 24, 30


def ratings(seed: int = 0) -> Ratings:
    """Users of two tastes (odd items, even items), each with 12 ratings; ids are not numbers of rows."""
    rng = np.random.default_rng(seed)
    users, items, stars = [], [], []
    for user in range(USERS):
        picked = rng.permutation(ITEMS)[:12] + 1
        users += [user] * 12
        items += picked.tolist()
        stars += [5 if item % 2 == user % 2 or place < 6 else 2 for place, item in enumerate(picked)]
    features = np.zeros((ITEMS + 1, 2), np.float32)
    features[1:, 0] = np.arange(1, ITEMS + 1) % 2
    return Ratings(
        np.arange(USERS) + 100,
        np.arange(ITEMS) * 10 + 7,
        tuple(f"Film é {item}" for item in range(1, ITEMS + 1)),
        np.eye(USERS, 3, dtype=np.float32),
        features,
        np.array(users),
        np.array(items),
        np.array(stars),
    )


def train(output: Path) -> dict[str, object]:
    """Train small models in a second or two."""
    from recommender_features.training import Plan, train

    plan = Plan(width=8, factor_epochs=3, tower_epochs=2, history=5)
    return train(ratings(), output, plan=plan, seed=1, say=lambda _: None)
