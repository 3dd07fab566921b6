"""`CompiledTreeModel`: a tree model's file as a serinus `Model`, whichever framework wrote it.

Theory of operation. `load` lets the framework's adapter read the file with its own parser, compiles the trees to a flat forest and
looks for a record that this walk agrees with the framework on this file. With one, the framework is never imported. Without one, the
framework's predictor is loaded, the two are compared, and the outcome is recorded. A model that the walk does not cover, or differs
on, is served by the framework's predictor; the log and the model's `details` say which engine serves, and why. Explanations come
from the framework always, which is imported when the first one is wanted. See `tree_adapter` for how to add a framework.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from ..errors import ConfigError, InvalidInput, NotSupported
from ..feature_columns import FeatureColumns
from ..model import Call, Model
from ..native.trees.walker import Walker
from ..protocol.datatypes import datatype_of
from ..protocol.types import TensorSpec
from ..settings import ModelSettings
from . import thread_choice, tree_verification
from .thread_choice import ThreadChoice
from .tree_adapter import FrameworkPredictor, NotCovered, TreeAdapter, TreeFacts
from .tree_predictions import CompiledPredictions, FrameworkPredictions, TreePredictions
from .tree_rows import as_rows

__all__ = ["CompiledTreeModel"]

_MEASURED_VALUES: Final = 1 << 20
"""Most values of a batch that threads are measured with."""


class _Rows(dict[int, np.ndarray]):
    """Batches by their rows, made when they are first wanted."""

    def __init__(self, make: Callable[[int], np.ndarray]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, rows: int) -> np.ndarray:
        self[rows] = made = self._make(rows)
        return made


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What `load` made, replaced as a whole."""

    adapter: TreeAdapter
    columns: int
    forest: Walker | None
    predictor: FrameworkPredictor | None
    """None: the forest serves, and nothing was explained yet."""
    predictions: TreePredictions
    names: FeatureColumns | None
    """Of the features; None: the file has none."""
    codes: FeatureColumns | None
    """Holds a matrix's codes to the categories; None: there is nothing to hold."""


