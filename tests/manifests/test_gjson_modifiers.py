"""What each of GJSON's own modifiers makes of each kind of value, and where a path is cut at a bar."""

from __future__ import annotations

from typing import Any

import pytest

from serinus.manifests.graphs.gjson_modifiers import from_text, modify
from serinus.manifests.graphs.gjson_query import MISSING
from serinus.manifests.graphs.gjson_syntax import split_pipe

MADE: list[tuple[str, str, Any, Any]] = [
    ("reverse", "", [1, 2, 3], [3, 2, 1]),
    ("reverse", "", 5, 5),
    ("reverse", "", "ab", "ab"),
    ("keys", "", {"a": 1, "b": 2}, ["a", "b"]),
    ("keys", "", [1, 2, 3], [None, None, None]),
    ("keys", "", [], []),
    ("keys", "", 5, [None]),
    ("keys", "", None, [None]),
    ("keys", "", MISSING, []),
    ("values", "", {"a": 1, "b": [2]}, [1, [2]]),
    ("values", "", [1, 2], [1, 2]),
    ("values", "", 5, [5]),
    ("values", "", None, [None]),
    ("values", "", MISSING, []),
    ("flatten", "", [1, [2, [3, [4]]], []], [1, 2, [3, [4]]]),
    ("flatten", '{"deep":true}', [1, [2, [3, [4]]], []], [1, 2, 3, 4]),
    ("flatten", '{"deep":false}', [1, [2, [3]]], [1, 2, [3]]),
    ("flatten", '{"other":true}', [[1, [2]]], [1, [2]]),
    ("flatten", "[1]", [[1, [2]]], [1, [2]]),
    ("flatten", "{", [[1, [2]]], [1, [2]]),
    ("flatten", "", {"a": [1]}, {"a": [1]}),
    ("join", "", [{"a": 1, "b": 1}, 5, {"b": 2}, {"c": 3}], {"a": 1, "b": 2, "c": 3}),
    ("join", "", [], {}),
    ("join", "", {"a": 1}, {"a": 1}),
    ("join", "", "text", "text"),
    ("fromstr", "", '{"a":[1]}', {"a": [1]}),
    ("fromstr", "", "no json", MISSING),
    ("fromstr", "", 5, 5),
    ("tostr", "", {"a": [1, None]}, '{"a": [1, null]}'),
    ("tostr", "", "text", '"text"'),
    ("tostr", "", 5, "5"),
    ("tostr", "", MISSING, ""),
    ("group", "", {"a": [1, 2], "b": [3]}, [{"a": 1, "b": 3}, {"a": 2}]),
    ("group", "", {"a": [1], "b": [2, 3, 4]}, [{"a": 1, "b": 2}, {"b": 3}, {"b": 4}]),
    ("group", "", {"a": 5, "b": [1]}, [{"b": 1}]),
    ("group", "", {}, []),
    ("group", "", [1], MISSING),
    ("group", "", MISSING, MISSING),
    *((name, "", value, value) for name in ("this", "valid", "pretty", "ugly") for value in ({"a": 1}, [1], 5, MISSING)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "argument", "value", "made"), MADE)
def test_a_modifier_makes_of_each_value_what_GJSON_makes(name: str, argument: str, value: Any, made: Any):
    found = modify(value, name, argument)
    assert found == made
    assert type(found) is type(made)


def test_an_object_is_turned_round_and_keeps_its_values():
    assert list(modify({"a": 1, "b": 2, "c": 3}, "reverse", "").items()) == [("c", 3), ("b", 2), ("a", 1)]


@pytest.mark.parametrize(
    ("text", "value"), [("[1,2]", [1, 2]), ('"a"', "a"), ("", MISSING), ("{", MISSING), (None, None)]
)
def test_text_is_read_as_JSON_or_is_missing(text: Any, value: Any):
    assert from_text(text) == value


CUTS: list[tuple[str, tuple[str, str | None]]] = [
    ("", ("", None)),
    ("a", ("a", None)),
    ("a|b", ("a", "b")),
    ("a|b|c", ("a", "b|c")),
    ("a|", ("a", "")),
    ("|a", ("", "a")),
    ("a\\|b", ("a\\|b", None)),
    ("a\\|b|c", ("a\\|b", "c")),
    ("a.#(b|c)", ("a.#(b|c)", None)),
    ("a.#(b|c)|d", ("a.#(b|c)", "d")),
    ("a.#(b|c)#|d", ("a.#(b|c)#", "d")),
    ("a.#[b|c]|d", ("a.#[b|c]", "d")),
    ("a.#(b|c", ("a.#(b|c", None)),
    ("a.#|b", ("a.#", "b")),
    ("a(b|c)", ("a(b", "c)")),
    ("{a,b}", ("{a,b}", None)),
    ("{a|x,b}|c", ("{a|x,b}", "c")),
    ("{a,b}|c|d", ("{a,b}", "c|d")),
    ("{a,b}.c|d", ("{a,b}.c|d", None)),
    ("{a,b", ("{a,b", None)),
]


@pytest.mark.parametrize(("path", "parts"), CUTS)
def test_a_path_is_cut_at_its_first_bar_outside_of_queries_and_escapes(path: str, parts: tuple[str, str | None]):
    assert split_pipe(path) == parts
