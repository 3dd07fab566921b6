"""From a model file to a `serinus.native.trees.forest.Forest`, or the reason why there is none."""

from __future__ import annotations

from typing import Any

import numpy as np

from serinus.bounds import COLUMNS
from serinus.engines.tree_adapter import NotCovered
from serinus.native.trees.forest import Forest, KernelsMissing, Link, Trees, margin_of

from .modelfile import ModelFile
from .objective import OBJECTIVES

__all__ = ["Iterations", "best_iteration", "choose_iterations", "compile_forest"]

Iterations = tuple[int, int]
"""First iteration used, and the one after the last."""


def choose_iterations(file: ModelFile, wanted: str | tuple[int, int]) -> Iterations:
    """Choose the boosting iterations to use.

    Args:
        file: the model.
        wanted: "all", as `Booster.predict` does by default; "best": up to `best_iteration` where training stopped early, as XGBoost's
            scikit-learn classes do, else all; or first and end (end 0: the last).

    Raises:
        ValueError: the range leads out of the model.
    """
    if file.booster == "gblinear":
        return 0, 0  # it has none to choose from
    total = len(file.iteration_ends) - 1
    if wanted == "all":
        return 0, total
    if isinstance(wanted, str):
        best = best_iteration(file)
        return (0, min(best + 1, total)) if best is not None else (0, total)
    first, end = wanted
    end = end or total
    if not 0 <= first < end <= total:
        raise ValueError(f"iteration_range [{first}, {end}]: the model has iterations 0 to {total}")
    return first, end


def best_iteration(file: ModelFile) -> int | None:
    """The iteration that early stopping found best; None: the file names none. Training that went on later leaves it as it was.

    Raises:
        ValueError: it is no iteration.
    """
    text = file.attributes.get("best_iteration")
    if text is None:
        return None
    if not text.isdecimal():
        raise ValueError(
            f"its best_iteration is {text[:40]!r}, which is no iteration; choose iteration_range 'all' or [first, end]"
        )
    return int(text)


def compile_forest(file: ModelFile, chosen: Iterations, *, missing: float, threads: int) -> Forest:
    """Build the forest.

    Raises:
        NotCovered: for whatever the engine does not cover, or finds wrong.
    """
    if file.booster != "gbtree":
        raise NotCovered(f"booster {file.booster}")
    if file.weights is not None:
        raise NotCovered("trees with weights (dropout)")
    objective = OBJECTIVES.get(file.objective)
    if objective is None:
        raise NotCovered(f"objective {file.objective}")
    if not file.features:
        raise NotCovered("the file does not say how many features it takes")
    if file.features > COLUMNS:
        raise NotCovered(f"{file.features} features, more than {COLUMNS}")
    if any(kind in ("c", "categorical") for kind in file.feature_types):
        raise NotCovered("categorical features")
    if len(file.base_score) not in (1, file.groups):
        raise NotCovered(f"{len(file.base_score)} base scores for {file.groups} outputs")
    if objective.link is Link.SOFTMAX and file.groups < 2:
        raise NotCovered(f"{file.groups} classes")
    ends = file.iteration_ends
    if file.groups > max(1, int(ends[-1])):
        raise NotCovered(f"{file.groups} outputs of {int(ends[-1])} trees")
    first, end = int(ends[chosen[0]]), int(ends[chosen[1]])
    base = np.asarray(file.base_score, np.float32)
    try:
        trees = file.model["trees"][first:end]
        outputs = np.asarray(file.model["tree_info"], np.int32)[first:end]
        base = margin_of(objective.base_link, base)
        return Forest(
            _gather(trees, outputs),
            columns=file.features,
            base=np.broadcast_to(base, (file.groups,)),
            link=objective.link,
            missing=missing,
            threads=threads,
        )
    except (KernelsMissing, ValueError) as error:
        raise NotCovered(str(error)) from None
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise NotCovered(f"the trees are not as the schema has them: {error!r}") from None


def _gather(trees: list[dict[str, Any]], outputs: np.ndarray) -> Trees:
    """Join the trees' arrays."""
    if len(trees) != len(outputs):
        raise NotCovered(f"{len(trees)} trees, {len(outputs)} of them with an output")
    for tree in trees:
        if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
            raise NotCovered("leaves with several outputs (multi_output_tree)")
        if len(tree.get("categories_nodes", ())):
            raise NotCovered("categorical splits")
    sizes = [len(tree["left_children"]) for tree in trees]
    for tree, size in zip(trees, sizes, strict=True):
        for name in ("right_children", "split_indices", "split_conditions", "default_left"):
            if len(tree[name]) != size:
                raise NotCovered(f"a tree with {size} nodes has {len(tree[name])} {name}")

    def joined(name: str, dtype: type) -> np.ndarray:
        parts = [np.asarray(tree[name], dtype) for tree in trees]
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    return Trees(
        starts=np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64))),
        left=joined("left_children", np.int32),
        right=joined("right_children", np.int32),
        feature=joined("split_indices", np.int32),
        value=joined("split_conditions", np.float32),
        default_left=joined("default_left", np.bool_),
        outputs=outputs,
    )