class CompiledTreeModel(Model):
    """Serves one framework's model files; a subclass names the adapter.

    Input: one tensor [n, features] of any name, or, where the file has feature names, one tensor [n] per feature under these; categories
    by name where the file has them. NaN is missing. Numbers of any type are taken and converted as the framework does.
    Outputs: `predict`, and on request `margin`, `probability`, `class` and `contributions`, where the model has them.
    """

    adapter_class: ClassVar[type[TreeAdapter]]
    coerce = True
    any_input_name = True
    slow_outputs = frozenset({"contributions"})
    """Outputs that take milliseconds where the others take microseconds: a batch that wants one does not belong on the loop."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Tell the settings of the adapter's options as the class's own."""
        super().__init_subclass__(**kwargs)
        cls.extra_settings = cls.adapter_class.options_class.told

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.options = self.adapter_class.options_class.parse(settings.extra)
        self._loaded: _Loaded | None = None
        self._explainer: FrameworkPredictor | None = None
        self._lock = threading.Lock()
        """Guards `_explainer`."""
        self._log = logging.getLogger(f"serinus.{self.adapter_class.framework}")

    def load(self) -> None:
        """Read, compile and verify the model.

        Raises:
            ConfigError: no model there, wrong settings, or nothing here can serve it.
        """
        adapter = self.adapter_class(self.settings, self.options)
        facts = adapter.facts
        forest, predictor, reason = self._choose(adapter)
        if forest is not None:
            columns, predictions = forest.columns, CompiledPredictions(adapter, forest)
        else:
            predictor = predictor or self._load_predictor(adapter)
            columns, predictions = predictor.columns, FrameworkPredictions(adapter, predictor)
            self._measure_threads(predictor)
        names, codes = self._columns(facts, columns)
        loaded = _Loaded(adapter, columns, forest, predictor, predictions, names, codes)
        self.columns = names
        self.inputs = self._input_specs(loaded)
        self.outputs = self._output_specs(loaded)
        self._offered = frozenset(spec.name for spec in self.outputs)
        self._loaded = loaded
        self.details = {
            "engine": "forest" if forest is not None else adapter.predictor.lower(),
            "engine_reason": reason,
            "model_file": facts.path.name,
            "model_sha256": facts.sha256,
            **facts.details,
        }
        if forest is None and predictor is not None:
            self.details["threads"] = str(predictor.threads)
        if facts.feature_names:
            self.details["feature_names"] = list(facts.feature_names)
        self._log.info("model %s: %s served by %s (%s)", self.name, facts.path.name, self.details["engine"], reason)

    def _measure_threads(self, predictor: FrameworkPredictor) -> None:
        """Find out which batches more than one thread of the framework is worth it for, unless somebody said a number."""
        most = self.settings.native_threads
        if self.settings.threads or most == 1 or not self.settings.warmup:
            return
        dtype = self.adapter_class.input_dtype
        random = np.random.default_rng(0)

        def predict(rows: int, threads: int) -> None:
            predictor.threads = ThreadChoice(threads)
            predictor.predict(made[rows])

        made = _Rows(lambda rows: random.standard_normal((rows, predictor.columns)).astype(dtype))
        # Wide rows of many would take longer to make than to predict.
        most_rows = max(1, min(self.settings.batch.max_batch_rows, _MEASURED_VALUES // max(1, predictor.columns)))
        predictor.threads = thread_choice.measure(predict, most, most_rows=most_rows)
        self._log.info("model %s: threads of a predict: %s", self.name, predictor.threads)

    def unload(self) -> None:
        """Let the arrays and threads go."""
        loaded, self._loaded, self._explainer = self._loaded, None, None
        if loaded is not None and loaded.forest is not None:
            loaded.forest.close()

    def warmup_inputs(self) -> Mapping[str, np.ndarray]:
        """One row of zeros."""
        dtype = self.adapter_class.input_dtype
        return {spec.name: np.zeros((1, *spec.shape[1:]), dtype) for spec in self.inputs}

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Predict one batch; see the class for inputs and outputs.

        Raises:
            InvalidInput: the columns are not the model's, or an output is wanted that it does not offer.
            NotSupported: an explanation that cannot be had here.
        """
        loaded = self._loaded
        if loaded is None:
            raise ConfigError(f"model {self.name!r} is not loaded")
        rows = self._rows(inputs, loaded)
        if loaded.codes is not None:
            loaded.codes.check_codes(rows)
        if not call.outputs:
            return {self.options.output_name: loaded.predictions.predict(rows)}
        return self._predict_named(rows, call.outputs, loaded)

    def _rows(self, inputs: Mapping[str, np.ndarray], loaded: _Loaded) -> np.ndarray:
        """Bring a batch into the matrix that both engines take."""
        return as_rows(inputs, loaded.columns, loaded.names, loaded.adapter.input_dtype)

    def _choose(self, adapter: TreeAdapter) -> tuple[Walker | None, FrameworkPredictor | None, str]:
        """Choose the engine: the forest, or the framework's predictor where there is no forest; and why."""
        facts, framework, wanted = adapter.facts, adapter.framework, self.options.engine
        if wanted == adapter.predictor.lower():
            return None, None, "asked for by the setting engine"
        try:
            forest = adapter.compile(threads=self.settings.native_threads)
        except NotCovered as reason:
            if wanted == "forest":
                raise ConfigError(
                    f"{facts.path}: the setting engine is 'forest', which does not cover it: {reason}"
                ) from None
            self._warn_of_fallback(adapter, str(reason))
            return None, None, str(reason)
        version = adapter.installed_version()
        predictor = None
        found = tree_verification.find(adapter, forest, version)
        if found is None:
            if wanted == "forest":
                self._log.warning("model %s: %s was never compared with %s", self.name, facts.path.name, framework)
                return forest, None, f"asked for by the setting engine; never compared with {framework}"
            if not version:
                raise ConfigError(
                    f"{facts.path}: the compiled engine was never compared with {framework} on this file, and {framework} is not "
                    f"installed; run python -m {adapter.package}.verify on it where it is, or set engine to 'forest' to serve it "
                    "all the same"
                )
            predictor = self._load_predictor(adapter)
            found = tree_verification.verify(adapter, forest, predictor)
            if tree_verification.save(adapter, found) is None:
                self._log.warning(
                    "model %s: the verification record can be saved nowhere, so every start imports %s",
                    self.name,
                    framework,
                )
        if found.agrees:
            return forest, None, f"verified: {found}"
        forest.close()
        reason = f"the compiled engine differs: {found}"
        if wanted == "forest":
            raise ConfigError(f"{facts.path}: the setting engine is 'forest', but {reason}")
        self._warn_of_fallback(adapter, reason)
        return None, predictor, reason

    def _warn_of_fallback(self, adapter: TreeAdapter, reason: str) -> None:
        served = f"served by {adapter.framework}'s {adapter.predictor}"
        self._log.warning("model %s: %s is %s: %s", self.name, adapter.facts.path.name, served, reason)

    def _load_predictor(self, adapter: TreeAdapter) -> FrameworkPredictor:
        return adapter.load_predictor(threads=self.settings.native_threads)

    def _columns(self, facts: TreeFacts, columns: int) -> tuple[FeatureColumns | None, FeatureColumns | None]:
        """Names and categories of the columns, and what holds a matrix's codes to them."""
        known = FeatureColumns(
            names=facts.feature_names,
            dtype=self.adapter_class.input_dtype,
            matrix_name=self.options.input_name,
            categorical=facts.categorical,
            categories=facts.categories,
            unknown_is_missing=facts.unknown_is_missing,
            missing=facts.missing,
            underscored=facts.underscored,
        )
        names = known if len(set(facts.feature_names)) == columns == len(facts.feature_names) else None
        if not facts.categorical or facts.unknown_is_missing:
            return names, None
        return names, names or dataclasses.replace(known, names=tuple(map(str, range(columns))))

    def _input_specs(self, loaded: _Loaded) -> tuple[TensorSpec, ...]:
        """What the metadata says of the inputs."""
        facts, datatype = loaded.adapter.facts, datatype_of(loaded.adapter.input_dtype)
        if self.options.input_form == "matrix":
            return (TensorSpec(self.options.input_name, datatype, (-1, loaded.columns)),)
        names = dict.fromkeys(facts.feature_names)
        if len(names) != loaded.columns:
            raise ConfigError(
                f"{facts.path}: the setting input_form is 'columns', but the model holds {len(names)} feature names for "
                f"{loaded.columns} features; train it on a DataFrame, or take 'matrix'"
            )
        return tuple(TensorSpec(name, datatype, (-1,)) for name in names)

    def _output_specs(self, loaded: _Loaded) -> tuple[TensorSpec, ...]:
        """What the metadata says of the outputs, the default one first."""
        facts, datatype = loaded.adapter.facts, datatype_of(loaded.adapter.output_dtype)
        per_row: tuple[int, ...] = (-1,) if facts.groups == 1 else (-1, facts.groups)
        specs = [TensorSpec(self.options.output_name, datatype, (-1,) if facts.predicts_class else per_row)]
        if facts.offers_margin:
            specs.append(TensorSpec("margin", datatype, per_row, optional=True))
        if facts.offers_probability:
            specs.append(TensorSpec("probability", datatype, per_row, optional=True))
        if facts.task != "other":
            specs.append(TensorSpec("class", "INT64", (-1,), optional=True))
        specs.append(TensorSpec("contributions", datatype, (*per_row, loaded.columns + 1), optional=True))
        return tuple(specs)

    def _predict_named(self, rows: np.ndarray, wanted: frozenset[str], loaded: _Loaded) -> dict[str, np.ndarray]:
        """The outputs that the request names."""
        unknown = sorted(wanted - self._offered)
        if unknown:
            raise InvalidInput(f"output {unknown[0]!r}: the model offers {', '.join(sorted(self._offered))}")
        outputs: dict[str, np.ndarray] = {}
        if self.options.output_name in wanted:
            outputs[self.options.output_name] = loaded.predictions.predict(rows)
        if "contributions" in wanted:
            outputs["contributions"] = self._load_explainer(loaded).contributions(rows)
        if wanted & {"margin", "probability", "class"}:
            margins, made = loaded.predictions.scores(rows)
            if "margin" in wanted:
                outputs["margin"] = margins
            if "probability" in wanted:
                outputs["probability"] = loaded.adapter.probabilities(margins, made)
            if "class" in wanted:
                multiclass = loaded.adapter.facts.task == "multiclass"
                outputs["class"] = margins.argmax(axis=1) if multiclass else (margins > 0).astype(np.int64)
        return outputs

    def _load_explainer(self, loaded: _Loaded) -> FrameworkPredictor:
        """The framework's predictor; loaded when the first explanation is wanted."""
        if loaded.forest is None and loaded.predictor is not None:
            return loaded.predictor
        with self._lock:
            if self._explainer is None:
                try:
                    self._explainer = self._load_predictor(loaded.adapter)
                except ConfigError as error:
                    raise NotSupported(f"output 'contributions' is not offered here: {error}") from None
            return self._explainer
