"""`XGBoostModel`: an XGBoost model file as a serinus `Model`.

Theory of operation. `load` reads the file with its own parser, compiles it to a flat forest and looks for a verdict that this
engine agrees with XGBoost on this file. With one, xgboost is never imported. Without one, the Booster is loaded, compared,
and the verdict kept. A model that the engine does not cover, or differs on, is served by the Booster; the log and the model's
`details` say which engine serves, and why.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from serinus.artifacts import check_inside
from serinus.errors import ConfigError, InvalidInput, NotSupported
from serinus.model import Call, Model
from serinus.native.trees.forest import Forest, Link
from serinus.protocol.types import TensorSpec
from serinus.settings import ModelSettings

from . import modelfile, verdict
from .forest import Iterations, NotCovered, compile_forest, iterations
from .modelfile import ModelFile
from .objective import OBJECTIVES, Objective
from .options import Options
from .reference import Reference, installed_version

__all__ = ["XGBoostModel"]

_log = logging.getLogger("serinus.xgboost")

_FLOAT32: Final = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What `load` made, replaced as a whole."""

    file: ModelFile
    iterations: Iterations
    columns: int
    groups: int
    objective: Objective
    forest: Forest | None
    reference: Reference | None


class XGBoostModel(Model):
    """Serves `.ubj`, `.json` and old binary model files.

    Input: one tensor [n, features] of any name; with the setting `input_form` "columns", one tensor [n] per feature under the
    model's own feature names. NaN is missing. Numbers of any type are taken and converted to float32, as XGBoost does.
    Outputs: `predict`, and on request `margin`, `probability`, `class` and `contributions`; see the README.
    """

    platform = "xgboost_booster"
    coerce = True
    any_input_name = True
    slow_outputs = frozenset({"contributions"})
    """Outputs that take milliseconds where the others take microseconds: a batch that wants one does not belong on the loop."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.options = Options.parse(settings.extra)
        self._loaded: _Loaded | None = None
        self._explaining: Reference | None = None
        self._lock = threading.Lock()
        """Guards `_explaining`."""

    def load(self) -> None:
        """Read, compile and verify the model.

        Raises:
            ConfigError: no model there, wrong settings, or nothing here can serve it.
        """
        if self.settings.model_dir is None:
            raise ConfigError(f"model {self.name!r}: model_dir is not set; name the model file or its folder")
        file = modelfile.read(check_inside(modelfile.find(self.settings.model_dir), self.settings))
        try:
            chosen = iterations(file, self.options.iteration_range)
        except ValueError as error:
            raise ConfigError(f"{file.path}: {error}") from None
        forest, reference, reason = self._choose(file, chosen)
        objective = OBJECTIVES.get(file.objective, Objective())
        columns = forest.columns if forest is not None else reference.features if reference is not None else 0
        self._loaded = _Loaded(file, chosen, columns, file.groups, objective, forest, reference)
        self.inputs = self._input_specs(self._loaded)
        self.outputs = self._specs(self._loaded)
        self.details = {
            "engine": "forest" if forest is not None else "booster",
            "engine_reason": reason,
            "model_file": file.path.name,
            "model_format": file.format,
            "model_sha256": file.sha256,
            "objective": file.objective,
            "iterations": f"{chosen[0]}-{chosen[1]}",
        }
        if file.feature_names:
            self.details["feature_names"] = list(file.feature_names)
        _log.info(
            "model %s: %s served by %s (%s)",
            self.name,
            file.path.name,
            self.details["engine"],
            self.details["engine_reason"],
        )

    def unload(self) -> None:
        """Let the arrays and threads go."""
        loaded, self._loaded, self._explaining = self._loaded, None, None
        if loaded is not None and loaded.forest is not None:
            loaded.forest.close()

    def warmup_inputs(self) -> Mapping[str, np.ndarray]:
        """One row of zeros."""
        return {spec.name: np.zeros((1, *spec.shape[1:]), np.float32) for spec in self.inputs}

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Predict one batch; see the class for inputs and outputs.

        Raises:
            InvalidInput: the columns are not the model's.
            NotSupported: an output that this model does not offer.
        """
        loaded = self._state()
        rows = self._rows(inputs, loaded)
        wanted = call.outputs
        if not wanted:
            return {self.options.output_name: self._predictions(rows, loaded)}
        return self._named(rows, wanted, loaded)

    def _choose(self, file: ModelFile, chosen: Iterations) -> tuple[Forest | None, Reference | None, str]:
        """Choose the engine: the forest, or the Booster, and why."""
        missing, threads = self.options.missing, self.settings.native_threads
        if self.options.engine == "booster":
            return None, self._reference(file, chosen), "asked for by the setting engine"
        try:
            forest, _ = compile_forest(file, chosen, missing=missing, threads=threads)
        except NotCovered as reason:
            if self.options.engine == "forest":
                raise ConfigError(
                    f"{file.path}: the setting engine is 'forest', which does not cover it: {reason}"
                ) from None
            _log.warning("model %s: %s is served by xgboost's Booster: %s", self.name, file.path.name, reason)
            return None, self._reference(file, chosen), str(reason)
        installed = installed_version()
        found = verdict.find(file, xgboost=installed, iterations=chosen, missing=missing)
        if found is None:
            if self.options.engine == "forest":
                _log.warning("model %s: %s was never compared with xgboost", self.name, file.path.name)
                return forest, None, "asked for by the setting engine; never compared with xgboost"
            if not installed:
                raise ConfigError(
                    f"{file.path}: the compiled engine was never compared with xgboost on this file, and xgboost is not installed; "
                    "run python -m xgboost_server.verify on it where it is, or set engine to 'forest' to serve it all the same"
                )
            reference = self._reference(file, chosen)
            found = verdict.verify(file, forest, reference, xgboost=installed, missing=missing)
            if verdict.keep(file, found) is None:
                _log.warning("model %s: the verdict can be kept nowhere, so every start imports xgboost", self.name)
        if found.agrees:
            return forest, None, f"verified: {found}"
        forest.close()
        reason = f"the compiled engine differs: {found}"
        if self.options.engine == "forest":
            raise ConfigError(f"{file.path}: the setting engine is 'forest', but {reason}")
        _log.warning("model %s: %s is served by xgboost's Booster: %s", self.name, file.path.name, reason)
        return None, self._reference(file, chosen), reason

    def _reference(self, file: ModelFile, chosen: Iterations) -> Reference:
        return Reference(file, chosen, missing=self.options.missing, threads=self.settings.native_threads)

    def _specs(self, loaded: _Loaded) -> tuple[TensorSpec, ...]:
        """What the metadata says of the outputs, the default one first."""
        per_row: tuple[int, ...] = (-1,) if loaded.groups == 1 else (-1, loaded.groups)
        predicts = (-1,) if loaded.objective.predicts_class and loaded.groups > 1 else per_row
        specs = [
            TensorSpec(self.options.output_name, "FP32", predicts),
            TensorSpec("margin", "FP32", per_row, optional=True),
        ]
        if loaded.objective.task != "other":
            if loaded.objective.link is not Link.HINGE:
                specs.append(TensorSpec("probability", "FP32", per_row, optional=True))
            specs.append(TensorSpec("class", "INT64", (-1,), optional=True))
        specs.append(TensorSpec("contributions", "FP32", (*per_row, loaded.columns + 1), optional=True))
        return tuple(specs)

    def _input_specs(self, loaded: _Loaded) -> tuple[TensorSpec, ...]:
        """What the metadata says of the inputs."""
        if self.options.input_form == "matrix":
            return (TensorSpec(self.options.input_name, "FP32", (-1, loaded.columns)),)
        names = loaded.file.feature_names
        if len(names) != loaded.columns:
            raise ConfigError(
                f"{loaded.file.path}: the setting input_form is 'columns', but the model holds {len(names)} feature names for "
                f"{loaded.columns} features; train it on a DataFrame, or take 'matrix'"
            )
        return tuple(TensorSpec(name, "FP32", (-1,)) for name in names)

    def _state(self) -> _Loaded:
        if self._loaded is None:
            raise ConfigError(f"model {self.name!r} is not loaded")
        return self._loaded

    def _rows(self, inputs: Mapping[str, np.ndarray], loaded: _Loaded) -> np.ndarray:
        """The batch as float32 [n, columns], C order."""
        if len(inputs) == 1:
            ((name, rows),) = inputs.items()
            if (
                rows.dtype == _FLOAT32
                and rows.ndim == 2
                and rows.shape[1] == loaded.columns
                and rows.flags.c_contiguous
            ):
                return rows
            return _matrix(name, rows, loaded.columns)
        return _columns(inputs, loaded)

    def _predictions(self, rows: np.ndarray, loaded: _Loaded) -> np.ndarray:
        """Predictions as xgboost shapes them: float32 [n], or [n, outputs]."""
        if loaded.forest is None:
            return self._booster(loaded).predict(rows)
        if loaded.groups == 1:
            return loaded.forest.predict(rows).reshape(-1)
        if loaded.objective.predicts_class:
            return loaded.forest.margins(rows).argmax(axis=1).astype(_FLOAT32)
        return loaded.forest.predict(rows)

    def _named(self, rows: np.ndarray, wanted: frozenset[str], loaded: _Loaded) -> dict[str, np.ndarray]:
        """The outputs that the request names."""
        offered = {spec.name for spec in self.outputs}
        unknown = sorted(wanted - offered)
        if unknown:
            raise InvalidInput(f"output {unknown[0]!r}: the model offers {', '.join(sorted(offered))}")
        outputs: dict[str, np.ndarray] = {}
        if self.options.output_name in wanted:
            outputs[self.options.output_name] = self._predictions(rows, loaded)
        if "contributions" in wanted:
            outputs["contributions"] = self._explainer(loaded).contributions(rows)
        if wanted & {"margin", "probability", "class"}:
            margins, probabilities = self._margins(rows, loaded)
            if "margin" in wanted:
                outputs["margin"] = margins
            if "probability" in wanted:
                outputs["probability"] = probabilities
            if "class" in wanted:
                multiclass = loaded.objective.task == "multiclass"
                outputs["class"] = margins.argmax(axis=1) if multiclass else (margins > 0).astype(np.int64)
        return outputs

    def _margins(self, rows: np.ndarray, loaded: _Loaded) -> tuple[np.ndarray, np.ndarray]:
        """Margins and probabilities, each float32 [n] or [n, outputs]; a hinge has no probabilities, and gets its predictions."""
        if loaded.forest is not None:
            margins, predictions = loaded.forest.both(rows)
            if loaded.groups == 1:
                margins, predictions = margins[:, 0], predictions[:, 0]
        else:
            margins = self._booster(loaded).margins(rows)
            predictions = margins
            if loaded.objective.task == "multiclass":
                raised = np.exp(margins - margins.max(axis=1, keepdims=True))
                predictions = raised / raised.sum(axis=1, keepdims=True)
        if loaded.objective.task == "binary" and loaded.objective.link is not Link.HINGE:
            predictions = (1.0 / (1.0 + np.exp(np.minimum(-margins, _FLOAT32.type(88.7))))).astype(_FLOAT32)
        return margins, predictions

    def _booster(self, loaded: _Loaded) -> Reference:
        if loaded.reference is None:
            raise ConfigError(f"model {self.name!r} has no engine")
        return loaded.reference

    def _explainer(self, loaded: _Loaded) -> Reference:
        """The Booster; loaded when the first explanation is wanted."""
        if loaded.reference is not None:
            return loaded.reference
        with self._lock:
            if self._explaining is None:
                try:
                    self._explaining = self._reference(loaded.file, loaded.iterations)
                except ConfigError as error:
                    raise NotSupported(f"output 'contributions' is not offered here: {error}") from None
            return self._explaining


