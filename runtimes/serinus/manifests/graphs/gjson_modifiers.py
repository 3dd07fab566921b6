"""The modifiers that GJSON has built in, on values: `@keys`, `@flatten` and their like. Pure.

Source: SYNTAX.md of github.com/tidwall/gjson, "Modifiers". `@dig` follows a path and is in `gjson_path`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from .gjson_query import MISSING

__all__ = ["from_text", "modify"]


def modify(value: Any, name: str, argument: str) -> Any:
    """What a modifier other than `dig` makes of a value, or of MISSING."""
    if name in _MODIFIERS:
        return _MODIFIERS[name](value)
    if name == "flatten" and isinstance(value, list):
        return list(_flattened(value, deep=_option(argument, "deep")))
    if name == "join" and isinstance(value, list):
        return {key: item for each in value if isinstance(each, dict) for key, item in each.items()}
    return value  # this, valid, pretty, ugly: the same value in other letters


def _option(argument: str, name: str) -> bool:
    try:
        return bool(json.loads(argument).get(name))
    except (ValueError, AttributeError):
        return False


def _flattened(value: list[Any], *, deep: bool) -> Iterator[Any]:
    for item in value:
        if isinstance(item, list):
            yield from _flattened(item, deep=deep) if deep else item
        else:
            yield item


def _reversed(value: Any) -> Any:
    if isinstance(value, list):
        return value[::-1]
    return dict(reversed(value.items())) if isinstance(value, dict) else value


def _keys(value: Any) -> Any:
    if isinstance(value, dict):
        return list(value)
    return [] if value is MISSING else [None] * (len(value) if isinstance(value, list) else 1)


def _values(value: Any) -> Any:
    if isinstance(value, dict):
        return list(value.values())
    return [] if value is MISSING else value if isinstance(value, list) else [value]


def from_text(value: Any) -> Any:
    """Text read as JSON; MISSING where it is none."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return MISSING


def _grouped(value: Any) -> Any:
    """`{"a":[1,2],"b":[3]}` as `[{"a":1,"b":3},{"a":2}]`."""
    if not isinstance(value, dict):
        return MISSING
    rows: list[dict[str, Any]] = []
    for key, items in value.items():
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if index == len(rows):
                rows.append({})
            rows[index][key] = item
    return rows


_MODIFIERS: dict[str, Callable[[Any], Any]] = {
    "reverse": _reversed,
    "keys": _keys,
    "values": _values,
    "fromstr": from_text,
    "tostr": lambda value: "" if value is MISSING else json.dumps(value),
    "group": _grouped,
}
