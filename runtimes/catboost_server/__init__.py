"""CatBoost models behind the Open Inference Protocol, walked as flat arrays by compiled code."""

from __future__ import annotations

from .model import CatBoostModel

__all__ = ["CatBoostModel"]

__serinus_class__ = "catboost_server.model:CatBoostModel"
