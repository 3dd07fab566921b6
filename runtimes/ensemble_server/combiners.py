"""What makes one answer of the members' outputs: the interface, and how a combiner is found.

A combiner is a class named by an entry point of the group `serinus.combiners`, so it comes from an installed package
and never from a model directory. It checks its own parameters, with lines, before any member is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np

from serinus.errors import ConfigError
from serinus.protocol.types import TensorSpec
from serinus.small_file import read_text

from .document import Checker, Where
from .schema import EnsembleSpec, inside

__all__ = ["GROUP", "Combiner", "CombinerContext", "find"]

GROUP = "serinus.combiners"


@dataclass(frozen=True, slots=True)
class CombinerContext:
    """What a combiner may know of its ensemble when it checks its parameters."""

    spec: EnsembleSpec
    checker: Checker
    where: Where = ("combiner", "parameters")

    def problem(self, place: Where, text: str) -> None:
        """Note a problem at a place within the parameters."""
        self.checker.problem((*self.where, *place), text)

    def read_lines(self, relative: str, place: Where) -> list[str]:
        """Read a data file of the model directory: stripped lines, without empty ones and what follows `#`."""
        path = inside(self.spec.directory, relative)
        if path is None or not path.is_file():
            self.problem(place, f"{relative!r}: no such file in {self.spec.directory}")
            return []
        try:
            lines = read_text(path).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self.problem(place, f"{relative!r} cannot be read: {error}")
            return []
        return [text for line in lines if (text := line.partition("#")[0].strip())]


class Combiner(Protocol):
    """Made with `Combiner(context, parameters)`: the parameters are as the file has them."""

    outputs: Sequence[TensorSpec]
    """What `combine` returns; each first dimension is -1."""

    def __init__(self, context: CombinerContext, parameters: Mapping[str, Any]) -> None: ...

    def bind(self, features: Mapping[str, Sequence[str]]) -> None:
        """Take the feature names of each member, in its column order, once all members are loaded; empty: not known."""
        ...

    def needs(self, parameters: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
        """Say which roles of which members a request with these parameters takes."""
        ...

    def combine(
        self,
        members: Mapping[str, Mapping[str, np.ndarray]],
        inputs: Mapping[str, np.ndarray],
        parameters: Mapping[str, Any],
        rows: int,
    ) -> Mapping[str, np.ndarray]:
        """Make the outputs of a batch.

        Args:
            members: each member's outputs by role, `rows` rows each.
            inputs: the request's tensors; optional ones may be absent.
            parameters: the request's.
            rows: rows of the batch.

        Raises:
            InvalidInput: an input's values are at fault.
        """
        ...


def find(name: str, context: CombinerContext) -> type[Any] | None:
    """Find a combiner by its entry point; None, after a problem, where there is none.

    Raises:
        ConfigError: its package is broken.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    point = points.get(name)
    if point is None:
        known = ", ".join(sorted(points)) or "none"
        context.checker.problem(("combiner", "name"), f"{name!r} is no entry point of {GROUP!r}; installed: {known}")
        return None
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"combiner {name!r} ({point.value}) cannot be imported: {error}") from error
