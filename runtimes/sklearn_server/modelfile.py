"""The model file of a folder, and whether it may be loaded.

A `.skops` file is data; what it names beside scikit-learn's own classes is code that loading would import, and is refused by name unless
`--allow_implementation` allows it. A pickle (`.joblib`, `.pkl`) is code as a whole: it is loaded only where `--allow_implementation pickle`
says so. That is the operator's word; a model directory cannot give it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serinus.artifacts import find_file, unchanged
from serinus.content.model_content import Content, content_of
from serinus.content.pickles import SUFFIXES as PICKLES
from serinus.content.pickles import mend_of, pickled_class
from serinus.errors import ConfigError
from serinus.settings import ModelSettings

from . import skops_file
from .estimator import HIST_TREE, TREE, Estimator, check

__all__ = ["ALLOW_PICKLE", "TRUSTED", "ModelFile", "check_types", "checked", "find"]

ALLOW_PICKLE: Final = "pickle"
"""What `--allow_implementation` must name for pickles."""
_OTHERS: Final = ("xgboost", "lightgbm", "catboost")
"""Frameworks whose own files have a runtime here."""

TRUSTED: Final[Mapping[str, str]] = {
    TREE: "its nodes are held to their arrays before scikit-learn walks them",
    HIST_TREE: "likewise",
    "functools.partial": "what it calls is named too, and trusted or not by its own name",
    "numpy.dtype": "a type of numbers",
    "sklearn.calibration._CalibratedClassifier": "numbers and estimators",
    "sklearn.calibration._SigmoidCalibration": "two numbers",
    "sklearn.compose._column_transformer.make_column_selector": "chooses columns by their type, in training alone",
    "sklearn.feature_selection._univariate_selection.chi2": "called in training alone",
    "sklearn.feature_selection._univariate_selection.f_classif": "called in training alone",
    "sklearn.feature_selection._univariate_selection.f_regression": "called in training alone",
    # What a threshold was tuned by (TunedThresholdClassifierCV): called in training alone.
    "sklearn.metrics._classification.balanced_accuracy_score": "compares labels and changes nothing",
    "sklearn.metrics._scorer._CurveScorer": "what it calls is named too, and trusted or not by its own name",
    "sklearn.metrics._scorer._Scorer": "likewise",
    "sklearn.multiclass._ConstantPredictor": "one number, of a class that training has not seen",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer": "numbers of training",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer": "numbers of training",
    "sklearn.utils._bunch.Bunch": "a dictionary: the named estimators of a vote or a stack",
    "sklearn.utils._metadata_requests.MetadataRequest": "names of arguments",
    "sklearn.utils._metadata_requests.MethodMetadataRequest": "names of arguments",
    "sklearn.utils.validation.check_array": "looks at rows and changes nothing but their type",
    "sklearn._loss.loss.HalfTweedieLoss": "two numbers",
    "sklearn._loss.loss.HalfTweedieLossIdentity": "two numbers",
    **{
        f"sklearn.gaussian_process.kernels.{name}": "numbers"
        for name in ("ConstantKernel", "RBF", "WhiteKernel", "Product", "Sum", "Matern")
    },
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace": "numbers",
}
"""Classes that are loaded beside those that skops itself trusts (scikit-learn's public estimators, NumPy's and SciPy's functions), and why. Not
among them is what walks indices of a file without looking: scikit-learn's KDTree and BallTree, SciPy's sparse matrices."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file."""

    path: Path
    sha256: str
    is_pickle: bool
    model: Estimator | None
    """What a skops file holds; None: a pickle, which tells it when it is loaded."""


def find(settings: ModelSettings) -> ModelFile:
    """Find the model file and read it, as far as that is data.

    Raises:
        ConfigError: none, several, damaged, or a pickle that nobody allowed.
    """
    path = find_file(settings, (".skops", *PICKLES), preferred=("model.skops",), contents=(Content.SKOPS,))
    try:
        data = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if content_of(path) is Content.PICKLE:
        _check_pickle(path, settings)
        return ModelFile(path, sha256, True, None)
    with unchanged(path, sha256):
        model = checked(skops_file.read(path), path)
    return ModelFile(path, sha256, False, model)


def checked(model: Estimator, path: Path) -> Estimator:
    """Give a model back whose trees keep to their arrays.

    Raises:
        ConfigError: they do not, and scikit-learn would end the process over it.
    """
    try:
        check(model)
    except ValueError as error:
        raise ConfigError(f"{path}: the model is damaged: {error}") from None
    return model


def _check_pickle(path: Path, settings: ModelSettings) -> None:
    named = pickled_class(path)
    if named.partition(".")[0] in _OTHERS:
        raise ConfigError(f"{path.parent}: {mend_of(path)}")
    if settings.allows(ALLOW_PICKLE):
        return
    raise ConfigError(
        f"{path}: is a pickle{f' of {named}' if named else ''}, and loading one runs whatever code its writer put in, with this server's rights: its "
        "files, network and credentials. Save the model as data, skops.io.dump(model, 'model.skops'), or, if the file is your own and nobody "
        f"else can write it, start with --allow_implementation {ALLOW_PICKLE}"
    )


def check_types(untrusted: Iterable[str], path: Path, settings: ModelSettings) -> list[str]:
    """Give the classes that skops is told to trust: ours, and those that the operator allows.

    Args:
        untrusted: what it does not trust by itself.
        path: the file, for the message.
        settings: `allow_implementation`.

    Raises:
        ConfigError: naming all that nobody trusts.
    """
    untrusted = sorted(untrusted)
    refused = [name for name in untrusted if name not in TRUSTED and not settings.allows(name)]
    if refused:
        mends = [
            f"; a model of {root}'s is served from its own file: {how}"
            for root, how in _SAVES.items()
            if any(name.startswith(root) for name in refused)
        ]
        raise ConfigError(
            f"{path}: names {', '.join(refused)}, which {'is' if len(refused) == 1 else 'are'} not among the classes that are trusted, and "
            f"loading would import and run {'it' if len(refused) == 1 else 'them'}; to trust {'it' if len(refused) == 1 else 'them'}, start "
            f"with --allow_implementation '{','.join(refused)}'{''.join(mends)}{_BRUTE if _walks_indices(refused) else ''}"
        )
    return untrusted


_BRUTE: Final = "; fitted with algorithm='brute' the model has no tree of neighbours, and is loaded without"


def _walks_indices(names: Iterable[str]) -> bool:
    return any(name.rpartition(".")[2].startswith(("KDTree", "BallTree")) for name in names)


_SAVES: Final = {
    "xgboost": "model.save_model('model.ubj')",
    "lightgbm": "model.booster_.save_model('model.txt')",
    "catboost": "model.save_model('model.cbm')",
}
