"""What stands before the estimator of a pipeline, in NumPy: scalers, imputers, encoders, and columns that go different ways.

Sources, of scikit-learn 1.9: `preprocessing/_data.py`, `preprocessing/_encoders.py`, `impute/_base.py`, `compose/_column_transformer.py`. Each does
the same operations in the same order, so that scaled values are equal to the last bit. Rows are float64 [n, columns], or, where a model has
columns of texts, objects: numbers, `bytes`, and None for what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from serinus.engines.not_covered import NotCovered
from serinus.errors import InvalidInput

from .estimator import Estimator

__all__ = [
    "MISSING_CODE",
    "Origin",
    "Transform",
    "as_numbers",
    "category_codes",
    "compile_transform",
    "join",
    "refuse_odd",
]

Origin = tuple[int, Callable[[np.ndarray], np.ndarray]]
"""The input column that an output column is made of, and the way back for its values."""

_PREPROCESSING: Final = "sklearn.preprocessing._data."
_ENCODERS: Final = "sklearn.preprocessing._encoders."


@dataclass(frozen=True, slots=True)
class Transform:
    """One step, compiled."""

    inputs: int
    outputs: int
    apply: Callable[[np.ndarray], np.ndarray]
    origins: tuple[Origin | None, ...]
    """For each output column; None: it is of no one column."""
    texts: frozenset[int] = frozenset()
    """Input columns that are texts."""
    categories: tuple[tuple[int, tuple[Any, ...]], ...] = ()
    """Input columns with the categories that they are looked up among."""


def compile_transform(step: Any, inputs: int | None = None) -> Transform:
    """Compile a fitted transformer, or "passthrough".

    Args:
        step: an Estimator, or the word.
        inputs: columns that it is given, where it does not say so itself.

    Raises:
        NotCovered: with the reason.
    """
    if isinstance(step, str) and step == "passthrough" and inputs is not None:
        return _identity(inputs)
    if not isinstance(step, Estimator):
        raise NotCovered(f"a step {step!r}")
    if step.kind == "sklearn.pipeline.Pipeline":
        return _chain([part for _, part in _steps(step)], inputs)
    if step.kind == "sklearn.compose._column_transformer.ColumnTransformer":
        return _columns(step)
    if step.kind == "sklearn.preprocessing._function_transformer.FunctionTransformer":
        if step.get("func") is not None or inputs is None:
            raise NotCovered("FunctionTransformer, whose function is code")
        return _identity(inputs)
    make = _KINDS.get(step.kind)
    if make is None:
        raise NotCovered(f"the step {step.name}")
    return make(step)


def as_numbers(rows: np.ndarray) -> np.ndarray:
    """Give rows of objects as float64; None is NaN.

    Raises:
        InvalidInput: a text is among them.
    """
    if rows.dtype != object:
        return rows
    for value in rows.reshape(-1):
        if isinstance(value, bytes | str):
            raise InvalidInput(f"{_shown(value)} came where the model takes a number")
    return rows.astype(np.float64)


def refuse_odd(rows: np.ndarray, accepts: str, who: str, *, rounds: bool = False) -> None:
    """Refuse numbers that an estimator does not take, as scikit-learn's validation does.

    Raises:
        InvalidInput: naming the first one and its place.
    """
    if accepts == "any" or np.isfinite(rows).all():
        return
    odd = ~np.isfinite(rows) if accepts == "finite" else np.isinf(rows)
    if odd.any():
        row, column = map(int, np.argwhere(odd)[0])
        what = "NaN" if np.isnan(rows[row, column]) else "infinite" + (" in float32" if rounds else "")
        taken = "finite numbers alone" if accepts == "finite" else "no infinite numbers"
        raise InvalidInput(f"row {row}, column {column}: the value is {what}; {who} takes {taken}")


def _steps(pipeline: Estimator) -> list[tuple[str, Any]]:
    found = pipeline.of("steps", list)
    if not all(isinstance(one, list | tuple) and len(one) == 2 for one in found):
        raise NotCovered("a Pipeline without usable steps")
    return [
        (one[0], one[1])
        for one in found
        if one[1] is not None and not (isinstance(one[1], str) and one[1] == "passthrough")
    ]


def _identity(inputs: int) -> Transform:
    return Transform(inputs, inputs, lambda rows: rows, tuple((column, _same) for column in range(inputs)))


def _chain(steps: Sequence[Any], inputs: int | None) -> Transform:
    if not steps:
        if inputs is None:
            raise NotCovered("a Pipeline without steps")
        return _identity(inputs)
    whole = compile_transform(steps[0], inputs)
    for step in steps[1:]:
        whole = _joined(whole, compile_transform(step, whole.outputs))
    return whole


def _joined(first: Transform, second: Transform) -> Transform:
    if second.inputs != first.outputs:
        raise NotCovered(f"a step of {second.inputs} columns behind one that gives {first.outputs}")
    origins: list[Origin | None] = []
    for origin in second.origins:
        earlier = first.origins[origin[0]] if origin is not None else None
        origins.append(None if origin is None or earlier is None else (earlier[0], _after(origin[1], earlier[1])))
    texts, categories = set(first.texts), list(first.categories)
    for column in second.texts:
        if (origin := first.origins[column]) is not None:
            texts.add(origin[0])
    categories += [
        (origin[0], known) for column, known in second.categories if (origin := first.origins[column]) is not None
    ]
    apply_first, apply_second = first.apply, second.apply
    return Transform(
        first.inputs,
        second.outputs,
        lambda rows: apply_second(apply_first(rows)),
        tuple(origins),
        frozenset(texts),
        tuple(categories),
    )


def _after(last: Callable[[np.ndarray], np.ndarray], first: Callable[[np.ndarray], np.ndarray]) -> Any:
    return lambda values: first(last(values))


def _columns(model: Estimator) -> Transform:
    """Compile a ColumnTransformer: what each transformer gives, side by side in the order of the transformers."""
    if model.get("transformer_weights"):
        raise NotCovered("a ColumnTransformer with weights")
    inputs = model.of("n_features_in_", int)
    places = model.of("_transformer_to_input_indices", dict)
    parts: list[tuple[np.ndarray, Transform]] = []
    for entry in model.of("transformers_", list):
        if not isinstance(entry, list | tuple) or len(entry) != 3:
            raise NotCovered("a ColumnTransformer without usable transformers")
        name, step, columns = entry
        if isinstance(step, str) and step == "drop":
            continue
        if isinstance(columns, str):
            raise NotCovered(f"a ColumnTransformer that gives the column {columns!r} as one dimension")
        found = np.asarray(places.get(name, []), np.int64).reshape(-1)
        if not len(found):
            continue
        if np.any((found < 0) | (found >= inputs)):
            raise NotCovered("a ColumnTransformer whose columns lead out of its rows")
        parts.append((found, compile_transform(step, len(found))))
    if not parts:
        raise NotCovered("a ColumnTransformer that drops all columns")
    if any(part.inputs != len(found) for found, part in parts):
        raise NotCovered("a ColumnTransformer whose columns are not those of its transformers")
    origins = [
        None if origin is None else (int(found[origin[0]]), origin[1])
        for found, part in parts
        for origin in part.origins
    ]
    texts = frozenset(int(found[column]) for found, part in parts for column in part.texts)
    categories = tuple((int(found[column]), known) for found, part in parts for column, known in part.categories)

    def apply(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([as_numbers(part.apply(rows[:, found])) for found, part in parts], axis=1)

    return Transform(inputs, sum(part.outputs for _, part in parts), apply, tuple(origins), texts, categories)


# Scalers


def _scaler(model: Estimator) -> Transform:
    """Compile StandardScaler or RobustScaler: minus the centre, by the scale."""
    standard = model.name == "StandardScaler"
    centre = (
        model.numbers("mean_" if standard else "center_")
        if model.get("with_mean" if standard else "with_centering")
        else None
    )
    scale = model.numbers("scale_") if model.get("with_std" if standard else "with_scaling") else None

    def apply(rows: np.ndarray) -> np.ndarray:
        rows = _checked(rows, model.name)
        if centre is not None:
            rows = rows - centre
        return rows if scale is None else rows / scale

    def back(column: int) -> Callable[[np.ndarray], np.ndarray]:
        by = 1.0 if scale is None else scale[column]
        plus = 0.0 if centre is None else centre[column]
        return lambda values: values * by + plus

    return _elementwise(model, apply, back, centre, scale)


def _min_max(model: Estimator) -> Transform:
    scale, least = model.numbers("scale_"), model.numbers("min_")
    clip = model.get("clip")
    low, high = model.numbers("feature_range") if clip else (0.0, 0.0)

    def apply(rows: np.ndarray) -> np.ndarray:
        rows = _checked(rows, model.name) * scale
        rows += least
        return np.clip(rows, low, high) if clip else rows

    return _elementwise(
        model, apply, lambda column: lambda values: (values - least[column]) / scale[column], scale, least
    )


def _max_abs(model: Estimator) -> Transform:
    scale, clip = model.numbers("scale_"), model.get("clip")

    def apply(rows: np.ndarray) -> np.ndarray:
        rows = _checked(rows, model.name) / scale
        return np.clip(rows, -1.0, 1.0) if clip else rows

    return _elementwise(model, apply, lambda column: lambda values: values * scale[column], scale)


def _elementwise(
    model: Estimator,
    apply: Callable[[np.ndarray], np.ndarray],
    back: Callable[[int], Callable[[np.ndarray], np.ndarray]],
    *parameters: np.ndarray | None,
) -> Transform:
    columns = model.of("n_features_in_", int)
    if any(one is not None and one.shape != (columns,) for one in parameters):
        raise NotCovered(f"{model.name} of {columns} columns with parameters of others")
    return Transform(columns, columns, apply, tuple((column, back(column)) for column in range(columns)))


def _checked(rows: np.ndarray, who: str) -> np.ndarray:
    rows = as_numbers(rows)
    refuse_odd(rows, "no infinity", who)
    return rows


# Imputers and encoders


def _imputer(model: Estimator) -> Transform:
    """Compile SimpleImputer of NaN: each missing value becomes its column's."""
    missing = model.get("missing_values")
    if model.get("add_indicator") or not isinstance(missing, float) or not math.isnan(missing):
        raise NotCovered("SimpleImputer with an indicator, or of another missing value than NaN")
    statistics = model.of("statistics_", np.ndarray)
    columns = len(statistics)
    every = tuple((column, _same) for column in range(columns))
    if statistics.dtype == object:
        filling = [one.encode() if isinstance(one, str) else one for one in statistics.tolist()]
        if not all(isinstance(one, bytes) for one in filling):
            raise NotCovered("SimpleImputer of mixed columns")

        def fill(rows: np.ndarray) -> np.ndarray:
            made = rows.astype(object)
            for column, by in enumerate(filling):
                made[[_is_missing(one) for one in made[:, column]], column] = by
            return made

        return Transform(columns, columns, fill, every, frozenset(range(columns)))
    numbers = statistics.astype(np.float64)
    if np.isnan(numbers).any():
        raise NotCovered("SimpleImputer with columns that had no value in training")

    def apply(rows: np.ndarray) -> np.ndarray:
        rows = _checked(rows, "SimpleImputer")
        absent = np.isnan(rows)
        return np.where(absent, numbers, rows) if absent.any() else rows

    return Transform(columns, columns, apply, every)


