"""MovieLens 100K, read out of the `recbole` wheel on PyPI: 100 000 ratings of 1 682 films by 943 users.

The wheel is downloaded with pip into a cache and never installed; its code never runs. The data set's terms (GroupLens) allow
no redistribution: nothing of it, and nothing made of single users' ratings, is ever committed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

__all__ = ["Ratings", "fetch", "read"]

_PACKAGE: Final = "recbole==1.2.1"
_WHEEL: Final = "recbole-1.2.1-py3-none-any.whl"
_SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_MEMBER: Final = "recbole/dataset_example/ml-100k/ml-100k."
_AGES: Final = (18, 25, 35, 45)
"""Lower bounds of the age groups above the first."""


@dataclass(frozen=True, slots=True, eq=False)
class Ratings:
    """A data set of ratings. Items are numbered from 1 in the order of `item_ids` (0: no item), users from 0."""

    user_ids: np.ndarray
    """int64 [U]"""
    item_ids: np.ndarray
    """int64 [I]"""
    titles: tuple[str, ...]
    """Of each item, with its year."""
    user_features: np.ndarray
    """float32 [U, F]: gender, occupation and age group, each one-hot."""
    item_features: np.ndarray
    """float32 [I + 1, G]: genres many-hot, and decades since 1990; row 0 is zero."""
    users: np.ndarray
    """int64 [N]: index of the user of each rating; ratings are sorted by user, then time."""
    items: np.ndarray
    """int64 [N]: index of the item, from 1."""
    stars: np.ndarray
    """int64 [N]: 1 to 5."""


def fetch(cache: Path) -> Path:
    """Download the wheel once and check it; returns its path.

    Raises:
        SystemExit: it cannot be downloaded, or is not the one that is known.
    """
    wheel = cache / _WHEEL
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        words = ["pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(cache), _PACKAGE]
        said = ""
        for prefix in ([sys.executable, "-m"], []):
            try:
                done = subprocess.run([*prefix, *words], capture_output=True, text=True, check=False, timeout=300)
            except (OSError, subprocess.TimeoutExpired) as error:
                said = str(error)
                continue
            said = done.stderr.strip()
            if done.returncode == 0:
                break
        if not wheel.exists():
            raise SystemExit(f"{_PACKAGE}, whose wheel holds MovieLens 100K, cannot be downloaded with pip: {said}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise SystemExit(f"{wheel}: sha256 {digest} came, {_SHA256} was expected; delete the file and try again")
    return wheel


def read(wheel: Path, seed: int) -> Ratings:
    """Read the data set.

    Args:
        wheel: as `fetch` leaves it.
        seed: orders ratings of one user in one second, whose true order nobody knows.
    """
    with zipfile.ZipFile(wheel) as archive:
        tables = [_rows(archive.read(_MEMBER + name)) for name in ("inter", "user", "item")]
    ratings, people, films = tables
    people.sort(key=lambda row: int(row[0]))
    films.sort(key=lambda row: int(row[0]))
    user_ids = np.array([int(row[0]) for row in people])
    item_ids = np.array([int(row[0]) for row in films])
    table = np.array([[int(float(value)) for value in row] for row in ratings])
    users, items = np.searchsorted(user_ids, table[:, 0]), np.searchsorted(item_ids, table[:, 1]) + 1
    order = np.lexsort((np.random.default_rng(seed).random(len(table)), table[:, 3], users))
    return Ratings(
        user_ids,
        item_ids,
        tuple(f"{row[1]} ({row[2]})" if row[2].isdigit() else row[1] for row in films),
        _user_features(people),
        _item_features(films),
        users[order],
        items[order],
        table[order, 2],
    )


def _rows(content: bytes) -> list[list[str]]:
    return [line.split("\t") for line in content.decode("utf-8").splitlines()[1:]]


def _user_features(people: list[list[str]]) -> np.ndarray:
    occupations = sorted({row[3] for row in people})
    features = np.zeros((len(people), 2 + len(occupations) + len(_AGES) + 1), np.float32)
    for index, (_, age, gender, occupation, *_) in enumerate(people):
        features[index, "FM".index(gender)] = 1
        features[index, 2 + occupations.index(occupation)] = 1
        features[index, 2 + len(occupations) + sum(int(age) >= bound for bound in _AGES)] = 1
    return features


def _item_features(films: list[list[str]]) -> np.ndarray:
    genres = sorted({genre for row in films for genre in row[3].split()})
    features = np.zeros((len(films) + 1, len(genres) + 1), np.float32)
    for index, row in enumerate(films, 1):
        for genre in row[3].split():
            features[index, genres.index(genre)] = 1
        if row[2].isdigit():
            features[index, -1] = (int(row[2]) - 1990) / 10
    return features
