"""PyTorch models: TorchScript, exported programs, state dicts; devices, buckets, memory metrics. Real modules, small."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus import Call, InferRequest, Model, ModelSettings, RequestedOutput, Tensor, TensorSpec
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import ConfigError, InvalidInput
from serinus.loading import settings_from_directory
from torch_server import TorchModel
from vision_support import plane_of

torch = Deferred("torch")
torch_classes = Deferred("torch_classes")
CudaMemory = Deferred("torch_server.memory", "CudaMemory")
families = Deferred("torch_server.memory", "families")
largest_free_bytes = Deferred("torch_server.memory", "largest_free_bytes")
Scale = Deferred("vision_modules", "Scale")

pytestmark = [
    pytest.mark.slow,  # importing PyTorch takes ~4 s
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

X = (TensorSpec("x", "FP32", (-1, 3)),)
Y = (TensorSpec("y", "FP32", (-1, 3)),)


@pytest.fixture
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture
def no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")


def script(folder: Path, module: torch.nn.Module, *, name: str = "model.pt") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module.eval()).save(str(folder / name))
    return folder


def exported(folder: Path, module: torch.nn.Module, arguments: tuple[Any, ...], *, dynamic: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dimensions = {name: {0: torch.export.Dim("rows", min=1)} for name in ("x",)} if dynamic else None
        torch.export.save(
            torch.export.export(module.eval(), arguments, dynamic_shapes=dimensions), str(folder / "model.pt2")
        )
    return folder


def loaded(folder: Path, **fields: Any) -> TorchModel:
    model = TorchModel(ModelSettings(name="m", model_dir=folder, **fields))
    model.load()
    return model


def rows(count: int, width: int = 3) -> np.ndarray:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def rows_of(count: int) -> torch.Tensor:
    return torch.from_numpy(rows(count))


def test_torchscript_is_named_by_its_settings_and_labelled_by_its_file(tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    model = loaded(script(tmp_path, Scale(3, 1.0)), inputs=X, outputs=Y)
    assert model.batchable
    assert model.outputs[0].labels == ("a", "b", "c")
    np.testing.assert_array_equal(model.predict({"x": rows(2)}, Call())["y"], rows(2) + 1)


async def test_labels_survive_settings_that_name_the_outputs(tmp_path):
    script(tmp_path, Scale())
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    document = {
        "name": "m",
        "implementation": "torch_server.TorchModel",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        "parameters": {"uri": "./model.pt"},
    }
    (tmp_path / "model-settings.json").write_text(json.dumps(document))
    async with plane_of(*settings_from_directory(tmp_path)) as plane:
        outputs = [RequestedOutput("y", {"classification": 1})]
        response = await plane.infer(InferRequest("m", [Tensor.of("x", rows(1))], outputs=outputs))
        assert response.outputs[0].data.tolist() == [[b"2.0:2:c"]]


def test_torchscript_that_knows_its_feature_names_tells_them(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.freeze(torch.jit.script(torch_classes.Named().eval()), preserved_attrs=["feature_names"])
    module.save(str(tmp_path / "model.pt"))
    model = loaded(tmp_path)
    assert model.details["feature_names"] == ["amount", "hour", "km"]
    np.testing.assert_array_equal(model.predict({"x": rows(2)}, Call())["output-0"], [3, 12])
    (tmp_path / "plain").mkdir()
    assert "feature_names" not in loaded(script(tmp_path / "plain", Scale())).details


def test_inputs_in_any_memory_order_are_taken_and_results_are_arrays_of_their_own(tmp_path):
    model = loaded(script(tmp_path, Scale(3, 1.0)), inputs=X, outputs=Y)
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    for array in (wide[:, ::2], np.asfortranarray(rows(4))):
        np.testing.assert_array_equal(model.predict({"x": array}, Call())["y"], array + 1)
    first = model.predict({"x": rows(2)}, Call())["y"]
    model.predict({"x": rows(2) * 5}, Call())
    np.testing.assert_array_equal(first, rows(2) + 1)


def test_without_settings_inputs_are_called_as_the_arguments_of_forward(tmp_path):
    model = loaded(script(tmp_path, torch_classes.Pair()))
    found = model.predict({"b": rows(2), "a": 2 * rows(2)}, Call())
    np.testing.assert_array_equal(found["difference"], rows(2))
    assert set(model.predict({"a": rows(1), "b": rows(1)}, Call(outputs=frozenset({"sum"})))) == {"sum"}
    with pytest.raises(InvalidInput, match="inputs a, c came, a, b were expected"):
        model.predict({"a": rows(1), "c": rows(1)}, Call())


UNDECLARED: dict[str, tuple[Callable[[], Any], list[Any], list[Any]]] = {
    "float32, whole numbers": (lambda: torch.nn.Linear(3, 2), [[1, 2, 3]], [[[1.0, 2, 3]]]),
    "float32, numbers": (lambda: torch.nn.Linear(3, 2), [[1.5, 2, 3], [0, 1e-3, 7]], [[[1.5, 2, 3], [0, 1e-3, 7]]]),
    "float32, truths": (lambda: torch.nn.Linear(3, 2), [[True, False, True]], [[[1.0, 0, 1]]]),
    "float64": (lambda: torch.nn.Linear(3, 2).double(), [[1, 2, 3]], [[[1.0, 2, 3]]]),
    "half precision": (lambda: torch.nn.Linear(3, 2).half(), [[1, 2, 3]], [[[1.0, 2, 3]]]),
    "convolution": (lambda: torch.nn.Conv1d(1, 1, 2), [[[1, 2, 3]]], [[[[1.0, 2, 3]]]]),
    "indices": (lambda: torch.nn.Embedding(10, 4), [[1, 2]], [[[1, 2]]]),
    "indices and numbers": (
        lambda: torch_classes.Mixed(),
        [{"ids": 1, "dense": [2, 3]}, {"dense": [4, 5], "ids": 6}],
        [[1, 6], [[2.0, 3], [4, 5]]],
    ),
}
"""Modules, V1 rows of them, and the inputs that these stand for, in the order of `forward`."""


@pytest.mark.parametrize(("make", "instances", "inputs"), UNDECLARED.values(), ids=UNDECLARED)
async def test_v1_to_a_module_that_declares_nothing_is_answered_in_the_modules_own_types(
    tmp_path, make, instances, inputs
):
    module = make()
    weights = next(iter(module.parameters())).dtype
    given = [torch.tensor(values) for values in inputs]
    expected = module(*(one.to(weights) if one.is_floating_point() else one for one in given)).tolist()
    settings = ModelSettings(name="m", model_dir=script(tmp_path, module), implementation="torch_server")
    async with plane_of(settings) as plane:
        body = json.dumps({"instances": instances}).encode()
        for _ in range(2):  # found out, and known
            answer = json.loads(await plane.predict_v1("m", body))
            np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-3)


async def test_where_no_type_of_the_modules_helps_the_error_names_the_setting(tmp_path):
    settings = ModelSettings(
        name="m", model_dir=script(tmp_path, torch.nn.Embedding(10, 4)), implementation="torch_server"
    )
    async with plane_of(settings) as plane:
        with pytest.raises(InvalidInput, match=r'say their datatypes in model-settings.json, "inputs": \[\{"name"'):
            await plane.predict_v1("m", b'{"instances":[[0.5]]}')
        with pytest.raises(InvalidInput, match=r"index out of range in self$"):
            await plane.predict_v1("m", b'{"instances":[[99]]}')


def test_an_exported_program_says_its_inputs_and_outputs(tmp_path):
    model = loaded(exported(tmp_path, torch_classes.Narrow(), (torch.zeros(2, 3),)))
    assert [(spec.name, spec.datatype, spec.shape) for spec in model.inputs] == [("x", "FP32", (-1, 3))]
    assert [(spec.name, spec.datatype, spec.shape) for spec in model.outputs] == [("output-0", "FP32", (-1, 2))]
    assert model.batchable
    assert model.predict({"x": rows(5)}, Call())["output-0"].shape == (5, 2)


def test_an_exported_program_of_fixed_rows_is_not_batched(tmp_path):
    model = loaded(exported(tmp_path, Scale(), (torch.zeros(2, 3),), dynamic=False))
    assert model.inputs[0].shape == (2, 3)
    assert not model.batchable


@pytest.mark.parametrize(("least", "most"), [(1, 16), (2, 16), (3, 5)])
async def test_a_program_that_was_exported_for_some_rows_takes_any_number(least: int, most: int, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dimension = torch.export.Dim("rows", min=least, max=most)
        layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softmax(dim=1)).eval()
        program = torch.export.export(layers, (rows_of(max(least, 4)),), dynamic_shapes=({0: dimension},))
        torch.export.save(program, str(tmp_path / "model.pt2"))
    settings = ModelSettings(name="m", model_dir=tmp_path, implementation="torch_server")
    async with plane_of(settings) as plane:  # warmed up and measured with many rows
        model = plane.registry.find("m").model
        for count in (1, 2, most, most + 1, 100):
            given = rows(count)
            (answer,) = model.predict({model.inputs[0].name: given}, Call()).values()
            with torch.no_grad():
                expected = layers(torch.from_numpy(given)).numpy()
            np.testing.assert_allclose(answer, expected, rtol=1e-6)


def test_an_exported_program_names_its_outputs_by_the_keys_of_its_dict(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dimension = torch.export.Dim("rows", min=1)
        program = torch.export.export(
            torch_classes.Pair(), (rows_of(2), rows_of(2)), dynamic_shapes=({0: dimension}, {0: dimension})
        )
        torch.export.save(program, str(tmp_path / "model.pt2"))
    model = loaded(tmp_path)
    assert [spec.name for spec in model.outputs] == ["sum", "difference"]
    answer = model.predict({"a": rows(3) * 2, "b": rows(3)}, Call())
    np.testing.assert_array_equal(answer["difference"], rows(3))
    renamed = loaded(tmp_path, outputs=(TensorSpec("s", "FP32", (-1, 3)), TensorSpec("d", "FP32", (-1, 3))))
    np.testing.assert_array_equal(renamed.predict({"a": rows(3) * 2, "b": rows(3)}, Call())["d"], rows(3))


def test_an_exported_program_of_keyword_arguments_is_called_by_keyword(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(torch_classes.Pair(), (rows_of(2),), {"b": rows_of(2)})
        torch.export.save(program, str(tmp_path / "model.pt2"))
    model = loaded(tmp_path)
    assert [spec.name for spec in model.inputs] == ["a", "b"]
    np.testing.assert_array_equal(model.predict({"b": rows(2), "a": rows(2) * 2}, Call())["difference"], rows(2))


def test_what_a_module_returns_beside_tensors_is_named(tmp_path):
    model = loaded(script(tmp_path, torch_classes.Nested()))
    with pytest.raises(RuntimeError, match="output 'output-1' of the module is a list; a tensor, a flat tuple"):
        model.predict({"x": rows(1)}, Call())


def test_a_state_dict_needs_a_class_that_can_be_imported(tmp_path):
    module = Scale(3, 5.0)
    with torch.no_grad():
        module.weight.mul_(2)
    torch.save(module.state_dict(), tmp_path / "model.pth")
    extra = {"class": "vision_modules:Scale", "arguments": {"width": 3, "plus": 5.0}}
    model = loaded(tmp_path, inputs=X, outputs=Y, extra=extra, allow_implementation=("vision_modules.Scale",))
    np.testing.assert_array_equal(model.predict({"x": rows(1)}, Call())["y"], rows(1) * 2 + 5)
    for name, reason in (
        ("vision_modules:Nope", "expected package.module:Class"),
        ("no_such_module:Nope", "No module named"),
        ("vision_modules", "expected package.module:Class"),
        ("json:JSONDecoder", r"not a torch\.nn\.Module"),
    ):
        with pytest.raises(ConfigError, match=reason):
            loaded(tmp_path, extra={"class": name}, allow_implementation=("*",))
    with pytest.raises(ConfigError, match=r"no state dict of vision_modules:Scale.*size mismatch"):
        loaded(
            tmp_path, extra={"class": "vision_modules:Scale", "arguments": {"width": 7}}, allow_implementation=("*",)
        )
    with pytest.raises(
        ConfigError, match=r"not TorchScript: a pickle\. A state dict needs its class.*save the state dict"
    ):
        loaded(tmp_path)
    with pytest.raises(ConfigError, match=r"'arguments' \(depth\): vision_modules:Scale cannot be made.*depth"):
        loaded(
            tmp_path, extra={"class": "vision_modules:Scale", "arguments": {"depth": 7}}, allow_implementation=("*",)
        )


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return print, ("unpickled",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, capsys):
    torch.save({"weight": Evil()}, tmp_path / "model.pth")
    with pytest.raises(ConfigError, match="more than tensors and plain containers") as refused:
        loaded(tmp_path, extra={"class": "vision_modules:Scale"}, allow_implementation=("*",))
    assert "weights_only" not in str(refused.value)  # PyTorch's own message tells how to run it
    assert "unpickled" not in capsys.readouterr().out


def told_by_a_process(code: str, **variables: str) -> list[str]:
    """What a Python of its own prints, in words."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env={**environment, **variables}, capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.fixture(scope="module")
