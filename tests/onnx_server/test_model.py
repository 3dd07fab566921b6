"""ONNX models: specs from the graph, every datatype, providers, IO binding. Real graphs, small."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus import Call, InferRequest, ModelSettings, RequestedOutput, Tensor, TensorSpec
from serinus.errors import ConfigError, InvalidInput
from serinus.protocol.datatypes import NUMPY_DTYPES
from vision_support import colour_model, plane_of

onnx = Deferred("onnx")
onnxruntime = Deferred("onnxruntime")
TensorProto = Deferred("onnx", "TensorProto")
helper = Deferred("onnx.helper")
numpy_helper = Deferred("onnx.numpy_helper")
OnnxModel = Deferred("onnx_server", "OnnxModel")

TYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FP16": "FLOAT16",
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
    "BYTES": "STRING",
}


@pytest.fixture
def no_gpu() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU")


def graph(folder: Path, nodes: Any, inputs: Any, outputs: Any, name: str = "model.onnx") -> Path:
    value = helper.make_tensor_value_info
    made = helper.make_graph(nodes, "g", [value(*spec) for spec in inputs], [value(*spec) for spec in outputs])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / name))
    return folder


def two(folder: Path) -> Path:
    """a + b and a - b; rows are free."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    ins = [("a", TensorProto.FLOAT, ["n", 3]), ("b", TensorProto.FLOAT, ["n", 3])]
    outs = [("sum", TensorProto.FLOAT, ["n", 3]), ("difference", TensorProto.FLOAT, ["n", 3])]
    return graph(folder, nodes, ins, outs)


def loaded(folder: Path, **fields: Any) -> OnnxModel:
    model = OnnxModel(ModelSettings(name="m", model_dir=folder, **fields))
    model.load()
    return model


def rows(count: int) -> np.ndarray:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def test_the_graph_says_what_it_takes_and_gives(tmp_path):
    model = loaded(two(tmp_path))
    assert [(s.name, s.datatype, s.shape) for s in model.inputs] == [("a", "FP32", (-1, 3)), ("b", "FP32", (-1, 3))]
    assert [s.name for s in model.outputs] == ["sum", "difference"]
    assert model.batchable
    assert model.details["providers"] == "CPUExecutionProvider"
    found = model.predict({"a": rows(2), "b": rows(2)}, Call(outputs=frozenset({"difference"})))
    assert list(found) == ["difference"]
    np.testing.assert_array_equal(found["difference"], np.zeros((2, 3)))


def test_settings_rename_by_position(tmp_path):
    spec = TensorSpec("left", "FP32", (-1, 3)), TensorSpec("right", "FP32", (-1, 3))
    model = loaded(two(tmp_path), inputs=spec)
    np.testing.assert_array_equal(model.predict({"right": rows(1), "left": 2 * rows(1)}, Call())["difference"], rows(1))
    with pytest.raises(ConfigError, match="the settings name 1 inputs, the model has 2"):
        loaded(tmp_path, inputs=spec[:1])


def test_a_graph_of_fixed_rows_is_not_batched(tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    model = loaded(graph(tmp_path, [node], [("x", TensorProto.FLOAT, [2, 3])], [("y", TensorProto.FLOAT, [2, 3])]))
    assert not model.batchable


def reshaping(folder: Path, columns: list[int]) -> Path:
    """An output whose rank is a value of the request: ONNX Runtime tells its shape as that of a scalar."""
    ins = [("x", TensorProto.FLOAT, ["n", *columns]), ("shape", TensorProto.INT64, ["k"])]
    return graph(folder, [helper.make_node("Reshape", ["x", "shape"], ["y"])], ins, [("y", TensorProto.FLOAT, None)])


async def test_an_output_of_unknown_rank_is_not_promised_to_be_a_scalar(tmp_path):
    model = loaded(reshaping(tmp_path, []))
    assert model.outputs[0].shape == (-1,)
    assert not model.batchable
    async with plane_of(ModelSettings(name="m", implementation="onnx_server", model_dir=tmp_path)) as plane:
        request = InferRequest("m", [Tensor.of("x", np.float32([1, 2])), Tensor.of("shape", np.int64([2]))])
        assert (await plane.infer(request)).outputs[0].data.tolist() == [1, 2]


def test_where_zeros_do_not_tell_the_rank_a_warning_says_what_to_do(tmp_path, caplog):
    assert loaded(reshaping(tmp_path, [4])).outputs[0].shape == ()
    assert "how many dimensions y has" in caplog.text
    assert "name the outputs and their shapes in model-settings.json" in caplog.text
    caplog.clear()
    model = loaded(tmp_path, outputs=(TensorSpec("y", "FP32", (-1, -1)),))
    assert not caplog.records
    answer = model.predict({"x": np.zeros((2, 4), np.float32), "shape": np.int64([4, 2])}, Call())
    assert answer["y"].shape == (4, 2)


def test_a_scalar_output_stays_one(tmp_path):
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    graph(tmp_path, nodes, [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT, [])])
    assert loaded(tmp_path).outputs[0].shape == ()


