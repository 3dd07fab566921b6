"""ONNX models through ONNX Runtime."""

from __future__ import annotations

from .model import OnnxModel

__all__ = ["OnnxModel"]

__serinus_class__ = "onnx_server.model:OnnxModel"
