"""Rows that depend on one another only in large batches, or only at certain values, are found out as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batching_graphs import INT, F, constant, weights, write
from deferred import Deferred
from serinus import ModelSettings, TensorSpec
from serinus.dataplane.joining.independence import LARGEST, examine
from serinus.dataplane.joining.sampling import scenes
from serinus.settings import BatchSettings
from serinus.testing import InMemoryClient

helper = Deferred("onnx", "helper")

X = (TensorSpec("x", "FP32", (-1, 4)),)
Rows = Mapping[str, np.ndarray]


def gated(where: Callable[[np.ndarray], Any]) -> Callable[[Rows], Mapping[str, Any]]:
    """A model that adds the mean of the batch where `where` says so."""
    return lambda x: {"y": np.where(where(x["x"]), x["x"] + x["x"].mean(axis=0), x["x"])}


def capacity(places: int) -> Callable[[Rows], Mapping[str, Any]]:
    """An expert that takes the first rows that are meant for it, and passes over the others."""

    def predict(x: Rows) -> Mapping[str, Any]:
        turn = np.cumsum(x["x"][:, 0] > 0)
        return {"y": np.where((turn > places)[:, None], np.float32(0), x["x"])}

    return predict


RARE = {
    "from 34 rows on": gated(lambda x: len(x) >= 34),
    "from 64 rows on": gated(lambda x: len(x) >= 64),
    "at multiples of 16 rows": gated(lambda x: len(x) % 16 == 0),
    "beyond a chunk of 64 rows": gated(lambda x: len(x) > 64),
    "from 1000 rows on": gated(lambda x: len(x) >= 1000),
    "an expert of 40 places": capacity(40),
    "an expert of 200 places": capacity(200),
    "zeros": gated(lambda x: x == 0),
    "whole numbers": gated(lambda x: x == np.floor(x)),
    "large negative numbers": gated(lambda x: (x < -20) & (x > -90)),
    "some hundreds": gated(lambda x: (x > 50) & (x < 200)),
}


@pytest.mark.parametrize("case", RARE)
def test_rare_dependence_is_found_out(case):
    finding = examine(RARE[case], scenes(X, None), clock=lambda: 0.0)
    assert finding.outcome == "dependent", finding


def test_no_batch_is_tried_that_is_larger_than_those_that_will_be_joined():
    sizes = set()

    def predict(x: Rows) -> Mapping[str, Any]:
        sizes.add(len(x["x"]))
        return {"y": x["x"]}

    assert examine(predict, scenes(X, None), clock=lambda: 0.0, most_rows=100).outcome == "independent"
    assert max(sizes) == 65
    assert examine(predict, scenes(X, None), clock=lambda: 0.0).outcome == "independent"
    assert max(sizes) == LARGEST


def test_large_batches_are_tried_as_long_as_they_are_quick():
    now, sizes = [0.0], set()

    def predict(x: Rows) -> Mapping[str, Any]:
        now[0] += len(x["x"]) * 0.0005
        sizes.add(len(x["x"]))
        return {"y": x["x"]}

    assert examine(predict, scenes(X, None), clock=lambda: now[0]).outcome == "independent"
    assert max(sizes) == 256  # 0.128 s; 1024 would take 0.512


@pytest.mark.slow
def test_large_batches_are_tried_as_long_as_they_are_small():
    sizes = set()

    def predict(x: Rows) -> Mapping[str, Any]:
        sizes.add(len(x["x"]))
        return {"y": np.repeat(x["x"], 20_000, axis=1)}  # 320 kB a row

    assert examine(predict, scenes(X, None), clock=lambda: 0.0).outcome == "independent"
    assert max(sizes) == 65


def test_a_large_batch_that_is_refused_is_no_harm():
    def predict(x: Rows) -> Mapping[str, Any]:
        if len(x["x"]) > 50:
            raise MemoryError
        return {"y": x["x"]}

    assert examine(predict, scenes(X, None), clock=lambda: 0.0).outcome == "independent"


def test_bytes_of_pictures_are_tried_beside_the_largest():
    def predict(x: Rows) -> Mapping[str, Any]:
        pixels = x["x"].astype(np.float32)
        return {"y": pixels / 255 if pixels.max() == 255 else pixels}

    specs = (TensorSpec("x", "UINT8", (-1, 2, 2)),)
    assert examine(predict, scenes(specs, None), clock=lambda: 0.0).outcome == "dependent"


def int8_label(folder: Path) -> Path:
    """A classifier in dynamic int8 that answers the label alone: a coarser scale seldom shows."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Softmax", ["h"], ["t"], axis=1),
        node("DynamicQuantizeLinear", ["t"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "v", "zero"], ["a"]),
        node("ArgMax", ["a"], ["y"], axis=1, keepdims=0),
    ]
    quantised = np.random.default_rng(0).integers(-100, 100, (4, 4)).astype(np.int8)
    return write(
        folder,
        nodes,
        [("x", F, ["n", 4])],
        [("y", INT, ["n"])],
        [constant("w", weights(4, 4)), constant("v", quantised)],
    )


def batching(folder: Path, **fields: Any) -> tuple[str, str]:
    settings = ModelSettings(name="m", implementation="onnx_server", model_dir=folder, **fields)
    with InMemoryClient(settings) as client:
        parameters = client.metadata.parameters
        return parameters["batching"], parameters["batching_reason"]


def test_an_onnx_operator_that_scales_by_the_whole_tensor_is_a_no_without_a_check(tmp_path):
    how, reason = batching(int8_label(tmp_path), batchable=True)
    assert how == "alone"
    assert "DynamicQuantizeLinear scales all rows of a batch by the largest number in it" in reason


def test_a_name_that_is_like_such_an_operator_is_no_operator(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["DynamicQuantizeLinear"], name="DynamicQuantizeLinear")]
    nodes.append(helper.make_node("Identity", ["DynamicQuantizeLinear"], ["y"]))
    assert batching(write(tmp_path, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])]))[0] == "joined"


def test_a_record_of_smaller_batches_does_not_speak_for_larger_ones(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("GreaterOrEqual", ["rows", "many"], ["is_large"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Where", ["is_large", "mean", "zero"], ["added"]),
        helper.make_node("Add", ["x", "added"], ["y"]),
    ]
    given = [constant("many", np.int64([200])), constant("zero", np.float32(0))]
    folder = write(tmp_path, nodes, [("x", F, ["n", 4])], [("y", F, ["n", 4])], given)
    assert batching(folder, batch=BatchSettings(max_batch_rows=100))[0] == "joined"
    assert batching(folder)[0] == "alone"
