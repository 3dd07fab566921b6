"""What the `config` of a load request may change, field by field (extension_model_repository.md, "Load")."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dataplane_support import Doubler, serving
from serinus import Model, ModelSettings, TensorSpec
from serinus.dataplane.overrides import overridden
from serinus.errors import InvalidInput
from serinus.settings import BatchSettings

OWN = ModelSettings(name="m", instances=2, batch=BatchSettings(max_batch_rows=16))


def changed(config: Any, loaded: Model | None = None, **options: Any) -> ModelSettings:
    return overridden(OWN, config if isinstance(config, str) else json.dumps(config), loaded, **options)


def refused(config: Any, loaded: Model | None = None, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        changed(config, loaded, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, OWN),
        ({"name": "m"}, OWN),
        ({"max_batch_size": 8}, replace(OWN, batch=replace(OWN.batch, max_batch_rows=8))),
        ({"max_batch_size": "8"}, replace(OWN, batch=replace(OWN.batch, max_batch_rows=8))),
        ({"max_batch_size": 1}, replace(OWN, batch=replace(OWN.batch, max_batch_rows=1))),
        ({"max_batch_size": 1 << 20}, replace(OWN, batch=replace(OWN.batch, max_batch_rows=1 << 20))),
        ({"max_batch_size": 0}, replace(OWN, batchable=False)),
        ({"max_batch_size": "0"}, replace(OWN, batchable=False)),
        ({"dynamic_batching": {}}, OWN),
        ({"dynamic_batching": {"max_queue_delay_microseconds": 1500}}, replace(OWN, batch=replace(OWN.batch, max_delay_s=0.0015))),
        ({"dynamic_batching": {"max_queue_delay_microseconds": 60_000_000}}, replace(OWN, batch=replace(OWN.batch, max_delay_s=60))),
        ({"dynamic_batching": {"priority_levels": 3, "default_priority_level": 3}},
            replace(OWN, batch=replace(OWN.batch, priority_levels=3, default_priority=3))),
        ({"dynamic_batching": {"default_queue_policy": {}}}, OWN),
        ({"dynamic_batching": {"default_queue_policy": {"default_timeout_microseconds": 1}}},
            replace(OWN, batch=replace(OWN.batch, default_timeout_s=1e-6))),
        ({"dynamic_batching": {"default_queue_policy": {"default_timeout_microseconds": 0}}}, OWN),
        ({"instance_group": []}, replace(OWN, instances=1)),
        ({"instance_group": [{}]}, replace(OWN, instances=1)),
        ({"instance_group": [{"count": 5}]}, replace(OWN, instances=5)),
        ({"instance_group": [{"count": 5}, {"count": "2"}]}, replace(OWN, instances=7)),
        ({"instance_group": [{"count": 63}, {"count": 1}]}, replace(OWN, instances=64)),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_field_changes_what_it_says_and_nothing_else(config: Any, expected: ModelSettings):
    assert changed(config) == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[]", "load parameter 'config'"),
        ("nonsense", "load parameter 'config'"),
        ({"name": "other"}, "'name' is the string 'other', the model is 'm'"),
        ({"backend": "onnxruntime"}, "'backend' cannot be changed by a load; what can is max_batch_size, dynamic_batching, instance_group"),
        ({"x" * 99: 1}, "'" + "x" * 40 + "' cannot be changed"),
        ({"max_batch_size": -1}, "'max_batch_size' is -1; an integer of 1 to 1048576 was expected (max_batch_rows)"),
        ({"max_batch_size": (1 << 20) + 1}, "'max_batch_size' is 1048577; an integer of 1 to 1048576"),
        ({"max_batch_size": 1.0}, "'max_batch_size' is 1.0"),
        ({"max_batch_size": True}, "'max_batch_size' is true"),
        ({"max_batch_size": False}, "'max_batch_size' is false"),
        ({"max_batch_size": "x"}, "'max_batch_size' is the string 'x'"),
        ({"max_batch_size": "1" * 20}, "'max_batch_size' is the string '11111"),
        ({"max_batch_size": "1" * 19}, "'max_batch_size' is 1111111111111111111;"),
        ({"dynamic_batching": 1}, "'dynamic_batching' is 1; an object was expected"),
        ({"dynamic_batching": {"preserve_ordering": True}}, "'dynamic_batching.preserve_ordering' is not offered"),
        ({"dynamic_batching": {"max_queue_delay_microseconds": 60_000_001}},
            "'dynamic_batching.max_queue_delay_microseconds' is 60000001; an integer of 0 to 60000000 was expected (max_delay_s)"),
        ({"dynamic_batching": {"priority_levels": 0}}, "'dynamic_batching.priority_levels' is 0; an integer of 1 to 256"),
        ({"dynamic_batching": {"default_priority_level": 2}}, "the default priority 2 is beyond the 1 levels"),
        ({"dynamic_batching": {"default_queue_policy": {"max_queue_size": 1}}},
            "'dynamic_batching.default_queue_policy.max_queue_size' is not offered"),
        ({"dynamic_batching": {"default_queue_policy": 3}}, "'dynamic_batching.default_queue_policy' is 3; an object was expected"),
        ({"dynamic_batching": {"default_queue_policy": {"default_timeout_microseconds": -1}}}, "default_timeout_microseconds' is -1; an integer of 0 to"),
        ({"instance_group": {}}, "'instance_group' is an object; an array was expected"),
        ({"instance_group": [1]}, "'instance_group' is 1; an object was expected"),
        ({"instance_group": [{"kind": "KIND_GPU"}]}, "'instance_group.kind' is not offered; 'count' is"),
        ({"instance_group": [{"count": 0}]}, "'instance_group.count' is 0; an integer of 1 to 64 was expected (max_instances)"),
        ({"instance_group": [{"count": 65}]}, "'instance_group.count' is 65; an integer of 1 to 64"),
        ({"instance_group": [{"count": 64}, {"count": 1}]}, "'instance_group' counts 65 instances, the limit is 64 (max_instances)"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_is_not_offered_or_out_of_its_range_is_refused(config: Any, said: str):
    assert said in refused(config)


def test_the_text_must_be_text_and_the_servers_bound_counts():
    with pytest.raises(InvalidInput, match="load parameter 'config' is 5; the text of a JSON object was expected"):
        overridden(OWN, 5)
    assert changed({"instance_group": [{"count": 3}]}, max_instances=3).instances == 3
    assert "1 to 3 was expected" in refused({"instance_group": [{"count": 4}]}, max_instances=3)


class Told(Doubler):
    """What a client is told of it, and may send back."""

    inputs = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("t", "BYTES", (-1,), optional=True))
    outputs = (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("w", "INT64", (-1,), optional=True))
    platform = "serinus_test"


X = {"name": "x", "data_type": "TYPE_FP32", "dims": ["2"]}
T = {"name": "t", "data_type": "TYPE_STRING", "dims": [], "optional": True}
Y = {"name": "y", "data_type": "TYPE_FP32", "dims": [2]}


def loaded(base: type[Model] = Told) -> Model:
    model = base(OWN)
    model.details = {"batching_reason": "by file"}
    return model


@pytest.mark.parametrize(
    ("config", "batched", "fits"),
    [
        ({"input": [X, T]}, True, True),
        ({"input": [X, {"name": "t", "data_type": "TYPE_STRING", "optional": True}]}, True, True),
        ({"input": [X]}, True, False),
        ({"input": [T, X]}, True, False),
        ({"input": [X, {**T, "optional": False}]}, True, False),
        ({"input": [X, {**T, "reshape": {}}]}, True, False),
        ({"input": [X, {**T, "dims": [1], "reshape": {"shape": []}}]}, True, True),
        ({"input": [X, {**T, "dims": ["1"], "reshape": {}}]}, True, True),
        ({"input": [X, {**T, "dims": [1], "reshape": {"shape": [1]}}]}, True, False),
        ({"input": [X, {**T, "dims": [1], "reshape": []}]}, True, False),
        ({"input": [X, {**T, "dims": [1]}]}, True, False),
        ({"input": [{**X, "dims": 2}, T]}, True, False),
        ({"input": [{**X, "dims": ["-1", "2"]}, {**T, "dims": [-1]}]}, False, True),
        ({"input": [{**X, "dims": ["-1", "2"]}, {**T, "dims": [-1]}]}, True, False),
        ({"input": "x"}, True, False),
        ({"input": [1]}, True, False),
        ({"output": [Y]}, True, True),
        ({"output": [Y, {"name": "w", "data_type": "TYPE_INT64", "dims": []}]}, True, False),
        ({"platform": "serinus_test"}, True, True),
        ({"backend": "serinus_test"}, True, True),
        ({"platform": "other"}, True, False),
        ({"model_transaction_policy": {}}, True, True),
        ({"model_transaction_policy": {"decoupled": False}}, True, True),
        ({"model_transaction_policy": {"decoupled": True}}, True, False),
        ({"model_transaction_policy": []}, True, False),
        ({"parameters": {"batching_reason": {"string_value": "by file"}}}, False, True),
        ({"parameters": {"batching_reason": {"string_value": "by file"}}}, True, False),
        ({"parameters": {"batching_reason": {"string_value": "other"}}}, False, False),
    ],
    ids=lambda value: json.dumps(value)[:70] if isinstance(value, dict) else str(value),
)
def test_what_the_model_says_of_itself_may_be_repeated_and_not_changed(config: Any, batched: bool, fits: bool):
    if fits:
        assert changed(config, loaded(), batched=batched) == OWN
        assert "cannot be changed by a load" in refused(config), "of a model that is not loaded nothing is known"
    else:
        assert "cannot be changed by a load" in refused(config, loaded(), batched=batched)


def test_a_model_that_is_not_batched_may_be_told_so_again():
    assert changed({"max_batch_size": 0}, loaded(), batched=False) == OWN
    assert changed({"max_batch_size": 0}, loaded(), batched=True) == replace(OWN, batchable=False)
    assert changed({"max_batch_size": 4}, loaded(), batched=False).batch.max_batch_rows == 4
    held = loaded()
    held.settings = replace(held.settings, batchable=False)  # by an earlier load
    assert changed({"max_batch_size": 0}, held, batched=False) == replace(OWN, batchable=False)


def test_outputs_are_all_told_where_every_one_is_optional():
    class Optional(Told):
        outputs = (TensorSpec("w", "INT64", (-1,), optional=True),)

    told = {"output": [{"name": "w", "data_type": "TYPE_INT64", "dims": []}]}
    assert changed(told, loaded(Optional)) == OWN


def test_a_decoupled_model_may_be_told_so_again():
    class Streams(Told):
        decoupled = True

    assert changed({"model_transaction_policy": {"decoupled": True}}, loaded(Streams)) == OWN
    assert "cannot be changed" in refused({"model_transaction_policy": {}}, loaded(Streams))


def test_the_owners_platform_stands_before_the_models():
    model = Told(replace(OWN, platform="mine"))
    assert changed({"platform": "mine"}, model) == OWN
    assert "cannot be changed" in refused({"platform": "serinus_test"}, model)


async def test_a_load_that_says_again_that_rows_are_not_joined_is_obeyed_each_time():
    async with serving(Doubler) as plane:
        for config in ({"max_batch_size": 0}, {"max_batch_size": 0}):
            await plane.load("m", {"config": json.dumps(config)})
            assert plane.model_config("m").max_batch_rows == 0
        await plane.load("m", {"config": json.dumps(plane.model_config("m").document())})
        assert plane.model_config("m").max_batch_rows == 0
        await plane.load("m")
        assert plane.model_config("m").max_batch_rows > 0
