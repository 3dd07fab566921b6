"""Mutants that were looked at and change nothing that a test could see."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FILE", "equivalents"]

FILE = Path(__file__).with_name("judged.toml")


def equivalents(module: str) -> dict[tuple[str, str], str]:
    """Return the reason why a mutation of the module is equivalent, by its lines before and after."""
    entries = tomllib.loads(FILE.read_text()).get("equivalent", [])
    return {(entry["was"], entry["now"]): entry["reason"] for entry in entries if entry["module"] == module}
