"""What a framework of tree ensembles must say and do to be served by a compiled walk: the few methods of `TreeAdapter`.

How to add a framework (scikit-learn, CatBoost, ...):

1. A reader in the framework's own folder turns its file into `serinus.native.trees.walker.Trees`, without importing the framework.
   Choose the walk by what the framework compares, exactly:
   - `Forest`: float32 rows, `x < threshold` goes left, float32 sums (XGBoost).
   - `Forest64`: float64 rows, `x <= threshold` goes left, float64 sums that start from `base`. Rows that the framework rounds to
     float32 first (scikit-learn, CatBoost) have `input_dtype` float32; every float32 is a float64, so nothing is lost.
     `near_zero=None` unless values near 0 are 0 to the framework, as to LightGBM. Leaves that hold a vector, one number for each
     class (random forests that vote, multi-class leaves), are `vectors`; trees that are averaged take `divisor`.
   A missing value goes where `default_left` says, node by node. Symmetric trees (CatBoost) are written out as binary ones.
2. The reader raises `NotCovered` with a reason, as a clause, for whatever it does not turn into exactly those: categorical splits
   without sets, linear leaves, an objective without a `Link`. The framework's own predictor serves such a model, and the log and
   the metadata give the reason.
3. A subclass of `TreeAdapter` reads the file (`facts`), compiles it, hands out the framework's predictor, and says where the trees
   split, so that verification can aim there. The framework is imported in `load_predictor` and nowhere else.
4. A subclass of `CompiledTreeModel` names the adapter and the platform; `verify.py` hands the adapter to `verify_command.run`.

What is not the framework's is not written again: choice of the engine, verification and its record, settings, inputs as a
matrix or by columns, outputs on request, explanations, the command.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from ..feature_columns import Category
from ..native.trees.walker import Walker
from ..settings import ModelSettings
from .not_covered import NotCovered
from .thread_choice import ThreadChoice
from .tree_options import TreeOptions

__all__ = ["FrameworkPredictor", "NotCovered", "Task", "TreeAdapter", "TreeFacts"]

Task = Literal["binary", "multiclass", "other"]


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """What a model file says, whichever engine serves it."""

    path: Path
    sha256: str
    columns: int
    """Features of a row; 0: the file does not say."""
    groups: int
    """Outputs of a row: classes, targets or 1."""
    feature_names: tuple[str, ...]
    categorical: frozenset[int] = frozenset()
    """Columns whose numbers are codes of categories."""
    categories: Mapping[int, tuple[Category | None, ...]] = field(default_factory=dict)
    """Names of the categories by column, where the file has them, in the order of their codes; see `FeatureColumns`."""
    unknown_is_missing: bool = False
    """To the framework a category that training did not see is a missing value; False: it is an error."""
    missing: float = math.nan
    """A number that counts as missing, beside NaN."""
    underscored: bool = False
    """The framework writes blanks in feature names as underscores."""
    task: Task = "other"
    """What the output `class` is. binary: whether the one margin is above 0. multiclass: the number of the largest output, of two
    or more. other: there is none."""
    predicts_class: bool = False
    """With several outputs a prediction is the number of the largest one, shape [n], in place of them all."""
    offers_margin: bool = True
    """There are sums before the link, and the framework tells them; not so where trees vote."""
    offers_probability: bool = False
    holds_for: Mapping[str, Any] = field(default_factory=dict)
    """What a verification holds for beside file, engine and version, as JSON values: iterations in use, the missing value."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the metadata: objective, iterations."""


class FrameworkPredictor(Protocol):
    """The framework's own predictor of one model. It verifies the walk, serves what that does not cover, and explains."""

    threads: ThreadChoice
    """Native threads of a batch; set once the model is measured."""

    @property
    def columns(self) -> int:
        """Features of a row."""
        ...

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Predictions as the framework shapes them: [n] or [n, outputs]. rows: of `TreeAdapter.input_dtype`, [n, columns]."""
        ...

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """What the link makes of the margins, or the shares of votes, before a class is chosen: [n] or [n, outputs].

        Most models predict them; not those with `TreeFacts.predicts_class`.
        """
        ...

    def margins(self, rows: np.ndarray) -> np.ndarray:
        """Sums before the link, [n] or [n, outputs]. Never asked of a model without `TreeFacts.offers_margin`."""
        ...

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """SHAP values of the margins: [n, columns + 1] or [n, outputs, columns + 1]; the last column is the bias.

        Raises:
            NotSupported: the framework explains no such model.
        """
        ...


class TreeAdapter(ABC):
    """One model file of a framework, read when this is made.

    Args:
        settings: `model_dir` is the model file or its folder.
        options: the model's own settings, of the class `options_class`.

    Raises:
        ConfigError: no model there, unreadable, or settings that do not fit it.
    """

    framework: ClassVar[str]
    """Name of the framework's package: "xgboost". It names the record's version and the log, too."""
    package: ClassVar[str]
    """Name of the runtime: "xgboost_server"."""
    predictor: ClassVar[str] = "Booster"
    """What the framework calls its predictor; in small letters the setting and the metadata's `engine` that choose it."""
    score: ClassVar[str] = "margin"
    """The framework's word for a sum before the link."""
    input_dtype: ClassVar[np.dtype]
    """What the framework rounds rows to."""
    output_dtype: ClassVar[np.dtype]
    """Of predictions, margins and contributions."""
    options_class: ClassVar[type[TreeOptions]] = TreeOptions

    facts: TreeFacts

    @abstractmethod
    def __init__(self, settings: ModelSettings, options: Any) -> None: ...

    @classmethod
    @abstractmethod
    def installed_version(cls) -> str:
        """Version of the installed framework, found without importing it; empty: it is not installed."""

    @abstractmethod
    def compile(self, *, threads: int) -> Walker:
        """Build the forest for the compiled walk, whose margins and predictions are of `facts.groups` outputs.

        Args:
            threads: most threads of one call.

        Raises:
            NotCovered: for whatever the walk does not cover, or finds wrong.
        """

    @abstractmethod
    def load_predictor(self, *, threads: int) -> FrameworkPredictor:
        """Import the framework and load the model into it.

        Raises:
            ConfigError: the framework is not installed, or refuses the file.
        """

    @abstractmethod
    def split_values(self) -> Mapping[int, np.ndarray]:
        """Values that the trees' splits compare with, by column: those on which the two may take different sides."""

    def special_values(self) -> Sequence[float]:
        """Further values that the framework treats in a way of its own, beside NaN, infinities, zeros and extremes."""
        return ()

    def probabilities(self, margins: np.ndarray, outputs: np.ndarray) -> np.ndarray:  # for those that derive
        """Probabilities of a classifier, where they are not its outputs.

        Args:
            margins: [n], or [n, outputs]; the outputs, where the model offers no margins.
            outputs: what the link makes of them, shaped likewise.
        """
        return outputs