def _matrix(name: str, rows: np.ndarray, columns: int) -> np.ndarray:
    """One tensor as float32 [n, columns], C order."""
    if rows.dtype.kind not in "fiub":
        raise InvalidInput(f"input {name!r}: the model takes numbers, not {rows.dtype.name}")
    if rows.ndim == 1 and columns == 1:
        rows = rows.reshape(-1, 1)
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise InvalidInput(
            f"input {name!r}: shape {list(rows.shape)} does not fit; the model takes [n, {columns}], "
            "one column per feature, in the order of training"
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite, as in xgboost
        return np.ascontiguousarray(rows, _FLOAT32)


def _columns(inputs: Mapping[str, np.ndarray], loaded: _Loaded) -> np.ndarray:
    """One tensor per feature, put side by side in the order of training: float32 [n, columns]."""
    names = loaded.file.feature_names
    if not names:
        raise InvalidInput(
            f"{len(inputs)} inputs came; the model knows no feature names, so it takes one input of shape [n, {loaded.columns}]"
        )
    absent = [name for name in names if name not in inputs]
    unknown = sorted(set(inputs) - set(names))
    if absent or unknown:
        parts = [
            f"missing are {', '.join(absent[:8])}" if absent else "",
            f"unknown are {', '.join(unknown[:8])}" if unknown else "",
        ]
        raise InvalidInput(
            f"{len(inputs)} inputs came; the model takes one of shape [n, {loaded.columns}], or one per feature name: "
            + "; ".join(part for part in parts if part)
        )
    count = len(inputs[names[0]])
    rows = np.empty((count, len(names)), _FLOAT32)
    for index, name in enumerate(names):
        column = _matrix(name, inputs[name], 1)
        if len(column) != count:
            raise InvalidInput(f"input {name!r}: {len(column)} rows, while {names[0]!r} has {count}")
        rows[:, index] = column[:, 0]
    return rows
