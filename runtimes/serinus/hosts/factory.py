"""Settings to models: `build_model`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from ..loading.construction import construct, kserve_arguments
from ..loading.directory import DirectorySettings
from ..loading.model_formats import TORCHSERVE, infer_implementation
from ..model import Model, RequestModel
from ..settings import ModelSettings, PredictorSettings
from .implementations import Implementation, implementation_of, kind_of, resolve
from .kserve.scripts import ScriptSettings

__all__ = ["build_model", "build_model_of"]


def build_model(
    settings: ModelSettings,
    *,
    transformer: str | None = None,
    predictor: PredictorSettings | None = None,
) -> Model:
    """Make the model that the settings name; it is not loaded yet.

    Args:
        settings: `implementation` names a serinus `Model`, a `kserve.Model` or an MLServer `MLModel` (see
            `implementations`); empty: the runtime is inferred from the files of `model_dir`.
        transformer: a `kserve.Model` whose preprocess and postprocess run around the model, in this process.
        predictor: how a transformer that is served alone reaches its predictor.

    Raises:
        ConfigError: with what was found and what would be accepted.
    """
    if transformer:
        return _pipeline(settings, transformer, predictor)
    if isinstance(settings, ScriptSettings):
        return _host(settings.take(predictor), settings, predictor)
    name = settings.implementation or infer_implementation(settings.model_dir)
    if name == TORCHSERVE:
        from .torchserve.torchserve_host import build_torchserve

        return build_torchserve(settings)
    beside = settings.source.parent if isinstance(settings, DirectorySettings) else None
    found = resolve(name, kserve_arguments(settings, predictor), beside)
    if isinstance(settings, DirectorySettings) and settings.is_own_choice:
        _check_class(found, settings)
    return _host(found, settings, predictor)


def build_model_of(target: Any, settings: ModelSettings, *, transformer: Any = None) -> Model:
    """Make the model of a class, function or instance at hand, with a transformer's around it; it is not loaded yet.

    Raises:
        ConfigError: with what was found and what would be accepted.
    """

    def build(inner: ModelSettings) -> Model:
        return _host(implementation_of(target), inner, None)

    if transformer is None:
        return build(settings)
    own = ModelSettings(name=settings.name, version=settings.version)
    return _around(implementation_of(transformer), own, settings, build)


def _check_class(found: Implementation, settings: DirectorySettings) -> None:
    """Let a model directory choose classes of models alone: nothing that is merely callable is called because a file says so.

    Raises:
        ConfigError: it is a function, or an instance.
    """
    if found.kind == "function" or found.is_instance:
        what = "a function" if found.kind == "function" else "an instance"
        raise ConfigError(
            f"{settings.source}: 'implementation': {found.name!r} is {what}; a model directory may only name a class of models "
            f"(serinus.model.Model, kserve.Model, mlserver.MLModel). To trust it, start with --class {found.name}"
        )


def _host(found: Implementation, settings: ModelSettings, predictor: PredictorSettings | None) -> Model:
    if found.kind == "function":
        found = _called(found, settings, predictor)
    if found.kind == "kserve":
        from .kserve.kserve_host import build_kserve

        return build_kserve(found, settings, predictor)
    if predictor is not None and predictor.host:
        raise ConfigError(
            f"{found.name!r} is a model of its own and calls no predictor; --predictor_host is for transformers"
        )
    if found.kind == "torchserve":
        from .torchserve.torchserve_host import build_torchserve

        return build_torchserve(settings, found.target)
    if found.kind == "mlserver":
        from .mlserver.mlmodel_host import build_mlserver

        return build_mlserver(found, settings)
    model = found.target if found.is_instance else found.target(settings)
    _check_calls(found, model)
    return model


def _check_calls(found: Implementation, model: Model) -> None:
    """Refuse a model whose method cannot be called as it will be: every request would fail.

    Raises:
        ConfigError: with the signature that there is, and the one that is called.
    """
    name, given = ("infer", ("request",)) if isinstance(model, RequestModel) else ("predict", ("inputs", "call"))
    method = getattr(model, name)
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # of compiled code, which tells nothing
        return
    try:
        signature.bind(*given)
    except TypeError:
        own = str(signature.replace(return_annotation=inspect.Signature.empty))[1:]
        raise ConfigError(
            f"{found.name!r}: its {name}(self{'' if own == ')' else ', '}{own} cannot be called with ({', '.join(given)}), as requests do; write "
            f"def {name}(self, {', '.join(given)})"
        ) from None


def _called(found: Implementation, settings: ModelSettings, predictor: PredictorSettings | None) -> Implementation:
    """Call a function that makes a model, and see what it made."""
    made: Any = construct(found.target, settings, predictor)
    kind = kind_of(made)
    if kind is None:
        raise ConfigError(
            f"{found.name!r} returned a {type(made).__name__}; a serinus Model, a kserve.Model or an MLModel was expected"
        )
    return Implementation(found.name, kind, made, is_instance=True)


def _pipeline(settings: ModelSettings, transformer: str, predictor: PredictorSettings | None) -> Model:
    if predictor is not None and predictor.host:
        raise ConfigError(
            "--transformer puts the model behind it into this process, and --predictor_host names another one; "
            "for a transformer alone, name it with --class"
        )
    if not settings.implementation:
        settings = dataclasses.replace(settings, implementation=infer_implementation(settings.model_dir))
    # The transformer takes nothing of the model's settings, only its name and, where its constructor asks for it, where the model lies:
    # what belongs to one version of both lies there.
    own = ModelSettings(name=settings.name, version=settings.version, implementation=transformer)
    found = resolve(transformer, kserve_arguments(own, None))
    return _around(found, dataclasses.replace(own, model_dir=settings.model_dir), settings, build_model)


def _around(
    found: Implementation, own: ModelSettings, settings: ModelSettings, build: Callable[[ModelSettings], Model]
) -> Model:
    """Put a transformer, with settings of its own, around the model that `build` makes."""
    if found.kind == "function":
        found = _called(found, own, None)
    if found.kind != "kserve":
        raise ConfigError(f"--transformer {found.name!r} is a {found.kind} model; a kserve.Model was expected")
    from .kserve.kserve_instances import make_kserve
    from .kserve.pipeline import IN_PROCESS, Pipeline

    return Pipeline(settings, make_kserve(found, own, None, IN_PROCESS), build)
