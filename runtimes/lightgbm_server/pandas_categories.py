"""The names of categories that a file holds which was trained on a pandas DataFrame.

Source: LightGBM's python-package/lightgbm/basic.py (`_data_from_pandas`, `_dump_pandas_categorical`): the last line `pandas_categorical:` is
a JSON list with the categories of each column of the dtype `category`, in the order of the columns; a value's code is its place there. It
does not say which columns these are. The header's `feature_infos` say of each feature `[min:max]`, `a:b:c` for a categorical one, or
`none` for one that no split could use.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from serinus.feature_columns import Category

__all__ = ["read"]

_log = logging.getLogger("serinus.lightgbm")
_LINE = "pandas_categorical:"


def read(infos: Sequence[str], tail: str) -> tuple[tuple[int, ...], dict[int, tuple[Category, ...]]]:
    """Read which columns are categorical, and the names of their categories.

    Args:
        infos: the header's `feature_infos`.
        tail: the file behind its trees.

    Returns:
        Categorical columns, and categories by column in the order of their codes; the latter is empty where there are none, or the file
        leaves open whose they are.
    """
    codes = [_codes(info) for info in infos]
    categorical = tuple(column for column, known in enumerate(codes) if known)
    line = next((line for line in reversed(tail.split("\n")) if line.startswith(_LINE)), "")
    try:
        lists = _parse(line.removeprefix(_LINE)) if line else []
    except ValueError as error:
        _log.warning("%s; categories are taken by their codes only", error)
        lists = []
    if not lists:
        return categorical, {}
    maybe = tuple(column for column, info in enumerate(infos) if codes[column] or info == "none")
    columns = next((found for found in (categorical, maybe) if len(found) == len(lists)), ())
    fits = all(max(codes[column], default=-1) < len(named) for column, named in zip(columns, lists, strict=False))
    if not columns or not fits:
        _log.warning(
            "the file names the categories of %d columns and does not say which; categories are taken by their codes only",
            len(lists),
        )
        return categorical, {}
    # A column of one category is used by no split; what is sent for it is held to its name all the same.
    return tuple(sorted({*categorical, *columns})), dict(zip(columns, lists, strict=True))


def _codes(info: str) -> tuple[int, ...]:
    """Codes of a categorical feature; empty: it is none."""
    if not info or info == "none" or info.startswith("["):
        return ()
    parts = info.split(":")
    return tuple(map(int, parts)) if all(part.removeprefix("-").isdecimal() for part in parts) else ()


def _parse(text: str) -> list[tuple[Category, ...]]:
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{_LINE} is not JSON") from None
    if document is None:
        return []
    if not isinstance(document, list) or not all(isinstance(named, list) and named for named in document):
        raise ValueError(f"{_LINE} is not a list of categories for each column")
    if not all(isinstance(one, str | int | float | bool) for named in document for one in named):
        raise ValueError(f"{_LINE} has a category that is neither a text nor a number")
    if not all(len({(one is True or one is False, one) for one in named}) == len(named) for named in document):
        raise ValueError(f"{_LINE} has a category twice")
    return [tuple(named) for named in document]
