"""Find and open the shared library of kernels, once per process."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path

__all__ = ["ABI", "SYMBOLS", "Library", "library", "library_path"]

ABI = 6
"""Number that `serinus_abi()` of the library must return: raised whenever a signature or a structure in the C files changes."""

SYMBOLS = (
    "serinus_forest64_predict",
    "serinus_forest_lanes",
    "serinus_forest_margin_of",
    "serinus_forest_predict",
    "serinus_json_census",
    "serinus_json_take",
    "serinus_mlp_predict",
    "serinus_proto_census",
    "serinus_relay_add",
    "serinus_relay_drop",
    "serinus_relay_free",
    "serinus_relay_make",
    "serinus_relay_release",
    "serinus_relay_run",
    "serinus_relay_stop",
    "serinus_relay_take",
    "serinus_relay_told",
)
"""What the Python side calls: a library that lacks one is stale, and not used at all."""

_log = logging.getLogger("serinus.native")


class Library:
    """The opened library, twice: `quick` keeps the GIL (calls of a few us), `long` releases it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.quick = ctypes.PyDLL(str(path))
        self.long = ctypes.CDLL(str(path))


def library_path() -> Path:
    """Where the library lies beside this module, whether or not it has been built."""
    return Path(__file__).with_name("_kernels.so")


@functools.cache
def library() -> Library | None:
    """Open the kernels; None where they were not built, do not load here, or `SERINUS_NATIVE=0` is set."""
    if os.environ.get("SERINUS_NATIVE") == "0":
        return None
    path = library_path()
    if not path.exists():
        _log.warning(
            "compiled kernels are missing: decoding and tree models will be several times slower; "
            "build them with: python -m serinus.native.build"
        )
        return None
    try:
        opened = Library(path)
        found = int(opened.quick.serinus_abi())
        absent = [name for name in SYMBOLS if not hasattr(opened.quick, name)]
    except (OSError, AttributeError) as error:
        _log.warning("compiled kernels do not load here (%s); rebuild them with: python -m serinus.native.build", error)
        return None
    if found != ABI:
        _log.warning(
            "compiled kernels are of version %d, this code wants %d; rebuild them with: python -m serinus.native.build",
            found,
            ABI,
        )
        return None
    if absent:
        _log.warning(
            "compiled kernels lack %s; rebuild them with: python -m serinus.native.build",
            ", ".join(absent),
        )
        return None
    return opened
