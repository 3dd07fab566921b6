"""`Ensemble`: several models and a combiner as one model, in the form that fits the environment.

With KServe's SDK it is a `kserve.Model`, which stock KServe serves too; without it, as beside MLServer, which cannot share an
environment with KServe, a serinus `Model`. Both give the same values.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING or importlib.util.find_spec("kserve") is not None:
    from .kserve_model import Ensemble
else:
    from .native_model import Ensemble

__all__ = ["Ensemble"]
