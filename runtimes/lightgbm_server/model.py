"""`LightGBMModel`: a LightGBM text model as a serinus `Model`.

Theory of operation. `load` reads the file with its own parser, compiles it to a flat forest and looks for a verdict that this
engine agrees with LightGBM on this file. With one, lightgbm is never imported. Without one, the Booster is loaded, compared,
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

from serinus.artifacts import find_file
from serinus.errors import ConfigError, InvalidInput, NotSupported
from serinus.model import Call, Model
from serinus.native.trees.forest64 import Forest64
from serinus.protocol.types import TensorSpec
from serinus.settings import ModelSettings

from . import modelfile, verdict
from .forest import Iterations, NotCovered, compile_forest, iterations
from .modelfile import ModelFile
from .objective import Objective, objective_of
from .options import Options
from .reference import Reference, installed_version

__all__ = ["LightGBMModel"]

_log = logging.getLogger("serinus.lightgbm")

_FLOAT64: Final = np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What `load` made, replaced as a whole."""

    file: ModelFile
    iterations: Iterations
    objective: Objective
    forest: Forest64 | None
    reference: Reference | None


class LightGBMModel(Model):
    """Serves LightGBM's text models.

    Input: one tensor [n, features] of any name; with the setting `input_form` "columns", one tensor [n] per feature under the
    model's own feature names. NaN is missing. Numbers of any type are taken and converted to float64, as LightGBM does;
    categorical features come as their codes. Outputs: `predict`, and on request `margin`, `probability`, `class` and
    `contributions`; see the README.
    """

    platform = "lightgbm_booster"
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
        file = modelfile.read(find_file(self.settings, modelfile.SUFFIXES, preferred=modelfile.PREFERRED))
        try:
            chosen = iterations(file, self.options.start_iteration_predict, self.options.num_iteration_predict)
        except ValueError as error:
            raise ConfigError(f"{file.path}: {error}") from None
        if self.options.input_form == "columns" and len(set(file.feature_names)) != file.columns:
            raise ConfigError(
                f"{file.path}: the setting input_form is 'columns', but the model holds {len(set(file.feature_names))} "
                f"feature names for {file.columns} features; take 'matrix'"
            )
        forest, reference, reason = self._choose(file, chosen)
        objective = objective_of(file.objective) or Objective()
        self._loaded = _Loaded(file, chosen, objective, forest, reference)
        if self.options.input_form == "columns":
            self.inputs = tuple(TensorSpec(name, "FP64", (-1,)) for name in file.feature_names)
        else:
            self.inputs = (TensorSpec(self.options.input_name, "FP64", (-1, file.columns)),)
        self.outputs = self._specs(self._loaded)
        self.details = {
            "engine": "forest" if forest is not None else "booster",
            "engine_reason": reason,
            "model_file": file.path.name,
            "model_sha256": file.sha256,
            "objective": file.objective_name,
            "iterations": f"{chosen[0]}-{chosen[1]}",
            "feature_names": list(file.feature_names),
        }
        _log.info("model %s: %s served by %s (%s)", self.name, file.path.name, self.details["engine"], reason)

    def unload(self) -> None:
        """Let the arrays and threads go."""
        loaded, self._loaded, self._explaining = self._loaded, None, None
        if loaded is not None and loaded.forest is not None:
            loaded.forest.close()

    def warmup_inputs(self) -> Mapping[str, np.ndarray]:
        """One row of zeros."""
        return {spec.name: np.zeros((1, *spec.shape[1:])) for spec in self.inputs}

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Predict one batch; see the class for inputs and outputs.

        Raises:
            InvalidInput: the columns are not the model's.
            NotSupported: an output that this model does not offer.
        """
        loaded = self._loaded
        if loaded is None:
            raise ConfigError(f"model {self.name!r} is not loaded")
        rows = self._rows(inputs, loaded.file)
        if not call.outputs:
            return {self.options.output_name: self._predictions(rows, loaded)}
        return self._named(rows, call.outputs, loaded)

    def _choose(self, file: ModelFile, chosen: Iterations) -> tuple[Forest64 | None, Reference | None, str]:
        """Choose the engine: the forest, or the Booster, and why."""
        if self.options.engine == "booster":
            return None, self._reference(file, chosen), "asked for by the setting engine"
        try:
            forest, _ = compile_forest(file, chosen, threads=self.settings.native_threads)
        except NotCovered as reason:
            if self.options.engine == "forest":
                raise ConfigError(
                    f"{file.path}: the setting engine is 'forest', which does not cover it: {reason}"
                ) from None
            _log.warning("model %s: %s is served by lightgbm's Booster: %s", self.name, file.path.name, reason)
            return None, self._reference(file, chosen), str(reason)
        installed = installed_version()
        found = verdict.find(file, lightgbm=installed, iterations=chosen)
        if found is None:
            if self.options.engine == "forest":
                _log.warning("model %s: %s was never compared with lightgbm", self.name, file.path.name)
                return forest, None, "asked for by the setting engine; never compared with lightgbm"
            if not installed:
                raise ConfigError(
                    f"{file.path}: the compiled engine was never compared with lightgbm on this file, and lightgbm is not "
                    "installed; run python -m lightgbm_server.verify on it where it is, or set engine to 'forest' to serve it "
                    "all the same"
                )
            found = verdict.verify(file, forest, self._reference(file, chosen), lightgbm=installed)
            if verdict.keep(file, found) is None:
                _log.warning("model %s: the verdict can be kept nowhere, so every start imports lightgbm", self.name)
        if found.agrees:
            return forest, None, f"verified: {found}"
        forest.close()
        reason = f"the compiled engine differs: {found}"
        if self.options.engine == "forest":
            raise ConfigError(f"{file.path}: the setting engine is 'forest', but {reason}")
        _log.warning("model %s: %s is served by lightgbm's Booster: %s", self.name, file.path.name, reason)
        return None, self._reference(file, chosen), reason

    def _reference(self, file: ModelFile, chosen: Iterations) -> Reference:
        return Reference(file, chosen, threads=self.settings.native_threads)

    def _specs(self, loaded: _Loaded) -> tuple[TensorSpec, ...]:
        """What the metadata says of the outputs, the default one first."""
        per_row: tuple[int, ...] = (-1,) if loaded.file.groups == 1 else (-1, loaded.file.groups)
        specs = [
            TensorSpec(self.options.output_name, "FP64", per_row),
            TensorSpec("margin", "FP64", per_row, optional=True),
        ]
        if loaded.objective.task != "other":
            specs.append(TensorSpec("probability", "FP64", per_row, optional=True))
            specs.append(TensorSpec("class", "INT64", (-1,), optional=True))
        specs.append(TensorSpec("contributions", "FP64", (*per_row, loaded.file.columns + 1), optional=True))
        return tuple(specs)

    def _rows(self, inputs: Mapping[str, np.ndarray], file: ModelFile) -> np.ndarray:
        """The batch as float64 [n, columns], C order."""
        if self.options.input_form == "columns":
            return _columns(inputs, file.feature_names)
        if len(inputs) != 1:
            raise InvalidInput(f"{len(inputs)} inputs came; the model takes one of shape [n, {file.columns}]")
        ((name, rows),) = inputs.items()
        return _matrix(name, rows, file.columns)

    def _predictions(self, rows: np.ndarray, loaded: _Loaded) -> np.ndarray:
        """Predictions as lightgbm shapes them: float64 [n], or [n, outputs]."""
        if loaded.forest is None:
            return self._booster(loaded).predict(rows)
        predictions = loaded.forest.predict(rows)
        return predictions.reshape(-1) if loaded.file.groups == 1 else predictions

    def _named(self, rows: np.ndarray, wanted: frozenset[str], loaded: _Loaded) -> dict[str, np.ndarray]:
        """The outputs that the request names."""
        offered = {spec.name for spec in self.outputs}
        unknown = sorted(wanted - offered)
        if unknown:
            raise InvalidInput(f"output {unknown[0]!r}: the model offers {', '.join(sorted(offered))}")
        outputs: dict[str, np.ndarray] = {}
        if "contributions" in wanted:
            outputs["contributions"] = self._explained(rows, loaded)
        if wanted == {"contributions"}:
            return outputs
        if loaded.forest is None:
            predictions, margins = self._booster(loaded).predict(rows), self._booster(loaded).margins(rows)
        else:
            margins, predictions = loaded.forest.both(rows)
            if loaded.file.groups == 1:
                margins, predictions = margins[:, 0], predictions[:, 0]
        made = {self.options.output_name: predictions, "margin": margins, "probability": predictions}
        outputs.update((name, array) for name, array in made.items() if name in wanted)
        if "class" in wanted:
            multiclass = loaded.objective.task == "multiclass"
            outputs["class"] = margins.argmax(axis=1) if multiclass else (margins > 0).astype(np.int64)
        return outputs

    def _booster(self, loaded: _Loaded) -> Reference:
        if loaded.reference is None:
            raise ConfigError(f"model {self.name!r} has no engine")
        return loaded.reference

    def _explained(self, rows: np.ndarray, loaded: _Loaded) -> np.ndarray:
        """Contributions, from the Booster; loaded when the first are wanted."""
        if any(tree.linear is not None for tree in loaded.file.trees):
            raise NotSupported("output 'contributions' is not offered: lightgbm explains no linear trees")
        if loaded.reference is not None:
            return loaded.reference.contributions(rows)
        with self._lock:
            if self._explaining is None:
                try:
                    self._explaining = self._reference(loaded.file, loaded.iterations)
                except ConfigError as error:
                    raise NotSupported(f"output 'contributions' is not offered here: {error}") from None
            explaining = self._explaining
        return explaining.contributions(rows)


def _matrix(name: str, rows: np.ndarray, columns: int) -> np.ndarray:
    """One tensor as float64 [n, columns], C order; itself where it is that already."""
    if rows.dtype.kind not in "fiub":
        raise InvalidInput(f"input {name!r}: the model takes numbers, not {rows.dtype.name}")
    if rows.ndim == 1 and columns == 1:
        rows = rows.reshape(-1, 1)
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise InvalidInput(
            f"input {name!r}: shape {list(rows.shape)} does not fit; the model takes [n, {columns}], "
            "one column per feature, in the order of training"
        )
    return np.ascontiguousarray(rows, _FLOAT64)


def _columns(inputs: Mapping[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    """One tensor per feature, put side by side in the order of training: float64 [n, columns]."""
    absent = [name for name in names if name not in inputs]
    unknown = sorted(set(inputs) - set(names))
    if absent or unknown:
        parts = [
            f"missing are {', '.join(absent[:8])}" if absent else "",
            f"unknown are {', '.join(unknown[:8])}" if unknown else "",
        ]
        raise InvalidInput(
            f"{len(inputs)} inputs came; the model takes one per feature name: " + "; ".join(filter(None, parts))
        )
    count = len(inputs[names[0]])
    rows = np.empty((count, len(names)), _FLOAT64)
    for index, name in enumerate(names):
        column = _matrix(name, inputs[name], 1)
        if len(column) != count:
            raise InvalidInput(f"input {name!r}: {len(column)} rows, while {names[0]!r} has {count}")
        rows[:, index] = column[:, 0]
    return rows
