"""Linear models in NumPy: rows times coefficients, and what each estimator makes of it.

Sources, of scikit-learn 1.9: `linear_model/_base.py` (`X @ coef_.T + intercept_`; `_predict_proba_lr`), `_logistic.py` (softmax of three classes and
more), `_stochastic_gradient.py` (`predict_proba` by the loss);
`_glm/glm.py` (the link's inverse). The products are NumPy's, as there; rows of a batch may take another order of
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
_GLM: Final = ("PoissonRegressor", "GammaRegressor", "TweedieRegressor")
_REGRESSORS: Final = (
    *("_base.LinearRegression", "_ridge.Ridge", "_ridge.RidgeCV", "_stochastic_gradient.SGDRegressor"),
    *(
        f"_coordinate_descent.{task}{name}"
        for task in ("", "MultiTask")
        for name in ("Lasso", "LassoCV", "ElasticNet", "ElasticNetCV")
    ),
    *("_huber.HuberRegressor", "_bayes.BayesianRidge", "_bayes.ARDRegression"),
    *(f"_least_angle.{name}" for name in ("Lars", "LarsCV", "LassoLars", "LassoLarsCV", "LassoLarsIC")),
    *("_omp.OrthogonalMatchingPursuit", "_omp.OrthogonalMatchingPursuitCV", "_theil_sen.TheilSenRegressor"),
    *("_quantile.QuantileRegressor", "_passive_aggressive.PassiveAggressiveRegressor"),
    *(f"_glm.glm.{name}" for name in _GLM),
)
_CLASSIFIERS: Final = (
    *("_logistic.LogisticRegression", "_logistic.LogisticRegressionCV", "_stochastic_gradient.SGDClassifier"),
    *("_ridge.RidgeClassifier", "_ridge.RidgeClassifierCV"),
    *("_perceptron.Perceptron", "_passive_aggressive.PassiveAggressiveClassifier"),
)
_SVC: Final = "sklearn.svm._classes.LinearSVC"
_SVR: Final = "sklearn.svm._classes.LinearSVR"

KINDS: Final = (*(f"{_LINEAR}.{name}" for name in (*_REGRESSORS, *_CLASSIFIERS)), _SVC, _SVR)
"""Classes that are compiled."""
_LABELLING: Final = frozenset((*(f"{_LINEAR}.{name}" for name in _CLASSIFIERS), _SVC))


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

    if model.kind not in _LABELLING:
        return RegressorHead(score, columns, "finite", flat=flat, exponential=_is_exponential(model))
    classes = classes_of(model)
    if weights.shape[1] != class_count(len(classes)):
        raise NotCovered(f"{model.name} of {len(classes)} classes with coefficients of {weights.shape[1]}")
    return ClassifierHead(score, columns, "finite", classes, Scores.MARGINS, finish=_finish(model, len(classes)))


def _is_exponential(model: Estimator) -> bool:
    """Whether a generalized linear model's link is the logarithm (`_glm/glm.py`: `_get_loss`)."""
    if model.name not in _GLM:
        return False
    if model.name != "TweedieRegressor" or model.get("link") == "log":
        return True
    power = model.get("power")
    return model.get("link") == "auto" and isinstance(power, int | float) and power > 0


def _finish(model: Estimator, classes: int) -> Finish:
    if not model.name.startswith(("Logistic", "SGD")):
        return Finish.NONE
    if model.name == "SGDClassifier":
        return {"log_loss": Finish.ONE_VS_REST, "modified_huber": Finish.CLIPPED}.get(
            str(model.get("loss")), Finish.NONE
        )
    # Until 1.8 a setting could ask for one classifier against the rest; liblinear does no other.
    if classes <= 2 or model.get("solver") == "liblinear" or model.get("multi_class") == "ovr":
        return Finish.ONE_VS_REST
    return Finish.SOFTMAX
