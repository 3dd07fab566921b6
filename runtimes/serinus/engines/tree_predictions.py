"""A tree model's answers from either engine, the compiled walk or the framework's predictor, in the shapes of the framework."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..native.trees.walker import Walker
from .tree_adapter import FrameworkPredictor, TreeAdapter

__all__ = ["CompiledPredictions", "FrameworkPredictions", "TreePredictions"]


class TreePredictions(Protocol):
    """Answers of one model. Rows are of the adapter's `input_dtype`, [n, columns], C order."""

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Predictions as the framework shapes them: [n], or [n, outputs]."""
        ...

    def scores(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margins, [n] or [n, outputs], and what the link makes of them; without margins, the outputs twice."""
        ...


class CompiledPredictions:
    """Answers of the compiled walk."""

    def __init__(self, adapter: TreeAdapter, forest: Walker) -> None:
        self._forest = forest
        self._dtype = forest.dtype
        self._widens = adapter.input_dtype != forest.dtype
        self._flat = forest.groups == 1
        self._by_class = adapter.facts.predicts_class and forest.groups > 1
        self._offers_margin = adapter.facts.offers_margin
        self._output_dtype = adapter.output_dtype

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Predictions as the framework shapes them."""
        if self._widens:
            rows = rows.astype(self._dtype)
        if self._flat:
            return self._forest.predict(rows).reshape(-1)
        if self._by_class:
            return self._forest.margins(rows).argmax(axis=1).astype(self._output_dtype)
        return self._forest.predict(rows)

    def scores(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margins and outputs, shaped alike."""
        if self._widens:
            rows = rows.astype(self._dtype)
        margins, outputs = self._forest.both(rows)
        if not self._offers_margin:
            margins = outputs
        return (margins[:, 0], outputs[:, 0]) if self._flat else (margins, outputs)


class FrameworkPredictions:
    """Answers of the framework's predictor."""

    def __init__(self, adapter: TreeAdapter, predictor: FrameworkPredictor) -> None:
        self.predict = predictor.predict
        self._predictor = predictor
        self._offers_margin = adapter.facts.offers_margin

    def scores(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margins and outputs, shaped alike."""
        outputs = self._predictor.outputs(rows)
        return self._predictor.margins(rows) if self._offers_margin else outputs, outputs
