"""Several models and a combiner in one process, behind one endpoint."""

from __future__ import annotations

from .model import Ensemble

__all__ = ["Ensemble"]

__serinus_class__ = "ensemble_server.model:Ensemble"