def _encoder(model: Estimator) -> Transform:
    """Compile OneHotEncoder or OrdinalEncoder: each value is looked up among its column's categories."""
    one_hot = model.name == "OneHotEncoder"
    found = [np.asarray(one) for one in model.of("categories_", list)]
    if model.get("_infrequent_enabled") or model.get("min_frequency") or model.get("max_categories"):
        raise NotCovered(f"{model.name} that joins infrequent categories")
    if one_hot and model.get("drop") is not None:
        raise NotCovered("OneHotEncoder that drops categories")
    how = model.get("handle_unknown", "error")
    if how not in ("error", "ignore", "use_encoded_value"):
        raise NotCovered(f"{model.name} with handle_unknown {how!r}")
    known = [_known(categories, model.name) for categories in found]
    texts = frozenset(column for column, keys in enumerate(known) if any(isinstance(key, bytes) for key in keys))
    unknown = math.nan
    if how == "use_encoded_value":
        unknown = float(model.numbers("unknown_value"))
    missing_code = model.get("encoded_missing_value", math.nan)
    # Among categories NaN is a missing value, which has a code of its own; None is a category like others.
    is_nan = [any(isinstance(one, float) and math.isnan(one) for one in categories.tolist()) for categories in found]
    sizes = [len(categories) for categories in found]
    starts = np.cumsum([0, *sizes])

    def look_up(rows: np.ndarray, column: int) -> list[int]:
        keys = known[column]
        values = rows[:, column].tolist()
        codes = [keys.get(_key(value), -1) for value in values]
        if how != "error" and column not in texts and any(isinstance(one, float) and math.isinf(one) for one in values):
            raise InvalidInput(f"{model.name} takes no infinite numbers, not even as an unknown category")
        if how == "error" and -1 in codes:
            row = codes.index(-1)
            shown = ", ".join(_shown(key) for key in list(keys)[:8])
            raise InvalidInput(
                f"row {row}: {_shown(rows[row, column])} is none of the {len(keys)} categories that {model.name} knows: {shown}"
            )
        return codes

    def hot(rows: np.ndarray) -> np.ndarray:
        made = np.zeros((len(rows), int(starts[-1])))
        for column in range(len(known)):
            codes = np.array(look_up(rows, column), np.int64)
            there = codes >= 0
            made[np.flatnonzero(there), starts[column] + codes[there]] = 1.0
        return made

    def ordinal(rows: np.ndarray) -> np.ndarray:
        made = np.empty((len(rows), len(known)))
        for column, keys in enumerate(known):
            codes = look_up(rows, column)
            absent = keys.get(None, -2) if is_nan[column] else -2
            made[:, column] = [unknown if code == -1 else missing_code if code == absent else code for code in codes]
        return made

    shown = tuple((column, tuple(keys)) for column, keys in enumerate(known))
    if one_hot:
        return Transform(len(known), int(starts[-1]), hot, (None,) * int(starts[-1]), texts, shown)
    return Transform(len(known), len(known), ordinal, (None,) * len(known), texts, shown)


