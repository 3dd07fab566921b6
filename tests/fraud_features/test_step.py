"""`FeaturesStep`: the features as an answer, with nobody behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fraud_support as support
from deferred import Deferred
from fraud_features.features import FEATURE_NAMES
from fraud_features.store import MemoryStore
from fraud_support import NOW_S

kserve_errors = Deferred("kserve.errors")
InferInput = Deferred("kserve", "InferInput")
InferRequest = Deferred("kserve", "InferRequest")
FeaturesStep = Deferred("fraud_features.step", "FeaturesStep")
Behind = Deferred("fraud_transformer", "Behind")


def request(columns: dict[str, list[Any]], **more: Any) -> InferRequest:
    inputs = [InferInput(n, list(t.shape or []), t.datatype, t.data) for n, t in support.tensors(columns).items()]
    return InferRequest("fraud", inputs, **more)


@pytest.fixture
def step() -> FeaturesStep:
    made = FeaturesStep("fraud-features", store=MemoryStore(), clock=lambda: NOW_S)
    made.load()
    return made


async def test_it_answers_what_the_transformer_hands_to_the_ensemble_and_the_ids(step: FeaturesStep):
    columns = support.values(4)
    whole = Behind()
    handed = await whole.preprocess(request(columns))
    answer, _ = await step(request(columns, request_id="7"), headers={})
    assert answer.id == "7"
    assert [output.name for output in answer.outputs] == ["transaction_id", "features", "amount", "terminal_id"]
    for tensor in handed.inputs:
        (found,) = [output for output in answer.outputs if output.name == tensor.name]
        assert (found.datatype, list(found.shape)) == (tensor.datatype, list(tensor.shape))
        np.testing.assert_array_equal(found.as_numpy(), tensor.as_numpy())
    told = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in step.get_output_types()}
    assert told.keys() == {output.name for output in answer.outputs}
    assert told["features"] == ("FP32", [-1, len(FEATURE_NAMES)])
    assert step.serinus_row_inputs == frozenset()


async def test_transactions_are_counted_and_what_is_wrong_is_refused_whole(step: FeaturesStep):
    columns = support.values(4)
    await step(request(columns), headers={})
    assert (await step.store.stats()).ids == 4
    with pytest.raises(kserve_errors.InvalidInput, match="amount"):
        await step(request({**columns, "amount": [-1.0] * 4}), headers={})
    assert (await step.store.stats()).ids == 4