def test_weights_in_a_file_of_their_own_are_found_and_missed_by_name(tmp_path):
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(tmp_path / "model.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    np.testing.assert_array_equal(loaded(tmp_path).predict({"x": rows(2)}, Call())["y"], rows(2))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ConfigError, match=r"weights\.bin"):
        loaded(tmp_path)


@pytest.mark.parametrize("place", ["weights.bin", "parts/weights.bin"])
def test_weights_that_are_written_over_or_cut_change_nothing_of_what_is_loaded(place: str, tmp_path: Path) -> None:
    """Cut under a session that has mapped them, they end the process (SIGBUS): the first half fails before that."""
    numbers = np.arange(1 << 16, dtype=np.float32)
    (tmp_path / "parts").mkdir()
    (tmp_path / place).write_bytes(numbers.tobytes())
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[numbers.size])
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=place)
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 1])],
        [value("y", TensorProto.FLOAT, ["n", numbers.size])],
        [weights],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    served = loaded(tmp_path)
    for action in (lambda file: file.write(np.zeros_like(numbers).tobytes()), lambda file: file.truncate(0)):
        with (tmp_path / place).open("r+b") as file:
            action(file)
        np.testing.assert_array_equal(served.predict({"x": np.ones((1, 1), np.float32)}, Call())["y"][0], numbers + 1)


@pytest.mark.parametrize("binding", ["auto", "on", "off"])
@pytest.mark.parametrize("datatype", TYPES)
def test_every_datatype_goes_through_a_graph_bound_or_not(tmp_path, datatype, binding):
    node = helper.make_node("Identity", ["x"], ["y"])
    kind = getattr(TensorProto, TYPES[datatype])
    folder = graph(tmp_path, [node], [("x", kind, ["n"])], [("y", kind, ["n"])])
    model = loaded(folder, extra={"io_binding": binding})
    array = np.array([b"a", "ü".encode()], object) if datatype == "BYTES" else np.array([0, 1], NUMPY_DTYPES[datatype])
    found = model.predict({"x": array}, Call())["y"]
    assert model.outputs[0].datatype == datatype
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


def test_bound_and_plain_runs_give_the_same(tmp_path):
    two(tmp_path)
    inputs = {"a": rows(5)[::-1], "b": rows(5)}
    plain = loaded(tmp_path).predict(inputs, Call())
    bound = loaded(tmp_path, extra={"io_binding": "on"}).predict(inputs, Call())
    for name, array in plain.items():
        np.testing.assert_array_equal(bound[name], array)


def test_text_that_is_no_utf8_is_the_clients_fault(tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    model = loaded(graph(tmp_path, [node], [("x", TensorProto.STRING, ["n"])], [("y", TensorProto.STRING, ["n"])]))
    with pytest.raises(InvalidInput, match="input 'x': a value is not UTF-8"):
        model.predict({"x": np.array([b"\xff"], object)}, Call())


def test_a_shape_that_the_graph_refuses_is_the_clients_fault(tmp_path):
    model = loaded(two(tmp_path))
    with pytest.raises(InvalidInput, match="the graph refuses the request"):
        model.predict({"a": rows(1)[:, :2], "b": rows(1)}, Call())


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_refused_unless_falling_back_is_allowed(tmp_path, provider):
    two(tmp_path)
    with pytest.raises(
        ConfigError, match=f"provider '{provider}' is not in this build.*-gpu image, or set provider_fallback"
    ):
        loaded(tmp_path, extra={"providers": [provider]})
    model = loaded(tmp_path, extra={"providers": [provider], "provider_fallback": True})
    assert model.details["providers"] == "CPUExecutionProvider"


def test_an_unknown_provider_is_refused_even_so(tmp_path):
    two(tmp_path)
    with pytest.raises(ConfigError, match="provider 'gpu' is unknown; known are cpu, cuda, tensorrt"):
        loaded(tmp_path, extra={"providers": ["gpu"], "provider_fallback": True})


def test_provider_options_reach_onnx_runtime(tmp_path):
    two(tmp_path)
    model = loaded(tmp_path, extra={"provider_options": {"cpu": {"use_arena": "0"}}})
    assert "CPUExecutionProvider" in model._session.get_provider_options()


@pytest.mark.parametrize(
    "option",
    [
        {"tensorrt": {"trt_fp16_enable": True, "trt_extra_plugin_lib_paths": "/mnt/models/x.so"}},
        {"tensorrt": {"trt_engine_cache_path": "/etc/cron.d"}},
        {"tensorrt": {"trt_dump_ep_context_model": True}},
        {"cuda": {"device_id": 0, "gpu_external_alloc": "4198400"}},
    ],
)
def test_options_of_a_model_s_files_load_no_library_and_write_no_file_unless_the_operator_gives_or_allows_them(
    option: dict[str, dict[str, Any]], tmp_path: Path
):
    name = list(next(iter(option.values())))[-1]
    settings: dict[str, Any] = {"extra": {"provider_options": option}}
    with pytest.raises(ConfigError, match=rf"names {name}, .*--allow_implementation 'onnxruntime\.{name}'"):
        loaded(two(tmp_path), **settings)
    assert loaded(tmp_path, allow_implementation=(f"onnxruntime.{name}",), **settings).inputs
    assert loaded(tmp_path, told=frozenset({"provider_options"}), **settings).inputs


def test_options_that_are_no_object_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="those of 'cpu' are no object"):
        loaded(two(tmp_path), extra={"provider_options": {"cpu": ["use_arena"]}})


