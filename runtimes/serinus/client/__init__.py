"""Calls out: the client for everybody, and a transformer's way to its predictor."""

from __future__ import annotations

from .async_client import AsyncClient
from .blocking_client import Client
from .tensors import Answer

__all__ = ["Answer", "AsyncClient", "Client"]
