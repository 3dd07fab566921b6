"""Single values against a node of a schema: the bounds on both sides of each thing that a node says."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from serinus.manifests.documents import FieldPath, load_text
from serinus.manifests.problems import Problems
from serinus.manifests.published_schemas import Schema
from serinus.manifests.structure import _is_filled, check_structure

INT32, INT64 = 2**31, 2**63
WHOLE32 = {"type": "integer", "format": "int32"}
WHOLE64 = {"type": "integer", "format": "int64"}
EITHER = {"type": "int-or-string"}


def found(node: dict[str, Any], value: Any) -> list[tuple[str, str, str]]:
    """Rule, message and mend of each finding about `x`, of that node."""
    root = {"type": "object", "fields": {"apiVersion": 2, "kind": 2, "x": 1}}
    schema = Schema(root, (root, node, {"type": "string"}))
    text = yaml.safe_dump({"apiVersion": "example.com/v1", "kind": "Made", "x": value})
    problems = Problems()
    check_structure(load_text(text, "made.yaml")[0], schema, problems)
    assert {problem.field for problem in problems.all} <= {"x"}
    return [
        (problem.rule, problem.message.partition(": ")[2] or problem.message, problem.mend) for problem in problems.all
    ]


@pytest.mark.parametrize(
    ("node", "value", "passes"),
    [
        *[(EITHER, value, True) for value in (0, 1, -1, INT32 - 1, -INT32, "25%", "", "99999999999")],
        *[(EITHER, value, False) for value in (INT32, -INT32 - 1, INT64)],
        *[(WHOLE32, value, True) for value in (0, 1, -1, INT32 - 1, -INT32, 5.0)],
        *[(WHOLE32, value, False) for value in (INT32, -INT32 - 1, INT64, float(INT32))],
        *[(WHOLE64, value, True) for value in (0, INT32, INT64 - 1, -INT64)],
        *[(WHOLE64, value, False) for value in (INT64, -INT64 - 1, 10**30)],
        *[({"type": "integer"}, value, True) for value in (0, INT64, -INT64 - 1)],
        ({"type": "number", "format": "int32"}, INT32, True),
    ],
)
def test_a_whole_number_fits_its_format(node: dict[str, Any], value: Any, passes: bool):
    told = found(node, value)
    size = node.get("format", "int32")
    expected = ("structure-range", f"{value} is too large for {size}", "use a smaller number")
    assert told == ([] if passes else [expected])


@pytest.mark.parametrize("kind", ["integer", "number"])
@pytest.mark.parametrize(
    ("value", "said", "mend"),
    [
        (0, "0 is less than 1", "use 1 or more"),
        (1, "", ""),
        (3, "", ""),
        (5, "", ""),
        (6, "6 is more than 5", "use 5 or less"),
    ],
)
def test_a_number_has_a_least_and_a_most(kind: str, value: int, said: str, mend: str):
    node = {"type": kind, "minimum": 1, "maximum": 5}
    assert found(node, value) == ([("structure-range", said, mend)] if said else [])
    assert found({"type": kind, "minimum": 1}, 10**9) == []
    assert found({"type": kind, "maximum": 5}, -(10**9)) == []
    assert found({"type": kind, "minimum": 0}, 0) == found({"type": kind, "maximum": 0}, 0) == []


@pytest.mark.parametrize(
    ("value", "said", "mend"),
    [
        ("", "is empty", "write it"),
        ("a", "has 1 characters, fewer than 2", "write it"),
        ("ab", "", ""),
        ("abc", "", ""),
        ("abcd", "has 4 characters, 3 at most", "shorten it"),
    ],
)
def test_a_text_has_a_shortest_and_a_longest(value: str, said: str, mend: str):
    node = {"type": "string", "minLength": 2, "maxLength": 3}
    assert found(node, value) == ([("structure-range", said, mend)] if said else [])
    assert found({"type": "string", "minLength": 2}, "a" * 1000) == []
    assert found({"type": "string", "maxLength": 3}, "") == []


@pytest.mark.parametrize(("value", "passes"), [("a1", True), ("a", False), ("", False)])
def test_a_text_matches_its_pattern(value: str, passes: bool):
    told = found({"type": "string", "pattern": "^a[0-9]+$"}, value)
    expected = ("structure-pattern", f"{value!r} is not accepted", "write what matches ^a[0-9]+$")
    assert told == ([] if passes else [expected])


TYPES = {
    "boolean": ([True, False], [0, 1, "true", 1.0]),
    "string": (["", "a"], [0, 1.5, True]),
    "integer": ([0, -1, 5.0], [5.5, "5", True]),
    "number": ([0, 5.5], ["5", False]),
    "int-or-string": ([0, "a"], [5.5, True]),
    "quantity": ([0, "1Gi", 0.5], [True]),
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_value_is_of_its_type(kind: str):
    fitting, others = TYPES[kind]
    for value in fitting:
        assert found({"type": kind}, value) == [], value
    for value in (*others, {"a": 1}, [1]):
        assert [rule for rule, _, _ in found({"type": kind}, value)] == ["structure-type"], value


@pytest.mark.parametrize(
    ("count", "mend"),
    [
        (1, "remove it; known here: known00"),
        (11, f"remove it; known here: {', '.join(f'known{place:02}' for place in range(11))}"),
        (12, "remove it"),
    ],
)
def test_an_unknown_field_is_told_with_those_that_are_known_where_they_are_few(count: int, mend: str):
    root = {"type": "object", "fields": {"apiVersion": 1, "kind": 1, "x": 2}}
    node = {"type": "object", "fields": {f"known{place:02}": 1 for place in range(count)}}
    schema = Schema(root, (root, {"type": "string"}, node))
    problems = Problems()
    check_structure(
        load_text("apiVersion: example.com/v1\nkind: Made\nx: {zzz: 1}\n", "made.yaml")[0], schema, problems
    )
    assert [(problem.rule, problem.mend) for problem in problems.all] == [("structure-unknown-field", mend)]


def test_a_required_field_that_the_schema_does_not_describe_may_be_filled_with_anything():
    text = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nspec: {}\n"
    root = {"type": "object", "fields": {"apiVersion": 1, "kind": 1, "spec": 2}}
    problems = Problems()
    node = {"type": "object", "fields": {}, "required": ["trafficPercent"]}
    check_structure(load_text(text, "made.yaml")[0], Schema(root, (root, {"type": "string"}, node)), problems)
    assert problems.all == ()


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 items, fewer than 1"), (1, ""), (3, ""), (4, "4 items, more than 3")],
)
def test_a_list_has_a_least_and_a_most(count: int, said: str):
    told = found({"type": "array", "minItems": 1, "maxItems": 3}, list(range(count)))
    assert [(rule, message) for rule, message, _ in told] == ([("structure-range", said)] if said else [])


@pytest.mark.parametrize(
    ("words", "value", "mend"),
    [
        (["a", "b", ""], "a", None),
        (["a", "b", ""], "", None),
        (["a", "b", ""], "c", "use one of a, b"),
        (["one", "two", "three", "four", "five", "six"], "tree", "use one of one, two, three, four, five, six"),
        (["one", "two", "three", "four", "five", "six", "seven"], "tree", "did you mean three?"),
        (
            ["one", "two", "three", "four", "five", "six", "seven"],
            "xyz",
            "use one of one, two, three, four, five, six, seven",
        ),
    ],
)
def test_a_word_is_one_of_those_that_are_accepted(words: list[str], value: str, mend: str | None):
    told = found({"type": "string", "enum": words}, value)
    assert told == ([] if mend is None else [("structure-enum", f"{value!r} is not accepted", mend)])


SPEC = ("spec", "predictor")


@pytest.mark.parametrize(
    ("path", "name", "filled"),
    [
        # The first container of a custom predictor is named by the webhook, and a framework's block has an empty name.
        ((*SPEC, "containers", 0), "name", True),
        ((*SPEC, "containers", 1), "name", False),
        ((*SPEC, "xgboost"), "name", True),
        ((), "name", False),
        *(((*SPEC, "containers", 0, key, 0), "name", False) for key in ("env", "ports")),
        ((*SPEC, "initContainers", 0), "name", False),
        ((*SPEC, "model", "modelFormat"), "name", False),
        ((*SPEC, "httpHeaders", 3), "value", True),
        *(((*SPEC, probe, "httpGet"), "port", True) for probe in ("livenessProbe", "readinessProbe", "startupProbe")),
        ((*SPEC, "lifecycle", "httpGet"), "port", False),
        ((*SPEC, "canary", 1), "trafficPercent", True),
        ((*SPEC, "autoScaling", "metrics", 1), "type", True),
        (SPEC, "containers", True),
        *((SPEC, name, False) for name in ("image", "other", "volumes", "zone")),
    ],
)
def test_fields_that_kserve_or_knative_fills_may_be_left_out(path: FieldPath, name: str, filled: bool):
    assert _is_filled(path, name) is filled
