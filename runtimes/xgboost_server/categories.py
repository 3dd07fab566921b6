"""The names of categories that a file of XGBoost 3.1 or later holds, checked.

Source: XGBoost 3.2, src/data/cat_container.cc (`CatContainer::Save`): `enc` has an entry a feature, texts as `offsets` into UTF-8 `values`,
numbers as `type` and `values`, both empty for a feature that is no category; `feature_segments` are where each feature's categories
begin, and `sorted_idx` is their order. XGBoost's own reader follows all of these.

Texts beyond ASCII. Up to 3.3, `offsets` of a pandas DataFrame count characters, though they are used as bytes
(python-package/xgboost/_data_utils.py, `npstr_to_arrow_strarr`), and the last bytes are lost; those of Arrow are right, and all are from 3.4 on.
The version in the file is of whoever saved it last, and says nothing of who trained it. Where the file leaves open which it is, a category
has a name only if both readings give it the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from serinus.feature_columns import Category

__all__ = ["read"]


def read(model: Mapping[str, Any], columns: int) -> dict[int, tuple[Category | None, ...]]:
    """Read the categories.

    Args:
        model: of the gradient booster.
        columns: features of a row.

    Returns:
        By column, in the order of their codes, None for one whose name is lost; empty: the file holds none.

    Raises:
        ValueError: the parts do not fit one another.
    """
    held = model.get("cats")
    if not held or not len(held.get("enc", ())):
        return {}
    encodings = held["enc"]
    if len(encodings) != columns:
        raise ValueError(f"cats has categories of {len(encodings)} features, the model has {columns}")
    found = {column: named for column, entry in enumerate(encodings) if (named := _categories(entry, column))}
    counts = [len(found.get(column, ())) for column in range(columns)]
    segments, order = (np.asarray(held.get(name, ()), np.int64) for name in ("feature_segments", "sorted_idx"))
    if segments.tolist() != np.concatenate(([0], np.cumsum(counts))).tolist():
        raise ValueError("feature_segments of cats do not fit its categories")
    starts = np.repeat(segments[:-1], counts)
    if len(order) != sum(counts) or np.any(order < 0) or np.any(order >= np.repeat(counts, counts)):
        raise ValueError("sorted_idx of cats leads out of its categories")
    places = starts + order
    if len(np.unique(places)) != len(places):
        raise ValueError("sorted_idx of cats names a category twice")
    return found


def _categories(entry: Mapping[str, Any], column: int) -> tuple[Category | None, ...]:
    values = np.asarray(entry["values"])
    if "offsets" not in entry:
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise ValueError(f"categories of feature {column} are neither texts nor numbers")
        return _once(tuple(values.tolist()), column)
    offsets = np.asarray(entry["offsets"], np.int64)
    if not len(offsets):
        return ()
    data = values.astype(np.int64)
    if np.any((data < -128) | (data > 255)):  # written as signed bytes
        raise ValueError(f"categories of feature {column} are no text")
    text = (data & 0xFF).astype(np.uint8).tobytes()
    if offsets[0] != 0 or offsets[-1] != len(text) or np.any(np.diff(offsets) < 0):
        raise ValueError(f"offsets lead out of the categories of feature {column}")
    spans = list(pairwise(offsets.tolist()))
    try:
        by_bytes: list[str | None] | None = [text[start:end].decode() for start, end in spans]
    except UnicodeDecodeError:
        by_bytes = None
    if text.isascii() and by_bytes is not None:
        return _once(tuple(by_bytes), column)
    whole = text.decode(errors="ignore")  # the last character may be cut
    by_characters = [whole[start:end] if end <= len(whole) else None for start, end in spans]
    if by_bytes is None:
        return _once(tuple(by_characters), column)
    return tuple(one if one == other else None for one, other in zip(by_bytes, by_characters, strict=True))


def _once(named: tuple[Category | None, ...], column: int) -> tuple[Category | None, ...]:
    there = [one for one in named if one is not None]
    if len(set(there)) != len(there):
        raise ValueError(f"a category of feature {column} is there twice")
    return named
