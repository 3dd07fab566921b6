"""Parts that rules are made of: what a block is by its path, which amounts of resources are judged, what is said of scaling that is written twice."""

from __future__ import annotations

from typing import Any

import pytest

from serinus.manifests.quantities import check_resources
from serinus.manifests.rules.kinds.llm_rules import _variants
from serinus.manifests.rules.rule import Block


@pytest.mark.parametrize(
    ("path", "part", "is_template", "is_canary"),
    [
        (("spec", "predictor"), "predictor", False, False),
        (("spec",), "spec", False, False),
        (("spec", "canary", 0, "predictor"), "predictor", False, True),
        (("spec", "template", "spec"), "spec", True, False),
    ],
)
def test_a_block_is_what_its_path_says(path: Any, part: str, is_template: bool, is_canary: bool):
    block = Block(path, {}, {})
    assert (block.part, block.is_template, block.is_canary) == (part, is_template, is_canary)


@pytest.mark.parametrize("odd", [None, {}, [], True], ids=["absent", "a mapping", "a list", "a truth value"])
def test_an_amount_of_another_shape_is_judged_elsewhere_and_those_beside_it_here(odd: Any):
    found = list(check_resources({"limits": {"cpu": odd, "memory": "1GI"}, "requests": {"cpu": odd, "memory": -1}}))
    assert [(path, said) for path, said, _ in found] == [
        (("limits", "memory"), "'1GI' is not a quantity"),
        (("requests", "memory"), "-1 is less than 0"),
    ]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"hpa": {}, "keda": {}}, ["has hpa and keda"]),
        ({}, ["has neither hpa nor keda"]),
        ({"hpa": {}}, []),
    ],
)
def test_one_of_two_autoscalers_is_written(written: Any, said: list[str]):
    assert [words for _, words, _ in _variants(("spec", "scaling", "wva"), written, {})] == said
