"""What a model's settings and its own description may size, checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Final

import numpy as np

from ..bounds import BOUNDS, ModelBounds
from ..errors import ConfigError
from ..protocol.datatypes import NUMPY_DTYPES
from ..protocol.types import TensorSpec
from ..settings import ModelSettings

__all__ = ["check_inputs", "check_settings"]

_NAME_CHARACTERS: Final = 255
"""Longest name and version of a model: a folder's name (NAME_MAX of Linux's file systems)."""
_COUNTS: Final = ("instances", "threads", "max_concurrency")
_BATCH_COUNTS: Final = ("max_batch_rows", "max_queue_rows", "max_queue_bytes", "priority_levels", "default_priority")


def check_settings(settings: ModelSettings, bounds: ModelBounds) -> None:
    """Hold the numbers of a model's settings to their bounds, whoever wrote them: a flag, a file or a load request.

    Raises:
        ConfigError: with every one that is out of its range.
    """
    batch = settings.batch
    numbers: list[tuple[str, float | None, bool]] = [(name, getattr(settings, name), True) for name in _COUNTS]
    numbers += [(name, getattr(batch, name), True) for name in _BATCH_COUNTS]
    numbers += [(name, getattr(batch, name), False) for name in ("max_delay_s", "default_timeout_s", "hang_timeout_s")]
    problems = []
    for name, value, whole in numbers:
        if value is None:
            continue
        if whole and type(value) is not int:
            problems.append(f"{name} is {value}; a whole number was expected")
            continue
        problem = BOUNDS[name].problem(value, most=bounds.instances if name == "instances" else None)
        if problem is not None:
            problems.append(problem)
    problems += [
        problem
        for what, text in (("name", settings.name), ("version", settings.version))
        if (problem := _name_problem(what, text))
    ]
    problems += _spec_problems(settings.inputs, bounds)
    if problems:
        raise ConfigError([f"model {settings.name[:_NAME_CHARACTERS]!r}: {problem}" for problem in problems])


def _name_problem(what: str, text: str) -> str:
    """Say why a model cannot be called so: its name is in addresses, logs and labels of metrics. Empty: it can."""
    if len(text) > _NAME_CHARACTERS:
        return f"{what} has {len(text)} characters, the limit is {_NAME_CHARACTERS}"
    if not text.isprintable():
        odd = next(character for character in text if not character.isprintable())
        return f"{what} is {text!r}, which has the character {odd!r}; printable ones were expected"
    return ""


def check_inputs(name: str, inputs: Iterable[TensorSpec], bounds: ModelBounds) -> None:
    """Hold the inputs that a model's file declares to what a request may carry, before a row of zeros is made of them.

    Raises:
        ConfigError: one of them has too many dimensions, or is too large even with a single row.
    """
    problems = _spec_problems(inputs, bounds)
    if problems:
        raise ConfigError([f"model '{name}': {problem}" for problem in problems])


def _spec_problems(specs: Iterable[TensorSpec], bounds: ModelBounds) -> list[str]:
    problems = []
    for spec in specs:
        if len(spec.shape) > bounds.rank:
            problems.append(
                f"tensor '{spec.name}' has {len(spec.shape)} dimensions, the limit is {bounds.rank} (max_rank)"
            )
            continue
        # A dimension that may vary is 1 in the row that warms the model up.
        size = (
            prod(max(1, length) for length in spec.shape) * np.dtype(NUMPY_DTYPES.get(spec.datatype, object)).itemsize
        )
        if size > bounds.tensor_bytes:
            problems.append(
                f"tensor '{spec.name}' of shape {list(spec.shape)} has {size} bytes at the least, the limit is "
                f"{bounds.tensor_bytes} (max_tensor_bytes)"
            )
    return problems
