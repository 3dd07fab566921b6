"""What each LightGBM objective makes of a raw score.

Source: LightGBM's src/objective/*.hpp, `ConvertOutput`; their `ToString` is the model file's `objective=` line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from serinus.native.trees.forest import Link

__all__ = ["Objective", "objective_of"]

Task = Literal["binary", "multiclass", "other"]


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective."""

    link: Link = Link.IDENTITY
    slope: float = 1.0
    """Factor of the raw score in the sigmoid."""
    task: Task = "other"
    """binary and multiclass models offer classes and probabilities."""


_LINKS: Final[dict[str, tuple[Link, Task]]] = {
    "custom": (Link.IDENTITY, "other"),
    "binary": (Link.SIGMOID, "binary"),
    "multiclass": (Link.SOFTMAX, "multiclass"),
    "multiclassova": (Link.SIGMOID, "multiclass"),
    "cross_entropy": (Link.SIGMOID, "other"),
    "cross_entropy_lambda": (Link.LOG1P_EXP, "other"),
    "regression": (Link.IDENTITY, "other"),
    "regression_l1": (Link.IDENTITY, "other"),
    "huber": (Link.IDENTITY, "other"),
    "fair": (Link.IDENTITY, "other"),
    "quantile": (Link.IDENTITY, "other"),
    "mape": (Link.IDENTITY, "other"),
    "poisson": (Link.EXP, "other"),
    "gamma": (Link.EXP, "other"),
    "tweedie": (Link.EXP, "other"),
    "lambdarank": (Link.IDENTITY, "other"),
    "rank_xendcg": (Link.IDENTITY, "other"),
}


def objective_of(words: tuple[str, ...]) -> Objective | None:
    """Read an `objective=` line; None: the compiled engine does not know it.

    Args:
        words: of the line, as `ModelFile.objective`.
    """
    name, parameters = (words[0], words[1:]) if words else ("custom", ())
    found = _LINKS.get(name)
    if found is None:
        return None
    link, task = found
    if "sqrt" in parameters:
        if link is not Link.IDENTITY:
            return None
        link = Link.SQUARE
    slope = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition(":")
        if key == "sigmoid" and name in ("binary", "multiclassova"):
            try:
                slope = float(value)
            except ValueError:
                return None
    return Objective(link, slope, task)
