"""A document held against the published schema of its kind, field by field.

Theory of operation. The API server decodes strictly (an unknown field or a key written twice is refused), then checks types, required
fields, ranges, enumerations and list keys by the schema. An InferenceService first goes through KServe's mutating webhook, which writes
the object back with zero values: there a missing field passes, and the Deployment that is made of it is refused; so a finding about a missing
field of an InferenceService says so, and those that KServe fills itself are no findings. An explicit null counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .documents import Document, FieldPath
from .problems import Layer, Problems, nearest
from .published_schemas import Published, Schema
from .quantities import parse_quantity, quantity_mend

__all__ = ["check_structure", "check_version"]

_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "int-or-string": "a number or text",
    "quantity": "a quantity",
}
_RFC_3339 = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")
_LOOSE_LISTS = {"env", "secrets", "imagePullSecrets", "ownerReferences"}
"""Lists whose items a merge tells apart, and nobody else does."""
_INT_RANGES = {"int32": 2**31, "int64": 2**63}

_HINTS: Mapping[str, Mapping[str, str]] = {
    "predictor": {
        "storageUri": "predictor.model.storageUri",
        "image": "containers[0].image",
        "env": "containers[0].env",
        "ports": "containers[0].ports",
    },
    "transformer": {"image": "containers[0].image", "env": "containers[0].env", "ports": "containers[0].ports"},
    "model": {"framework": "modelFormat.name", "uri": "storageUri", "format": "modelFormat.name"},
    "canary": {"percent": "trafficPercent", "weight": "trafficPercent", "canaryTrafficPercent": "trafficPercent"},
    "spec": {"canaryTrafficPercent": "predictor.canaryTrafficPercent", "routes": "nodes"},
    "nodes": {"routes": "steps"},
}
"""Keys that people write in a block and that belong elsewhere, each with where."""


@dataclass(frozen=True, slots=True)
class _Walk:
    document: Document
    problems: Problems
    filled: bool
    """Whether a webhook writes zero values before the schema is asked."""
    custom: bool
    """Whether the schema of a CustomResourceDefinition is asked as it is written, and no Go type before it."""
    decoded: bool
    """Whether a Go type of Kubernetes' own takes it."""

    def error(self, path: FieldPath, message: str, mend: str, *, rule: str, layer: Layer = "server") -> None:
        self.problems.error(self.document, path, message, mend, rule=rule, layer=layer)


def check_structure(document: Document, schema: Schema, problems: Problems) -> None:
    """Check a whole document against its kind's schema; `status` is the controller's and not looked at.

    Args:
        document: any object.
        schema: its kind's.
        problems: takes the findings, each of layer `server` or, for a missing field of an InferenceService, `controller`.
    """
    filled = document.kind == "InferenceService"
    group = document.api_version.partition("/")[0]
    custom = not filled and group.endswith((".kserve.io", ".seldon.io"))
    _check(_Walk(document, problems, filled, custom, not filled and not custom), (), document.value, schema)


def check_version(document: Document, version: tuple[int, int], known: Published, problems: Problems) -> None:
    """Warn of fields that an older KServe does not have: its API server refuses them, or prunes them where the client is not strict.

    Args:
        document: an object of KServe.
        version: the cluster's, such as (0, 15).
        known: has the first version of each field.
        problems: takes the findings.
    """
    since = known.since.get(f"{document.api_version}/{document.kind}", {})
    seen: set[FieldPath] = set()
    for path in document.places:
        words = ""
        for part in path:
            words += "[]" if isinstance(part, int) else f".{part}" if words else part
        first = since.get(words) or since.get(_free_keys(words))
        later = first is not None and tuple(int(part) for part in first.split(".")) > version
        if (
            first is not None
            and later
            and not any(path[: len(top)] == top for top in seen)
            and document.get(path) is not None
        ):
            seen.add(path)
            message = (
                f"KServe has it since {first}; {version[0]}.{version[1]} prunes it, or refuses it from a strict client"
            )
            problems.warn(
                document, path, message, "remove it, or upgrade KServe", rule="structure-version", layer="server"
            )


def _free_keys(words: str) -> str:
    """A path with the names of an InferenceGraph's nodes left out, as schemas write it."""
    return re.sub(r"^spec\.nodes\.[^.\[]+", "spec.nodes[]", words)


def _check(walk: _Walk, path: FieldPath, value: Any, schema: Schema) -> None:
    if value is None or schema.type == "any":
        return
    if schema.type == "array":
        _check_list(walk, path, value, schema)
    elif schema.type == "object":
        _check_mapping(walk, path, value, schema)
    else:
        _check_scalar(walk, path, value, schema)


