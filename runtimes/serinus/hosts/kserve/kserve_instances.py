"""Instances of `kserve.Model` classes: constructed as KServe's server constructs them, loaded as it loads them, and what they say of their tensors."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

try:
    import kserve.context as kserve_context
except ImportError as error:
    raise ImportError("hosting a kserve.Model needs kserve: pip install 'serinus[kserve]'") from error

from kserve.model import BaseKServeModel, InferenceModel
from kserve.predictor_config import PredictorConfig

from ...errors import ConfigError
from ...loading.construction import construct
from ...protocol.types import NO_PARAMETERS, TensorSpec
from ...settings import ModelSettings, PredictorSettings
from ..earlier_kserve import accept_earlier_classes
from ..implementations import Implementation

accept_earlier_classes()

__all__ = ["awaited", "config_of", "is_of_a_class", "load_kserve", "make_kserve", "specs_of"]

_OF_NO_CLASS = (
    "python_",
    "process_",
    "request_preprocess_",
    "request_predict_",
    "request_postprocess_",
    "request_explain_",
)
"""Beginnings of the names that `prometheus_client` and KServe count by themselves."""


def is_of_a_class(name: str, _: Mapping[str, str]) -> bool:
    """Whether a class counts what is called so."""
    return not name.startswith(_OF_NO_CLASS)


def specs_of(listed: Any) -> tuple[TensorSpec, ...]:
    """Read what `get_input_types` and `get_output_types` say, leaving out what is not well formed."""
    specs = []
    for entry in listed or ():
        if isinstance(entry, dict) and entry.get("name") and entry.get("datatype"):
            shape = tuple(int(size) if size is not None else -1 for size in entry.get("shape", ()))
            specs.append(TensorSpec(str(entry["name"]), str(entry["datatype"]).upper(), shape))
    return tuple(specs)


def make_kserve(
    implementation: Implementation,
    settings: ModelSettings,
    predictor: PredictorSettings | None,
    otherwise: Mapping[str, Any] = NO_PARAMETERS,
) -> Any:
    """Make the instance, with KServe's predictor configuration in place, since a constructor may look at it; see `construct`."""
    config = config_of(predictor)
    kserve_context.set_predictor_config(config)
    target = implementation.target
    model = target if implementation.is_instance else construct(target, settings, predictor, config, otherwise)
    if not isinstance(model, BaseKServeModel):
        raise ConfigError(f"{implementation.name!r} made a {type(model).__name__}; a kserve.Model was expected")
    if not isinstance(model, InferenceModel):
        raise ConfigError(
            f"{implementation.name!r} is a {type(model).__mro__[1].__name__}: it answers neither V1 nor V2, and KServe's OpenAI "
            "endpoints are not served here; start it with KServe's own server"
        )
    return model


def config_of(predictor: PredictorSettings | None) -> PredictorConfig:
    """Give what KServe's classes read of the predictor behind them."""
    if predictor is None:
        return PredictorConfig(None)  # type: ignore[arg-type] # what KServe's own server does without --predictor_host
    return PredictorConfig(
        predictor.host,  # type: ignore[arg-type] # likewise
        predictor.protocol,
        predictor.use_ssl,
        int(predictor.timeout_s),
        predictor.retries,
        predictor.health_check,
    )


def load_kserve(model: Any, name: str, run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run) -> None:
    """Load as KServe's server expects its models to be: ready.

    Args:
        model: the instance.
        name: for messages.
        run: runs a coroutine of the model's to its end.

    Raises:
        ConfigError: it is not ready after `load`.
    """
    loaded: Any = model.ready
    if not loaded:
        loaded = model.load()
        if inspect.isawaitable(loaded):
            loaded = run(awaited(loaded))
    if not (model.ready or loaded):
        raise ConfigError(f"model {name!r}: load() returned {loaded!r} and left `ready` False")
    model.ready = True
    model.start()


async def awaited(awaitable: Any) -> Any:
    """Give what an awaitable gives, as a coroutine."""
    return await awaitable
