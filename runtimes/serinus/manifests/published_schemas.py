"""The shapes of manifests as KServe, Seldon and Kubernetes publish them: kinds, fields, types, ranges, required fields, list keys.

The data lie in `published_schemas.json`, which says its sources and their versions; `tests/manifests/make_schemas.py` makes it. Nothing
that a published schema says is written here by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Published", "Schema", "published"]


@dataclass(frozen=True, slots=True)
class Schema:
    """One node: what a value must be."""

    node: Mapping[str, Any]
    _nodes: tuple[Mapping[str, Any], ...]

    @property
    def type(self) -> str:
        """`object`, `array`, `string`, `integer`, `number`, `boolean`, `int-or-string`, `quantity` or `any`."""
        return str(self.node["type"])

    @property
    def fields(self) -> Mapping[str, int]:
        """Names of known fields; empty for mappings with free keys."""
        return self.node.get("fields", {})

    @property
    def required(self) -> tuple[str, ...]:
        """Fields that must be there."""
        return tuple(self.node.get("required", ()))

    @property
    def list_keys(self) -> Mapping[str, Any]:
        """Fields by which items of a list are told apart, each with its default; empty where items may repeat."""
        return self.node.get("keys", {})

    def field(self, name: str) -> Schema | None:
        """Schema of a field; of a free key, that of any value; None for an unknown field."""
        number = self.fields.get(name, self.node.get("values"))
        return None if number is None else Schema(self._nodes[number], self._nodes)

    def item(self) -> Schema | None:
        """Schema of a list's items."""
        number = self.node.get("items")
        return None if number is None else Schema(self._nodes[number], self._nodes)


@dataclass(frozen=True, slots=True)
class Published:
    """Every kind that is known, by `apiVersion/kind`."""

    sources: Mapping[str, str]
    kinds: Mapping[str, int]
    since: Mapping[str, Mapping[str, str]]
    """For each kind of KServe, fields (`spec.canary`, lists as `[]`) and the minor version that had them first."""
    nodes: tuple[Mapping[str, Any], ...]

    def schema(self, api_version: str, kind: str) -> Schema | None:
        """Schema of a kind, or None."""
        number = self.kinds.get(f"{api_version}/{kind}")
        return None if number is None else Schema(self.nodes[number], self.nodes)

    def versions(self, kind: str) -> tuple[str, ...]:
        """API versions that have a kind."""
        return tuple(name.rpartition("/")[0] for name in self.kinds if name.rpartition("/")[2] == kind)

    def kinds_of(self, group: str) -> tuple[str, ...]:
        """Kinds of an API group, such as `serving.kserve.io`; each once."""
        return tuple(dict.fromkeys(n.rpartition("/")[2] for n in self.kinds if n.startswith(group + "/")))


@cache
def published() -> Published:
    """The data, read once."""
    data = json.loads(Path(__file__).with_name("published_schemas.json").read_text(encoding="utf-8"))
    return Published(data["sources"], data["kinds"], data["since"], tuple(data["nodes"]))
