"""CatBoost for the compiled engine: what its files say, where their trees split, and its own predictor."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from serinus.artifacts import find_file
from serinus.bounds import COLUMNS
from serinus.content.model_content import Content
from serinus.engines.tree_adapter import NotCovered, Task, TreeAdapter, TreeFacts
from serinus.engines.tree_options import TreeOptions
from serinus.errors import ConfigError
from serinus.native.trees.forest64 import Forest64
from serinus.native.trees.walker import KernelsMissing, Link, Trees
from serinus.settings import ModelSettings

from . import modelfile
from .predictor import Predictor

__all__ = ["CatBoostAdapter", "Options"]

_BINARY: Final = ("Logloss", "CrossEntropy", "Focal")
_MULTICLASS: Final = {"MultiClass": Link.SOFTMAX, "MultiClassOneVsAll": Link.SIGMOID}
_EXPONENT: Final = ("Poisson", "Tweedie")
"""Losses whose regressors answer exponentials (catboost/core.py, `CatBoostRegressor._get_default_prediction_type`)."""
_UNCERTAIN: Final = ("RMSEWithUncertainty",)
_MOST_NODES: Final = 1 << 26


class Options(TreeOptions):
    """The engine's settings; CatBoost's own predictor goes by its name."""

    told: ClassVar[Mapping[str, str]] = {
        **TreeOptions.told,
        "engine": "auto (default): the compiled trees where they are verified, else CatBoost; forest; catboost",
    }
    engines: ClassVar[tuple[str, ...]] = ("auto", "forest", "catboost")


class CatBoostAdapter(TreeAdapter):
    """One CatBoost model file."""

    framework = "catboost"
    package = "catboost_server"
    predictor = "CatBoost"
    score = "raw value"
    input_dtype = np.dtype(np.float32)
    output_dtype = np.dtype(np.float64)
    options_class = Options

    def __init__(self, settings: ModelSettings, options: TreeOptions) -> None:  # the interface's
        path = find_file(
            settings, (".cbm",), preferred=("model.cbm",), contents=(Content.CATBOOST_CBM, Content.CATBOOST_JSON)
        )
        self.file = file = modelfile.read(path)
        self.link = _link(file.loss)
        task: Task = "binary" if file.loss in _BINARY else "multiclass" if file.loss in _MULTICLASS else "other"
        if task == "multiclass" and file.dimension < 2:
            raise ConfigError(f"{path}: the loss is {file.loss}, and the trees have {file.dimension} outputs")
        details: dict[str, Any] = {"model_format": file.format, "loss": file.loss, "trees": str(len(file.trees))}
        if file.classes:
            details["classes"] = list(file.classes)
        self.facts = TreeFacts(
            path=path,
            sha256=file.sha256,
            columns=file.columns,
            groups=file.dimension,
            feature_names=file.names,
            task=task,
            offers_probability=task != "other",
            details=details,
        )

    @classmethod
    def installed_version(cls) -> str:
        """Version of the installed catboost; empty: it is not installed."""
        try:
            return importlib.metadata.version("catboost")
        except importlib.metadata.PackageNotFoundError:
            return ""

    def compile(self, *, threads: int) -> Forest64:
        """Build the forest."""
        file = self.file
        if file.categorical:
            raise NotCovered("categorical features")
        if file.others:
            raise NotCovered(file.others)
        if file.loss in _UNCERTAIN:
            raise NotCovered(f"the loss {file.loss}")
        if file.columns > COLUMNS:
            raise NotCovered(f"{file.columns} features, more than {COLUMNS}")
        sizes = [len(tree) for tree in file.trees]
        if not sizes or sum(sizes) > _MOST_NODES:
            raise NotCovered(f"{sum(sizes)} nodes")
        nodes = np.array([node for tree in file.trees for node in tree], np.float64)
        left, right, column = (nodes[:, field].astype(np.int32) for field in (0, 1, 2))
        leaf = left == -1
        begins = nodes[leaf, 4].astype(np.int64)
        above_all = np.zeros(file.columns, bool)
        for feature in file.features.values():
            above_all[feature.column] = feature.missing == "AsTrue"
        scaled = file.leaves * file.scale
        value, vectors = nodes[:, 3].copy(), None
        if file.dimension == 1:
            value[leaf] = scaled[begins]
        else:
            value[leaf] = np.arange(len(begins))
            vectors = scaled[begins[:, None] + np.arange(file.dimension)]
        trees = Trees(
            np.cumsum([0, *sizes]),
            left,
            right,
            column,
            value,
            ~leaf & ~above_all[column],
            np.zeros(len(sizes), np.int32),
        )
        try:
            return Forest64(
                trees,
                vectors=vectors,
                columns=file.columns,
                groups=file.dimension,
                base=np.array(file.bias),
                link=self.link,
                threads=threads,
            )
        except (KernelsMissing, ValueError) as error:
            raise NotCovered(str(error)) from None

    def load_predictor(self, *, threads: int) -> Predictor:
        """Import catboost and load the model."""
        kind = {Link.IDENTITY: "RawFormulaVal", Link.EXP: "Exponent"}.get(self.link, "Probability")
        return Predictor(self.file, kind, threads=threads)

    def split_values(self) -> Mapping[int, np.ndarray]:
        """Borders of the features, by column."""
        return {one.column: one.borders for one in self.file.features.values() if len(one.borders)}


def _link(loss: str) -> Link:
    if loss in _BINARY:
        return Link.SIGMOID
    return Link.EXP if loss in _EXPONENT else _MULTICLASS.get(loss, Link.IDENTITY)
