"""`CatBoostModel`: a CatBoost model as a serinus `Model`. What it does is `CompiledTreeModel`'s; see there.

Beside that: a file that catboost has not loaded yet is loaded in a process of its own first, since it trusts a file's numbers; and a model with
categories, which CatBoost itself serves, takes columns of texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from serinus.engines import load_trial
from serinus.engines.frame_columns import FrameColumns
from serinus.engines.tree_adapter import TreeFacts
from serinus.engines.tree_model import CompiledTreeModel
from serinus.errors import InvalidInput
from serinus.feature_columns import FeatureColumns

from .adapter import CatBoostAdapter

__all__ = ["CatBoostModel"]


class CatBoostModel(CompiledTreeModel):
    """Serves CatBoost's `.cbm` and JSON. Rows are float32, as CatBoost's; categories are texts or whole numbers."""

    platform = "catboost_cbm"
    adapter_class = CatBoostAdapter

    def load(self) -> None:
        """Read, compile and verify the model."""
        file = CatBoostAdapter(self.settings, self.options).file
        self._categorical = file.categorical
        if version := CatBoostAdapter.installed_version():
            load_trial.try_apart(self, (file.path,), {"catboost": version})
        super().load()
        if self._frame is not None:
            self.inputs = tuple(
                dataclasses.replace(spec, datatype="BYTES") if place in self._categorical else spec
                for place, spec in enumerate(self._frame.specs)
            )

    @property
    def _frame(self) -> FrameColumns | None:
        return self.columns if isinstance(self.columns, FrameColumns) else None

    def _columns(self, facts: TreeFacts, columns: int) -> tuple[FeatureColumns | None, FeatureColumns | None]:
        if not self._categorical:
            return super()._columns(facts, columns)
        names = facts.feature_names or tuple(map(str, range(columns)))
        numbers = frozenset(range(columns)) - self._categorical
        return FrameColumns(names, np.dtype(object), self.options.input_name, numbers=numbers), None

    def _measure_threads(self, predictor: Any) -> None:
        if not self._categorical:  # random numbers are no categories
            super()._measure_threads(predictor)

    def _rows(self, inputs: Mapping[str, np.ndarray], loaded: Any) -> np.ndarray:
        frame = self._frame
        if frame is None:
            return super()._rows(inputs, loaded)
        if len(inputs) > 1:
            return frame.join(inputs)
        ((name, rows),) = inputs.items()
        if rows.ndim != 2 or rows.shape[1] != len(frame.names):
            raise InvalidInput(
                f"input {name!r}: shape {list(rows.shape)} does not fit; the model takes [n, {len(frame.names)}]"
            )
        return rows
