"""`SklearnModel`: a scikit-learn model, or a pipeline of any steps, as a serinus `Model`.

Theory of operation. `load` reads a skops file with a reader of its own, compiles the pipeline (`program`) and looks for a record that it agrees
with scikit-learn on this file. With one, scikit-learn is never imported. Without one it is, the two are compared, and the outcome is recorded. A
model that is not covered, or differs, is served by scikit-learn as it is; log and `details` say which serves, and why. A pickle is known only
once it is loaded, which takes scikit-learn always.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from serinus.engines import load_trial
from serinus.engines.not_covered import NotCovered
from serinus.engines.tree_rows import as_rows
from serinus.errors import ConfigError, InvalidInput
from serinus.feature_columns import FeatureColumns
from serinus.model import Call, Model, Provenance
from serinus.protocol.datatypes import datatype_of
from serinus.protocol.types import TensorSpec
from serinus.settings import ModelSettings

from . import modelfile, verification
from .columns import Columns, columns_of
from .estimator import Estimator
from .modelfile import ModelFile
from .options import TOLD, Options
from .predictor import Predictor, installed_version
from .program import Program, compile_program

__all__ = ["SklearnModel"]

_log = logging.getLogger("serinus.sklearn")


class SklearnModel(Model):
    """Serves one `.skops` file, or, where that is allowed, one pickle.

    Input: one FP64 tensor [n, features] of any name, or one tensor [n] a feature by name; columns of texts are BYTES.
    Outputs: `predict`, and `predict_proba`, `decision_function` and `transform`, where the model has them.
    """

    platform = "sklearn_skops"
    extra_settings = TOLD
    batching = "earned"
    coerce = True
    any_input_name = True

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.options = Options.parse(settings.extra)
        self._columns = Columns(0, (), frozenset(), frozenset(), {}, False)
        self._names: FeatureColumns | None = None
        self._answers: Program | Predictor | None = None
        self._default: frozenset[str] = frozenset()
        self._offered: dict[str, str] = {}
        """Method by the name of its output."""

    def load(self) -> None:
        """Read, compile and verify the model.

        Raises:
            ConfigError: no model there, one that may not be loaded, or nothing here can serve it.
        """
        file = modelfile.find(self.settings)
        if file.is_pickle:
            self._try_apart(file)
        predictor = Predictor(file, self.settings) if file.is_pickle else None
        model = predictor.model if predictor is not None else file.model
        assert model is not None  # noqa: S101 # a file is one or the other
        self._columns = columns_of(model)
        self._tell_of_version(model)
        program, predictor, reason = self._choose(file, model, predictor)
        if program is None and predictor is None:
            if not file.is_pickle:
                self._try_apart(file)
            predictor = Predictor(file, self.settings)
        self._answers = program or predictor
        if program is not None:
            self.batching = "declared"  # each row is walked and multiplied by itself
        else:
            self.provenance = Provenance((file.path,), {"sklearn": installed_version()})
        self._specify()
        self.details = {
            "engine": "compiled" if program is not None else "sklearn",
            "engine_reason": reason,
            "estimator": _shown(model),
            "model_file": file.path.name,
            "model_sha256": file.sha256,
        }
        if model.version:
            self.details["sklearn_version"] = model.version
        if self._columns.names:
            self.details["feature_names"] = list(self._columns.names)
        classes = program.head.classes if program is not None else None
        if classes is not None:
            self.details["classes"] = [one.decode() if isinstance(one, bytes) else one for one in classes.tolist()]
        _log.info("model %s: %s served by %s (%s)", self.name, file.path.name, self.details["engine"], reason)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> dict[str, np.ndarray]:
        """Predict.

        Raises:
            InvalidInput: rows that the model does not take, or an output that it does not have.
        """
        answers = self._answers
        assert answers is not None  # noqa: S101 # loaded before
        rows = self._rows(inputs)
        if call.outputs is None:
            wanted = self._default
        else:
            unknown = sorted(call.outputs - self._offered.keys())
            if unknown:
                raise InvalidInput(f"output {unknown[0]!r}: the model offers {', '.join(self._offered)}")
            wanted = frozenset(self._offered[name] for name in call.outputs)
        made = answers.run(rows, wanted)
        if "predict" in made and self.options.output_name != "predict":
            made[self.options.output_name] = made.pop("predict")
        return made

    def warmup_inputs(self) -> Mapping[str, np.ndarray] | None:
        """One row, of categories that the model knows."""
        return {self.options.input_name: self._columns.sample()} if self._columns.count else None

    def unload(self) -> None:
        """End the threads of the trees."""
        answers, self._answers = self._answers, None
        if isinstance(answers, Program):
            answers.head.close()

    def _rows(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        columns, names = self._columns, self._names
        if not columns.is_frame:
            return as_rows(inputs, columns.count, names, _FLOAT64) if columns.count else _only(inputs)
        if len(inputs) > 1 and names is not None:
            return names.join(inputs)
        rows = _only(inputs)
        if columns.is_text:
            return rows.reshape(-1, 1)
        if rows.ndim != 2 or rows.shape[1] != columns.count:
            raise InvalidInput(
                f"shape {list(rows.shape)} does not fit; the model takes [n, {columns.count}], one column per feature"
            )
        return rows

    def _choose(
        self, file: ModelFile, model: Estimator, predictor: Predictor | None
    ) -> tuple[Program | None, Predictor | None, str]:
        """Choose the compiled program, or scikit-learn; and why."""
        wanted = self.options.engine
        if wanted == "sklearn":
            return None, predictor, "asked for by the setting engine"
        try:
            program = compile_program(model, threads=self.settings.native_threads)
        except NotCovered as reason:
            return self._fall_back(file, predictor, str(reason))
        version = installed_version()
        found = verification.find(file, version)
        if found is None:
            if wanted == "compiled":
                _log.warning("model %s: %s was never compared with scikit-learn", self.name, file.path.name)
                return program, None, "asked for by the setting engine; never compared with scikit-learn"
            if not version:
                raise ConfigError(
                    f"{file.path}: the compiled program was never compared with scikit-learn on this file, and scikit-learn is not "
                    "installed; run python -m sklearn_server.verify on it where it is, or set engine to 'compiled' to serve it all the same"
                )
            predictor = predictor or Predictor(file, self.settings)
            found = verification.verify(file, program, self._columns, predictor)
            if verification.save(file, found) is None:
                _log.warning(
                    "model %s: the verification record can be saved nowhere, so every start imports scikit-learn",
                    self.name,
                )
        if found.agrees:
            return program, None, f"verified: {found}"
        program.head.close()
        return self._fall_back(file, predictor, f"the compiled program differs: {found}")

    def _fall_back(
        self, file: ModelFile, predictor: Predictor | None, reason: str
    ) -> tuple[None, Predictor | None, str]:
        if self.options.engine == "compiled":
            raise ConfigError(f"{file.path}: the setting engine is 'compiled', which does not cover it: {reason}")
        _log.warning("model %s: %s is served by scikit-learn: %s", self.name, file.path.name, reason)
        return None, predictor, reason

    def _try_apart(self, file: ModelFile) -> None:
        """See in a process of its own, once a file, whether loading ends it: scikit-learn's compiled classes trust their arrays."""
        load_trial.try_apart(self, (file.path,), {"sklearn": installed_version()})

    def _tell_of_version(self, model: Estimator) -> None:
        version = installed_version()
        if version and model.version and model.version != version:
            _log.warning(
                "model %s: was saved by scikit-learn %s, and %s is installed: scikit-learn promises no answers across versions; install "
                "scikit-learn==%s, or save the model again",
                self.name,
                model.version,
                version,
                model.version,
            )

    def _specify(self) -> None:
        """Set inputs and outputs, as metadata and checks have them."""
        columns, answers = self._columns, self._answers
        assert answers is not None  # noqa: S101 # just chosen
        if isinstance(answers, Predictor):
            self._predictor_ready(answers)
        methods = answers.outputs
        wanted = {"both": ("predict", "predict_proba")}.get(self.options.method, (self.options.method,))
        if "predict" not in methods and self.options.method == "predict":
            wanted = methods[:1]
        absent = [method for method in wanted if method not in methods]
        if absent:
            raise ConfigError(
                f"the setting method asks for {absent[0]}, which the model does not have; it has {', '.join(methods)}"
            )
        self._default = frozenset(wanted)
        self._names = self.columns = columns.feature_columns(self.options.input_name)
        if columns.is_text:
            self.inputs = (TensorSpec(self.options.input_name, "BYTES", (-1,)),)
        elif columns.is_frame and self._names is not None:
            self.inputs = getattr(self._names, "specs", ())
        elif columns.count:
            self.inputs = (TensorSpec(self.options.input_name, "FP64", (-1, columns.count)),)
        self._offered = {self.options.output_name if method == "predict" else method: method for method in methods}
        try:
            sample = answers.run(self._rows({self.options.input_name: columns.sample()}), frozenset(methods))
        except InvalidInput as error:
            _log.warning(
                "model %s: does not answer a row of zeros, so its outputs are not in the metadata: %s", self.name, error
            )
            return
        specs = [
            TensorSpec(
                name, datatype_of(sample[method].dtype), (-1, *sample[method].shape[1:]), optional=method not in wanted
            )
            for name, method in self._offered.items()
            if method in sample
        ]
        self.outputs = tuple(sorted(specs, key=lambda spec: spec.optional))

    def _predictor_ready(self, predictor: Predictor) -> None:
        """Leave out methods that a sample shows not to answer what a tensor carries."""
        rows = self._columns.sample()
        usable = []
        for method in predictor.outputs:
            try:
                predictor.run(rows if rows.ndim == 2 else rows.reshape(-1, 1), frozenset({method}))
            except InvalidInput as error:
                if "no one tensor" not in str(error) and "cannot carry" not in str(error):
                    usable.append(method)
                continue
            usable.append(method)
        predictor.outputs = tuple(usable)


_FLOAT64 = np.dtype(np.float64)


def _only(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    if len(inputs) != 1:
        raise InvalidInput(f"{len(inputs)} inputs came, the model takes one")
    return next(iter(inputs.values()))


def _shown(model: Estimator) -> str:
    """Name the model's class; of a pipeline, its steps."""
    if model.name != "Pipeline" or not isinstance(model.get("steps"), list):
        return model.name
    steps: list[Any] = [one[1] for one in model.get("steps") if isinstance(one, list | tuple) and len(one) > 1]
    return " -> ".join(step.name if isinstance(step, Estimator) else str(step) for step in steps)
