"""XGBoost models behind the Open Inference Protocol, walked as flat arrays by compiled code."""

from __future__ import annotations

from .model import XGBoostModel

__all__ = ["XGBoostModel"]

__serinus_class__ = "xgboost_server.model:XGBoostModel"