def loading(tmp_path_factory) -> list[str]:
    """A process that loaded TorchScript: how long its threads wait, and whether it has PyTorch's compiler."""
    folder = script(tmp_path_factory.mktemp("loading"), Scale())
    code = (
        "import os, pathlib, sys; from torch_server import TorchModel; from serinus import ModelSettings\n"
        f"TorchModel(ModelSettings(name='m', model_dir=pathlib.Path({str(folder)!r}))).load()\n"
        "assert 'torch_server.archive' in sys.modules\n"
        "print(os.environ['GOMP_SPINCOUNT'], 'torch._dynamo' in sys.modules)"
    )
    return told_by_a_process(code)


def test_waiting_threads_soon_give_their_cpu_up_unless_the_environment_says_otherwise(loading):
    assert loading[0] == "10000"
    code = (
        "import os, sys; sys.modules['torch'] = None\n"
        "try: import torch_server.module\n"
        "except ImportError: print(os.environ['GOMP_SPINCOUNT'])"
    )
    assert told_by_a_process(code) == ["10000"], "before PyTorch reads it"
    assert told_by_a_process(code, GOMP_SPINCOUNT="7") == ["7"]


def test_torchscript_is_loaded_without_pytorchs_compiler(loading):
    """It is 2 s of CPU, and what reads exported programs brings it."""
    assert loading[1] == "False"


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused_clearly(tmp_path, device):
    script(tmp_path, Scale())
    with pytest.raises(ConfigError, match=rf"'{device}', but this machine shows 0 GPUs.*-gpu image.*device cpu"):
        loaded(tmp_path, extra={"device": device})
    assert loaded(tmp_path).details["device"] == "cpu"


