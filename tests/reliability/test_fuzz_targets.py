"""Every reader of bytes refuses in the library's own words, or reads: a bounded turn of `make fuzz`, by mutators without coverage."""

from __future__ import annotations

import time

import pytest

from deferred import Deferred
from depth import draws
from fuzz_support import mutate
from seeded import seeded

run = Deferred("reliability.fuzz.run")

NAMES = (
    *("rest_json", "rest_binary", "rest_response", "v1", "protobuf", "protobuf_response", "generate", "examples"),
    *("event_structured", "event_binary", "deflate", "http", "http2_frames"),
    *("manifests", "kustomization", "policy", "policy_annotation", "looks", "gjson"),
    "model_settings",
)
FRAMEWORKS = ("skops", "cbm", "xgboost_json", "xgboost_ubjson", "lightgbm")
"""Their good files are written by the frameworks, which take seconds to import."""
MOST_S = draws(400, 400, 100) / 1000
"""For each: how many mutations that are is printed, and none of it is asserted."""
MOST = draws(2000, 2000, 500)


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
