"""Makes both recommenders: `python -m recommender_features.training --output .cache/recommender --seed 42`.

Of each user the last liked film (4 or 5 stars) is held out to measure, the one before it was held out to choose the settings
below; both models train on what is left, and what is measured is what is served. Neither models nor catalogues are
meant to be committed: users' vectors, features and histories are the data set in another form (see `dataset`).

Needs PyTorch; nothing else in this package imports this module but `networks`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from .catalogue import Catalogue
from .dataset import Ratings, fetch, read
from .evaluation import interval, ndcg, ranks, recall

try:
    import torch
except ImportError as error:  # pragma: no cover # the environments that train have it
    raise ImportError("recommender_features.training needs PyTorch: pip install 'serinus[torch-server]'") from error

from torch.nn import functional

from .networks import Factors, TwoTower, TwoTowerServed

__all__ = ["Plan", "main", "train"]

LIKED: Final = 4
"""Stars from which on a film counts as liked."""
K: Final = 10
_FEWEST: Final = 5
"""Likes of a user who takes part in training and measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes and rounds; the defaults were chosen on each user's last but one liked film."""

    width: int = 64
    factor_epochs: int = 35
    factor_rate: float = 5e-3
    factor_decay: float = 0.01
    tower_epochs: int = 12
    tower_rate: float = 5e-3
    history: int = 20
    dropout: float = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """Training sequences and the held-out item of each user who has enough likes."""

    likes: list[np.ndarray]
    """Of each user, in order, without the two that are held out."""
    users: np.ndarray
    """Users who are measured."""
    relevant: np.ndarray
    """Their last liked item."""
    known: list[np.ndarray]
    """What they had liked before it."""
    seen: list[np.ndarray]
    """What they had rated before it."""


def _split(ratings: Ratings) -> _Split:
    ends = np.searchsorted(ratings.users, np.arange(len(ratings.user_ids) + 1))
    likes, users, relevant, known, seen = [], [], [], [], []
    for user in range(len(ratings.user_ids)):
        items, stars = (table[ends[user] : ends[user + 1]] for table in (ratings.items, ratings.stars))
        at = np.flatnonzero(stars >= LIKED)
        if len(at) < _FEWEST:
            likes.append(items[at[:0]])
            continue
        likes.append(items[at[:-2]])
        users.append(user)
        relevant.append(items[at[-1]])
        known.append(items[at[:-1]])
        seen.append(items[: at[-1]])
    return _Split(likes, np.array(users), np.array(relevant), known, seen)


def _padded(items: np.ndarray, length: int) -> np.ndarray:
    row = np.zeros(length, np.int64)
    items = items[-length:]
    row[length - len(items) :] = items
    return row


Say = Callable[[str], None]


def _train_factors(ratings: Ratings, split: _Split, plan: Plan, seed: int, say: Say) -> Factors:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    items = len(ratings.item_ids)
    model = Factors(len(ratings.user_ids), items, plan.width)
    optimiser = torch.optim.Adam(model.parameters(), lr=plan.factor_rate)
    who = np.repeat(np.arange(len(split.likes)), [len(row) for row in split.likes])
    what = np.concatenate(split.likes)
    liked = np.zeros((len(split.likes), items + 1), np.bool_)
    liked[who, what] = True
    for epoch in range(plan.factor_epochs):
        order = rng.permutation(len(who))
        for start in range(0, len(order), 2048):
            rows = order[start : start + 2048]
            other = rng.integers(1, items + 1, len(rows))
            again = liked[who[rows], other]
            other[again] = rng.integers(1, items + 1, int(again.sum()))
            user, good, bad = (torch.from_numpy(a) for a in (who[rows], what[rows], other))
            loss = model.pairwise(user, good, bad, plan.factor_decay)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        say(f"v1, matrix factorisation: epoch {epoch + 1} of {plan.factor_epochs}")
    return model.eval()


