"""serinus: V2-inference runtimes for KServe and Seldon."""

from __future__ import annotations

from . import native_pools as _native_pools  # noqa: F401 (for its effect, before NumPy)
from . import quiet_interrupt as _quiet_interrupt  # noqa: F401 (first: for its effect on the imports that follow)
from .model import Call, Family, Model, RequestModel
from .protocol.types import InferRequest, InferResponse, RequestedOutput, Tensor, TensorSpec
from .settings import ModelSettings

__all__ = [
    "Call",
    "Family",
    "InferRequest",
    "InferResponse",
    "Model",
    "ModelSettings",
    "RequestModel",
    "RequestedOutput",
    "Tensor",
    "TensorSpec",
    "__version__",
]

__version__ = "0.1.0"
