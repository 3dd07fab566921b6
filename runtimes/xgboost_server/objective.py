"""What each XGBoost objective makes of a margin.

Source: XGBoost's src/objective/*.cc, `PredTransform` (margin to prediction) and `ProbToMargin` (base_score to margin).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from serinus.native.trees.forest import Link

__all__ = ["OBJECTIVES", "Objective"]

Task = Literal["binary", "multiclass", "other"]


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective."""

    link: Link = Link.IDENTITY
    """Margin to prediction."""
    base_link: Link = Link.IDENTITY
    """Its inverse maps a stored base_score to a margin."""
    task: Task = "other"
    """binary and multiclass models offer classes and probabilities."""
    predicts_class: bool = False
    """Predictions are class numbers: binary:hinge and multi:softmax."""


_LOGISTIC: Final = Objective(Link.SIGMOID, Link.SIGMOID, "binary")
_EXPONENTIAL: Final = Objective(Link.EXP, Link.EXP)

OBJECTIVES: Final[dict[str, Objective]] = {
    "binary:logistic": _LOGISTIC,
    "binary:logitraw": Objective(task="binary"),
    "binary:hinge": Objective(Link.HINGE, task="binary", predicts_class=True),
    "reg:logistic": Objective(Link.SIGMOID, Link.SIGMOID),
    "reg:squarederror": Objective(),
    "reg:linear": Objective(),  # squarederror's name before 0.90
    "reg:squaredlogerror": Objective(),
    "reg:pseudohubererror": Objective(),
    "reg:absoluteerror": Objective(),
    "reg:quantileerror": Objective(),
    "reg:gamma": _EXPONENTIAL,
    "reg:tweedie": _EXPONENTIAL,
    "count:poisson": _EXPONENTIAL,
    "survival:cox": _EXPONENTIAL,
    "survival:aft": _EXPONENTIAL,
    "rank:pairwise": Objective(),
    "rank:ndcg": Objective(),
    "rank:map": Objective(),
    "multi:softprob": Objective(Link.SOFTMAX, task="multiclass"),
    "multi:softmax": Objective(Link.SOFTMAX, task="multiclass", predicts_class=True),
}
"""Every objective with one output per tree that the compiled engine covers; a model with any other is served by the Booster."""
