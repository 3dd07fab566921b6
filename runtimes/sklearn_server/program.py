"""`Program`: a whole model compiled, from rows as they come to what its methods answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from serinus.engines.not_covered import NotCovered
from serinus.native.trees.walker import KernelsMissing

from . import forests, linear
from .estimator import Estimator
from .heads import Head
from .transforms import Transform, as_numbers, category_codes, compile_transform, join, refuse_odd

__all__ = ["ARITHMETIC", "Program", "compile_program"]

ARITHMETIC: Final = 1
"""Version of what is computed here: raised with any change that could change a result, so that old records lapse."""


@dataclass(frozen=True, slots=True)
class Program:
    """Steps and the estimator behind them."""

    before: Transform | None
    """None: the estimator takes the rows themselves."""
    head: Head
    who: str
    """Name of the estimator, for messages."""

    @property
    def columns(self) -> int:
        """Of the rows."""
        return self.before.inputs if self.before is not None else self.head.columns

    @property
    def texts(self) -> frozenset[int]:
        """Columns that are texts."""
        return self.before.texts if self.before is not None else frozenset()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Methods that it answers."""
        return self.head.outputs

    def run(self, rows: np.ndarray, wanted: frozenset[str]) -> dict[str, np.ndarray]:
        """Answer methods.

        Args:
            rows: float64 [n, columns] in C order, or objects where columns are texts.
            wanted: of `outputs`.

        Raises:
            InvalidInput: a value that the model does not take.
        """
        head = self.head
        with np.errstate(all="ignore"):  # rounding and scaling may overflow; what comes of it is refused below
            if self.before is not None:
                rows = self.before.apply(rows)
            rows = as_numbers(rows)
            if head.rounds:
                rows = rows.astype(np.float32).astype(np.float64)
            refuse_odd(rows, head.accepts, self.who, rounds=head.rounds)
            return head.run(np.ascontiguousarray(rows), wanted)

    def splits(self) -> Mapping[int, np.ndarray]:
        """Values that the estimator compares with, as they are in the rows, by column."""
        found: dict[int, list[np.ndarray]] = {}
        for column, values in self.head.splits.items():
            origin: tuple[int, Callable[[np.ndarray], np.ndarray]] | None = (column, _same)
            if self.before is not None:
                origin = self.before.origins[column]
            if origin is not None:
                found.setdefault(origin[0], []).append(np.asarray(origin[1](values), np.float64))
        return {column: np.concatenate(parts) for column, parts in found.items()}


def compile_program(model: Estimator, *, threads: int) -> Program:
    """Compile a model: an estimator, or a pipeline that ends in one.

    Raises:
        NotCovered: with the reason, as a clause.
    """
    try:
        return _compile(model, threads)
    except (KernelsMissing, ValueError) as error:
        raise NotCovered(str(error)) from None


def _compile(model: Estimator, threads: int) -> Program:
    last: Any = model
    before: Transform | None = None
    if model.kind == "sklearn.pipeline.Pipeline":
        steps = model.of("steps", list)
        if not steps or not isinstance(steps[-1], list | tuple) or len(steps[-1]) != 2:
            raise NotCovered("a Pipeline without usable steps")
        last = steps[-1][1]
        if len(steps) > 1:
            inputs = _columns_of(steps[0][1], last)
            before = compile_transform(Estimator(model.kind, {**model.state, "steps": steps[:-1]}), inputs)
    if not isinstance(last, Estimator):
        raise NotCovered(f"a Pipeline that ends in {last!r}")
    if before is not None and last.kind == "sklearn.pipeline.Pipeline":
        raise NotCovered("a Pipeline that ends in a Pipeline")
    if last.kind in forests.KINDS:
        head = forests.compile_forest(last, threads=threads)
        if last.kind.startswith(forests.HISTOGRAM):
            before = join(before, category_codes(last))
    elif last.kind in linear.KINDS:
        head = linear.compile_linear(last)
    else:
        raise NotCovered(f"the estimator {last.name}")
    if before is not None and before.outputs != head.columns:
        raise NotCovered(f"{last.name} of {head.columns} columns behind steps that give {before.outputs}")
    return Program(before, head, last.name)


def _columns_of(first: Any, last: Any) -> int | None:
    """Columns of the rows, as the first step says, or the last where the first is none."""
    for one in (first, last):
        if isinstance(one, Estimator) and type(one.get("n_features_in_")) is int:
            return one.get("n_features_in_")
    return None


def _same(values: np.ndarray) -> np.ndarray:
    return values