@pytest.mark.parametrize("device", ["gpu", "tpu", "meta", "cpu:x"])
def test_a_device_that_means_nothing_is_refused(tmp_path, device):
    script(tmp_path, Scale())
    with pytest.raises(ConfigError, match=f"'device' is '{device}'"):
        loaded(tmp_path, extra={"device": device})


def test_batches_are_padded_to_buckets_and_the_padding_is_cut_off(tmp_path, monkeypatch):
    model = loaded(script(tmp_path, Scale()), inputs=X, outputs=Y, extra={"batch_buckets": [2, 4, 8]})
    seen: list[int] = []
    module = model.module._module

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[0])
        return module(x)

    monkeypatch.setattr(model.module, "_module", watched)
    for count in (1, 2, 3, 4, 5, 8, 9):
        np.testing.assert_array_equal(model.predict({"x": rows(count)}, Call())["y"], rows(count))
    assert seen == [2, 2, 4, 4, 8, 8, 9]


def test_autocast_answers_in_the_type_that_the_metadata_promises(tmp_path):
    torch.manual_seed(0)
    script(tmp_path, torch.nn.Linear(3, 3))
    full = loaded(tmp_path, inputs=X, outputs=Y).predict({"x": rows(2)}, Call())["y"]
    half = loaded(tmp_path, inputs=X, outputs=Y, extra={"autocast": "bf16"}).predict({"x": rows(2)}, Call())["y"]
    assert half.dtype == np.float32
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, rtol=0.02, atol=0.05)


