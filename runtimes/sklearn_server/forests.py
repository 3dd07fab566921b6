"""Trees and their ensembles for the compiled walk: decision trees, forests, gradient boosting and its histogram-based kind.

Sources, of scikit-learn 1.9: `tree/_tree.pyx` (`apply_dense`: float32 values, `<= threshold` left, a missing value where the node says),
`ensemble/_forest.py` (the trees' shares are summed in their order and divided), `ensemble/_gb.py` and `_gradient_boosting.pyx`
(`predict_stages`: a raw prediction, and to it the learning rate times each leaf), `_hist_gradient_boosting/_predictor.pyx` (float64 values).
All sums are float64 and in scikit-learn's order, so that they are equal to the last bit.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from serinus.engines.not_covered import NotCovered
from serinus.native.trees.forest64 import Forest64, Sets

from .estimator import HIST_TREE, TREE, Estimator, Pool, hist_tree, tree
from .heads import ClassifierHead, Finish, Head, RegressorHead, Scores, class_count, classes_of
from .transforms import MISSING_CODE

__all__ = ["HISTOGRAM", "KINDS", "compile_forest"]

_FORESTS: Final = "sklearn.ensemble._forest"
_TREES: Final = "sklearn.tree._classes"
_GRADIENT: Final = "sklearn.ensemble._gb"
HISTOGRAM: Final = "sklearn.ensemble._hist_gradient_boosting.gradient_boosting"

KINDS: Final = (
    *(
        f"{_TREES}.{name}"
        for name in ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor")
    ),
    *(
        f"{_FORESTS}.{name}"
        for name in ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor")
    ),
    *(f"{_GRADIENT}.{name}" for name in ("GradientBoostingClassifier", "GradientBoostingRegressor")),
    *(f"{HISTOGRAM}.{name}" for name in ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")),
)
"""Classes that are compiled."""

_SET_WORDS: Final = 8
"""Of the 256 bits that a boosted tree's node has for its categories (`BITSET_DTYPE_C`)."""
_IDENTITY_LINKS: Final = ("HalfSquaredError", "AbsoluteError", "PinballLoss", "HuberLoss")
_LOG_LINKS: Final = ("HalfPoissonLoss", "HalfGammaLoss")


def compile_forest(model: Estimator, *, threads: int) -> Head:
    """Compile an estimator of `KINDS`.

    Raises:
        NotCovered: with the reason.
        ValueError: its trees lead out of their arrays.
        KernelsMissing: there are no compiled kernels here.
    """
    columns = model.of("n_features_in_", int)
    if model.kind.startswith((_TREES, _FORESTS)):
        return _averaged(model, columns, threads)
    if model.kind.startswith(HISTOGRAM):
        return _histogram(model, columns, threads)
    return _gradient(model, columns, threads)


def _averaged(model: Estimator, columns: int, threads: int) -> Head:
    """Compile a decision tree, or a forest of them."""
    if model.kind.startswith(_TREES):
        members = [model]
    else:
        members = [one for one in model.of("estimators_", list) if isinstance(one, Estimator)]
    if not members:
        raise NotCovered(f"{model.name} without trees")
    if model.get("n_outputs_", 1) != 1:
        raise NotCovered(f"{model.name} of several outputs")
    trees = [_tree_of(one) for one in members]
    first = members[0]
    # What `_support_missing_values` says: ExtraTree's own tag, by the splitter.
    takes_missing = not first.name.startswith("ExtraTree") or first.get("splitter") == "random"
    accepts = "no infinity" if takes_missing else "finite"
    pool = Pool()
    for one in trees:
        pool.add(one)
    if model.name.endswith("Regressor"):
        value = np.concatenate([tree(one)[1][:, 0, 0] for one in trees])
        walker = Forest64(pool.trees(value), columns=columns, groups=1, divisor=float(len(trees)), threads=threads)
        return RegressorHead(walker.predict, columns, accepts, rounds=True, splits=_splits(pool), closing=walker.close)
    classes = classes_of(model)
    values = [tree(one)[1][:, 0, :] for one in trees]
    if any(one.shape[1] != len(classes) for one in values):
        raise NotCovered(f"{model.name} whose trees vote for other classes than its own")
    leaf = np.concatenate([part[0] == -1 for part in pool.parts])
    number = np.cumsum(leaf) - 1.0
    walker = Forest64(
        pool.trees(number),
        vectors=np.concatenate(values)[leaf],
        columns=columns,
        groups=len(classes),
        divisor=float(len(trees)),
        threads=threads,
    )
    return ClassifierHead(
        walker.predict,
        columns,
        accepts,
        classes,
        Scores.PROBABILITIES,
        rounds=True,
        splits=_splits(pool),
        closing=walker.close,
    )


