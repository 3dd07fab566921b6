"""Every reader of bytes refuses in the library's own words, or reads: a bounded turn of `make fuzz`, by mutators without coverage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from deferred import Deferred
from depth import draws
from fuzz_support import mutate
from seeded import seeded

run = Deferred("reliability.fuzz.run")

NAMES = (
    *("rest_json", "rest_binary", "rest_response", "v1", "protobuf", "protobuf_response", "generate", "examples"),
    *("event_structured", "event_binary", "deflate", "http", "http2_frames"),
    *("manifests", "plans", "kustomization", "policy", "policy_annotation", "looks", "gjson"),
    "model_settings",
)
FRAMEWORKS = ("skops", "cbm", "xgboost_json", "xgboost_ubjson", "lightgbm")
"""Their good files are written by the frameworks, which take seconds to import."""
MOST_S = draws(400, 150, 100) / 1000
"""For each: how many mutations that are is printed, and none of it is asserted."""
MOST = draws(2000, 2000, 500)
DOCUMENTS = (
    *("rest_json", "rest_response", "v1", "generate", "examples", "event_structured"),
    *("manifests", "plans", "kustomization", "policy", "policy_annotation", "looks", "model_settings"),
)
ODD_MOST = draws(2000, 100, 20)
"""Of what comes of all seeds of a kind but the first: up to 25,000."""
WHOLE_MOST = 600
"""Of what comes of the first."""


def test_these_are_all_targets() -> None:
    assert set(run.load_targets()) == {*NAMES, *FRAMEWORKS}


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in FRAMEWORKS)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers of a damaged model overflow
def test_damaged_bytes_are_read_or_refused_in_words(name: str) -> None:
    target, chance = run.load_targets()[name], seeded(1)
    seeds = target.seeds()
    assert all(map(target, seeds)), "a good input is refused"
    end, runs, taken = time.monotonic() + MOST_S, 0, 0
    while runs < MOST and time.monotonic() < end:
        data = mutate(chance.choice(seeds), chance)
        try:
            taken += target(data)
        except Exception as error:
            raise AssertionError(f"{name}: {data!r}") from error
        runs += 1
    print(f"{runs} executions, {taken} taken")
    assert runs > 0


ODD = ({}, {"a": {}}, [], [[]], None, True, 0, -1, 1.5, 1e308, 1 << 70, "", "x", "\0", "-")
"""Values that documents rarely hold where they come."""


def documents_with_odd_values(seed: bytes) -> Iterator[bytes]:
    """The document with each of its values, of any depth, replaced by each odd one and left out; nothing where it is no JSON or YAML."""
    try:
        document = list(yaml.safe_load_all(seed))
    except (yaml.YAMLError, UnicodeDecodeError):
        return

    def written() -> bytes:
        return "\n---\n".join(map(json.dumps, document)).encode()

    def changed(inside: Any) -> Iterator[bytes]:
        for key in list(inside) if isinstance(inside, dict) else range(len(inside)):
            was = inside[key]
            for inside[key] in ODD:
                yield written()
            inside[key] = was
            if isinstance(was, dict | list):
                yield from changed(was)
            if isinstance(inside, dict):
                del inside[key]
                yield written()
                inside[key] = was

    yield from changed(document)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_value_of_any_type_in_any_place_of_a_document_is_read_or_refused_in_words(name: str) -> None:
    target, chance = run.load_targets()[name], seeded(1)
    first, *others = (list(documents_with_odd_values(seed)) for seed in target.seeds())
    documents = [each for more in others for each in more]
    for data in [*first[:WHOLE_MOST], *chance.sample(documents, min(ODD_MOST, len(documents)))]:
        try:
            target(data)
        except Exception as error:
            raise AssertionError(f"{name}: {data!r}") from error
    assert first