MISSING_CODE: Final = 255
"""What a missing or unknown category is to the compiled walk: beyond all codes, of which there are 255 at most (`max_bins`)."""


def category_codes(model: Estimator) -> Transform | None:
    """Compile what histogram-based boosting does before its trees: codes of categories, then the other columns; None: it does nothing.

    A category that is missing or that training did not see is one to the trees (`_preprocess_X`, whose encoder gives NaN for both).

    Raises:
        NotCovered: with the reason.
    """
    found = model.get("_preprocessor")
    if found is None:
        if model.get("is_categorical_") is not None:
            raise NotCovered(f"{model.name} with categories, of a scikit-learn before 1.4")
        return None
    if not isinstance(found, Estimator):
        raise NotCovered(f"{model.name} with an encoder of its own")
    inputs = found.of("n_features_in_", int)
    places = found.of("_transformer_to_input_indices", dict)
    encoders = [one for one in found.of("transformers_", list) if one[0] == "encoder"]
    coded, plain = (np.asarray(places.get(name, []), np.int64).reshape(-1) for name in ("encoder", "numerical"))
    if len(encoders) != 1 or sorted([*coded, *plain]) != list(range(inputs)):
        raise NotCovered(f"{model.name} with an encoder of its own")
    encoder = compile_transform(encoders[0][1], len(coded))
    if any(sum(one is not None for one in known) > MISSING_CODE for _, known in encoder.categories):
        raise NotCovered(f"{model.name} with more than {MISSING_CODE} categories in a column")

    def apply(rows: np.ndarray) -> np.ndarray:
        made = np.empty((len(rows), inputs))
        codes = encoder.apply(rows[:, coded])
        made[:, : len(coded)] = np.where(np.isnan(codes), MISSING_CODE, codes)
        made[:, len(coded) :] = as_numbers(rows[:, plain])
        return made

    texts = frozenset(int(coded[column]) for column in encoder.texts)
    categories = tuple((int(coded[column]), known) for column, known in encoder.categories)
    origins: list[Origin | None] = [None] * len(coded)
    return Transform(inputs, inputs, apply, (*origins, *((int(column), _same) for column in plain)), texts, categories)


