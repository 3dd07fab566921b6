"""What lies beside a model: its items, its users' features, and titles. `catalogue.npz` and `titles.json`.

A version of the model and its catalogue belong together: item numbers, feature columns and the tensors that the model takes are
those of its training. That is why both lie in one directory, and why a canary brings its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np

__all__ = ["CATALOGUE_FILE", "TENSORS", "TITLES_FILE", "Catalogue"]

CATALOGUE_FILE: Final = "catalogue.npz"
TITLES_FILE: Final = "titles.json"
TENSORS: Final = ("user", "user_features", "history", "candidates")
"""What a model may take: user INT64 [n], user_features FP32 [n, F], history INT64 [n, H], candidates INT64 [n, C]."""


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Items and users of one model version. Items are numbered from 1 in the order of `item_ids` (0: no item), users from 0."""

    inputs: tuple[str, ...]
    """Which of `TENSORS` the model takes."""
    item_ids: np.ndarray
    """int64 [I]"""
    popularity: np.ndarray
    """float32 [I]: share of the users who liked the item."""
    user_ids: np.ndarray
    """int64 [U]"""
    user_features: np.ndarray
    """float32 [U, F]"""
    history: np.ndarray
    """int64 [U, H]: what the user liked last, the latest at the end, zeros before it."""
    seen: np.ndarray
    """int64: what each user has rated, one user after the other."""
    seen_ends: np.ndarray
    """int64 [U + 1]: user u's are `seen[seen_ends[u]:seen_ends[u + 1]]`."""
    titles: tuple[bytes, ...] = ()
    """UTF-8, of each item; empty where there is no `titles.json`."""

    def seen_by(self, user: int) -> np.ndarray:
        """Item numbers that one user has rated."""
        return self.seen[self.seen_ends[user] : self.seen_ends[user + 1]]

    def save(self, folder: Path) -> None:
        """Write `catalogue.npz`, and `titles.json` where titles are known."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(folder / CATALOGUE_FILE, inputs=np.array(self.inputs), **arrays)
        if self.titles:
            table = {str(key): title.decode() for key, title in zip(self.item_ids, self.titles, strict=True)}
            (folder / TITLES_FILE).write_text(json.dumps(table, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Read a model directory.

        Raises:
            ValueError: no catalogue is there, or it does not hold together; the message says how to make one.
        """
        path = folder / CATALOGUE_FILE
        if not path.is_file():
            raise ValueError(
                f"{path}: no such file; `make models-recommender` makes it, CATALOGUE_DIR says where it is"
            )
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: _array(file[name], name) for name in _ARRAYS}
                inputs = tuple(str(name) for name in file["inputs"])
        except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path}: no catalogue of a recommender: {error}") from error
        found = cls(inputs=inputs, titles=_titles(folder / TITLES_FILE, arrays["item_ids"]), **arrays)
        found._check(path)
        return found

    def _check(self, path: Path) -> None:
        items, users = len(self.item_ids), len(self.user_ids)
        unknown = [name for name in self.inputs if name not in TENSORS]
        facts = {
            f"inputs {', '.join(unknown)} are none of {', '.join(TENSORS)}": bool(unknown),
            "the model takes no candidates": "candidates" not in self.inputs,
            f"popularity of {len(self.popularity)} items, {items} were expected": len(self.popularity) != items,
            f"features of {len(self.user_features)} users, {users} were expected": len(self.user_features) != users,
            f"histories of {len(self.history)} users, {users} were expected": len(self.history) != users,
            f"{len(self.seen_ends)} ends of what was seen, {users + 1} were expected": len(self.seen_ends) != users + 1,
            f"an item above {items} was seen or liked": max(self.seen.max(initial=0), self.history.max(initial=0))
            > items,
        }
        wrong = [text for text, holds in facts.items() if holds]
        if wrong:
            raise ValueError(f"{path}: {'; '.join(wrong)}")


_ARRAYS: Final = ("item_ids", "popularity", "user_ids", "user_features", "history", "seen", "seen_ends")


def _array(value: object, name: str) -> np.ndarray:
    """Give an entry that is an array; what an archive has besides, NumPy gives as bytes."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} is no array")  # noqa: TRY004 # of a file, as all that is wrong with it
    return value


def _titles(path: Path, item_ids: np.ndarray) -> tuple[bytes, ...]:
    if not path.is_file():
        return ()
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return tuple(str(table.get(str(key), "")).encode() for key in item_ids)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: an object of titles by item id was expected: {error}") from error
