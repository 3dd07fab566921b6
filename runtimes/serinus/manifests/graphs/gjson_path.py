"""Whether a GJSON path exists in a JSON value: the conditions of InferenceGraphs. Pure.

Works on what a JSON parser returns; where GJSON looks at the text, the difference is told: of keys written twice the parser's one counts (the last),
and numbers are compared as float64, as GJSON does. JSON's null exists.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .gjson_modifiers import from_text, modify
from .gjson_query import MISSING, holds, matches
from .gjson_syntax import (
    MODIFIERS,
    Query,
    closing,
    split_array_part,
    split_object_part,
    split_pipe,
    split_selectors,
)

__all__ = ["MISSING", "condition_problem", "evaluate", "exists"]


def exists(document: Any, path: str) -> bool:
    """Whether the path leads to a value of the document."""
    return evaluate(document, path) is not MISSING


def condition_problem(path: str) -> str | None:
    """What is wrong with a path as a condition, in words; None where nothing is seen."""
    if not path.strip():
        return "is empty"
    for index, letter in enumerate(path):
        if letter in "([{" and (index == 0 or path[index - 1] in "#.|") and closing(path, index) is None:
            return f"opens {letter!r} and does not close it"
    if path[0] in "[{" and split_selectors(path) and not (split_selectors(path) or ([], ""))[1]:
        return "holds for every request: several paths at once are an array or object, which is always there"
    return None


def evaluate(document: Any, path: str) -> Any:
    """The value at a path, or MISSING.

    Args:
        document: dict, list, str, int, float, bool or None, or MISSING (modifiers and selectors make something of that, too).
        path: in GJSON's syntax.
    """
    if len(path) > 1:
        if path[0] == "@":
            done = _modified(document, path)
            if done is not None:
                return done[0]
        elif path[0] == "!":
            done = _literal(path)
            if done is not None:
                return done[0]
        elif path[0] in "[{":
            done = _selected(document, path)
            if done is not None:
                return done[0]
    walk = _Walk()
    if path[:2] == ".." and document is not MISSING:  # JSON lines: one request is one line
        found = walk.array([document], path[2:])
    else:
        found = walk.step(document, path)
    return found if walk.pipe is None else evaluate(found, walk.pipe)


class _Walk:
    """One walk along the dots of a path; what is behind a bar is left in `pipe`."""

    def __init__(self) -> None:
        self.pipe: str | None = None

    def step(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return self._object(value, path)
        if isinstance(value, list):
            return self.array(value, path)
        return MISSING

    def _object(self, value: dict[str, Any], path: str) -> Any:
        part = split_object_part(path)
        if part.pipe is not None:
            self.pipe = part.pipe
        if part.is_pattern:
            candidates = [item for key, item in value.items() if matches(key, part.key)]
        else:
            candidates = [value[part.key]] if part.key in value else []
        for item in candidates:
            found = item if part.rest is None else self.step(item, part.rest)
            if found is not MISSING:
                return found
        return MISSING

    def array(self, value: list[Any], path: str) -> Any:
        """Of a list."""
        part = split_array_part(path)
        if part.each is not None:
            left, pipe = split_pipe(part.each)
            self.pipe = self.pipe if pipe is None else pipe
            found = (evaluate(item, left) for item in value)
            return [item for item in found if item is not MISSING]
        if part.pipe is not None:
            self.pipe = part.pipe
        if part.query is not None:
            return self._query(value, part.query, part.rest)
        if part.text == "#":
            return len(value)
        if not (part.text.isascii() and part.text.isdecimal()) or int(part.text[:18]) >= len(value):
            return MISSING
        item = value[int(part.text)]
        return item if part.rest is None else self.step(item, part.rest)

    def _query(self, value: list[Any], query: Query, rest: str | None) -> Any:
        found = []
        for item in value:
            if isinstance(item, (dict, list)):
                asked = evaluate(item, query.path)
            elif query.path:
                continue
            else:
                asked = item
            if not holds(asked, query.op, query.value):
                continue
            if rest is not None:
                left, pipe = split_pipe(rest)
                self.pipe = self.pipe if pipe is None else pipe
                item = evaluate(item, left)
            if not query.takes_all:
                return item
            if item is not MISSING:
                found.append(item)
        return found if query.takes_all else MISSING


def _behind(value: Any, rest: str) -> Any:
    """The value, or what the rest of the path finds in it."""
    return evaluate(value, rest[1:]) if rest[:1] in (".", "|") and rest else value


def _modified(document: Any, path: str) -> tuple[Any] | None:
    end = next((index for index, letter in enumerate(path) if letter in ".|:"), len(path))
    name, rest, argument = path[1:end], path[end:], ""
    if name not in MODIFIERS:
        return None
    if rest[:1] == ":":
        rest = rest[1:]
        stop = closing(rest) if rest[:1] in ("{", "[") and rest else None
        if stop is not None:
            argument, rest = rest[: stop + 1], rest[stop + 1 :]
        else:
            argument, bar, rest = rest.partition("|")
            rest = bar + rest
    if name == "dig":
        found = [] if document is MISSING else list(_dug(document, argument))
    else:
        found = modify(document, name, argument)
    return (_behind(found, rest),)


def _dug(value: Any, path: str) -> Iterator[Any]:
    found = evaluate(value, path)
    if found is not MISSING:
        yield found
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in below:
        yield from _dug(item, path)


def _literal(path: str) -> tuple[Any] | None:
    """`!` and a JSON value; None where it is none."""
    try:
        value, end = json.JSONDecoder().raw_decode(path, 1)
    except ValueError:
        return None
    return (_behind(value, path[end:]),)


def _selected(document: Any, path: str) -> tuple[Any] | None:
    cut = split_selectors(path)
    if cut is None or (cut[1] and cut[1][0] not in ".|"):
        return None
    selectors, rest = cut
    found = [(selector, evaluate(document, selector.path)) for selector in selectors]
    there = [(selector, value) for selector, value in found if value is not MISSING]
    if path[0] == "[":
        return (_behind([value for _, value in there], rest),)
    return (_behind({_selector_name(s.name, s.path): value for s, value in there}, rest),)


def _selector_name(name: str, path: str) -> str:
    if name:
        return str(from_text(name)) if name[0] == '"' and from_text(name) is not MISSING else name
    last = path.replace("|", ".").rsplit(".", 1)[-1]
    return "_" if any(letter in "[]{}()#|!" for letter in last) else last
