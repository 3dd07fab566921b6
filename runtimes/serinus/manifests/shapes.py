"""What a value in a manifest must be, and the check of a value against it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .documents import Document, FieldPath
from .problems import Problems, nearest

__all__ = ["Scalar", "Shape", "check_shape"]

Scalar = Literal["string", "integer", "boolean", "quantity", "any"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a value must be.

    `fields` describes a mapping with known keys, `values` one with free keys, `items` a list, `scalar` anything else.
    """

    scalar: Scalar | None = None
    fields: dict[str, Shape] | None = None
    required: tuple[str, ...] = ()
    items: Shape | None = None
    values: Shape | None = None
    enum: tuple[str, ...] = ()
    hints: dict[str, str] = field(default_factory=dict)
    """Keys that people write here and that belong elsewhere, each with where."""


_NAMES = {"string": "text", "integer": "a whole number", "boolean": "true or false", "quantity": "a number or text"}


def _fits(value: Any, scalar: Scalar) -> bool:
    if scalar == "any":
        return True
    if scalar == "string":
        return isinstance(value, str)
    if scalar == "boolean":
        return isinstance(value, bool)
    if scalar == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return f"{value!r}"


def check_shape(document: Document, path: FieldPath, value: Any, shape: Shape, problems: Problems) -> None:
    """Check a value and everything below it; an explicit null counts as absent, as in Kubernetes."""
    if value is None:
        return
    if shape.scalar is not None:
        if not _fits(value, shape.scalar):
            mend = (
                f'write "{value}" in quotes'
                if shape.scalar == "string" and not isinstance(value, dict | list)
                else (f"write {_NAMES[shape.scalar]}")
            )
            problems.error(document, path, f"{_kind(value)} is not {_NAMES[shape.scalar]}", mend)
        elif shape.enum and value not in shape.enum:
            problems.error(document, path, f"{value!r} is not accepted", f"use one of {', '.join(shape.enum)}")
        return
    if shape.items is not None:
        if not isinstance(value, list):
            problems.error(document, path, f"{_kind(value)} is not a list", "begin each item with a dash")
            return
        for index, item in enumerate(value):
            check_shape(document, (*path, index), item, shape.items, problems)
        return
    if not isinstance(value, dict):
        problems.error(document, path, f"{_kind(value)} is not a mapping", "write key: value lines below it")
        return
    if shape.values is not None:
        for key, item in value.items():
            check_shape(document, (*path, str(key)), item, shape.values, problems)
        return
    fields = shape.fields or {}
    for key, item in value.items():
        name = str(key)
        if name in fields:
            check_shape(document, (*path, name), item, fields[name], problems)
            continue
        mend = f"remove it; known here: {', '.join(sorted(fields))}" if len(fields) < 12 else "remove it"
        if name in shape.hints:
            mend = f"write {shape.hints[name]}"
        elif near := nearest(name, fields):
            mend = f"did you mean {near}?"
        problems.error(document, (*path, name), "unknown field", mend)
    for name in shape.required:
        if value.get(name) is None:
            problems.error(document, (*path, name), "missing", f"add {name}")
