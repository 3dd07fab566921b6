"""A model file, whichever of XGBoost's formats it has, as one `ModelFile`: read without importing xgboost.

Source: XGBoost, doc/model.schema and src/learner.cc. A `.ubj` and a `.json` file hold the same document.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from serinus import verification_records
from serinus.artifacts import said_of_another
from serinus.content.mistaken_content import describe_mistake
from serinus.content.model_content import content_of
from serinus.content.pickles import SUFFIXES as PICKLES
from serinus.content.pickles import is_pickle, mend_in, mend_of
from serinus.errors import ConfigError
from serinus.feature_columns import Category

from . import categories, legacy, soundness, ubjson

__all__ = ["FORMATS", "ModelFile", "find", "read"]

FORMATS: Final = (".ubj", ".json", ".bst", ".bin", ".model", ".deprecated", ".xgb")
"""Suffixes of model files, by which a folder's one is found first; `.bst` is KServe's. The content decides on the format."""
_NOT_MODELS: Final = ("model-settings.json", "settings.json", "metadata.json", "config.json")
_PACKAGE: Final = "xgboost_server"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the engine needs of a model file."""

    path: Path
    sha256: str
    format: str
    """ubj, json or binary."""
    objective: str
    booster: str
    """gbtree, dart or gblinear."""
    model: dict[str, Any]
    """`trees`, `tree_info` and their parameters, for gbtree and dart."""
    iteration_ends: np.ndarray
    """int64 [iterations + 1]: number of trees before each boosting iteration, and in all; [0] for gblinear."""
    weights: np.ndarray | None
    """float32 [trees]: dart's; None: all are 1."""
    features: int
    """Columns of a row; 0: the file does not say."""
    classes: int
    targets: int
    base_score: tuple[float, ...]
    attributes: dict[str, str]
    feature_names: tuple[str, ...]
    feature_types: tuple[str, ...]
    categories: dict[int, tuple[Category | None, ...]]
    """Names of the categories by column, in the order of their codes; XGBoost stores them since 3.1."""
    document: dict[str, Any]
    """The whole document, for handing an old binary model to a Booster that cannot read it."""

    @property
    def groups(self) -> int:
        """Outputs of a row: classes, targets or 1."""
        return max(self.classes, self.targets, 1)


def find(location: Path) -> Path:
    """Find the one model file of a folder; a file is taken as it is.

    Raises:
        ConfigError: nothing there, nothing that is a model, or several.
    """
    if location.is_file():
        content = content_of(location)
        if content.package not in ("", _PACKAGE):
            raise ConfigError(
                f"{location}: not an XGBoost model: it is {content.value}, which {content.package} serves"
            )
        return location
    if not location.is_dir():
        raise ConfigError(f"{location}: no such file or folder; model_dir must name an XGBoost model or its folder")
    files = sorted(path for path in location.iterdir() if path.is_file() and not path.name.startswith("."))
    models = [
        path
        for path in files
        if path.suffix.lower() in FORMATS
        and path.name not in _NOT_MODELS
        and not path.name.endswith(verification_records.SUFFIX)
    ]
    # A name may say nothing (a volume mounts the one file as it likes); the content does.
    models = models or [path for path in files if content_of(path).package == _PACKAGE]
    if len(models) > 1:
        models = [path for path in models if path.stem == "model"] or models
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(path.name for path in models)
        raise ConfigError(f"{location}: several model files ({names}); keep one, or name it in parameters.uri")
    if any(path.suffix.lower() in PICKLES for path in files):
        mend = mend_in(location) or "; save with Booster.save_model('model.ubj')"
        raise ConfigError(f"{location}: pickled models are not loaded, since unpickling runs code{mend}")
    held = ", ".join(path.name for path in files[:8]) or "nothing"
    accepted = ", ".join("*" + suffix for suffix in FORMATS)
    raise ConfigError(f"{location}: no XGBoost model ({accepted}) among: {held}{said_of_another(files)}")


