"""A script written for KServe that starts a server of several models, or of a repository's: one model's settings for each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ...loading.construction import kserve_arguments
from ...settings import ModelSettings, PredictorSettings
from ..implementations import Implementation, implementation_of, run_script

__all__ = ["ScriptSettings", "settings_from_script"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptSettings(ModelSettings):
    """The settings of one of the models that a script starts; loaded again, the script runs again."""

    own_name: str
    """What the script calls the model."""
    started: list[Any] = field(default_factory=list)
    """The model as the first run made it, until it has been taken."""

    def take(self, predictor: PredictorSettings | None) -> Implementation:
        """Give the model, of the first run or of another one."""
        name = self.implementation
        model = self.started.pop() if self.started else self._run(predictor)
        return dataclasses.replace(implementation_of(model, name), name=name)

    def _run(self, predictor: PredictorSettings | None) -> Any:
        own = dataclasses.replace(self, name=self.own_name)
        return run_script(self.implementation, kserve_arguments(own, predictor))[self.own_name]


def settings_from_script(
    settings: ModelSettings, predictor: PredictorSettings | None, *, keep_name: bool
) -> list[ModelSettings]:
    """Run the script that `settings.implementation` names, and give one entry for each model that it would start.

    Args:
        settings: for all of them; without a name the script is given none.
        predictor: written as KServe's flags, with the settings.
        keep_name: serve an only model under the name in the settings; False: under the script's own for it.

    Raises:
        ConfigError: the script does not run, or starts no model.
    """
    models = run_script(settings.implementation, kserve_arguments(settings, predictor))
    keep_name = keep_name and len(models) == 1
    fields = {spec.name: getattr(settings, spec.name) for spec in dataclasses.fields(ModelSettings)}
    return [
        ScriptSettings(**{**fields, "name": settings.name if keep_name else name}, own_name=name, started=[model])
        for name, model in models.items()
    ]
