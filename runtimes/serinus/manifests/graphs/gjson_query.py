"""Whether a value is what a GJSON query asks for: `==`, `<`, `%` and their like. Pure.

Source: SYNTAX.md of github.com/tidwall/gjson, "Queries", and the behaviour of v1.18: the value's type says how the text behind the operator is
read; objects, arrays and null are only asked whether they are there. `~true`, `~false`, `~null` and `~*` ask what a value amounts to.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MISSING", "holds", "matches"]


class _Missing:
    """The value of a path that leads nowhere."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


def holds(value: Any, op: str, wanted: str) -> bool:
    """Whether `value op wanted` holds; `wanted` is text, read by the value's type."""
    if wanted.startswith("~"):
        judged = {"*": _is_there, "null": _is_null, "true": _is_trueish, "false": _is_falseish}.get(wanted[1:])
        if judged is None:
            return False
        value, wanted = judged(value), "true"
    if value is MISSING:
        return False
    if not op:
        return True
    if isinstance(value, bool):
        return _ordered(op, value, wanted == "true", known=wanted in {"true", "false"})
    if isinstance(value, (int, float)):
        return _compared(op, float(value), _number(wanted))
    if isinstance(value, str):
        if op in {"%", "!%"}:
            return matches(value, wanted) is (op == "%")
        return _compared(op, value, wanted)
    return False


def _ordered(op: str, value: bool, wanted: bool, *, known: bool) -> bool:
    if op in {"=", "!="}:
        return (known and value is wanted) is (op == "=")
    if op in {">=", "<="}:  # true is the greatest, false the least
        return value is (op == ">=")
    return known and _compared(op, int(value), int(wanted))


def _compared(op: str, left: Any, right: Any) -> bool:
    return bool(
        {"=": left == right, "!=": left != right, "<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}.get(
            op, False
        )
    )  # fmt: skip


def _number(text: str) -> float:
    """Text as a number; 0 where it is none, as GJSON takes it."""
    try:
        return float(text) if "_" not in text else 0.0
    except ValueError:
        return 0.0


def _is_there(value: Any) -> bool:
    return value is not MISSING


def _is_null(value: Any) -> bool:
    return value is None or value is MISSING


_TRUE_WORDS, _FALSE_WORDS = {"1", "t", "true"}, {"0", "f", "false"}
"""Go's strconv.ParseBool, in lower case."""


def _is_trueish(value: Any) -> bool:
    if isinstance(value, str):
        return value.lower() in _TRUE_WORDS
    return isinstance(value, (bool, int, float)) and bool(value)


def _is_falseish(value: Any) -> bool:
    if isinstance(value, str):
        return value.lower() in _FALSE_WORDS
    return _is_null(value) or (isinstance(value, (bool, int, float)) and not value)


def matches(text: str, pattern: str) -> bool:
    """Whether a text matches: `*` any letters, `?` one letter, a backslash the next letter itself. At worst text times pattern, whatever the pattern."""
    at = place = 0
    star = mark = -1
    while place < len(text):
        letter = pattern[at] if at < len(pattern) else ""
        if letter == "*":
            star, mark = at, place
            at += 1
            continue
        width = 2 if letter == "\\" and at + 1 < len(pattern) else 1
        if letter and (letter == "?" or pattern[at + width - 1] == text[place]):
            at += width
            place += 1
        elif star >= 0:
            mark += 1
            at, place = star + 1, mark
        else:
            return False
    return not pattern[at:].strip("*")
