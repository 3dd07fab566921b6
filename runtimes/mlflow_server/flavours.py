"""Which of our runtimes serves a model, and with what settings: decided by what the flavour's file is, not by what it is called.

A runtime serves a flavour where its answers are those of `mlflow.pyfunc.load_model(...).predict`: an `XGBClassifier` answers labels there, so
it does here. What none serves is the pyfunc's, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from serinus.content.model_content import Content, content_of
from serinus.errors import ConfigError
from serinus.hosts.implementations import resolve
from serinus.settings import ModelSettings

from .mlmodel import PYFUNC, MlModel

__all__ = ["Answer", "Choice", "choose"]

Answer = Literal["array", "onnx", "torch"]
"""What the pyfunc answers where it is asked with a DataFrame: an array, or columns of one."""

_MODULES: Final = {
    "mlflow.sklearn": "sklearn",
    "mlflow.xgboost": "xgboost",
    "mlflow.lightgbm": "lightgbm",
    "mlflow.onnx": "onnx",
    "mlflow.pytorch": "pytorch",
}
"""Which flavour the pyfunc is, by its `loader_module`: a model may have others beside it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who serves a model."""

    flavour: str
    package: str = ""
    """Our runtime's; empty: the pyfunc."""
    target: Any = None
    """The runtime's class."""
    file: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Settings that make it answer as the pyfunc does; the operator's own go before them."""
    answer: Answer = "array"
    labels: bool = False
    """Probabilities become labels."""
    is_untold: bool = False
    """The file does not say its inputs and outputs."""
    reason: str = ""


def choose(model: MlModel, settings: ModelSettings) -> Choice:
    """Choose who serves a model.

    Raises:
        ConfigError: the flavour's data are not there, or lead out of the folder.
    """
    pyfunc = model.flavours.get(PYFUNC)
    if pyfunc is None:
        flavour = next((name for name in _READERS if name in model.flavours), "")
    else:
        flavour = _MODULES.get(str(pyfunc.get("loader_module")), "")
    if not flavour or flavour not in model.flavours:
        named = "python_function" if pyfunc is not None else ", ".join(model.flavours)
        return Choice(named, reason=f"no runtime here serves the flavour {_shown(pyfunc) or named}")
    if model.signature.parameters:
        return Choice(flavour, reason="its signature has parameters, which MLflow hands over")
    found = _READERS[flavour](model, settings, model.flavours[flavour])
    if not found.package:
        return found
    try:
        resolved = resolve(found.package)
    except ConfigError as error:
        return Choice(flavour, reason=f"{found.package} cannot be used here: {error}")
    return replace(found, target=resolved.target)


def _shown(pyfunc: Mapping[str, Any] | None) -> str:
    return str(pyfunc.get("loader_module", ""))[:100] if pyfunc else ""


def _sklearn(model: MlModel, settings: ModelSettings, flavour: Mapping[str, Any]) -> Choice:
    file = model.file(flavour.get("pickled_model"), settings)
    content = content_of(file)
    if content not in (Content.SKOPS, Content.PICKLE):
        return Choice("sklearn", reason=f"{file.name} is {content.value}")
    if content is Content.PICKLE and (flavour.get("code") or model.flavours.get(PYFUNC, {}).get("code")):
        return Choice("sklearn", reason="its pickle needs code that the folder brings")
    method = model.flavours.get(PYFUNC, {}).get("predict_fn", "predict")
    if method not in ("predict", "predict_proba", "decision_function", "transform"):
        return Choice("sklearn", reason=f"its predict_fn is {method!r}")
    return Choice("sklearn", "sklearn_server", file=file, extra={"method": method})


def _xgboost(model: MlModel, settings: ModelSettings, flavour: Mapping[str, Any]) -> Choice:
    file = model.file(flavour.get("data"), settings)
    if content_of(file).package != "xgboost_server":
        return Choice("xgboost", reason=f"{file.name} is {content_of(file).value}")
    kind = str(flavour.get("model_class", "xgboost.core.Booster"))
    if kind == "xgboost.core.Booster":
        return Choice("xgboost", "xgboost_server", file=file)
    if kind.startswith("xgboost.sklearn.") and "Regressor" in kind:
        return Choice("xgboost", "xgboost_server", file=file, extra={"iteration_range": "best"})
    if kind in ("xgboost.sklearn.XGBClassifier", "xgboost.sklearn.XGBRFClassifier"):
        return Choice("xgboost", "xgboost_server", file=file, extra={"iteration_range": "best"}, labels=True)
    return Choice("xgboost", reason=f"its class is {kind[:100]}")


def _lightgbm(model: MlModel, settings: ModelSettings, flavour: Mapping[str, Any]) -> Choice:
    file = model.file(flavour.get("data"), settings)
    if content_of(file) is not Content.LIGHTGBM_TEXT:
        return Choice("lightgbm", reason=f"{file.name} is {content_of(file).value}, and no Booster's text")
    return Choice("lightgbm", "lightgbm_server", file=file)


def _onnx(model: MlModel, settings: ModelSettings, flavour: Mapping[str, Any]) -> Choice:
    file = model.file(flavour.get("data"), settings)
    if content_of(file) is not Content.ONNX:
        return Choice("onnx", reason=f"{file.name} is {content_of(file).value}")
    return Choice("onnx", "onnx_server", file=file, answer="onnx")


def _pytorch(model: MlModel, settings: ModelSettings, flavour: Mapping[str, Any]) -> Choice:
    folder = model.file(flavour.get("model_data"), settings)
    name = next((one for one in ("model.pt2", "model.pth") if (folder / one).is_file()), "")
    if not name:
        return Choice("pytorch", reason=f"{folder.name} holds no model.pt2 and no model.pth")
    file = model.file(f"{flavour.get('model_data')}/{name}", settings)
    content = content_of(file)
    if content not in (Content.TORCHSCRIPT, Content.TORCH_EXPORT):
        return Choice("pytorch", reason=f"{name} is {content.value}, which only code can load")
    is_untold = content is Content.TORCHSCRIPT
    return Choice("pytorch", "torch_server", file=file, answer="torch", is_untold=is_untold)


_READERS: Final[dict[str, Callable[[MlModel, ModelSettings, Mapping[str, Any]], Choice]]] = {
    "sklearn": _sklearn,
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "onnx": _onnx,
    "pytorch": _pytorch,
}
