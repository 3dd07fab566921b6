"""How a GJSON path is cut into its parts. Pure text.

Source: "GJSON Path Syntax" (github.com/tidwall/gjson, SYNTAX.md) and the behaviour of v1.18, which KServe's router is built with. A path is keys
and indexes joined by `.` or `|`; `#` is an array's length or "each"; `#(...)` a query, `#(...)#` all that match; `@name` a modifier; `[a,b]` and
`{"x":a}` several paths at once. Quirks are kept, since a condition that means something else here than in the cluster is of no use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "MODIFIERS",
    "ArrayPart",
    "ObjectPart",
    "Query",
    "Selector",
    "begins_new_path",
    "closing",
    "split_array_part",
    "split_object_part",
    "split_pipe",
    "split_query",
    "split_selectors",
]

MODIFIERS = frozenset(
    "pretty ugly reverse this flatten join valid keys values tostr fromstr group dig".split()  # noqa: SIM905 (a list of words)
)
"""Modifiers that GJSON has built in; KServe adds none."""

_OPENING, _CLOSING = "([{", ")]}"
_OPERATORS = ("!=", "!%", "<=", ">=", "==", "=", "<", ">", "%", "!")


@dataclass(frozen=True, slots=True)
class ObjectPart:
    """The first part of a path as an object reads it, and what follows: `rest` after a dot, `pipe` after a bar; None: nothing."""

    key: str
    is_pattern: bool
    rest: str | None
    pipe: str | None


@dataclass(frozen=True, slots=True)
class Query:
    """`#(path op value)`; an empty `op` asks whether the path is there."""

    path: str
    op: str
    value: str
    takes_all: bool
    """`#(...)#`: all that match, not the first."""


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """The first part of a path as an array reads it.

    `each`: the path after `#.`, taken of every item. `query`: of `#(...)`. Else `text` is an index, or `#`, the length.
    """

    text: str
    rest: str | None
    pipe: str | None
    query: Query | None = None
    each: str | None = None


@dataclass(frozen=True, slots=True)
class Selector:
    """One path of `[...]` or `{...}`, with the name that it was given, perhaps in quotes."""

    name: str
    path: str


def begins_new_path(text: str) -> bool:
    """Whether what follows a dot is no key but a modifier or several paths: the dot is a bar then."""
    if text[:1] == "@":
        end = next((index for index, letter in enumerate(text) if letter in ".|:"), len(text))
        return text[1:end] in MODIFIERS
    return text[:1] in ("[", "{") and text != ""


def _skip_string(text: str, start: int) -> int:
    """Index of the quote that ends the string whose first letter is at `start`; the text's length where none does."""
    index = start
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] == '"':
            return index
        index += 1
    return len(text)


def closing(text: str, start: int = 0) -> int | None:
    """Index of the bracket that closes the one at `start`; brackets in strings and behind a backslash do not count; None: it stays open."""
    for index, depth in _depths(text, start):
        if depth == 0:
            return index
    return None


def _depths(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Every letter outside of strings with the number of brackets that are open after it."""
    index, depth = start, 0
    while index < len(text):
        letter = text[index]
        if letter == "\\":
            index += 2
            continue
        if letter == '"':
            index = _skip_string(text, index + 1)
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        if index < len(text):
            yield index, depth
        index += 1


def _follow(text: str, dot: int) -> tuple[str | None, str | None]:
    """What follows a dot: rest or pipe."""
    after = text[dot + 1 :]
    return (None, after) if after and begins_new_path(after) else (after, None)


def split_object_part(path: str) -> ObjectPart:
    """Cut the first key off. A backslash takes the next letter as it is."""
    key: list[str] = []
    pattern = False
    index = 0
    while index < len(path):
        letter = path[index]
        if letter == "\\":
            key += path[index + 1 : index + 2]
            index += 2
            continue
        if letter == "|":
            return ObjectPart("".join(key), pattern, None, path[index + 1 :])
        if letter == ".":
            return ObjectPart("".join(key), pattern, *_follow(path, index))
        pattern = pattern or letter in "*?"
        key.append(letter)
        index += 1
    return ObjectPart("".join(key), pattern, None, None)


def split_array_part(path: str) -> ArrayPart:
    """Cut the first part off, as an array reads it. A query that stays open is none: nothing matches."""
    query, index = None, 0
    if path[:2] in ("#(", "#["):
        end = closing(path, 1)
        if end is None:
            return ArrayPart(path, None, None)
        query = split_query(path[2:end], takes_all=path[end + 1 : end + 2] == "#")
        index = end + 1
    elif path[:2] == "#.":
        return ArrayPart("#", None, None, each=path[2:])
    seen_hash = query is not None
    while index < len(path):
        letter = path[index]
        if letter == "|":
            return ArrayPart(path[:index], None, path[index + 1 :], query)
        if letter == ".":
            rest, pipe = (path[index + 1 :], None) if seen_hash else _follow(path, index)
            return ArrayPart(path[:index], rest, pipe, query)
        seen_hash = seen_hash or letter == "#"
        index += 1
    return ArrayPart(path, None, None, query)


def split_query(text: str, *, takes_all: bool) -> Query:
    """Cut the inside of `#(...)` into path, operator and value; a value in quotes loses them."""
    at = next((index for index, depth in _depths(text, 0) if depth == 0 and text[index] in "!=<>%"), None)
    if at is None:
        return Query(text.strip(), "", "", takes_all)
    op = next(each for each in _OPERATORS if text.startswith(each, at))
    value = text[at + len(op) :].strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = _unescaped(value)
    return Query(text[:at].strip(), "=" if op == "==" else op, value, takes_all)


def _unescaped(quoted: str) -> str:
    import json

    try:
        return str(json.loads(quoted))
    except ValueError:
        return quoted[1:-1]


def split_selectors(path: str) -> tuple[list[Selector], str] | None:
    """Cut `[a,b]` or `{"x":a}` into its paths, and what comes behind it; None where it stays open."""
    end = closing(path)
    if end is None:
        return None
    found, start, colon = [], 1, None
    in_modifier = False
    for index, depth in _depths(path[: end + 1], 0):
        letter = path[index]
        if letter == "@" and path[index - 1] in ".|":
            in_modifier = True  # the colon before its argument names nothing
        elif letter == ":" and depth == 1 and colon is None and not in_modifier:
            colon = index
        elif (letter == "," and depth == 1) or index == end:
            name, text = ("", path[start:index]) if colon is None else (path[start:colon], path[colon + 1 : index])
            found.append(Selector(name, text))
            start, colon, in_modifier = index + 1, None, False
    return found, path[end + 1 :]


def split_pipe(path: str) -> tuple[str, str | None]:
    """Cut at the first bar that is in no query and behind no backslash."""
    if path[:1] == "{":
        end = closing(path)
        if end is not None and path[end + 1 : end + 2] == "|":
            return path[: end + 1], path[end + 2 :]
        return path, None
    index = 0
    while index < len(path):
        letter = path[index]
        if letter == "\\":
            index += 1
        elif path[index : index + 3] in (".#(", ".#["):
            end = closing(path, index + 2)
            if end is None:
                return path, None
            index = end
        elif letter == "|":
            return path[:index], path[index + 1 :]
        index += 1
    return path, None
