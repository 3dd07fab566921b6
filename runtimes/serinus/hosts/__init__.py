"""Other people's model classes as models of this library."""

from __future__ import annotations

from .factory import build_model, build_model_of

__all__ = ["build_model", "build_model_of"]
