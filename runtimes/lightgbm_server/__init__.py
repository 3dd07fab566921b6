"""LightGBM models behind the Open Inference Protocol, walked as flat arrays by compiled code."""

from __future__ import annotations

from .model import LightGBMModel

__all__ = ["LightGBMModel"]

__serinus_class__ = "lightgbm_server.model:LightGBMModel"
