"""Linear models in NumPy: rows times coefficients, and what each estimator makes of it.

Sources, of scikit-learn 1.9: `linear_model/_base.py` (`X @ coef_.T + intercept_`; `_predict_proba_lr`), `_logistic.py` (softmax of three classes and
more), `_stochastic_gradient.py` (`predict_proba` by the loss). The products are NumPy's, as there; rows of a batch may take another order of
additions than one row, so answers agree to rounding.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from serinus.engines.not_covered import NotCovered

from .estimator import Estimator
from .heads import ClassifierHead, Finish, Head, RegressorHead, Scores, class_count, classes_of

__all__ = ["KINDS", "compile_linear"]

_LINEAR: Final = "sklearn.linear_model"
_REGRESSORS: Final = (
    *(
        "_base.LinearRegression",
        "_ridge.Ridge",
        "_ridge.RidgeCV",
        "_coordinate_descent.Lasso",
        "_coordinate_descent.LassoCV",
    ),
    *("_coordinate_descent.ElasticNet", "_coordinate_descent.ElasticNetCV", "_stochastic_gradient.SGDRegressor"),
    *("_huber.HuberRegressor", "_bayes.BayesianRidge", "_bayes.ARDRegression"),
)
_CLASSIFIERS: Final = (
    "_logistic.LogisticRegression",
    "_logistic.LogisticRegressionCV",
    "_stochastic_gradient.SGDClassifier",
)
_SVC: Final = "sklearn.svm._classes.LinearSVC"
_SVR: Final = "sklearn.svm._classes.LinearSVR"

KINDS: Final = (*(f"{_LINEAR}.{name}" for name in (*_REGRESSORS, *_CLASSIFIERS)), _SVC, _SVR)
"""Classes that are compiled."""


def compile_linear(model: Estimator) -> Head:
    """Compile an estimator of `KINDS`.

    Raises:
        NotCovered: with the reason.
    """
    columns = model.of("n_features_in_", int)
    coefficients = model.numbers("coef_")
    flat = coefficients.ndim == 1
    weights = np.ascontiguousarray(np.atleast_2d(coefficients).T)
    if weights.shape[0] != columns or coefficients.ndim > 2:
        raise NotCovered(f"{model.name} of {columns} columns with coefficients {list(coefficients.shape)}")
    intercept = model.numbers("intercept_").reshape(-1)
    if len(intercept) not in (1, weights.shape[1]):
        raise NotCovered(f"{model.name} with {len(intercept)} intercepts for {weights.shape[1]} outputs")

    def score(rows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return rows @ weights + intercept

    if model.name not in ("LinearSVC", "SGDClassifier") and not model.name.startswith("Logistic"):
        return RegressorHead(score, columns, "finite", flat=flat)
    classes = classes_of(model)
    if weights.shape[1] != class_count(len(classes)):
        raise NotCovered(f"{model.name} of {len(classes)} classes with coefficients of {weights.shape[1]}")
    return ClassifierHead(score, columns, "finite", classes, Scores.MARGINS, finish=_finish(model, len(classes)))


def _finish(model: Estimator, classes: int) -> Finish:
    if model.name == "LinearSVC":
        return Finish.NONE
    if model.name == "SGDClassifier":
        return {"log_loss": Finish.ONE_VS_REST, "modified_huber": Finish.CLIPPED}.get(
            str(model.get("loss")), Finish.NONE
        )
    # Until 1.8 a setting could ask for one classifier against the rest; liblinear does no other.
    if classes <= 2 or model.get("solver") == "liblinear" or model.get("multi_class") == "ovr":
        return Finish.ONE_VS_REST
    return Finish.SOFTMAX