def _train_tower(ratings: Ratings, split: _Split, plan: Plan, seed: int, say: Say) -> TwoTower:
    torch.manual_seed(seed)
    features = torch.from_numpy(ratings.user_features)
    model = TwoTower(torch.from_numpy(ratings.item_features), features.shape[1], plan.history, plan.width, plan.dropout)
    pairs = [(user, at) for user, row in enumerate(split.likes) for at in range(1, len(row))]
    histories = torch.from_numpy(np.stack([_padded(split.likes[user][:at], plan.history) for user, at in pairs]))
    targets = torch.tensor([int(split.likes[user][at]) for user, at in pairs])
    users = torch.tensor([user for user, _ in pairs])
    batch = 1024
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.tower_rate, weight_decay=1e-4)
    steps = plan.tower_epochs * -(-len(pairs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.tower_rate, total_steps=steps, pct_start=0.1)
    for epoch in range(plan.tower_epochs):
        order = torch.randperm(len(pairs))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            loss = functional.cross_entropy(model.every(features[users[rows]], histories[rows]), targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        say(f"v2, two towers: epoch {epoch + 1} of {plan.tower_epochs}")
    return model.eval()


def _figures(found: np.ndarray, seed: int) -> dict[str, Any]:
    values = {f"recall_at_{K}": recall(found, K), f"ndcg_at_{K}": ndcg(found, K)}
    return {name: _figure(value, seed) for name, value in values.items()}


def _figure(values: np.ndarray, seed: int) -> dict[str, Any]:
    low, high = interval(values, seed)
    return {"mean": round(float(values.mean()), 4), "interval_95": [round(low, 4), round(high, 4)]}


def _catalogue(ratings: Ratings, history: int) -> Catalogue:
    """Everything known by now, of which the histories of the latest likes."""
    ends = np.searchsorted(ratings.users, np.arange(len(ratings.user_ids) + 1))
    liked = ratings.stars >= LIKED
    histories = [
        _padded(ratings.items[begin:end][liked[begin:end]], history) for begin, end in itertools.pairwise(ends)
    ]
    counts = np.bincount(ratings.items[liked], minlength=len(ratings.item_ids) + 1)[1:]
    return Catalogue(
        inputs=(),
        item_ids=ratings.item_ids,
        popularity=(counts / len(ratings.user_ids)).astype(np.float32),
        user_ids=ratings.user_ids,
        user_features=ratings.user_features,
        history=np.stack(histories),
        seen=ratings.items,
        seen_ends=ends,
        titles=tuple(title.encode() for title in ratings.titles),
    )


def _export(module: torch.nn.Module, inputs: dict[str, torch.Tensor], folder: Path, version: str) -> None:
    """Write `model.pt2`, whose first dimensions are free, and `model-settings.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, width = torch.export.Dim("rows", min=1, max=65536), torch.export.Dim("width", min=1, max=65536)
    shapes = {name: {0: rows, 1: width} if name == "candidates" else {0: rows} for name in inputs}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export, about its own internals
        program = torch.export.export(module.eval(), tuple(inputs.values()), dynamic_shapes=shapes)
        torch.export.save(program, folder / "model.pt2")
    settings = {
        "name": "recommender",
        "implementation": "torch_server",
        "parameters": {"uri": "./model.pt2", "version": version},
    }
    (folder / "model-settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def train(ratings: Ratings, output: Path, *, plan: Plan, seed: int, say: Say) -> dict[str, Any]:
    """Train, measure and write both versions; returns the figures that `metrics.json` holds.

    Args:
        ratings: all of them; the split is made here.
        output: gets v1/, v2/ and metrics.json.
        plan: sizes and rounds.
        seed: of weights, order and negatives.
        say: gets a line of progress after each epoch.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small: more threads wait for one another more than they help
    try:
        return _train(ratings, output, plan, seed, say)
    finally:
        torch.set_num_threads(threads)


def _train(ratings: Ratings, output: Path, plan: Plan, seed: int, say: Say) -> dict[str, Any]:
    began = time.perf_counter()
    split = _split(ratings)
    factors = _train_factors(ratings, split, plan, seed, say)
    tower = _train_tower(ratings, split, plan, seed, say)
    took = time.perf_counter() - began
    histories = torch.from_numpy(np.stack([_padded(row, plan.history) for row in split.known]))
    popular = np.bincount(np.concatenate(split.likes), minlength=len(ratings.item_ids) + 1).astype(np.float32)
    with torch.no_grad():
        scores = {
            "popularity": np.tile(popular, (len(split.users), 1)),
            "v1": factors.every(torch.from_numpy(split.users)).numpy(),
            "v2": tower.every(torch.from_numpy(ratings.user_features[split.users]), histories).numpy(),
        }
    found = {name: ranks(table, split.relevant, split.seen) for name, table in scores.items()}
    figures: dict[str, Any] = {
        "seed": seed,
        "ratings": len(ratings.users),
        "measured_users": len(split.users),
        "held_out": "each user's last liked item, ranked among all items that the user had not rated before",
        **{name: _figures(rank, seed) for name, rank in found.items()},
        "v2_minus_v1": {
            f"recall_at_{K}": _figure(recall(found["v2"], K) - recall(found["v1"], K), seed),
            f"ndcg_at_{K}": _figure(ndcg(found["v2"], K) - ndcg(found["v1"], K), seed),
        },
    }
    say("writing both models")
    catalogue = _catalogue(ratings, plan.history)
    example = {
        "user": torch.tensor([0, 1]),
        "user_features": torch.from_numpy(ratings.user_features[:2]),
        "history": torch.from_numpy(catalogue.history[:2]),
        "candidates": torch.arange(1, len(ratings.item_ids) + 1).repeat(2, 1),
    }
    modules = {
        "v1": (factors, ("user", "candidates")),
        "v2": (TwoTowerServed(tower), ("user_features", "history", "candidates")),
    }
    for version, (module, inputs) in modules.items():
        _export(module, {name: example[name] for name in inputs}, output / version, version)
        replace(catalogue, inputs=inputs).save(output / version)
    (output / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    say(f"trained in {took:.0f} s, {time.perf_counter() - began:.0f} s in all")
    return figures


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m recommender_features.training", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that gets v1/, v2/ and metrics.json")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--cache", type=Path, default=Path(".cache") / "movielens", help="where the data set is kept")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    say("MovieLens 100K out of the recbole wheel")
    ratings = read(fetch(arguments.cache), arguments.seed)
    figures = train(ratings, arguments.output, plan=Plan(), seed=arguments.seed, say=say)
    print(json.dumps({name: figures[name] for name in ("popularity", "v1", "v2", "v2_minus_v1")}, indent=2))


if __name__ == "__main__":
    main()
