"""Weights that lie beside a graph in files of their own: where they may lie, and what an older ONNX Runtime is given of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus import Call, ModelSettings
from serinus.errors import ConfigError

onnx = Deferred("onnx")
TensorProto = Deferred("onnx", "TensorProto")
helper = Deferred("onnx.helper")
external_weights = Deferred("onnx_server.external_weights")
OnnxModel = Deferred("onnx_server", "OnnxModel")


def load(folder: Path, **fields: Any) -> Any:
    model = OnnxModel(ModelSettings(name="m", model_dir=folder, **fields))
    model.load()
    return model


def outside() -> onnx.TensorProto:
    """Four numbers that lie beside the model's folder."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def place_in_a_constant() -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.graph.node.append(helper.make_node("Constant", [], ["w"], value=outside()))
    return made


def place_in_a_branch() -> onnx.ModelProto:
    made, branch = onnx.ModelProto(), onnx.GraphProto(name="then", initializer=[outside()])
    made.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    return made


def place_in_a_function() -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.functions.add(name="f").node.append(helper.make_node("Constant", [], ["w"], value=outside()))
    return made


def place_in_a_sparse_tensor() -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.graph.sparse_initializer.add().values.CopyFrom(outside())
    return made


def place_before_its_key() -> bytes:
    """A path written before the word that says that it is one, which no serializer does and every parser reads."""
    made = onnx.ModelProto()
    made.graph.initializer.append(outside())
    key, value = b"\x0a\x08location", b"\x12\x0d../secret.bin"
    body = made.SerializeToString()
    assert key + value in body
    return body.replace(key + value, value + key)


def place_in_memory() -> onnx.ModelProto:
    made = onnx.ModelProto()
    tensor = outside()
    tensor.external_data[0].value = "*/_ORT_MEM_ADDR_/*"
    tensor.external_data.add(key="offset", value="4096")
    made.graph.initializer.append(tensor)
    return made


@pytest.mark.parametrize(
    "make",
    [
        place_in_a_constant,
        place_in_a_branch,
        place_in_a_function,
        place_in_a_sparse_tensor,
        place_before_its_key,
        place_in_memory,
    ],
)
def test_a_place_outside_is_found_wherever_a_graph_can_name_it(
    make: Callable[[], onnx.ModelProto | bytes], tmp_path: Path
):
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "m"
    folder.mkdir()
    body = make()
    (folder / "model.onnx").write_bytes(body if isinstance(body, bytes) else body.SerializeToString())
    with pytest.raises(ConfigError, match="leads out of the model's folder"):
        load(folder)


def test_what_no_parser_of_ours_reads_names_no_place_unseen(tmp_path: Path):
    """A group (wire type 3) is a field that ONNX Runtime passes over."""
    made = onnx.ModelProto()
    made.graph.initializer.append(outside())
    (tmp_path / "model.onnx").write_bytes(b"\xfb\x07\xfc\x07" + made.SerializeToString())
    with pytest.raises(ConfigError, match="it is no protobuf message"):
        load(tmp_path)


def test_weights_beside_the_file_to_which_a_graphs_name_leads_are_read(tmp_path: Path):
    """As Hugging Face's cache has them: a folder of names, each a link to a file of another folder."""
    store, names = tmp_path / "blobs", tmp_path / "snapshot"
    store.mkdir()
    names.mkdir()
    weights = outside()
    weights.external_data[0].value = "weights.bin"
    value = helper.make_tensor_value_info
    inputs, outputs = ([value(name, TensorProto.FLOAT, ["n", 4])] for name in "xy")
    made = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", inputs, outputs, [weights])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"location": "/somewhere/else"})
    (store / "1").write_bytes(model.SerializeToString())
    (store / "2").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (names / "model.onnx").symlink_to("../blobs/1")
    (names / "weights.bin").symlink_to("../blobs/2")
    assert load(names, allow_uri=(store,)).predict({"x": np.zeros((1, 4), np.float32)}, Call())["y"].tolist() == [
        [0, 1, 2, 3]
    ]


def test_an_onnx_runtime_that_takes_no_bytes_is_given_a_copy_or_told_that_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = onnx.ModelProto()
    tensor = outside()
    tensor.external_data[0].value = "parts/w.bin"
    made.graph.initializer.append(tensor)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "w.bin").write_bytes(b"sixteen numbers.")
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    takes_no_bytes = object()
    with external_weights.giving_weights(takes_no_bytes, tmp_path / "model.onnx") as copy:
        assert copy.parent != tmp_path
        assert copy.read_bytes() == (tmp_path / "model.onnx").read_bytes()
        assert (copy.parent / "parts" / "w.bin").read_bytes() == b"sixteen numbers."
    assert not copy.parent.exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with (
        pytest.raises(ConfigError, match=r"cannot be copied.*name a folder with room in TMPDIR"),
        external_weights.giving_weights(takes_no_bytes, tmp_path / "model.onnx"),
    ):
        pass
