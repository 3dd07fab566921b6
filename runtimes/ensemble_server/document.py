"""`ensemble.yaml` as plain values that remember their lines, and the collector of what is wrong with them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from serinus.errors import ConfigError
from serinus.small_file import read_text

__all__ = ["Checker", "Where", "load"]

Where = tuple[str | int, ...]
"""A place in the document: ("members", 0, "file")."""

_MOST_BYTES = 1 << 20
"""Of a file; that of the fraud service has 2,000."""
_MOST_VALUES = 100_000
"""Nodes of the document, each counted as often as aliases name it ("billion laughs")."""
_MOST_DEPTH = 32
"""Levels of a document; the schema has 6, and a combiner's parameters a few more."""
_MOST_DIGITS = 400
"""Of a number: a float64 has 309 before its point. Of sixties (`1:59:59`, YAML 1.1) each costs as much as all before it."""
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_PLAIN = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})

_NOUNS: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}


def load(path: Path) -> tuple[Any, Checker]:
    """Read a YAML file with only plain values in it: no tags, no objects.

    Raises:
        ConfigError: it cannot be read, or is not YAML.
    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ConfigError(f"{path}: is {size} bytes; a description of an ensemble takes at most {_MOST_BYTES}")
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deep; at most {_MOST_DEPTH} levels are read") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    checker = Checker(path)
    value = checker.read(root, ()) if root is not None else None
    if checker.values > _MOST_VALUES:
        raise ConfigError(f"{path}: stands for more than {_MOST_VALUES} values; its aliases multiply them")
    return value, checker


class Checker:
    """Knows where each value stands, and collects problems."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Where, int] = {(): 1}
        self._problems: list[tuple[int, str]] = []
        self._constructor = SafeConstructor()
        self.values = 0
        """Read so far; a value counts as often as aliases name it, and none is read beyond `_MOST_VALUES`."""

    def read(self, node: Node, where: Where) -> Any:
        """Turn a node into plain values, noting lines and keys that are there twice."""
        self.lines[where] = node.start_mark.line + 1
        self.values += 1
        if self.values > _MOST_VALUES:
            return None
        if len(where) > _MOST_DEPTH:
            self.problem(where[:8], f"is nested deeper than {_MOST_DEPTH} levels, or names itself by an alias")
            return None
        if isinstance(node, (MappingNode, SequenceNode)) and node.tag not in _PLAIN:
            self.problem(where, f"has the tag {node.tag!r}; only plain values are read")
            return None
        if isinstance(node, MappingNode):
            values: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self._scalar(key_node, where)
                place = (*where, key)
                self.lines[place] = key_node.start_mark.line + 1
                if key in values:
                    self.problem(place, "is there twice")
                values[key] = self.read(value_node, place)
                self.lines[place] = key_node.start_mark.line + 1
            return values
        if isinstance(node, SequenceNode):
            return [self.read(item, (*where, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, where)

    def _scalar(self, node: Node, where: Where) -> Any:
        if not isinstance(node, ScalarNode):
            self.problem(where, "a mapping or list cannot be a key")
            return None
        if len(node.value) > _MOST_DIGITS and node.tag in _NUMBERS:
            self.lines[where] = node.start_mark.line + 1
            self.problem(where, f"is a number of {len(node.value)} digits; at most {_MOST_DIGITS} are read")
            return None
        try:
            return self._constructor.construct_object(node)  # type: ignore[no-untyped-call] # PyYAML has no annotations
        except (yaml.constructor.ConstructorError, ValueError, LookupError, AttributeError, TypeError) as error:
            # The last three are PyYAML's, of tags on values that are not of their kind: !!bool x, !!int "", !!timestamp x.
            self.lines[where] = node.start_mark.line + 1
            self.problem(where, f"cannot be read: {getattr(error, 'problem', None) or error}")
            return None

    def problem(self, where: Where, text: str) -> None:
        """Note one problem at a place."""
        place = where
        while place not in self.lines:
            place = place[:-1]
        line = self.lines[place]
        self._problems.append((line, f"{self.path}:{line}: {_name(where)}: {text}"))

    def raise_problems(self) -> None:
        """Raise all problems together, in the order of their lines.

        Raises:
            ConfigError: there are any.
        """
        if self._problems:
            raise ConfigError([text for _, text in sorted(self._problems, key=lambda problem: problem[0])])

    def keys(self, value: Any, where: Where, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
        """Check a mapping's keys; anything but a mapping counts as an empty one, after a problem."""
        known = tuple(known)
        if not isinstance(value, dict):
            self.problem(where, f"is {_show(value)}, a mapping was expected")
            return {}
        for key in value:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                self.problem((*where, key), f"unknown key; {hint}")
        for key in required:
            if value.get(key) is None:
                self.problem(where, f"{key!r} is missing")
        return value

    def take(self, values: Mapping[str, Any], where: Where, key: str, kind: type, default: Any) -> Any:
        """Read one value of a type; null and absence are the default. A whole number is a float too."""
        value = values.get(key)
        if value is None:
            return default
        good = isinstance(value, (int, float) if kind is float else kind)
        if not good or (isinstance(value, bool) and kind is not bool):
            self.problem((*where, key), f"is {_show(value)}, {_NOUNS[kind]} was expected")
            return default
        if kind is float:
            value = float(value)
            if value != value or value in (float("inf"), float("-inf")):
                self.problem((*where, key), "must be finite")
                return default
        return value

    def choice(self, values: Mapping[str, Any], where: Where, key: str, choices: Iterable[str], default: str) -> str:
        """Read one of several words."""
        choices = tuple(choices)
        value = values.get(key)
        if value is None:
            return default
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.problem((*where, key), f"is {_show(value)}, one of {', '.join(choices)} was expected{hint}")
            return default
        return value


def _name(where: Where) -> str:
    name = ""
    for part in where:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name or "the document"


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
