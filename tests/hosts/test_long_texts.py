"""Texts that a model answers, one long among short ones: they take the room of their own bytes, not each that of the longest."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus.protocol.types import InferRequest, Tensor

TEXTS = ["x" * 50_000] + ["y"] * 4000

as_arrays = Deferred("mlflow_server.frames", "as_arrays")
NO_SIGNATURE = Deferred("mlflow_server.signature", "NO_SIGNATURE")
array_of = Deferred("serinus.hosts.torchserve.torchserve_host", "_array")
response_from_dict = Deferred("serinus.hosts.kserve.kserve_types", "response_from_dict")


def of_kserve(texts: list[str]) -> np.ndarray:
    request = InferRequest("m", [Tensor.of("x", np.zeros(1))])
    return response_from_dict({"predictions": texts}, request, "").outputs[0].data


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda texts: as_arrays(texts, NO_SIGNATURE)["output-0"], id="MLflow's pyfunc"),
        pytest.param(lambda texts: array_of(texts), id="TorchServe's handler"),
        pytest.param(of_kserve, id="KServe's model"),
    ],
)
def test_a_long_text_costs_the_others_nothing(make: Callable[[list[str]], Any]):
    make(["a"])  # what is imported
    tracemalloc.start()
    try:
        made = make(TEXTS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.tolist() == [text.encode() for text in TEXTS]
    assert peak < 50 << 20
