"""`LightGBMModel`: a LightGBM text model as a serinus `Model`. What it does is `CompiledTreeModel`'s; see there."""

from __future__ import annotations

from serinus.engines.tree_model import CompiledTreeModel

from .adapter import LightGBMAdapter

__all__ = ["LightGBMModel"]


class LightGBMModel(CompiledTreeModel):
    """Serves LightGBM's text models. Rows are float64, as LightGBM's; categorical features come as their codes; see the README."""

    platform = "lightgbm_booster"
    adapter_class = LightGBMAdapter
