"""Which models the workers have: the record by which a worker that comes later is brought to the same set.

A name has its versions, the parameters of its last load request, and a number that grows with each change, by which a worker that was loading
while it changed finds that what it has is an older one of the same version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Loaded", "PresentModels"]


Loaded = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Name to version to the files that it was loaded from, as a worker tells it."""


@dataclass(frozen=True, slots=True)
class _Present:
    versions: Mapping[str, Mapping[str, str]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    change: int = 0


class PresentModels:
    """The set of models that all workers have; kept by their supervisor."""

    def __init__(self) -> None:
        self._models: dict[str, _Present] = {}
        self._changes = 0

    def settle(self, loaded: Sequence[Loaded]) -> None:
        """Take what every one of these workers has loaded by itself for the set; what only some have is left out.

        Args:
            loaded: of each worker.
        """
        self._models = {}
        for name, versions in loaded[0].items():
            shared = {v: files for v, files in versions.items() if all(v in other.get(name, ()) for other in loaded)}
            if shared:
                self._models[name] = _Present(shared)

    def differs(self, loaded: Loaded) -> bool:
        """Whether a worker with these names and versions lacks some, or has too many."""
        return {name: set(versions) for name, versions in loaded.items()} != {
            name: set(present.versions) for name, present in self._models.items() if present.versions
        }

    def change(self, name: str, versions: Mapping[str, Mapping[str, str]], parameters: Mapping[str, Any]) -> int:
        """Note that a name was loaded in these versions, or unloaded: it has none then.

        Returns:
            The change's number.
        """
        self._changes += 1
        self._models[name] = _Present(dict(versions), dict(parameters) if versions else {}, self._changes)
        return self._changes

    def document(self) -> dict[str, Any]:
        """Give the set as a worker is told it: name to `versions` with their files, `parameters`, `change`."""
        return {
            name: {"versions": dict(one.versions), "parameters": dict(one.parameters), "change": one.change}
            for name, one in self._models.items()
        }
