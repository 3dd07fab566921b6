"""The modules that handlers import from TorchServe, where that is not installed; made only in a process that hosts a handler."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

from . import base_handler, handler_context

__all__ = ["register"]


def register() -> None:
    """Make `ts.torch_handler.base_handler`, `ts.context`, `ts.utils.util` and `ts.handler_utils.timer` importable; nothing where TorchServe is installed.

    A folder called `ts`, of TorchScript's files say, is a package without code to Python (PEP 420), and no TorchServe.
    """
    if "ts.torch_handler" in sys.modules or _is_installed():
        return
    members: dict[str, dict[str, Any]] = {
        "ts": {},
        "ts.torch_handler": {},
        "ts.torch_handler.base_handler": {"BaseHandler": base_handler.BaseHandler},
        "ts.context": {"Context": handler_context.Context},
        "ts.utils": {},
        "ts.utils.util": {name: getattr(base_handler, name) for name in base_handler.__all__ if name != "BaseHandler"},
        "ts.handler_utils": {},
        "ts.handler_utils.timer": {"timed": _same},
    }
    for name, values in members.items():
        module = types.ModuleType(
            name, "TorchServe's names, with classes of serinus's own (serinus.hosts.torchserve.base_handler)."
        )
        module.__path__ = []
        vars(module).update(values)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def _is_installed() -> bool:
    spec = importlib.util.find_spec("ts")
    return spec is not None and spec.origin is not None


def _same(function: Any) -> Any:
    """Give a method back untimed: the data plane times each batch."""
    return function