def test_bf16_goes_in_and_out(tmp_path):
    inputs, outputs = (TensorSpec("x", "BF16", (-1, 3)),), (TensorSpec("y", "BF16", (-1, 3)),)
    model = loaded(script(tmp_path, Scale().to(torch.bfloat16)), inputs=inputs, outputs=outputs)
    found = model.predict({"x": rows(2)}, Call())["y"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows(2))


def test_shapes_that_the_module_refuses_are_the_clients_fault(tmp_path):
    model = loaded(script(tmp_path, torch_classes.Narrow()))
    with pytest.raises(InvalidInput, match=r"the module refuses inputs of shape x \[2, 5\]"):
        model.predict({"x": rows(2, 5)}, Call())
    with pytest.raises(InvalidInput, match="no tensors of BYTES"):
        model.predict({"x": np.array([b"a"], object)}, Call())


async def test_one_bad_request_spares_its_neighbours(tmp_path):
    script(tmp_path, torch_classes.Narrow())
    settings = ModelSettings(
        name="m",
        implementation="torch_server",
        model_dir=tmp_path,
        inputs=(TensorSpec("x", "FP32", (-1, -1)),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
    )
    async with plane_of(settings) as plane:
        requests = [InferRequest("m", [Tensor.of("x", rows(1, 5 if i == 3 else 3))]) for i in range(8)]
        answers = await asyncio.gather(*(plane.infer(request) for request in requests), return_exceptions=True)
    assert [isinstance(answer, InvalidInput) for answer in answers] == [i == 3 for i in range(8)]


def test_read_only_inputs_give_no_warning_and_stay_as_they_are(tmp_path):
    model = loaded(script(tmp_path, Scale(3, 1.0)), inputs=X, outputs=Y)
    array = rows(2)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict({"x": array}, Call())
    np.testing.assert_array_equal(array, rows(2))


def test_extra_settings_are_checked_all_at_once(tmp_path):
    script(tmp_path, Scale())
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, extra={"autocast": "int8", "batch_buckets": [0], "lables": "x"})
    text = str(caught.value)
    assert "'autocast' is 'int8'; accepted are none, bf16, fp16" in text
    assert "'batch_buckets' is [0]" in text
    assert "'lables' is unknown" in text
    assert "did you mean labels?" in text


