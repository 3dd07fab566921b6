"""`ClassicModel`: whichever classic model lies in the folder, served by its own runtime.

The runtime is found by the file's content and made by name, so that this package imports none of them: a model whose format needs no
framework (compiled trees with a verification record) is served where none is installed.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from serinus.errors import ConfigError
from serinus.hosts.factory import build_model
from serinus.loading.model_formats import infer_implementation
from serinus.model import Model
from serinus.settings import ModelSettings

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SERVED", "ClassicModel"]

SERVED: Final = ("xgboost_server", "lightgbm_server", "sklearn_server", "catboost_server", "onnx_server")
"""Runtimes of the formats; KServe's predictiveserver has the first three."""


class ClassicModel(Model):
    """Makes the model of another runtime: constructing it gives an instance of that runtime's class, and nothing stands between.

    Raises:
        ConfigError: nothing in the folder is a model of these formats, or several are.
    """

    def __new__(cls, settings: ModelSettings) -> Self:
        """Give the model of the runtime whose file it is."""
        package = infer_implementation(settings.model_dir)
        if package not in SERVED:
            raise ConfigError(
                f"{settings.model_dir}: is served by {package}; classic_server takes the files of {', '.join(SERVED)}"
            )
        return build_model(dataclasses.replace(settings, implementation=package))  # type: ignore[return-value] # as the docstring says
