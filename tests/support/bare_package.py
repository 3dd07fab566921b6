"""A package's modules without what the package itself imports: messages of KServe's and TensorFlow's in no time, for a process that wants no more."""

from __future__ import annotations

import importlib.util
import sys
import types

__all__ = ["make_bare"]


def make_bare(name: str) -> None:
    """Let modules below an installed package be imported alone; in a process of one's own, since the package itself is then empty."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    bare = types.ModuleType(name)
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = bare
