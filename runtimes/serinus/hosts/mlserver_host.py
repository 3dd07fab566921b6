"""The name that `model-settings.json` files of users hold: `serinus.hosts.mlserver_host.SerinusRuntime`.

The class is `serinus.exports.mlserver_runtime.SerinusRuntime`. It is found when it is asked for, since exports stand above hosts and
nothing imports them.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

if importlib.util.find_spec("mlserver") is None:
    raise ImportError("serving under MLServer needs mlserver: pip install 'serinus[mlserver]'")


def __getattr__(name: str) -> Any:
    if name == "SerinusRuntime":
        return importlib.import_module("serinus.exports.mlserver_runtime").SerinusRuntime
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
