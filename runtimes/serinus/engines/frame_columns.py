"""Columns of numbers and of texts, by name: what a model takes that was trained on a DataFrame of both.

The matrix that requests are joined in holds objects: floats, `bytes` for texts, None for what is missing. A text is never bent into a number,
nor a number into a text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InvalidInput
from ..feature_columns import FeatureColumns
from ..protocol.types import TensorSpec

__all__ = ["FrameColumns"]


@dataclass(frozen=True)
class FrameColumns(FeatureColumns):
    """Names of the columns, and which of them hold what; those that are neither of the two take both.

    Example:
        >>> columns = FrameColumns(("age", "city"), np.dtype(object), texts=frozenset({1}), numbers=frozenset({0}))
        >>> columns.join({"city": np.array([b"oslo"], object), "age": np.array([30])}).tolist()
        [[30.0, b'oslo']]
    """

    texts: frozenset[int] = frozenset()
    numbers: frozenset[int] = frozenset()

    @property
    def matrix(self) -> TensorSpec:
        """All columns as one input of objects."""
        return TensorSpec(self.matrix_name, "BYTES", (-1, len(self.names)))

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Each column as an input, for the metadata."""
        return tuple(
            TensorSpec(name, "BYTES" if place in self.texts else "FP64", (-1,)) for place, name in enumerate(self.names)
        )

    def check_codes(self, rows: np.ndarray) -> None:
        """Refuse texts among numbers and numbers among texts, in a matrix that came as one.

        Raises:
            InvalidInput: naming the column and the row.
        """
        for place in range(len(self.names)):
            self._numbers(place, rows[:, place])

    def _numbers(self, place: int, column: np.ndarray) -> np.ndarray:
        """Give a column's values as objects."""
        name = self.names[place]
        if column.dtype != object:
            numbers = column.astype(np.float64)
            if place in self.texts and not np.isnan(numbers).all():
                raise InvalidInput(f"input {name!r}: the model takes texts, not {column.dtype.name}")
            made = numbers.astype(object)
            if place in self.texts:
                made[:] = None
            return made
        for row, value in enumerate(column.tolist()):
            if isinstance(value, bytes | str):
                if place in self.numbers:
                    raise InvalidInput(f"input {name!r}: a text came in row {row}, the model takes numbers")
            elif place in self.texts and value is not None and value == value:
                raise InvalidInput(f"input {name!r}: {value!r} came in row {row}, the model takes texts")
        return column