def _tree_of(member: Estimator) -> Estimator:
    found = member.of("tree_", Estimator)
    if found.kind != TREE:
        raise NotCovered(f"{member.name} with a tree of the class {found.kind}")
    return found


def _gradient(model: Estimator, columns: int, threads: int) -> Head:
    """Compile gradient boosting: stages of one tree, or of one for each class."""
    stages = model.of("estimators_", np.ndarray)
    if stages.ndim != 2 or not stages.size:
        raise NotCovered(f"{model.name} without trees")
    groups = stages.shape[1]
    rate = float(model.numbers("learning_rate"))
    pool, values = Pool(), []
    for member in stages.reshape(-1):
        if not isinstance(member, Estimator):
            raise NotCovered(f"{model.name} without trees")
        one = _tree_of(member)
        pool.add(one)
        values.append(rate * tree(one)[1][:, 0, 0])
    loss = model.of("_loss", Estimator)
    walker = Forest64(
        pool.trees(np.concatenate(values), np.tile(np.arange(groups, dtype=np.int32), len(stages))),
        columns=columns,
        groups=groups,
        base=_initial(model, loss, groups),
        threads=threads,
    )
    made: dict[str, Any] = {"rounds": True, "splits": _splits(pool), "closing": walker.close}
    if model.name.endswith("Regressor"):
        return RegressorHead(walker.predict, columns, "finite", **made)
    classes = classes_of(model)
    _check_groups(model, len(classes), groups)
    finish = {
        "HalfBinomialLoss": Finish.LOGISTIC,
        "ExponentialLoss": Finish.DOUBLE_LOGISTIC,
        "HalfMultinomialLoss": Finish.SOFTMAX,
    }.get(loss.name)
    if finish is None:
        raise NotCovered(f"{model.name} with the loss {loss.name}")
    return ClassifierHead(
        walker.predict, columns, "finite", classes, Scores.MARGINS, finish=finish, zero_is_second=True, **made
    )


def _initial(model: Estimator, loss: Estimator, groups: int) -> np.ndarray:
    """Give the raw prediction that the trees are added to, of the default estimators of `init` (`_init_raw_predictions`)."""
    initial = model.get("init_")
    if isinstance(initial, str) and initial == "zero":
        return np.zeros(groups)
    if not isinstance(initial, Estimator) or initial.kind not in (
        "sklearn.dummy.DummyClassifier",
        "sklearn.dummy.DummyRegressor",
    ):
        raise NotCovered(f"{model.name} that begins with an estimator of its own (init)")
    if initial.name == "DummyRegressor":
        return initial.numbers("constant_").reshape(-1)[:1].copy()
    if initial.get("strategy") != "prior":
        raise NotCovered(f"{model.name} whose init has the strategy {initial.get('strategy')}")
    eps = np.finfo(np.float64).eps
    shares = np.clip(initial.numbers("class_prior_"), eps, 1 - eps)
    if loss.name == "HalfMultinomialLoss":
        logs = np.log(shares)
        return logs - np.mean(logs)
    odds = np.log(shares[1] / (1 - shares[1]))
    return np.array([odds / 2 if loss.name == "ExponentialLoss" else odds])


