"""A script written for KServe that starts a server of several models, or of a repository's: one model's settings for each.

A `kserve.ModelRepository` of the script's own whose `load(name)` does something is asked for every load request, as under KServe, also for names
that the script did not start (kserve.protocol.model_repository_extension); else the script runs again for a model that is loaded again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError, NotFound
from ...loading.construction import kserve_arguments
from ...settings import ModelSettings, PredictorSettings
from ..implementations import Implementation, implementation_of, run_script

__all__ = ["ScriptModels", "ScriptSettings", "script_models", "settings_from_script"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptSettings(ModelSettings):
    """The settings of one of the models that a script starts; loaded again, its repository is asked, or the script runs again."""

    own_name: str
    """What the script calls the model."""
    started: list[Any] = field(default_factory=list)
    """The model as the first run made it, until it has been taken."""
    repository: Any = None
    """The script's own repository; None: it has none that loads."""

    def take(self, predictor: PredictorSettings | None) -> Implementation:
        """Give the model, of the first run or of another load.

        Raises:
            NotFound: the script's repository does not load such a model.
            ConfigError: it fails to.
        """
        name = self.implementation
        model = self.started.pop() if self.started else self._load(predictor)
        return dataclasses.replace(implementation_of(model, name), name=name)

    def _load(self, predictor: PredictorSettings | None) -> Any:
        if self.repository is None:
            own = dataclasses.replace(self, name=self.own_name)
            return run_script(self.implementation, kserve_arguments(own, predictor)).models[self.own_name]
        try:
            loaded = self.repository.load(self.own_name)
            if inspect.isawaitable(loaded):
                asyncio.run(_awaited(loaded))
        except Exception as error:
            raise ConfigError(f"model {self.own_name!r}: its repository does not load it: {error}") from error
        model = self.repository.get_model(self.own_name)
        if model is None:
            raise NotFound(f"model '{self.own_name}' is none that the script's repository loads")
        return model


@dataclass(frozen=True, slots=True)
class ScriptModels:
    """What a script serves."""

    models: list[ModelSettings]
    discover: Callable[[str], Sequence[ModelSettings]] | None
    """Gives the settings of a name for a load request, where the script's repository loads models by name; None: it has none."""


def script_models(settings: ModelSettings, predictor: PredictorSettings | None, *, keep_name: bool) -> ScriptModels:
    """Run the script that `settings.implementation` names, and see what it would start.

    Args:
        settings: for all its models; without a name the script is given none.
        predictor: written as KServe's flags, with the settings.
        keep_name: serve an only model under the name in the settings; False: under the script's own for it.

    Raises:
        ConfigError: the script does not run, or starts no model and has no repository that would load some.
    """
    server = run_script(settings.implementation, kserve_arguments(settings, predictor))
    keep_name = keep_name and len(server.models) == 1
    fields = {spec.name: getattr(settings, spec.name) for spec in dataclasses.fields(ModelSettings)}
    repository = server.repository

    def of(name: str, started: list[Any]) -> ScriptSettings:
        served = settings.name if keep_name and name in server.models else name
        return ScriptSettings(**{**fields, "name": served}, own_name=name, started=started, repository=repository)

    def discover(name: str) -> list[ModelSettings]:
        own = next((known for known in server.models if keep_name and name == settings.name), name)
        return [of(own, [])]

    models: list[ModelSettings] = [of(name, [model]) for name, model in server.models.items()]
    return ScriptModels(models, discover if repository is not None else None)


def settings_from_script(
    settings: ModelSettings, predictor: PredictorSettings | None, *, keep_name: bool
) -> list[ModelSettings]:
    """Give one entry for each model that a script would start; see `script_models`."""
    return script_models(settings, predictor, keep_name=keep_name).models


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
