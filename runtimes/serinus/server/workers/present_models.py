"""Which models the workers have: the record by which a worker that comes later is brought to the same set.

A name has its versions, the parameters of its last load request, and a number that grows with each change, by which a worker that was loading
while it changed finds that what it has is an older one of the same version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PresentModels"]


@dataclass(frozen=True, slots=True)
class _Present:
    versions: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    change: int = 0


class PresentModels:
    """The set of models that all workers have; kept by their supervisor."""

    def __init__(self) -> None:
        self._models: dict[str, _Present] = {}
        self._changes = 0

    def settle(self, loaded: Sequence[Mapping[str, Sequence[str]]]) -> None:
        """Take what every one of these workers has loaded by itself for the set; what only some have is left out.

        Args:
            loaded: of each worker, name to versions.
        """
        self._models = {}
        for name, versions in loaded[0].items():
            shared = tuple(v for v in versions if all(v in other.get(name, ()) for other in loaded))
            if shared:
                self._models[name] = _Present(shared)

    def differs(self, loaded: Mapping[str, Iterable[str]]) -> bool:
        """Whether a worker with these names and versions lacks some, or has too many."""
        return {name: set(versions) for name, versions in loaded.items()} != {
            name: set(present.versions) for name, present in self._models.items()
        }

    def change(self, name: str, versions: Sequence[str], parameters: Mapping[str, Any]) -> int:
        """Note that a name was loaded in these versions, or unloaded: there are none then.

        Returns:
            The change's number.
        """
        self._changes += 1
        if versions:
            self._models[name] = _Present(tuple(versions), dict(parameters), self._changes)
        else:
            self._models.pop(name, None)
        return self._changes

    def document(self) -> dict[str, Any]:
        """Give the set as a worker is told it: name to `versions`, `parameters`, `change`."""
        return {
            name: {"versions": list(one.versions), "parameters": dict(one.parameters), "change": one.change}
            for name, one in self._models.items()
        }