def join(first: Transform | None, second: Transform | None) -> Transform | None:
    """Give two steps as one; None is a step that does nothing.

    Raises:
        NotCovered: the second takes another number of columns than the first gives.
    """
    return (second or first) if first is None or second is None else _joined(first, second)


def _known(categories: np.ndarray, who: str) -> dict[Any, int]:
    """Give each category's code; None stands for a missing one."""
    made: dict[Any, int] = {}
    for code, value in enumerate(categories.tolist()):
        if not (value is None or isinstance(value, str | int | float | bool)):
            raise NotCovered(f"{who} with categories of the type {type(value).__name__}")
        made[_key(value)] = code
    if len(made) != len(categories):
        raise NotCovered(f"{who} with a category twice")
    return made


def _key(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    return None if _is_missing(value) else value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value: Any) -> str:
    return repr(value.decode(errors="replace")) if isinstance(value, bytes) else repr(value)


def _same(values: np.ndarray) -> np.ndarray:
    return values


_KINDS: Final[dict[str, Callable[[Estimator], Transform]]] = {
    _PREPROCESSING + "StandardScaler": _scaler,
    _PREPROCESSING + "RobustScaler": _scaler,
    _PREPROCESSING + "MinMaxScaler": _min_max,
    _PREPROCESSING + "MaxAbsScaler": _max_abs,
    "sklearn.impute._base.SimpleImputer": _imputer,
    _ENCODERS + "OneHotEncoder": _encoder,
    _ENCODERS + "OrdinalEncoder": _encoder,
}
