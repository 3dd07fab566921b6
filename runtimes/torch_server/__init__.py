"""PyTorch models: TorchScript, torch.export and state dicts."""

from __future__ import annotations

from .model import TorchModel

__all__ = ["TorchModel"]

__serinus_class__ = "torch_server.model:TorchModel"
