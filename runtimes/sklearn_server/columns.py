"""What a model's columns are called and what they hold: numbers, texts, or one text a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from serinus.engines.frame_columns import FrameColumns
from serinus.feature_columns import FeatureColumns

from .estimator import Estimator

__all__ = ["Columns", "columns_of"]

_VECTORIZERS: Final = "sklearn.feature_extraction.text."
_CATEGORICAL: Final = ("OneHotEncoder", "OrdinalEncoder", "TargetEncoder")


@dataclass(frozen=True, slots=True)
class Columns:
    """Of the rows that a model takes."""

    count: int
    """0: the model does not say."""
    names: tuple[str, ...]
    """In the order of training; empty: it was trained without."""
    texts: frozenset[int]
    numbers: frozenset[int]
    """Those that are neither may hold both."""
    samples: Mapping[int, tuple[Any, ...]]
    """Categories by column, where the model has them: numbers, `bytes`, None for a missing one."""
    selects_by_name: bool
    """A step selects columns, so that rows are handed over as a DataFrame where there are names."""
    is_text: bool = False
    """A row is one text: the model begins with a vectorizer."""
    nones: frozenset[int] = frozenset()
    """Columns with None among their categories: a missing text is that, and NaN in all others."""

    @property
    def is_frame(self) -> bool:
        """Rows are objects, since some columns may be texts."""
        return bool(self.texts) or (self.selects_by_name and len(self.numbers) < self.count)

    def feature_columns(self, matrix_name: str) -> FeatureColumns | None:
        """Give the columns by name; None: they have no names, or one twice."""
        names = self.names or (tuple(f"x{place}" for place in range(self.count)) if self.is_frame else ())
        if self.is_text or not names or len(set(names)) != self.count or len(names) != self.count:
            return None
        if self.is_frame:
            return FrameColumns(names, np.dtype(object), matrix_name, texts=self.texts, numbers=self.numbers)
        return FeatureColumns(names, np.dtype(np.float64), matrix_name)

    def sample(self) -> np.ndarray:
        """One row that the model takes, as far as it says."""
        if self.is_text:
            return np.array([b"text"], object)
        if not self.is_frame:
            return np.zeros((1, self.count))
        row = np.empty((1, self.count), object)
        for place in range(self.count):
            row[0, place] = next(iter(self.samples.get(place, ())), b"" if place in self.texts else 0.0)
        return row


def columns_of(model: Estimator) -> Columns:
    """Read the columns off a model."""
    first = _first(model)
    if first.kind.startswith(_VECTORIZERS) and first.name != "TfidfTransformer":
        return Columns(1, (), frozenset({0}), frozenset(), {}, False, is_text=True)
    names = next((found for one in (model, first) if (found := _names(one))), ())
    counted = [one.get("n_features_in_") for one in (model, first)]
    count = next((one for one in counted if type(one) is int and one > 0), len(names))
    kinds: dict[int, str] = {}
    samples: dict[int, tuple[Any, ...]] = {}
    nones: set[int] = set()
    is_boosting = first.name.startswith("HistGradientBoosting") and isinstance(first.get("_preprocessor"), Estimator)
    if is_boosting:  # it encodes its categories itself
        first = first.get("_preprocessor")
    is_selecting = first.name == "ColumnTransformer"
    if is_selecting:
        places = first.get("_transformer_to_input_indices")
        entries = first.get("transformers_")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, list | tuple) and len(entry) == 3 and isinstance(places, dict):
                found = [place for place in places.get(entry[0], ()) if type(place) is int and 0 <= place < count]
                _note(entry[1], found, kinds, samples, nones)
        for place in range(count) if is_boosting else ():
            kinds[place] = "text" if kinds.get(place) == "text" else "number"
    else:
        _note(first, list(range(count)), kinds, samples, nones)
        for place in range(count):
            kinds.setdefault(place, "number")
    return Columns(
        count,
        names,
        frozenset(place for place, kind in kinds.items() if kind == "text"),
        frozenset(place for place, kind in kinds.items() if kind == "number"),
        samples,
        is_selecting and not (is_boosting and "text" not in kinds.values()),
        nones=frozenset(nones),
    )


def _first(model: Estimator) -> Estimator:
    """Give the step that sees the rows first."""
    while model.name in ("Pipeline", "FeatureUnion"):
        steps = model.get("steps" if model.name == "Pipeline" else "transformer_list")
        parts = (
            [one[1] for one in steps if isinstance(one, list | tuple) and len(one) > 1]
            if isinstance(steps, list)
            else []
        )
        inner = next((part for part in parts if isinstance(part, Estimator)), None)
        if inner is None:
            break
        model = inner
    return model


def _names(model: Estimator) -> tuple[str, ...]:
    found = model.get("feature_names_in_")
    if not isinstance(found, np.ndarray) or found.ndim != 1:
        return ()
    names = tuple(found.tolist())
    return names if all(isinstance(name, str) for name in names) else ()


def _note(
    step: Any, places: Sequence[int], kinds: dict[int, str], samples: dict[int, tuple[Any, ...]], nones: set[int]
) -> None:
    """Note what a step says of the columns that it is given: its first transformer that looks at values decides."""
    if isinstance(step, str) or not isinstance(step, Estimator):
        return
    if step.name == "Pipeline":
        steps = step.get("steps")
        for one in steps if isinstance(steps, list) else ():
            if isinstance(one, list | tuple) and len(one) > 1:
                _note(one[1], places, kinds, samples, nones)
                if isinstance(one[1], Estimator) and one[1].name != "SimpleImputer":
                    return  # what follows sees other columns
        return
    if step.kind.startswith(_VECTORIZERS):
        kinds.update(dict.fromkeys(places, "text"))
        return
    if step.name in _CATEGORICAL:
        known = step.get("categories_")
        for place, categories in zip(places, known if isinstance(known, list) else (), strict=False):
            values = np.asarray(categories).tolist()
            kinds.setdefault(place, "text" if any(isinstance(one, str) for one in values) else "any")
            if None in values:
                nones.add(place)
            samples[place] = tuple(_object(one) for one in values)
        return
    if step.name == "SimpleImputer":
        statistics = step.get("statistics_")
        if isinstance(statistics, np.ndarray) and len(statistics) == len(places):
            texts = [isinstance(one, str) for one in statistics.tolist()]
            kinds.update({place: "text" if is_text else "number" for place, is_text in zip(places, texts, strict=True)})
        return
    if step.kind.startswith("sklearn.preprocessing._data.") or step.kind.startswith("sklearn.impute."):
        for place in places:
            kinds.setdefault(place, "number")


def _object(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    return None if value is None or value != value else value
