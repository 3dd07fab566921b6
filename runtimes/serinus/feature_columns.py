"""The columns of a model of rows, by name: one tensor a feature becomes the matrix that the model was trained on.

A model file may hold the names of its features, and of the categories of some of them. Who has rows with names (V1's objects, V2's one
tensor a column, MLServer's pandas form) sends them so, in any order and of any datatypes; the matrix is made here, before requests are
joined, so that both forms share batches.

Categories. A text is the name of a category. A number is its code, its place in the file's list, where the categories are texts; where
they are numbers (or truth values) themselves, a column's number is the category, as in a DataFrame, while a matrix holds codes, as a NumPy
array does. None of these is ever bent into another category: what is none is refused, or missing where the framework says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np

from .errors import InvalidInput
from .protocol.datatypes import datatype_of
from .protocol.types import Tensor, TensorSpec

__all__ = ["Category", "FeatureColumns"]

Category: TypeAlias = str | int | float | bool
_MOST_NAMED = 8
"""Names told in one message."""


@dataclass(frozen=True)
class FeatureColumns:
    """Names and categories of a model's columns.

    Example:
        >>> columns = FeatureColumns(("age", "city"), np.dtype(np.float32), categories={1: ("bergen", "oslo")})
        >>> columns.join({"city": np.array([b"oslo"], object), "age": np.array([30])}).tolist()
        [[30.0, 1.0]]
    """

    names: tuple[str, ...]
    """In the order of training; each once."""
    dtype: np.dtype
    """Of the matrix."""
    matrix_name: str = "input-0"
    categorical: frozenset[int] = frozenset()
    """Columns whose numbers are codes."""
    categories: Mapping[int, tuple[Category | None, ...]] = field(default_factory=dict)
    """By column, in the order of their codes, None for one whose name is lost; a categorical column that is not here has categories without names."""
    unknown_is_missing: bool = False
    """A category that training did not see is a missing value; False: it is refused."""
    missing: float = float("nan")
    """A number that counts as missing, beside NaN."""
    underscored: bool = False
    """The file writes blanks in names as underscores: both are taken."""

    @property
    def matrix(self) -> TensorSpec:
        """All columns as one input."""
        return TensorSpec(self.matrix_name, datatype_of(self.dtype), (-1, len(self.names)))

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _codes(self) -> Mapping[int, Mapping[Category | bytes, int]]:
        """Code by category: texts as UTF-8, as they come."""
        return {
            index: {
                one.encode() if isinstance(one, str) else one: code for code, one in enumerate(known) if one is not None
            }
            for index, known in self.categories.items()
        }

    def claims(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a request's tensors are columns, and not the one matrix.

        One that is called as no column, and holds one value a row, is claimed too: `join` says which columns there are.
        """
        if len(tensors) != 1:
            return bool(tensors)
        tensor = tensors[0]
        if self._place(tensor.name) is None:
            return len(tensor.shape) == 1 and len(self.names) > 1 and tensor.name != self.matrix_name
        return len(self.names) == 1 or tensor.shape[1:] != (len(self.names),)

    def join(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Put columns side by side in the order of training.

        Args:
            inputs: [n] or [n, 1] for each name, in any order; numbers, or an object array of `bytes` (None: missing).

        Returns:
            [n, columns] of `dtype`, C order.

        Raises:
            InvalidInput: a column is missing, unknown, of another length or shape, or holds what is no number or category.
        """
        found: dict[int, np.ndarray] = {}
        unknown, first = [], next(iter(inputs), "")
        for name, array in inputs.items():
            place = self._place(name)
            if place is None:
                unknown.append(name)
            elif place in found:
                raise InvalidInput(f"input {name!r} is the feature {self.names[place]!r}, which came already")
            else:
                found[place] = self._column(name, array)
        if unknown or len(found) < len(self.names):
            raise InvalidInput(self._refusal(found, unknown))
        first = self.names[0]
        count = len(found[0])
        rows = np.empty((count, len(self.names)), self.dtype)
        for place, column in sorted(found.items()):
            if len(column) != count:
                raise InvalidInput(f"input {self.names[place]!r}: {len(column)} rows, while {first!r} has {count}")
            rows[:, place] = self._numbers(place, column)
        return rows

    def check_codes(self, rows: np.ndarray) -> None:
        """Refuse a matrix in which a code is none.

        Args:
            rows: [n, columns] of `dtype`.

        Raises:
            InvalidInput: naming the column, the value and the row.
        """
        for place in sorted(self.categorical):
            self._check_codes(place, rows[:, place])

    def _place(self, name: str) -> int | None:
        place = self._places.get(name)
        if place is None and self.underscored and " " in name:
            place = self._places.get(name.replace(" ", "_"))
        return place

    def _refusal(self, found: Mapping[int, np.ndarray], unknown: Sequence[str]) -> str:
        absent = [name for place, name in enumerate(self.names) if place not in found]
        headline = f"input {absent[0]!r} is missing" if absent else f"input {unknown[0]!r} is no feature of the model"
        parts = [f"{what} are {_listed(names)}" for what, names in (("missing", absent), ("unknown", unknown)) if names]
        return (
            f"{headline}; the model takes one input of shape [n, {len(self.names)}], or one for each of its features by "
            f"name: {'; '.join(parts)}"
        )

    def _column(self, name: str, array: np.ndarray) -> np.ndarray:
        """One column as [n]."""
        if array.ndim == 2 and array.shape[1] == 1:
            return array.reshape(-1)
        if array.ndim != 1:
            raise InvalidInput(
                f"input {name!r}: shape {list(array.shape)} has {array.ndim} dimensions, the model takes 1: [-1], one value of this "
                "feature a row"
            )
        return array

    def _numbers(self, place: int, column: np.ndarray) -> np.ndarray:
        """A column's values as the model's numbers."""
        known = self._codes.get(place)
        if column.dtype == object:
            return self._looked_up(place, column.tolist(), known)
        if known is not None and not self._is_named(place):
            return self._looked_up(place, column.astype(np.float64).tolist(), known)
        with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite, as in the frameworks
            numbers = column.astype(self.dtype)
        if place in self.categorical:
            self._check_codes(place, numbers)
        return numbers

    def _looked_up(
        self, place: int, values: list[Category | bytes | None], known: Mapping[Category | bytes, int] | None
    ) -> np.ndarray:
        name = self.names[place]
        texts = any(isinstance(value, bytes | str) for value in values)
        if texts and known is None:
            has = "the file does not hold the names of its categories: send their codes"
            raise InvalidInput(
                f"input {name!r}: the model takes numbers, not texts"
                + (f"; {has}" if place in self.categorical else "")
            )
        if texts and not self._is_named(place):
            raise InvalidInput(f"input {name!r}: its categories are numbers, not texts: {_listed(self._shown(place))}")
        known = known or {}
        codes = np.full(len(values), np.nan, self.dtype)
        for row, value in enumerate(values):
            key = value.encode() if isinstance(value, str) else value
            code = known.get(key) if key is not None else None
            if code is not None:
                codes[row] = code
            elif not self.unknown_is_missing and not self._is_missing(value):
                shown = value.decode(errors="replace") if isinstance(value, bytes) else value
                raise InvalidInput(
                    f"input {name!r}: {shown!r} in row {row} is none of the {len(known)} categories that the model knows: "
                    f"{_listed(self._shown(place))}{self._lost(place)}"
                )
        return codes

    def _is_named(self, place: int) -> bool:
        """Whether a column's categories are texts."""
        return any(one is None or isinstance(one, str) for one in self.categories[place])

    def _shown(self, place: int) -> list[Category]:
        return [one for one in self.categories[place] if one is not None]

    def _lost(self, place: int) -> str:
        lost = [str(code) for code, one in enumerate(self.categories[place]) if one is None]
        return f" (the file has lost the names of the codes {_listed(lost)}: send these as numbers)" if lost else ""

    def _is_missing(self, value: object) -> bool:
        return value is None or (isinstance(value, float) and (value != value or value == self.missing))

    def _check_codes(self, place: int, codes: np.ndarray) -> None:
        """Hold numbers to whole ones of 0 and above, below the number of categories where that is known."""
        if self.unknown_is_missing and place not in self.categories:
            return  # whatever the framework makes of it
        count = len(self.categories[place]) if place in self.categories else None
        with np.errstate(invalid="ignore"):
            wrong = codes != np.floor(codes)
            if not self.unknown_is_missing:
                wrong |= (codes < 0) | (codes >= (count if count is not None else np.inf))
        wrong &= ~np.isnan(codes) & (codes != self.missing)
        if wrong.any():
            row = int(np.argmax(wrong))
            whole = f"0 to {count - 1}" if count is not None else "0 or above"
            raise InvalidInput(
                f"input {self.names[place] or place!r}: {float(codes[row])!r} in row {row} is no category's code: a whole number, {whole}, "
                "was expected"
            )


def _listed(names: Sequence[Category]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(str, names[:_MOST_NAMED])) + more
