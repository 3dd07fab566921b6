"""Values of a manifest as they are, well-formed or not: what is there is found, what is not counts as absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .documents import FieldPath

__all__ = ["LEGACY_FRAMEWORKS", "containers_of", "flag_value", "listed", "mapping", "variables_of", "whole_number"]

LEGACY_FRAMEWORKS = [
    "huggingface",
    "lightgbm",
    "onnx",
    "paddle",
    "pmml",
    "pytorch",
    "sklearn",
    "tensorflow",
    "triton",
    "xgboost",
]
"""Predictor blocks from before `model`; the mutating webhook rewrites them to it."""


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one; its shape was judged elsewhere."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> Sequence[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else ()


def whole_number(value: Any) -> int | None:
    """The value where it is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def containers_of(path: FieldPath, block: Mapping[str, Any]) -> list[tuple[FieldPath, Mapping[str, Any]]]:
    """Every container of a component or runtime, each with its path: `model` and the legacy frameworks are containers, too."""
    found: list[tuple[FieldPath, Mapping[str, Any]]] = []
    for key in ("containers", "initContainers"):
        found += [((*path, key, i), mapping(item)) for i, item in enumerate(listed(block.get(key)))]
    found += [((*path, key), mapping(block[key])) for key in (*LEGACY_FRAMEWORKS, "model") if block.get(key)]
    return found


def variables_of(path: FieldPath, container: Mapping[str, Any]) -> list[tuple[FieldPath, Mapping[str, Any]]]:
    """Every environment variable of a container, each with its path."""
    return [((*path, "env", i), mapping(item)) for i, item in enumerate(listed(container.get("env")))]


def flag_value(args: Sequence[Any], *names: str) -> str | None:
    """The value of `--name value` or `--name=value`; underscores and dashes are alike. None where it is not there."""
    wanted = {name.replace("_", "-") for name in names}
    for index, word in enumerate(args):
        if not isinstance(word, str) or not word.startswith("--"):
            continue
        flag, equals, value = word[2:].partition("=")
        if flag.replace("_", "-") in wanted:
            if equals:
                return value
            following = args[index + 1] if index + 1 < len(args) else ""
            return str(following)
    return None