# GPU memory: keys as torch.cuda.memory_stats writes them, numbers made up.

STATS = {
    "allocated_bytes.all.current": 500_000_000,
    "allocated_bytes.all.peak": 900_000_000,
    "reserved_bytes.all.current": 1_000_000_000,
    "active_bytes.all.current": 510_000_000,
    "inactive_split_bytes.all.current": 300_000_000,
    "requested_bytes.all.current": 480_000_000,
    "num_alloc_retries": 3,
    "num_ooms": 1,
}
SEGMENTS = [
    {"device": 0, "blocks": [{"size": 100, "state": "inactive"}, {"size": 900, "state": "active_allocated"}]},
    {"device": 0, "blocks": [{"size": 400, "state": "inactive"}, {"size": 70, "state": "active_pending_free"}]},
    {"device": 1, "blocks": [{"size": 5000, "state": "inactive"}]},
]


def test_fragmentation_can_be_read_off_the_metrics():
    found = {family.name: family for family in families(STATS, (10, 80), 400, 0, "2")}
    value = {name: family.samples[0][1] for name, family in found.items()}
    assert value["serinus_cuda_memory_inactive_split_bytes"] / value["serinus_cuda_memory_reserved_bytes"] == 0.3
    assert value["serinus_cuda_memory_alloc_retries_total"] == 3
    assert found["serinus_cuda_memory_ooms_total"].kind == "counter"
    assert value["serinus_cuda_memory_largest_free_bytes"] == 400
    assert (value["serinus_cuda_memory_device_free_bytes"], value["serinus_cuda_memory_device_total_bytes"]) == (10, 80)
    assert all(family.samples[0][0] == {"device": "0", "worker": "2"} for family in found.values())
    assert len(found) == len(STATS) + 3