def _check_mapping(walk: _Walk, path: FieldPath, value: Any, schema: Schema) -> None:
    if not isinstance(value, dict):
        walk.error(path, f"{_kind(value)} is not a mapping", "write key: value lines below it", rule="structure-type")
        return
    for key, item in value.items():
        name = str(key)
        below = schema.field(name)
        if below is not None:
            _check(walk, (*path, name), item, below)
        else:
            walk.error(
                (*path, name), "unknown field", _mend_unknown(path, name, schema), rule="structure-unknown-field"
            )
    for name in schema.required:
        if value.get(name) is not None:
            continue
        if walk.filled and _is_filled(path, name):
            if _is_refused_when_empty(schema.field(name)):
                message = "missing: KServe's webhook writes an empty one, which the schema refuses"
                walk.error((*path, name), message, f"add {name}", rule="structure-required")
        else:
            layer: Layer = "controller" if walk.filled and path else "server"
            walk.error((*path, name), "missing", f"add {name}", rule="structure-required", layer=layer)


def _mend_unknown(path: FieldPath, name: str, schema: Schema) -> str:
    block = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
    hints = _HINTS.get(block) or (_HINTS["nodes"] if "nodes" in path else {})
    if name in hints and (
        hints[name].split(".")[-1].split("[")[0] not in schema.fields or hints[name] in schema.fields
    ):
        return f"write {hints[name]}"
    if near := nearest(name, schema.fields):
        return f"did you mean {near}?"
    known = ", ".join(sorted(schema.fields))
    return f"remove it; known here: {known}" if len(schema.fields) < 12 else "remove it"


def _is_refused_when_empty(schema: Schema | None) -> bool:
    """Whether a schema takes no empty value: a text that is one of several words, or a mapping that must hold such a text."""
    if schema is None:
        return False
    if schema.type == "object":
        return any(_is_refused_when_empty(schema.field(name)) for name in schema.required)
    return schema.type == "string" and "" not in schema.node.get("enum", ("",))


_PROBES = {"livenessProbe", "readinessProbe", "startupProbe"}


def _is_filled(path: FieldPath, name: str) -> bool:
    """Whether KServe or Knative fills a field of an InferenceService where it is not written.

    The defaulting webhook names the first container of a custom predictor and writes `name: ""` into a framework's block; Knative sets the
    port of a probe; a canary's share becomes 0; labels and rules of zero values are the controller's own. Metrics of an autoscaler have their own rules.
    """
    if name == "name" and path and (path[-1] == 0 or not isinstance(path[-1], int)):
        return not {"env", "ports", "initContainers"} & set(path) and path[-1] != "modelFormat"
    if name == "value":  # of a header or a kernel's parameter: empty
        return True
    if name == "port":
        return any(part in _PROBES for part in path)
    return (name == "trafficPercent") or ("autoScaling" in path) or (name == "containers")


def _check_list(walk: _Walk, path: FieldPath, value: Any, schema: Schema) -> None:
    if not isinstance(value, list):
        walk.error(path, f"{_kind(value)} is not a list", "begin each item with a dash", rule="structure-type")
        return
    for key, compare, word in (("minItems", int.__lt__, "fewer"), ("maxItems", int.__gt__, "more")):
        limit = schema.node.get(key)
        if limit is not None and compare(len(value), limit):
            walk.error(path, f"{len(value)} items, {word} than {limit}", f"write {limit}", rule="structure-range")
    below = schema.item()
    if below is not None:
        for index, item in enumerate(value):
            if item is None:
                _empty_item(walk, (*path, index), below)
            _check(walk, (*path, index), item, below)
    if schema.list_keys:
        _check_distinct(walk, path, value, schema.list_keys)


def _empty_item(walk: _Walk, path: FieldPath, schema: Schema) -> None:
    """An item that is null: the schema refuses it, KServe's webhook makes an empty one of it, and its containers then lack everything.

    Of Kubernetes' own kinds it is decoded as an empty one, which is refused for what it lacks, if for anything.
    """
    mend = "write it, or remove the dash"
    lenient = not schema.required if walk.decoded else walk.filled and schema.type not in {"object", "array"}
    if lenient:
        walk.problems.warn(walk.document, path, 'an empty item: it becomes "" or 0', mend, rule="structure-empty-item")
    else:
        layer: Layer = "controller" if walk.filled else "server"
        walk.error(path, "an empty item", mend, rule="structure-type", layer=layer)


