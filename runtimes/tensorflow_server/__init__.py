"""TensorFlow SavedModels."""

from __future__ import annotations

from .model import TensorflowModel

__all__ = ["TensorflowModel"]

__serinus_class__ = "tensorflow_server.model:TensorflowModel"
