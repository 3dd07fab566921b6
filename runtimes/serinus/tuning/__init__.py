"""Tools for whoever makes a model fast: `optimize` compares its forms, `tune` finds settings that hold an SLO."""

from __future__ import annotations

from .slo import Slo

__all__ = ["Slo"]