def _check_distinct(walk: _Walk, path: FieldPath, items: Sequence[Any], keys: Mapping[str, Any]) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for index, item in enumerate(items):
        if not isinstance(item, dict) or all(item.get(key) is None for key in keys):
            continue
        told = tuple(str(item.get(key, default)) for key, default in keys.items())
        first = seen.setdefault(told, index)
        if first != index:
            name = ", ".join(f"{key} {word}" for key, word in zip(keys, told, strict=True))
            if walk.decoded and path[-1] in _LOOSE_LISTS:
                message = (
                    f"{name} is item {first} already: server-side apply refuses it, and without that the last one holds"
                )
                walk.problems.warn(
                    walk.document, (*path, index), message, "change or remove one", rule="structure-list-key"
                )
                continue
            walk.error(
                (*path, index),
                f"{name} is item {first} already; items of {path[-1]} are told apart by {' and '.join(keys)}",
                "change or remove one",
                rule="structure-list-key",
            )


def _check_scalar(walk: _Walk, path: FieldPath, value: Any, schema: Schema) -> None:
    if not _fits(value, schema.type):
        mend = f"write {_NAMES[schema.type]}"
        if schema.type == "string" and not isinstance(value, dict | list):
            mend = f'write "{str(value).lower() if isinstance(value, bool) else value}" in quotes'
        walk.error(path, f"{_kind(value)} is not {_NAMES[schema.type]}", mend, rule="structure-type")
        return
    node = schema.node
    if schema.type == "quantity":
        if isinstance(value, float) and walk.custom:
            mend = f'write "{value}" in quotes'
            walk.error(path, f"{value} is neither text nor a whole number", mend, rule="structure-quantity")
        elif parse_quantity(value) is None:
            layer: Layer = "webhook" if walk.filled else "server"
            mend = quantity_mend(str(value), str(path[-1]))
            walk.error(path, f"{value!r} is not a quantity", mend, rule="structure-quantity", layer=layer)
    elif schema.type == "int-or-string" and isinstance(value, int) and not -(2**31) <= value < 2**31:
        walk.error(path, f"{value} is too large for int32", "use a smaller number", rule="structure-range")
    elif "enum" in node and value not in node["enum"]:
        words = [str(word) for word in node["enum"] if word != ""]
        near = nearest(str(value), words)
        mend = f"did you mean {near}?" if near and len(words) > 6 else f"use one of {', '.join(words)}"
        walk.error(path, f"{value!r} is not accepted", mend, rule="structure-enum")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(walk, path, value, node)
    elif isinstance(value, str):
        _check_text(walk, path, value, node)


def _check_range(walk: _Walk, path: FieldPath, value: float, node: Mapping[str, Any]) -> None:
    low, high = node.get("minimum"), node.get("maximum")
    most = _INT_RANGES.get(str(node.get("format")))
    if low is not None and value < low:
        walk.error(path, f"{value} is less than {low}", f"use {low} or more", rule="structure-range")
    elif high is not None and value > high:
        walk.error(path, f"{value} is more than {high}", f"use {high} or less", rule="structure-range")
    elif most is not None and node["type"] == "integer" and not -most <= value < most:
        walk.error(path, f"{value} is too large for {node['format']}", "use a smaller number", rule="structure-range")


def _check_text(walk: _Walk, path: FieldPath, value: str, node: Mapping[str, Any]) -> None:
    least, most, pattern = node.get("minLength"), node.get("maxLength"), node.get("pattern")
    if least is not None and len(value) < least:
        said = "is empty" if not value else f"has {len(value)} characters, fewer than {least}"
        walk.error(path, said, "write it", rule="structure-range")
    elif most is not None and len(value) > most:
        walk.error(path, f"has {len(value)} characters, {most} at most", "shorten it", rule="structure-range")
    elif node.get("format") == "date-time" and not _RFC_3339.match(value):
        walk.error(path, f"{value!r} is no time", "write such as 2026-01-31T10:00:00Z", rule="structure-pattern")
    elif pattern and not re.search(pattern, value):
        walk.error(path, f"{value!r} is not accepted", f"write what matches {pattern}", rule="structure-pattern")


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "string":
        return isinstance(value, str)
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if kind == "number":
        return isinstance(value, int | float)
    if kind == "int-or-string":
        return isinstance(value, int | str)
    return kind == "quantity" and isinstance(value, int | float | str)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return str(value).lower() if isinstance(value, bool) else repr(value)