def test_files_that_are_no_graph_are_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ConfigError, match="ONNX Runtime refuses it"):
        loaded(tmp_path)
    with pytest.raises(ConfigError, match=r"no model file \(\.onnx\)"):
        loaded(_empty(tmp_path))


def _empty(folder: Path) -> Path:
    empty = folder / "empty"
    empty.mkdir()
    return empty


def test_of_several_files_one_must_be_named(tmp_path):
    two(tmp_path)
    (tmp_path / "model.onnx").rename(tmp_path / "a.onnx")
    two(tmp_path)
    assert loaded(tmp_path).details["file"] == "model.onnx"
    (tmp_path / "model.onnx").rename(tmp_path / "b.onnx")
    with pytest.raises(ConfigError, match=r"several models \(a\.onnx, b\.onnx\); name the one file"):
        loaded(tmp_path)


def test_what_the_protocol_cannot_carry_is_refused_with_a_hint(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    nodes = [helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)]
    made = helper.make_graph(nodes, "g", [sequence], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])])
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m.onnx")
    )
    with pytest.raises(
        ConfigError, match=r"'x' is a seq\(tensor\(float\)\); accepted are tensor\(bool\).*and for outputs sequences"
    ):
        loaded(tmp_path)


async def test_rows_of_concurrent_requests_are_predicted_together(tmp_path):
    settings = ModelSettings(name="m", implementation="onnx_server", model_dir=colour_model(tmp_path, side=4))
    async with plane_of(settings) as plane:
        images = np.random.default_rng(0).normal(size=(16, 1, 4, 4, 3)).astype(np.float32)
        requests = [InferRequest("m", [Tensor.of("images", one)]) for one in images]
        answers = await asyncio.gather(*(plane.infer(request) for request in requests))
        means = images.mean((2, 3))[:, 0]
        wanted = np.exp(means) / np.exp(means).sum(1, keepdims=True)
        np.testing.assert_allclose(np.concatenate([a.outputs[0].data for a in answers]), wanted, rtol=1e-4)
        assert plane.statistics("m")[0]["execution_count"] < 16
        outputs = [RequestedOutput("probabilities", {"classification": 1})]
        classified = await plane.infer(InferRequest("m", [Tensor.of("images", images[0])], outputs=outputs))
        assert classified.outputs[0].data[0, 0].split(b":")[2] in (b"red", b"green", b"blue")


@pytest.mark.parametrize("place", ["../secret.bin", "link.bin", "/etc/passwd", "x/../../secret.bin"])
def test_external_data_outside_the_models_folder_is_refused(place: str, tmp_path: Path):
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "inside.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    value = onnx.helper.make_tensor_value_info

    def write(location: str) -> OnnxModel:
        weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
        inputs, outputs = ([value(name, onnx.TensorProto.FLOAT, ["n", 4])] for name in "xy")
        graph = onnx.helper.make_graph([node], "g", inputs, outputs, [weights])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return OnnxModel(ModelSettings(name="m", model_dir=folder))

    with pytest.raises(ConfigError, match="External data path"):
        write(place).load()
    inside = write("inside.bin")
    inside.load()
    assert inside.predict({"x": np.zeros((1, 4), np.float32)}, Call())["y"].tolist() == [[0, 1, 2, 3]]
