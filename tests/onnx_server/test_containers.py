"""Outputs of ONNX graphs that are no tensors: ZipMaps of every kind of class, sequences, optional tensors. Real graphs, small."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus import Call, InferRequest, ModelSettings, RequestedOutput, Tensor, TensorSpec
from serinus.errors import ModelFailed
from vision_support import plane_of

onnx = Deferred("onnx")
h = Deferred("onnx.helper")
OnnxModel = Deferred("onnx_server", "OnnxModel")
read_classes = Deferred("onnx_server.containers", "read_classes")
Maps = Deferred("onnx_server.containers", "Maps")

# onnx.proto's TensorProto.DataType.
F, INT, S = 1, 7, 8

WEIGHTS = [1.0, 0.0, 0.0, 1.0, -1.0, -1.0]
X = np.array([[1, 2], [3, -1], [-4, 0.5]], np.float32)


def save(folder: Path, nodes: Any, outputs: Any) -> Path:
    info = h.make_tensor_value_info
    made = h.make_graph(nodes, "g", [info("x", F, ["n", 2])], outputs)
    opsets = [h.make_opsetid("", 17), h.make_opsetid("ai.onnx.ml", 3)]
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(h.make_model(made, opset_imports=opsets, ir_version=8), str(folder / "model.onnx"))
    return folder


def maps(name: str, key: int) -> Any:
    return h.make_value_info(
        name, h.make_sequence_type_proto(h.make_map_type_proto(key, h.make_tensor_type_proto(F, [])))
    )


def classifier(folder: Path, classes: list[Any]) -> Path:
    """A linear classifier as converters of scikit-learn write it, its probabilities in a ZipMap."""
    whole = isinstance(classes[0], int)
    linear = {"classlabels_ints" if whole else "classlabels_strings": classes}
    zipped = {"classlabels_int64s" if whole else "classlabels_strings": classes}
    ml = {"domain": "ai.onnx.ml"}
    more = {"coefficients": WEIGHTS, "intercepts": [0.0] * 3, "multi_class": 0, "post_transform": "SOFTMAX"}
    nodes = [
        h.make_node("LinearClassifier", ["x"], ["label", "scores"], **ml, **linear, **more),
        h.make_node("ZipMap", ["scores"], ["probabilities"], **ml, **zipped),
    ]
    kind = INT if whole else S
    return save(folder, nodes, [h.make_tensor_value_info("label", kind, ["n"]), maps("probabilities", kind)])


def expected() -> np.ndarray:
    """The probabilities, in the order of the classes."""
    scores = X @ np.array(WEIGHTS, np.float32).reshape(3, 2).T
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


CLASSES: dict[str, list[Any]] = {
    "counted": [0, 1, 2],
    "not sorted": [20, 3, 100],
    "negative and wide": [-1, 2**40, -(2**62)],
    "texts": ["b", "a", "é"],
    "numbers as texts": ["10", "9", "1"],
}


@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
async def test_a_zipmap_is_a_matrix_whose_columns_are_the_classes_in_their_order(tmp_path, classes: list[Any]):
    settings = ModelSettings(name="m", implementation="onnx_server", model_dir=classifier(tmp_path, classes))
    async with plane_of(settings) as plane:
        metadata = plane.model_metadata("m")
        _, probabilities = metadata.outputs
        assert (probabilities.name, probabilities.datatype, probabilities.shape) == ("probabilities", "FP32", (-1, 3))
        assert metadata.parameters["classes"] == {"probabilities": classes}
        assert metadata.parameters["batching"] == "joined"
        best = [classes[at] for at in expected().argmax(1)]
        texts = isinstance(classes[0], str)

        async def ask(row: np.ndarray) -> list[np.ndarray]:
            return [one.data for one in (await plane.infer(InferRequest("m", [Tensor.of("x", row[None])]))).outputs]

        found = await asyncio.gather(*map(ask, X))
        assert [one[0][0] for one in found] == [name.encode() if texts else name for name in best]
        np.testing.assert_allclose(np.concatenate([one[1] for one in found]), expected(), rtol=1e-5)
        answer = json.loads(await plane.predict_v1("m", json.dumps({"instances": X.tolist()}).encode()))
        assert [row["label"] for row in answer["predictions"]] == best
        np.testing.assert_allclose([row["probabilities"] for row in answer["predictions"]], expected(), rtol=1e-5)
        wanted = [RequestedOutput("probabilities", {"classification": 1})]
        classified = await plane.infer(InferRequest("m", [Tensor.of("x", X)], outputs=wanted))
        assert [text.decode().split(":", 2)[2] for text in classified.outputs[0].data[:, 0]] == list(map(str, best))
        none = await plane.infer(InferRequest("m", [Tensor.of("x", X[:0])]))
        assert [output.shape for output in none.outputs] == [(0,), (0, 3)]


def loaded(folder: Path, **fields: Any) -> Any:
    model = OnnxModel(ModelSettings(name="m", model_dir=folder, **fields))
    model.load()
    return model


def test_settings_rename_a_map_and_labels_of_a_file_win(tmp_path):
    names = (TensorSpec("which", "INT64", (-1,)), TensorSpec("p", "FP32", (-1, 3)))
    (classifier(tmp_path, [20, 3, 100]) / "labels.txt").write_text("low\nmiddle\nhigh\n")
    model = loaded(tmp_path, outputs=names)
    assert model.details["classes"] == {"p": [20, 3, 100]}
    assert model.outputs[1].labels == ("low", "middle", "high")
    found = model.predict({"x": X}, Call(outputs=frozenset({"p"})))
    assert list(found) == ["p"]
    np.testing.assert_allclose(found["p"], expected(), rtol=1e-5)


@pytest.mark.parametrize("row", [{0: 1.0}, {0: 1.0, 1: 2.0, 2: 3.0}])
def test_a_row_of_other_classes_than_those_told_is_no_answer(row: dict[int, float]):
    with pytest.raises(ModelFailed, match=r"output 'p': a row has (no class 1|the class 2), its columns are 0, 1"):
        Maps("p", (0, 1), "FP32").array([{0: 1.0, 1: 0.0}, row])


def test_a_sequence_of_tensors_of_one_shape_is_one_tensor_and_never_batched(tmp_path):
    nodes = [h.make_node("SplitToSequence", ["x"], ["parts"], axis=1, keepdims=1)]
    model = loaded(save(tmp_path, nodes, [h.make_tensor_sequence_value_info("parts", F, None)]))
    assert [(spec.name, spec.datatype, spec.shape) for spec in model.outputs] == [("parts", "FP32", (-1, -1, -1))]
    assert not model.batchable
    assert model.unbatchable_reason == "its output 'parts' is a sequence, whose length is no number of rows"
    np.testing.assert_array_equal(model.predict({"x": X}, Call())["parts"], X.T[:, :, None], strict=True)


def test_a_sequence_of_different_shapes_is_refused_in_words(tmp_path):
    split = h.make_node("SplitToSequence", ["x", "sizes"], ["parts"], axis=0)
    sizes = h.make_node("Constant", [], ["sizes"], value=onnx.numpy_helper.from_array(np.array([1, 2], np.int64)))
    model = loaded(save(tmp_path, [sizes, split], [h.make_tensor_sequence_value_info("parts", F, None)]))
    with pytest.raises(ModelFailed, match=r"different shapes \(\[1, 2\], \[2, 2\]\).*ConcatFromSequence"):
        model.predict({"x": X}, Call())


def test_an_empty_sequence_is_a_tensor_of_no_rows(tmp_path):
    nodes = [h.make_node("SequenceEmpty", [], ["parts"], dtype=F)]
    model = loaded(save(tmp_path, nodes, [h.make_tensor_sequence_value_info("parts", F, None)]))
    found = model.predict({"x": X}, Call())["parts"]
    assert (found.shape, found.dtype) == ((0,), np.float32)


async def test_an_optional_tensor_is_a_tensor(tmp_path):
    kind = h.make_optional_type_proto(h.make_tensor_type_proto(F, ["n", 2]))
    nodes = [h.make_node("Optional", ["x"], ["y"])]
    settings = ModelSettings(
        name="m", implementation="onnx_server", model_dir=save(tmp_path, nodes, [h.make_value_info("y", kind)])
    )
    async with plane_of(settings) as plane:
        assert plane.model_metadata("m").outputs[0].shape == (-1, 2)
        answer = await plane.infer(InferRequest("m", [Tensor.of("x", X)]))
        np.testing.assert_array_equal(answer.outputs[0].data, X)


@pytest.mark.slow
def test_a_damaged_file_names_no_classes_and_ends_nothing(tmp_path):
    whole = (classifier(tmp_path, [1, 2, 3]) / "model.onnx").read_bytes()
    assert read_classes(tmp_path / "model.onnx") == {"probabilities": (1, 2, 3)}
    random = np.random.default_rng(0)
    for cut in range(1, len(whole)):
        (tmp_path / "cut").write_bytes(whole[:cut])
        read_classes(tmp_path / "cut")
    for _ in range(500):
        changed = bytearray(whole)
        changed[int(random.integers(len(whole)))] = int(random.integers(256))
        (tmp_path / "cut").write_bytes(changed)
        read_classes(tmp_path / "cut")
