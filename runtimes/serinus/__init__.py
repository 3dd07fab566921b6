"""serinus: V2-inference runtimes for KServe and Seldon.

An author's names are imported when they are first asked for: a command of an operator's needs no NumPy, which takes a quarter of its start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import errors as errors
from . import native_pools as _native_pools  # noqa: F401 (for its effect, before NumPy)
from . import quiet_interrupt as _quiet_interrupt  # noqa: F401 (first: for its effect on the imports that follow)

if TYPE_CHECKING:
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

_PLACES = {
    **dict.fromkeys(("Call", "Family", "Model", "RequestModel"), ".model"),
    **dict.fromkeys(("InferRequest", "InferResponse", "RequestedOutput", "Tensor", "TensorSpec"), ".protocol.types"),
    "ModelSettings": ".settings",
}


def __getattr__(name: str) -> object:
    """Import one of an author's names (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    """All names, imported or not."""
    return sorted({*globals(), *_PLACES})
