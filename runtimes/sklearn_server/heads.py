"""The last step of a compiled model: numbers to predictions and probabilities, as scikit-learn's estimators shape them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from serinus.engines.not_covered import NotCovered

from .estimator import Estimator

__all__ = [
    "Accepts",
    "ClassifierHead",
    "Finish",
    "Head",
    "RegressorHead",
    "Scores",
    "class_count",
    "classes_of",
    "labels_of",
]

Accepts = Literal["any", "no infinity", "finite"]
"""Which numbers an estimator takes; the others it refuses, as scikit-learn's validation does."""


class Scores(enum.Enum):
    """What the raw numbers of a classifier are."""

    PROBABILITIES = "probabilities"
    MARGINS = "margins"


class Finish(enum.Enum):
    """How margins become probabilities."""

    NONE = "none"
    """They do not: the estimator has no `predict_proba`."""
    LOGISTIC = "logistic"
    DOUBLE_LOGISTIC = "double logistic"
    """Of twice the margin (`ExponentialLoss`)."""
    SOFTMAX = "softmax"
    ONE_VS_REST = "one against the rest"
    """Logistic, then shares of their sum (`_predict_proba_lr`)."""
    CLIPPED = "clipped"
    """Half of 1 and the margin, which is held to -1 and 1 (`SGDClassifier`, modified_huber)."""


class Head(Protocol):
    """A compiled estimator. Rows are float64 [n, columns] in C order."""

    columns: int
    accepts: Accepts
    rounds: bool
    """The estimator rounds its rows to float32 first."""
    splits: Mapping[int, np.ndarray]
    """Values that it compares with, by column; empty: it compares none."""
    classes: np.ndarray | None
    """Labels of a classifier, as BYTES, INT64, FP64 or BOOL carry them; None: no classifier."""
    outputs: tuple[str, ...]
    """Methods that it has, of `predict`, `predict_proba` and `decision_function`."""

    def run(self, rows: np.ndarray, wanted: frozenset[str]) -> dict[str, np.ndarray]:
        """Answer the methods that are wanted."""
        ...

    def close(self) -> None:
        """End its threads."""
        ...


def classes_of(model: Estimator) -> np.ndarray:
    """Give a classifier's labels.

    Raises:
        NotCovered: there are none that the protocol can carry.
    """
    found = model.get("classes_")
    if not isinstance(found, np.ndarray) or found.ndim != 1 or len(found) < 2:
        raise NotCovered(f"{model.name} without two classes or more")
    made = labels_of(found)
    if made is None:
        raise NotCovered(f"{model.name} with classes that the protocol cannot carry")
    return made


def labels_of(values: np.ndarray) -> np.ndarray | None:
    """Give labels as the protocol carries them; None: it cannot."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    if values.dtype.kind == "b":
        return values
    texts = values.reshape(-1).tolist()
    if values.dtype.kind in "UO" and all(isinstance(text, str) for text in texts):
        made = np.empty(len(texts), object)
        made[:] = [text.encode() for text in texts]
        return made.reshape(values.shape)
    if values.dtype.kind == "O" and all(type(one) is int for one in texts):
        return values.astype(np.int64)
    return None


def class_count(classes: int) -> int:
    """How many margins so many classes have."""
    return 1 if classes == 2 else classes


class RegressorHead:
    """Numbers as they are, or their exponentials. `score` gives [n, outputs]."""

    def __init__(
        self,
        score: Callable[[np.ndarray], np.ndarray],
        columns: int,
        accepts: Accepts,
        *,
        rounds: bool = False,
        exponential: bool = False,
        flat: bool = True,
        splits: Mapping[int, np.ndarray] | None = None,
        closing: Callable[[], None] | None = None,
    ) -> None:
        self.columns, self.rounds = columns, rounds
        self.accepts: Accepts = accepts
        self.splits: Mapping[int, np.ndarray] = splits or {}
        self.classes: np.ndarray | None = None
        self.outputs: tuple[str, ...] = ("predict",)
        self.close = closing or _nothing
        self._score, self._exponential, self._flat = score, exponential, flat

    def run(self, rows: np.ndarray, wanted: frozenset[str]) -> dict[str, np.ndarray]:
        """Answer `predict`: float64 [n], or [n, outputs] where the model has several."""
        made = self._score(rows)
        if self._exponential:
            made = np.exp(made)
        return {"predict": made.reshape(-1) if self._flat else made}


class ClassifierHead:
    """Labels, probabilities and margins. `score` gives [n, classes], or [n, 1] margins of two classes."""

    def __init__(
        self,
        score: Callable[[np.ndarray], np.ndarray],
        columns: int,
        accepts: Accepts,
        classes: np.ndarray,
        scores: Scores,
        *,
        finish: Finish = Finish.NONE,
        zero_is_second: bool = False,
        rounds: bool = False,
        splits: Mapping[int, np.ndarray] | None = None,
        closing: Callable[[], None] | None = None,
    ) -> None:
        self.columns, self.rounds = columns, rounds
        self.accepts: Accepts = accepts
        self.splits: Mapping[int, np.ndarray] = splits or {}
        self.classes: np.ndarray | None = classes
        self.close = closing or _nothing
        self._score, self._labels, self._finish, self._zero_is_second = score, classes, finish, zero_is_second
        self._votes = scores is Scores.PROBABILITIES
        if self._votes:
            self.outputs: tuple[str, ...] = ("predict", "predict_proba")
        elif finish is Finish.NONE:
            self.outputs = ("predict", "decision_function")
        else:
            self.outputs = ("predict", "predict_proba", "decision_function")

    def run(self, rows: np.ndarray, wanted: frozenset[str]) -> dict[str, np.ndarray]:
        """Answer `predict` (labels [n]), `predict_proba` [n, classes] and `decision_function` ([n], or [n, classes])."""
        scores = self._score(rows)
        made: dict[str, Any] = {}
        flat = scores.shape[1] == 1
        if "predict" in wanted:
            if flat:
                above = scores[:, 0] >= 0 if self._zero_is_second else scores[:, 0] > 0
                made["predict"] = self._labels[above.astype(np.intp)]
            else:
                made["predict"] = self._labels[scores.argmax(axis=1)]
        if "predict_proba" in wanted:
            made["predict_proba"] = scores if self._votes else _probabilities(scores, self._finish)
        if "decision_function" in wanted:
            made["decision_function"] = scores[:, 0] if flat else scores
        return made


def _probabilities(margins: np.ndarray, finish: Finish) -> np.ndarray:
    if finish is Finish.SOFTMAX:
        raised = np.exp(margins - margins.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)
    if finish is Finish.CLIPPED:
        shares = (np.clip(margins, -1, 1) + 1.0) / 2.0
    else:
        with np.errstate(over="ignore"):  # to 0, as it should
            shares = 1.0 / (1.0 + np.exp(-2.0 * margins if finish is Finish.DOUBLE_LOGISTIC else -margins))
    if shares.shape[1] == 1:
        made = np.empty((len(shares), 2))
        made[:, 1] = shares[:, 0]
        made[:, 0] = 1.0 - shares[:, 0]
        return made
    total = shares.sum(axis=1, keepdims=True)
    none = total[:, 0] == 0
    if none.any():
        shares[none] = 1.0
        total[none] = shares.shape[1]
    return shares / total


def _nothing() -> None:
    """Do nothing: there are no threads."""
