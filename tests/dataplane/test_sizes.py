"""What a model's settings and its file may size: each number, name and input held to its bound, all that is wrong told at once."""

from __future__ import annotations

from typing import Any

import pytest

from serinus import ModelSettings, TensorSpec
from serinus.bounds import ModelBounds
from serinus.dataplane.sizes import check_inputs, check_settings
from serinus.errors import ConfigError
from serinus.settings import BatchSettings

BOUNDS = ModelBounds(instances=4, rank=3, tensor_bytes=96)


def problems(**fields: Any) -> list[str]:
    try:
        check_settings(ModelSettings(**({"name": "m"} | fields)), BOUNDS)
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, []),
        ({"instances": 4, "threads": 0, "max_concurrency": 1}, []),
        ({"instances": 5}, ["instances"]),
        ({"instances": 0}, ["instances"]),
        ({"threads": -1}, ["threads"]),
        ({"max_concurrency": 0}, ["max_concurrency"]),
        ({"instances": 1.0}, ["instances"]),
        ({"instances": True}, ["instances"]),
        ({"batch": BatchSettings(max_batch_rows=0)}, ["max_batch_rows"]),
        ({"batch": BatchSettings(max_queue_rows=0, default_timeout_s=None, max_delay_s=0.5)}, []),
        ({"batch": BatchSettings(max_queue_rows=-1)}, ["max_queue_rows"]),
        ({"batch": BatchSettings(priority_levels=0, default_priority=0)}, ["priority_levels", "default_priority"]),
        ({"batch": BatchSettings(max_delay_s=61)}, ["max_delay_s"]),
        ({"batch": BatchSettings(default_timeout_s=-1)}, ["default_timeout_s"]),
        ({"batch": BatchSettings(max_batch_rows=2.5)}, ["max_batch_rows"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_number_out_of_its_range_is_named(fields: dict[str, Any], named: list[str]):
    told = problems(**fields)
    assert [problem.partition(": ")[2].partition(" ")[0] for problem in told] == named
    assert all(problem.startswith("model 'm': ") for problem in told)


def test_everything_that_is_wrong_is_told_at_once():
    told = problems(
        instances="many",
        threads=-1,
        max_concurrency=0,
        batch=BatchSettings(max_batch_rows=1.5, default_timeout_s=None, max_delay_s=61),
        version="v" * 256,
        inputs=(TensorSpec("x", "FP32", (1, 1, 1, 1)), TensorSpec("y", "FP32", (-1, 25))),
    )
    assert told == [
        "model 'm': instances is many; a whole number was expected",
        *[problem for problem in told if "threads" in problem or "max_concurrency" in problem],
        "model 'm': max_batch_rows is 1.5; a whole number was expected",
        *[problem for problem in told if "max_delay_s" in problem],
        "model 'm': version has 256 characters, the limit is 255",
        "model 'm': tensor 'x' has 4 dimensions, the limit is 3 (max_rank)",
        "model 'm': tensor 'y' of shape [-1, 25] has 100 bytes at the least, the limit is 96 (max_tensor_bytes)",
    ]
    assert len(told) == 8


@pytest.mark.parametrize("what", ["name", "version"])
def test_a_name_has_at_most_255_characters_and_all_can_be_printed(what: str):
    assert problems(**{what: "a" * 255}) == []
    (long,) = problems(**{what: "a" * 256})
    assert long.endswith(f"{what} has 256 characters, the limit is 255")
    assert len(long) < 350
    (odd,) = problems(**{what: "a\x1bb\x00"})
    assert odd.endswith(f"{what} is 'a\\x1bb\\x00', which has the character '\\x1b'; printable ones were expected")


def inputs_of(*specs: TensorSpec) -> list[str]:
    try:
        check_inputs("m", specs, BOUNDS)
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("datatype", "shape", "bytes_"),
    [
        ("FP32", (-1, 24), None),
        ("FP32", (-1, 25), 100),
        ("FP64", (-1, 12), None),
        ("FP64", (13,), 104),
        ("INT8", (96,), None),
        ("INT8", (97,), 97),
        ("BYTES", (12,), None),
        ("BYTES", (13,), 104),
        ("FP32", (-1, -1, 0), None),
        ("FP32", (5, 5, -1), 100),
        ("FP32", (), None),
    ],
    ids=str,
)
def test_an_input_is_held_to_the_bytes_of_one_row(datatype: str, shape: tuple[int, ...], bytes_: int | None):
    told = inputs_of(TensorSpec("x", datatype, shape))
    if bytes_ is None:
        assert told == []
    else:
        assert told == [
            f"model 'm': tensor 'x' of shape {list(shape)} has {bytes_} bytes at the least, the limit is 96 (max_tensor_bytes)"
        ]


def test_every_input_is_looked_at_also_after_one_with_too_many_dimensions():
    told = inputs_of(
        TensorSpec("a", "FP32", (1, 1, 1)),
        TensorSpec("b", "FP32", (1, 1, 1, 1)),
        TensorSpec("c", "FP32", (100,)),
    )
    assert [problem.split("'")[3] for problem in told] == ["b", "c"]
