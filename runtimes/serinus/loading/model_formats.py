"""Which runtime serves which files, as data: the library names images and imports none of them.

A runtime is recognised by what its files are, not by what they are called (`serinus.content.model_content`); a suffix speaks only for a file
whose bytes say nothing, so that its runtime tells what is wrong with it.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import is_saved_model
from ..content.mistaken_content import describe_mistake
from ..content.model_content import Content, content_of
from ..content.pickles import SUFFIXES as PICKLES
from ..content.pickles import mend_of
from ..errors import ConfigError
from .model_folders import why_unreadable

__all__ = [
    "MAR_MANIFEST",
    "MLSERVER_IMPLEMENTATIONS",
    "RUNTIMES",
    "TORCHSERVE",
    "Runtime",
    "infer_implementation",
    "installed",
    "is_mar",
    "is_runtime",
]


@dataclass(frozen=True, slots=True)
class Runtime:
    """One image: its package, which is also its extra, and how its files are known."""

    package: str
    model: str
    """Name of its class, which is in `<package>.model` (a test holds it to `__serinus_class__`)."""
    files: str
    """For messages: what it takes."""
    matches: Callable[[Path], bool]
    """Whether this file or folder is such a model."""


def _holds(package: str, *suffixes: str) -> Callable[[Path], bool]:
    """Whether a file is one of the package's by its content, or by its suffix where the content says nothing."""

    def matches(path: Path) -> bool:
        if not path.is_file():
            return False
        content = content_of(path)
        if content is Content.TORCH_STATE and path.suffix not in suffixes:
            return False  # the same archive holds optimizers, data sets and pickled modules: its name must say that it is a model
        # A pickle is its reader's to refuse, or to read with care where it is a state dict.
        told = content not in (Content.UNKNOWN, Content.PICKLE)
        return content.package == package if told else path.suffix in suffixes

    return matches


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle and is called so."""
    return path.suffix in PICKLES and content_of(path) is Content.PICKLE


def _is_none(_path: Path) -> bool:
    """Say no: what serves several formats is asked for by name alone."""
    return False


def _is_saved_model(path: Path) -> bool:
    """Whether this is a SavedModel folder, or a folder of numbered ones (TensorFlow Serving's layout)."""
    if not path.is_dir() or why_unreadable(path) is not None:  # a volume's lost+found is nobody's to read
        return False
    return is_saved_model(path) or any(child.name.isdigit() and is_saved_model(child) for child in path.iterdir())


RUNTIMES: tuple[Runtime, ...] = (
    Runtime(
        "ensemble_server", "Ensemble", "ensemble.yaml", lambda path: path.is_file() and path.name == "ensemble.yaml"
    ),
    Runtime(
        "mlflow_server",
        "MlflowModel",
        "MLflow's folders (MLmodel)",
        lambda path: path.is_file() and path.name == "MLmodel",
    ),
    Runtime("tensorflow_server", "TensorflowModel", "saved_model.pb (or numbered folders of it)", _is_saved_model),
    Runtime(
        "xgboost_server",
        "XGBoostModel",
        "XGBoost .ubj .json .bst .xgb",
        _holds("xgboost_server", ".ubj", ".bst", ".xgb"),
    ),
    Runtime("lightgbm_server", "LightGBMModel", "LightGBM text .txt .bst", _holds("lightgbm_server")),
    Runtime("sklearn_server", "SklearnModel", "scikit-learn .skops", _holds("sklearn_server", ".skops")),
    Runtime("catboost_server", "CatBoostModel", "CatBoost .cbm .json", _holds("catboost_server", ".cbm")),
    Runtime("onnx_server", "OnnxModel", ".onnx", _holds("onnx_server", ".onnx")),
    Runtime(
        "torch_server",
        "TorchModel",
        "TorchScript .pt .pth, exported .pt2",
        _holds("torch_server", ".pt", ".pth", ".pt2"),
    ),
    Runtime("classic_server", "ClassicModel", "XGBoost, LightGBM, scikit-learn, CatBoost, ONNX: when named", _is_none),
)
"""In order of precedence: an ensemble's directory also holds its members' files."""

MLSERVER_IMPLEMENTATIONS: dict[str, str] = {
    "mlserver_xgboost.XGBoostModel": "xgboost_server",
    "mlserver_lightgbm.LightGBMModel": "lightgbm_server",
    "mlserver_sklearn.SKLearnModel": "sklearn_server",
    "mlserver_catboost.CatboostModel": "catboost_server",
    "mlserver_mlflow.MLflowRuntime": "mlflow_server",
}
"""MLServer's runtimes for which there is one here, used where MLServer's own is not installed."""


TORCHSERVE = "torchserve"
"""The name of the host of TorchServe's archives, as an implementation and for `--allow_implementation`."""
MAR_MANIFEST = "MAR-INF/MANIFEST.json"


def is_mar(path: Path) -> bool:
    """Tell an archive of TorchServe's, or a folder of its form."""
    try:
        if path.is_dir():
            return (path / MAR_MANIFEST).is_file()
        if path.suffix != ".mar" and path.name != "model":  # what KServe's storage may call a single file
            return False
        with zipfile.ZipFile(path) as archive:
            return MAR_MANIFEST in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return path.suffix == ".mar" and path.is_file()  # its host tells what is wrong with it


def is_runtime(name: str) -> bool:
    """Tell the name of an installed runtime, in any spelling; known as data: nothing is imported to find out.

    Args:
        name: `xgboost_server`, `xgboost_server.XGBoostModel`, `xgboost_server.model:XGBoostModel` and the like.
    """
    dotted = name.replace(":", ".", 1)
    return any(
        dotted in (runtime.package, f"{runtime.package}.{runtime.model}", f"{runtime.package}.model.{runtime.model}")
        for runtime in RUNTIMES
    )


def installed(name: str) -> str:
    """Name ours for a runtime of MLServer's that is not installed; any other name as it is.

    Args:
        name: of a class, by the operator's word (`MLSERVER_MODEL_IMPLEMENTATION`).
    """
    ours = MLSERVER_IMPLEMENTATIONS.get(name)
    return ours if ours is not None and importlib.util.find_spec(name.partition(".")[0]) is None else name


def _candidates(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir():
        yield from sorted(child for child in path.iterdir() if not child.name.startswith("."))


def infer_implementation(model_dir: Path | None) -> str:
    """Name the package that serves a model file or directory.

    Args:
        model_dir: a file, or a folder whose files say what they are.

    Raises:
        ConfigError: nothing here is a model that is known, or several kinds are.
    """
    accepted = "; ".join(f"{runtime.files} -> {runtime.package}" for runtime in RUNTIMES)
    if model_dir is None:
        raise ConfigError("no class and no model directory: name one (--class package:Class, or --model_dir DIR)")
    if not model_dir.exists():
        raise ConfigError(f"{model_dir}: no such file or directory")
    for runtime in RUNTIMES[:3]:
        if any(runtime.matches(path) for path in _candidates(model_dir)):
            return runtime.package
    if any(is_mar(path) for path in _candidates(model_dir)):
        return TORCHSERVE
    found: dict[str, list[str]] = {}
    for path in _candidates(model_dir):
        for runtime in RUNTIMES[3:]:
            if runtime.matches(path):
                found.setdefault(runtime.package, []).append(path.name)
    if not found:  # only then: a scaler or an encoder is often pickled beside the model
        found = _pickled(model_dir)
    if len(found) == 1:
        return next(iter(found))
    if found:
        kinds = "; ".join(f"{', '.join(names)} ({package})" for package, names in sorted(found.items()))
        raise ConfigError(
            f"{model_dir}: models of several kinds: {kinds}. Name the one file, or the class (--class {min(found)})"
        )
    seen = [path.name for path in _candidates(model_dir)] if model_dir.is_file() else _listing(model_dir)
    told = next((f" ({path.name}: {what})" for path in _candidates(model_dir) if (what := describe_mistake(path))), "")
    raise ConfigError(
        f"{model_dir}: no model is recognised here; seen: {', '.join(seen) or 'nothing'}{told}. Accepted: {accepted}; "
        "or a model-settings.json, or a class of your own (--class package:Class). Pickles are never loaded unless somebody allows it"
    )


def _pickled(model_dir: Path) -> dict[str, list[str]]:
    """Find scikit-learn's pickles, which its runtime loads where that is allowed.

    Raises:
        ConfigError: the one pickle is of a framework whose own format is served.
    """
    pickled = [path for path in _candidates(model_dir) if _is_pickle(path)]
    mends = [mend for path in pickled if (mend := mend_of(path)) and not mend.endswith("sklearn_server serves")]
    if mends:
        raise ConfigError(f"{model_dir}: {'; '.join(mends)}")
    return {"sklearn_server": [path.name for path in pickled]} if len(pickled) == 1 else {}


def _listing(folder: Path, most: int = 12) -> list[str]:
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]
