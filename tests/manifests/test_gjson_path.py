"""Conditions of InferenceGraphs are GJSON paths: what each leads to, as GJSON's own documentation and v1.18 say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serinus.manifests.graphs.gjson_path import MISSING, condition_problem, evaluate, exists

PEOPLE: dict[str, Any] = {
    "name": {"first": "Tom", "last": "Anderson"},
    "age": 37,
    "children": ["Sara", "Alex", "Jack"],
    "fav.movie": "Deer Hunter",
    "nothing": None,
    "yes": True,
    "friends": [
        {"first": "Dale", "last": "Murphy", "age": 44, "nets": ["ig", "fb", "tw"]},
        {"first": "Roger", "last": "Craig", "age": 68, "nets": ["fb", "tw"]},
        {"first": "Jane", "last": "Murphy", "age": 47, "nets": ["ig", "tw"]},
    ],
}
DALE, ROGER, JANE = PEOPLE["friends"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # The examples of SYNTAX.md, section by section.
        ("name.last", "Anderson"),
        ("age", 37),
        ("children", ["Sara", "Alex", "Jack"]),
        ("children.1", "Alex"),
        ("friends.1.first", "Roger"),
        ("child*.2", "Jack"),
        ("c?ildren.0", "Sara"),
        ("fav\\.movie", "Deer Hunter"),
        ("friends.#", 3),
        ("friends.#.age", [44, 68, 47]),
        ('friends.#(last=="Murphy").first', "Dale"),
        ('friends.#(last=="Murphy")#.first', ["Dale", "Jane"]),
        ("friends.#(age>45)#.last", ["Craig", "Murphy"]),
        ('friends.#(first%"D*").last', "Murphy"),
        ('friends.#(first!%"D*").last', "Craig"),
        ('children.#(!%"*a*")', "Alex"),
        ('children.#(%"*a*")#', ["Sara", "Jack"]),
        ('friends.#(nets.#(=="fb"))#.first', ["Dale", "Roger"]),
        ("friends.0.first", "Dale"),
        ("friends|0.first", "Dale"),
        ("friends.0|first", "Dale"),
        ("friends|#", 3),
        ('friends.#(last="Murphy")#', [DALE, JANE]),
        ('friends.#(last="Murphy")#|first', MISSING),
        ('friends.#(last="Murphy")#.0', []),
        ('friends.#(last="Murphy")#|0', DALE),
        ('friends.#(last="Murphy")#.#', []),
        ('friends.#(last="Murphy")#|#', 2),
        ("children.@reverse", ["Jack", "Alex", "Sara"]),
        ("children.@reverse.0", "Jack"),
        ("@this.age", 37),
        ('@pretty:{"sortKeys":true}.age', 37),
        ("name.@keys", ["first", "last"]),
        ("name.@values|0", "Tom"),
        ("{name.first,age,'x'}", {"first": "Tom", "age": 37}),
        (
            '{name.first,age,"the_murphys":friends.#(last="Murphy")#.first}',
            {"first": "Tom", "age": 37, "the_murphys": ["Dale", "Jane"]},
        ),
        ("[age,gone,name.first]", [37, "Tom"]),
        ("[age].0", 37),
        # What is not there.
        ("gone", MISSING),
        ("name.gone", MISSING),
        ("age.gone", MISSING),
        ("children.3", MISSING),
        ("children.-1", MISSING),
        ("children.first", MISSING),
        ("friends.#(age>100)", MISSING),
        ("friends.#(age>100)#", []),
        ("friends.#.gone", []),
        ("", MISSING),
        # Null is there; a length is a number.
        ("nothing", None),
        ("age.#", MISSING),
        # Text behind an operator is read by the value's type; quotes do not matter to a number.
        ('friends.#(age=="44").first', "Dale"),
        ("friends.#(last==Murphy).first", "Dale"),
        ("friends.#(last)#|#", 3),
        ("friends.#(gone)", MISSING),
        ("friends.#(nets==x)", MISSING),
        ("friends.#(age!=44).first", "Roger"),
        ("friends.#(age<=44).first", "Dale"),
        ("friends.#(first<E).first", "Dale"),
        ("friends.#( age == 68 ).first", "Roger"),
        ("friends.#[age==68].first", "Roger"),
        ('friends.#(first=="D\\u0061le").age', 44),
        # A pipe leaves the query behind; a modifier behind a dot does so, too.
        ("friends.#(age>45)#.@reverse.0.first", []),
        ("friends.#(age>45)#|@reverse|0.first", "Jane"),
        ("friends.@flatten.0.first", "Dale"),
        ("gone.@keys", []),
        ("gone|@keys", []),
        ("gone|[a]", []),
        ("@unknown", MISSING),
        ('!"text"', "text"),
        ("age|!true", True),
        ("..0.age", 37),
        ("..#", 1),
        ("friends.@dig:first|#", 3),
        ("friends.#(age==~true)#|#", 3),
        ("yes.x", MISSING),
    ],
)
def test_a_path_leads_where_gjson_says(path: str, expected: Any) -> None:
    assert evaluate(PEOPLE, path) == expected
    assert exists(PEOPLE, path) is (expected is not MISSING)


@pytest.mark.parametrize(
    ("body", "path", "holds"),
    [
        ({"modelId": "1"}, '[@this].#(modelId=="1")', True),
        ({"modelId": 1}, '[@this].#(modelId=="1")', True),
        ({"modelId": "2"}, '[@this].#(modelId=="1")', False),
        ({"source": "client"}, "[@this].#(source==client)", True),
        ({"instances": [{"intval": 11}]}, "instances.#(intval>10)", True),
        ({"instances": [{"intval": 10}]}, "instances.#(intval>10)", False),
        ({"instances": [{"strval": "the-red-server-1"}]}, "instances.#(strval%*red-server*)", True),
        ({"instances": []}, "instances.#(intval>10)", False),
        ({"predictions": [{"label": "dog"}]}, 'predictions.#(label=="dog")', True),
        ({"outputs": [{"name": "y", "data": [3]}]}, 'outputs.#(name=="y").data.#(==3)', True),
        ({"flag": True}, "[@this].#(flag==true)", True),
        ({"flag": False}, "[@this].#(flag>=true)", False),
        ({"flag": False}, "[@this].#(flag<true)", True),
        ({"flag": False}, "[@this].#(flag<=x)", True),
        ({"flag": True}, "[@this].#(flag!=maybe)", True),
        ({"flag": True}, "[@this].#(flag==maybe)", False),
        ({"flag": "T"}, "[@this].#(flag==~true)", True),
        ({"other": 1}, "[@this].#(flag==~false)", True),
        ({"other": 1}, "[@this].#(flag!=~*)", True),
        ({"a": {"b": 1}}, "a", True),
        ({"a": 2}, "[@this].#(a==words)", False),
        ({"a": 0}, "[@this].#(a==words)", True),  # GJSON reads what is no number as 0
    ],
)
def test_conditions_of_switches_hold_as_in_kserve(body: Any, path: str, holds: bool) -> None:
    assert exists(json.loads(json.dumps(body)), path) is holds


def test_a_pattern_that_backtracks_for_ever_elsewhere_ends_at_once() -> None:
    assert not exists([{"a": "a" * 3000}], f'#(a%"{"a*" * 25}b")')


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("instances.#(x>1", "does not close"),
        ("[@this].#(x==1", "does not close"),
        ("{ .input.userId == 1 }", "holds for every request"),
        ("[@this]", "holds for every request"),
        ("", "is empty"),
        ("instances.#(x>1)", None),
        ('[@this].#(x=="1")', None),
        ("a(b", None),
    ],
)
def test_a_condition_that_cannot_mean_what_it_says_is_told(path: str, said: str | None) -> None:
    found = condition_problem(path)
    assert (found is None) if said is None else said in str(found)
