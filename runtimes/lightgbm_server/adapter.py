"""LightGBM for the compiled engine: what its files say, where their trees split, and its Booster."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from serinus.artifacts import find_file
from serinus.content.model_content import Content
from serinus.engines.tree_adapter import TreeAdapter, TreeFacts
from serinus.errors import ConfigError
from serinus.native.trees.forest64 import Forest64
from serinus.settings import ModelSettings

from . import modelfile
from .booster import Booster
from .forest_reader import NEAR_ZERO, choose_iterations, compile_forest
from .objective import Objective, objective_of
from .options import Options

__all__ = ["LightGBMAdapter"]

_BESIDE_CATEGORIES: Final = (0.5, -0.5, 2.0**31, 1e300)


class LightGBMAdapter(TreeAdapter):
    """One LightGBM model file."""

    framework = "lightgbm"
    package = "lightgbm_server"
    score = "raw score"
    input_dtype = np.dtype(np.float64)
    output_dtype = np.dtype(np.float64)
    options_class = Options

    def __init__(self, settings: ModelSettings, options: Options) -> None:
        path = find_file(settings, modelfile.SUFFIXES, preferred=modelfile.PREFERRED, contents=(Content.LIGHTGBM_TEXT,))
        self.file = file = modelfile.read(path)
        try:
            self.iterations = choose_iterations(file, options.start_iteration_predict, options.num_iteration_predict)
        except ValueError as error:
            raise ConfigError(f"{file.path}: {error}") from None
        objective = objective_of(file.objective) or Objective()
        self.facts = TreeFacts(
            path=file.path,
            sha256=file.sha256,
            columns=file.columns,
            groups=file.groups,
            feature_names=file.feature_names,
            categorical=frozenset(file.categorical),
            categories=file.categories,
            unknown_is_missing=True,
            underscored=True,
            task=objective.task,
            offers_probability=objective.task != "other",
            holds_for={"iterations": list(self.iterations)},
            details={
                "objective": file.objective_name,
                "iterations": f"{self.iterations[0]}-{self.iterations[1]}",
                "trees": f"{(self.iterations[1] - self.iterations[0]) * file.groups} of {len(file.trees)}",
            },
        )

    @classmethod
    def installed_version(cls) -> str:
        """Version of the installed lightgbm; empty: it is not installed."""
        try:
            return importlib.metadata.version("lightgbm")
        except importlib.metadata.PackageNotFoundError:
            return ""

    def compile(self, *, threads: int) -> Forest64:
        """Build the forest of the iterations in use."""
        return compile_forest(self.file, self.iterations, threads=threads)

    def load_predictor(self, *, threads: int) -> Booster:
        """Import lightgbm and load the Booster."""
        return Booster(self.file, self.iterations, threads=threads)

    def split_values(self) -> Mapping[int, np.ndarray]:
        """Thresholds of the splits, and every category of a set's words and a few beyond, by column."""
        found: dict[int, list[np.ndarray]] = {}
        categories: dict[int, int] = {}
        for tree in self.file.trees:
            categorical = tree.decision & 1 != 0
            for column in np.unique(tree.feature[~categorical]):
                found.setdefault(int(column), []).append(tree.threshold[~categorical & (tree.feature == column)])
            for column, number in zip(tree.feature[categorical], tree.threshold[categorical].astype(int), strict=True):
                words = int(tree.set_bounds[number + 1] - tree.set_bounds[number])
                categories[int(column)] = max(categories.get(int(column), 0), 32 * words)
        for column, end in categories.items():
            found.setdefault(column, []).append(np.append(np.arange(-2.0, end + 3.0), _BESIDE_CATEGORIES))
        return {column: np.concatenate(parts) for column, parts in found.items()}

    def special_values(self) -> Sequence[float]:
        """Around what LightGBM takes for 0."""
        return NEAR_ZERO, -NEAR_ZERO, float(np.nextafter(NEAR_ZERO, 1)), 5e-324
