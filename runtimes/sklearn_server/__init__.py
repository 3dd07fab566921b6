"""scikit-learn models behind the Open Inference Protocol: pipelines as they are, compiled where that is exact."""

from __future__ import annotations

from .model import SklearnModel

__all__ = ["SklearnModel"]

__serinus_class__ = "sklearn_server.model:SklearnModel"