def test_the_largest_free_block_is_of_this_device():
    assert largest_free_bytes(SEGMENTS, 0) == 400
    assert largest_free_bytes(SEGMENTS, 1) == 5000
    assert largest_free_bytes(SEGMENTS, 2) == 0


def test_blocks_are_walked_rarely_and_nothing_is_told_before_cuda_is_used(monkeypatch):
    walks, now = [], [0.0]
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda index: {})
    memory = CudaMemory(0, clock=lambda: now[0])
    assert memory.metrics() == ()
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda index: STATS)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: walks.append(now[0]) or SEGMENTS)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (1, 2))
    for moment in (0.0, 1.0, 14.0, 15.0, 16.0):
        now[0] = moment
        assert len(memory.metrics()) == 11
    assert walks == [0.0, 15.0]


async def test_models_of_one_process_tell_the_memory_of_their_device_once(tmp_path, monkeypatch):
    script(tmp_path, Scale())
    settings = [
        ModelSettings(name=name, implementation="torch_server", model_dir=tmp_path, inputs=X, outputs=Y)
        for name in "ab"
    ]
    async with plane_of(*settings) as plane:
        assert "serinus_cuda" not in plane.metrics.render().decode()
        for name in "ab":
            model = plane.registry.find(name).model
            monkeypatch.setattr(model.module, "_memory", Remembered())
        page = plane.metrics.render().decode()
        assert 'serinus_cuda_memory_reserved_bytes{device="0",worker="0"} 1000000000' in page.replace(
            "1e+09", "1000000000"
        )
        two = [plane.metrics.snapshot(), plane.metrics.snapshot()]
        assert page.count("\nserinus_cuda_memory_ooms_total{") == 1
        assert Metrics.render_merged(two).decode().count("\nserinus_cuda_memory_ooms_total{") == 1


class Remembered:
    """What `CudaMemory` says, without a GPU."""

    def metrics(self) -> list[Any]:
        return families(STATS, (10, 80), 400, 0, "0")


async def test_a_model_that_cannot_tell_its_metrics_does_not_cost_the_page(tmp_path, monkeypatch, caplog):
    script(tmp_path, Scale())
    settings = ModelSettings(name="m", implementation="torch_server", model_dir=tmp_path, inputs=X, outputs=Y)
    async with plane_of(settings) as plane:
        monkeypatch.setattr(plane.registry.find("m").model, "metrics", lambda: 1 / 0)
        assert b"serinus_model_ready" in plane.metrics.render()
    assert "cannot tell its metrics" in caplog.text


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_the_answer_is_the_same_and_memory_is_told(tmp_path):
    script(tmp_path, torch_classes.Narrow())
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    cpu = loaded(tmp_path, inputs=X, outputs=outputs, extra={"device": "cpu"})
    gpu = loaded(tmp_path, inputs=X, outputs=outputs, extra={"device": "cuda"})
    wanted = cpu.predict({"x": rows(3)}, Call())["y"]
    np.testing.assert_allclose(gpu.predict({"x": rows(3)}, Call())["y"], wanted, rtol=1e-4)
    told = {family.name: family.samples[0][1] for family in gpu.metrics()}
    assert told["serinus_cuda_memory_reserved_bytes"] > 0


class Threads(Model):
    """Remembers which threads it was loaded and asked in."""

    inputs, outputs = X, Y
    execution = "thread"

    def load(self) -> None:
        self.loader = threading.current_thread()

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        self.predictor = threading.current_thread()
        return {"y": inputs["x"]}


async def test_the_thread_that_loads_a_model_ends_and_takes_its_openmp_workers_along():
    plane = Plane(Registry(Threads))
    await plane.start([ModelSettings(name="m")])
    model = plane.registry.find("m").model
    assert isinstance(model, Threads)
    await plane.infer(InferRequest("m", [Tensor.of("x", rows(1))]))
    model.loader.join(10)
    assert not model.loader.is_alive()
    assert model.predictor.is_alive()
    await plane.close()
