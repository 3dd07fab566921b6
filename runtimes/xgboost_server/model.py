"""`XGBoostModel`: an XGBoost model file as a serinus `Model`. What it does is `CompiledTreeModel`'s; see there."""

from __future__ import annotations

from serinus.engines.tree_model import CompiledTreeModel

from .adapter import XGBoostAdapter

__all__ = ["XGBoostModel"]


class XGBoostModel(CompiledTreeModel):
    """Serves `.ubj`, `.json` and old binary model files. Rows are float32, as XGBoost's; see the README for inputs and outputs."""

    platform = "xgboost_booster"
    adapter_class = XGBoostAdapter
