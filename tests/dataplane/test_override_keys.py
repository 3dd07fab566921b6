"""Keys of a load's `config` that are none of those that may be repeated, whatever they hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dataplane_support import Doubler
from serinus import ModelSettings
from serinus.dataplane.overrides import overridden
from serinus.errors import InvalidInput

OWN = ModelSettings(name="m")
X = [{"name": "x", "data_type": "TYPE_FP32", "dims": ["2"]}]
Y = [{"name": "y", "data_type": "TYPE_FP32", "dims": ["2"]}]


@pytest.mark.parametrize(
    "key", ["", "a", "cc_model_filenames", "inpus", "outpus", "outputs", "optimization", "z", "version_policy"]
)
@pytest.mark.parametrize("value", [X, Y, 0, "", {}, {"decoupled": False}], ids=json.dumps)
def test_a_key_that_is_not_known_is_refused_though_its_value_is_one_that_another_may_have(key: str, value: Any):
    with pytest.raises(InvalidInput) as caught:
        overridden(OWN, json.dumps({key: value}), Doubler(OWN))
    assert str(caught.value) == (
        f"load parameter 'config': {key!r} cannot be changed by a load; "
        "what can is max_batch_size, dynamic_batching, instance_group"
    )


def test_inputs_and_outputs_are_not_taken_for_one_another():
    assert overridden(OWN, json.dumps({"input": X, "output": Y}), Doubler(OWN)) == OWN
    for swapped in ({"input": Y}, {"output": X}):
        with pytest.raises(InvalidInput, match="cannot be changed by a load"):
            overridden(OWN, json.dumps(swapped), Doubler(OWN))


def test_a_key_is_shown_to_its_fortieth_letter():
    with pytest.raises(InvalidInput, match=f"'{'k' * 40}' cannot be changed"):
        overridden(OWN, json.dumps({"k" * 60: 1}), Doubler(OWN))
