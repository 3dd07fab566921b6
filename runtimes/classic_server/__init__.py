"""One runtime for all classic formats: XGBoost, LightGBM, scikit-learn, CatBoost and ONNX, each known by its content."""

from __future__ import annotations

from .model import ClassicModel

__all__ = ["ClassicModel"]

__serinus_class__ = "classic_server.model:ClassicModel"
