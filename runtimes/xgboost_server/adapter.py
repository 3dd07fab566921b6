"""XGBoost for the compiled engine: what its files say, where their trees split, and its Booster."""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from serinus.artifacts import check_inside
from serinus.engines.tree_adapter import TreeAdapter, TreeFacts
from serinus.errors import ConfigError
from serinus.native.trees.forest import Forest, Link
from serinus.settings import ModelSettings

from . import modelfile
from .booster import Booster
from .forest_reader import best_iteration, choose_iterations, compile_forest
from .objective import OBJECTIVES, Objective
from .options import Options

__all__ = ["XGBoostAdapter"]

_log = logging.getLogger("serinus.xgboost")


class XGBoostAdapter(TreeAdapter):
    """One XGBoost model file."""

    framework = "xgboost"
    package = "xgboost_server"
    input_dtype = np.dtype(np.float32)
    output_dtype = np.dtype(np.float32)
    options_class = Options

    def __init__(self, settings: ModelSettings, options: Options) -> None:
        if settings.model_dir is None:
            raise ConfigError(f"model {settings.name!r}: model_dir is not set; name the model file or its folder")
        self.file = file = modelfile.read(check_inside(modelfile.find(settings.model_dir), settings))
        self._missing = options.missing
        try:
            self.iterations = choose_iterations(file, options.iteration_range)
        except ValueError as error:
            raise ConfigError(f"{file.path}: {error}") from None
        self._tell_of_best(options.iteration_range)
        self._objective = objective = OBJECTIVES.get(file.objective, Objective())
        self.facts = TreeFacts(
            path=file.path,
            sha256=file.sha256,
            columns=file.features,
            groups=file.groups,
            feature_names=file.feature_names,
            categorical=frozenset(
                column for column, kind in enumerate(file.feature_types) if kind in ("c", "categorical")
            ),
            categories=file.categories,
            missing=options.missing,
            task=objective.task,
            predicts_class=objective.predicts_class and file.groups > 1,
            offers_probability=objective.task != "other" and objective.link is not Link.HINGE,
            # `repr` of the missing value: NaN has no JSON.
            holds_for={"iterations": list(self.iterations), "missing": repr(self._missing)},
            details={
                "model_format": file.format,
                "objective": file.objective,
                "iterations": f"{self.iterations[0]}-{self.iterations[1]}",
                "trees": self._trees(),
            },
        )

    def _trees(self) -> str:
        """How many trees are used of how many there are: "20 of 150"."""
        ends = self.file.iteration_ends
        return f"{int(ends[self.iterations[1]] - ends[self.iterations[0]])} of {int(ends[-1])}"

    def _tell_of_best(self, wanted: object) -> None:
        """Say what becomes of a best iteration that is not the last one: early stopping and training that went on both leave it so."""
        file, total = self.file, len(self.file.iteration_ends) - 1
        try:
            best = best_iteration(file)
        except ValueError:
            return
        if best is None or not 0 <= best + 1 < total or wanted not in ("all", "best"):
            return
        other = {
            "all": "all of them answer, as by Booster.predict; iteration_range 'best' (--extra iteration_range=best) leaves out what follows",
            "best": "what follows is left out; if training went on after it had stopped early, take iteration_range 'all'",
        }[str(wanted)]
        _log.warning(
            "%s: %s trees answer: the best iteration on record is %d, and there are %d iterations: %s",
            file.path.name,
            self._trees(),
            best,
            total,
            other,
        )

    @classmethod
    def installed_version(cls) -> str:
        """Version of the installed xgboost; empty: it is not installed."""
        for name in ("xgboost-cpu", "xgboost"):
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return ""

    def compile(self, *, threads: int) -> Forest:
        """Build the forest of the iterations in use."""
        return compile_forest(self.file, self.iterations, missing=self._missing, threads=threads)

    def load_predictor(self, *, threads: int) -> Booster:
        """Import xgboost and load the Booster."""
        return Booster(self.file, self.iterations, missing=self._missing, threads=threads)

    def split_values(self) -> Mapping[int, np.ndarray]:
        """Thresholds of the splits, by column."""
        features, values = [], []
        for tree in self.file.model["trees"]:
            inner = np.asarray(tree["left_children"]) != -1
            features.append(np.asarray(tree["split_indices"])[inner])
            values.append(np.asarray(tree["split_conditions"], np.float32)[inner])
        if not any(map(len, features)):  # no tree, or every tree is one leaf
            return {}
        feature, value = np.concatenate(features), np.concatenate(values)
        order = np.argsort(feature, kind="stable")
        used, starts = np.unique(feature[order], return_index=True)
        parts = np.split(value[order], starts[1:])
        return {int(column): part for column, part in zip(used, parts, strict=True) if column < self.facts.columns}

    def special_values(self) -> Sequence[float]:
        """The value that counts as missing."""
        return () if math.isnan(self._missing) else (self._missing,)

    def probabilities(self, margins: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Probabilities of binary models, whose output may be the margin itself (`binary:logitraw`)."""
        if self._objective.task == "binary":
            return (1.0 / (1.0 + np.exp(np.minimum(-margins, np.float32(88.7))))).astype(np.float32)
        return outputs