def _histogram(model: Estimator, columns: int, threads: int) -> Head:
    """Compile histogram-based gradient boosting."""
    iterations = model.of("_predictors", list)
    pool, values, groups = Pool(), [], 0
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for stage in iterations:
        if not isinstance(stage, list) or not stage or (groups and len(stage) != groups):
            raise NotCovered(f"{model.name} with stages of different sizes")
        groups = len(stage)
        for one in stage:
            if not isinstance(one, Estimator) or one.kind != HIST_TREE:
                raise NotCovered(f"{model.name} with trees of another class")
            nodes, sets = hist_tree(one)
            found.append(_categories(nodes, sets))
            pool.add(one)
            values.append(nodes["value"].astype(np.float64))
    if not groups:
        raise NotCovered(f"{model.name} without trees")
    base = model.numbers("_baseline_prediction").reshape(-1)
    if len(base) != groups:
        raise NotCovered(f"{model.name} whose baseline is of {len(base)} outputs, and its trees of {groups}")
    walker = Forest64(
        pool.trees(np.concatenate(values), np.tile(np.arange(groups, dtype=np.int32), len(iterations))),
        sets=_sets(found),
        columns=columns,
        groups=groups,
        base=base,
        threads=threads,
    )
    loss = model.of("_loss", Estimator)
    looks_up = np.concatenate([which for which, _ in found])
    made: dict[str, Any] = {"splits": _splits(pool, ~looks_up), "closing": walker.close}
    if model.name.endswith("Regressor"):
        if loss.name not in (*_IDENTITY_LINKS, *_LOG_LINKS):
            raise NotCovered(f"{model.name} with the loss {loss.name}")
        return RegressorHead(walker.predict, columns, "any", exponential=loss.name in _LOG_LINKS, **made)
    classes = classes_of(model)
    _check_groups(model, len(classes), groups)
    finish = {"HalfBinomialLoss": Finish.LOGISTIC, "HalfMultinomialLoss": Finish.SOFTMAX}.get(loss.name)
    if finish is None:
        raise NotCovered(f"{model.name} with the loss {loss.name}")
    return ClassifierHead(walker.predict, columns, "any", classes, Scores.MARGINS, finish=finish, **made)


def _categories(nodes: np.ndarray, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give which nodes of a boosted tree look a category up, and for each of them the set that goes left: bool [nodes], uint32 [n, 8].

    A missing category is a code of its own here, so that it is in a set where the node sends what is missing to the left.
    """
    which = (nodes["is_categorical"] != 0) & (nodes["is_leaf"] == 0)
    if not which.any():
        return which, np.empty((0, _SET_WORDS), np.uint32)
    own = sets[nodes["bitset_idx"][which]].copy()  # where that leads has been held to the sets (`estimator.check`)
    word, bit = divmod(MISSING_CODE, 32)
    left = nodes["missing_go_to_left"][which] != 0
    own[:, word] = np.where(left, own[:, word] | np.uint32(1 << bit), own[:, word] & ~np.uint32(1 << bit))
    return which, own


def _sets(found: list[tuple[np.ndarray, np.ndarray]]) -> Sets | None:
    """Give the sets of all trees' nodes, in the order of the trees; None: no node looks a category up."""
    which = np.concatenate([one for one, _ in found])
    if not which.any():
        return None
    first = np.full(len(which), -1, np.int64)
    first[which] = np.arange(which.sum()) * _SET_WORDS
    words = np.where(which, _SET_WORDS, 0).astype(np.int64)
    return Sets(first, words, np.concatenate([own for _, own in found]).reshape(-1))


def _check_groups(model: Estimator, classes: int, groups: int) -> None:
    if groups != class_count(classes):
        raise NotCovered(f"{model.name} of {classes} classes, whose trees are of {groups} outputs")


def _splits(pool: Pool, compares: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """Values that the trees compare with, by column; `compares`: bool [nodes], which nodes do; None: all inner ones."""
    inner = np.concatenate([part[0] != -1 for part in pool.parts])
    if compares is not None:
        inner &= compares
    feature = np.concatenate([part[2] for part in pool.parts])[inner]
    value = np.concatenate([part[3] for part in pool.parts])[inner]
    return {int(column): value[feature == column] for column in np.unique(feature)}