def read(path: Path) -> ModelFile:
    """Read a model file of any format.

    Raises:
        ConfigError: unreadable, or not an XGBoost model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except MemoryError:
        raise ConfigError(f"{path}: its {path.stat().st_size} bytes do not fit into memory") from None
    if is_pickle(data[:4096]):
        mend = mend_of(path) or "save with Booster.save_model('model.ubj')"
        raise ConfigError(f"{path}: pickled models are not loaded, since unpickling runs code; {mend}")
    try:
        form, document = _decode(data)
        return _model_file(path, hashlib.sha256(data).hexdigest(), form, document)
    except KeyError as error:
        raise ConfigError(f"{path}: not an XGBoost model: {error} is missing from it{_told(path)}") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{path}: not an XGBoost model: {error}{_told(path)}") from None


def _told(path: Path) -> str:
    what = describe_mistake(path)
    return f": {what}" if what else ""


def _decode(data: bytes) -> tuple[str, dict[str, Any]]:
    head = data[1:64].lstrip()
    if data[:1] == b"{" and head[:1] in (b'"', b"}"):
        return "json", orjson.loads(data)
    if data[:1] == b"{":
        return "ubj", ubjson.decode(data)
    if legacy.looks_legacy(data):
        return "binary", legacy.decode(data)
    raise ValueError("neither JSON, UBJSON nor the old binary format")


def _model_file(path: Path, sha256: str, form: str, document: dict[str, Any]) -> ModelFile:
    learner = document["learner"]
    parameters, objective = learner["learner_model_param"], learner["objective"]
    gradient_booster = learner["gradient_booster"]
    booster, weights = str(gradient_booster["name"]), None
    if "gbtree" in gradient_booster:  # dart up to 3.2 wraps a gbtree
        weights = np.asarray(gradient_booster["weight_drop"], np.float32)
        gradient_booster = gradient_booster["gbtree"]
    model = gradient_booster.get("model", {})
    if "weight_drop" in model:  # later versions: trees with weights
        weights = np.asarray(model["weight_drop"], np.float32)
    if weights is not None and not len(weights):
        weights = None
    classes, targets = int(parameters.get("num_class", 0)), int(parameters.get("num_target", 1))
    soundness.check(
        model,
        booster=booster,
        columns=int(parameters.get("num_feature", 0)),
        groups=max(classes, targets, 1),
        weights=weights,
    )
    ends = np.zeros(1, np.int64) if booster == "gblinear" else _iteration_ends(model, max(classes, targets, 1))
    return ModelFile(
        path=path,
        sha256=sha256,
        format=form,
        objective=str(objective["name"]),
        booster=booster,
        model=model,
        iteration_ends=ends,
        weights=weights,
        features=int(parameters.get("num_feature", 0)),
        classes=classes,
        targets=targets,
        base_score=_base_score(str(parameters["base_score"])),
        attributes={str(name): str(value) for name, value in learner.get("attributes", {}).items()},
        feature_names=tuple(str(name) for name in learner.get("feature_names", ())),
        feature_types=tuple(str(name) for name in learner.get("feature_types", ())),
        categories=categories.read(model, int(parameters.get("num_feature", 0))),
        document=document,
    )


def _iteration_ends(model: dict[str, Any], groups: int) -> np.ndarray:
    stored = model.get("iteration_indptr")
    count = len(model["trees"])
    if stored is not None:
        ends = np.asarray(stored, np.int64)
        if ends.ndim != 1 or not len(ends) or ends[0] != 0 or ends[-1] != count or np.any(np.diff(ends) < 0):
            raise ValueError(f"iteration_indptr does not divide {count} trees")
        return ends
    parallel = max(1, int(model["gbtree_model_param"].get("num_parallel_tree", 1)))
    return np.arange(0, count + 1, parallel * groups)


def _base_score(text: str) -> tuple[float, ...]:
    """Parse `5E-1` (up to 3.0) and `[5E-1,2E-1]` (from 3.1)."""
    values = tuple(float(part) for part in text.strip().strip("[]").split(",") if part.strip())
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"base_score {text!r} is not a number")
    return values
