"""Small networks as compiled steps: held against PyTorch, used for few rows, recorded, and left alone where anything is other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from depth import DEEP
from serinus import Call, ModelSettings, TensorSpec
from serinus.engines import mlp_records
from serinus.engines.not_covered import NotCovered
from serinus.errors import ConfigError, InvalidInput
from serinus.native import library
from serinus.native.dense.mlp_kernel import MLP, Kind, Step

torch = Deferred("torch")
torch_classes = Deferred("torch_classes")
Tensor = Deferred("torch", "Tensor")
nn = Deferred("torch.nn")
TorchModel = Deferred("torch_server", "TorchModel")
mlp_compiler = Deferred("torch_server.mlp_compiler")
compile_mlp = Deferred("torch_server.mlp_compiler", "compile_mlp")
read_mlp = Deferred("torch_server.mlp_reader", "read_mlp")
TorchModule = Deferred("torch_server.module", "TorchModule")
read_script = Deferred("torch_server.torch_graphs", "read_script")

pytestmark = [
    pytest.mark.slow,  # importing PyTorch takes ~2 s
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.skipif(library() is None, reason="the kernels are not built"),
]

NAMES = [f"c{at}" for at in range(9)]


def loaded(folder: Path, module: nn.Module, **extra: Any) -> TorchModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(torch.jit.script(module.eval()), preserved_attrs=["feature_names"]).save(str(folder / "m.pt"))
    model = TorchModule(ModelSettings(name="m", model_dir=folder / "m.pt", threads=1, extra=extra))
    model.load()
    return model


def rows(count: int, seed: int = 1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    found = (draw.normal(size=(count, 9)) * 10.0 ** draw.uniform(-5, 5, (count, 1))).astype(np.float32)
    for value in (0, np.nan, np.inf, -np.inf):
        found[draw.random(found.shape) < 0.04] = value
    return found


@pytest.mark.parametrize("widths", [(5, 16, 7), (1, 1, 1), (9, 64, 64), (3, 13, 8)])
def test_the_steps_answer_as_pytorch_does_for_any_widths(tmp_path: Path, widths: tuple[int, int, int]):
    model = loaded(tmp_path, torch_classes.Net(widths))
    assert model.details["compiled_rows"] == min(16, 100_000 // model._compiled.graph.weights)
    features = rows(300)
    with torch.inference_mode():
        expected = model._module(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(model._compiled.predict(features), expected, rtol=1e-10, atol=1e-10)


def test_few_rows_take_the_steps_and_many_take_pytorch_with_the_same_float32(tmp_path: Path, monkeypatch):
    model = loaded(tmp_path, torch_classes.Net())
    features = rows(200)
    together = model.predict({"features": features}, Call())["output-0"]
    alone = np.concatenate(
        [model.predict({"features": features[at : at + 1]}, Call())["output-0"] for at in range(200)]
    )
    assert together.dtype == alone.dtype == np.float64
    np.testing.assert_array_equal(together.astype(np.float32), alone.astype(np.float32))
    asked: list[int] = []
    module = model._module
    monkeypatch.setattr(model, "_module", lambda x: asked.append(len(x)) or module(x))
    for count in (1, 16, 17, 100):
        model.predict({"features": features[:count]}, Call())
    assert asked == [17, 100]


def test_rows_in_any_memory_order_and_of_other_types_are_answered(tmp_path: Path):
    model = loaded(tmp_path, torch_classes.Net())
    features = rows(8)
    expected = model.predict({"features": features}, Call())["output-0"]
    read_only = features.copy()
    read_only.flags.writeable = False
    wide = np.repeat(features, 2, axis=1)[:, ::2]
    for given in (read_only, np.asfortranarray(features), wide):
        np.testing.assert_array_equal(model.predict({"features": given}, Call())["output-0"], expected)
    doubles = model.predict({"features": features.astype(np.float64)}, Call())["output-0"]
    np.testing.assert_allclose(doubles, expected, rtol=1e-10)
    assert model.predict({"features": features}, Call(outputs=frozenset({"other"}))) == {}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Scaled", "operation aten::addmm with alpha 2"),
        ("OtherNorm", "operation aten::linalg_vector_norm with order 1"),
        ("NoSum", "no layer that sums"),
        ("OverRows", r"operation aten::linalg_vector_norm with order 2 over \[0\]"),
        ("Earlier", "operation aten::add with"),
    ],
)
def test_a_network_with_anything_else_in_it_is_pytorchs(tmp_path: Path, kind: str, reason: str):
    model = loaded(tmp_path, getattr(torch_classes, kind)())
    assert model._compiled is None
    assert "compiled_rows" not in model.details
    assert re.match(reason, model.details["compiled_reason"])
    features = rows(5)
    answer = model.predict({"features": features}, Call())["output-0"]
    with torch.inference_mode():
        np.testing.assert_array_equal(answer, model._module(torch.from_numpy(features)).numpy())


def test_steps_that_answer_otherwise_are_not_used(tmp_path: Path, monkeypatch):
    wrong = torch_classes.Net(seed=5)
    graph = read_mlp(read_script(torch.jit.script(wrong.eval())), 9)
    monkeypatch.setattr("torch_server.mlp_compiler.read_mlp", lambda *_: graph)
    model = loaded(tmp_path, torch_classes.Net(seed=6))
    assert model._compiled is None
    assert "the compiled steps differ" in model.details["compiled_reason"]


def test_autocast_and_missing_kernels_leave_all_to_pytorch(tmp_path: Path, monkeypatch):
    assert loaded(tmp_path, torch_classes.Net(), autocast="bf16")._compiled is None
    monkeypatch.setattr("serinus.native.trees.walker.library", lambda: None)
    assert loaded(tmp_path, torch_classes.Net())._compiled is None


def test_steps_that_do_not_fit_are_refused():
    select = Step(Kind.SELECT, -1, 2, first=np.array([0, 3]))
    norm = Step(Kind.NORM, 0, 1)
    assert MLP([select, norm]).columns == 4
    assert MLP([select]).outputs == 2
    for steps in (
        [],
        [norm],
        [select, Step(Kind.RELU, 0, 3), norm],
        [select, Step(Kind.RELU, 5, 2), norm],
        [select, Step(Kind.DENSE, 0, 3, first=np.zeros(3), second=np.zeros((3, 2))), norm],
        [select, Step(Kind.DENSE, 0, 3, second=np.zeros((2, 3)), other=0), norm],
        [select, Step(Kind.DENSE, 0, 3000, first=np.zeros(3000), second=np.zeros((2, 3000))), norm],
        [select, Step(Kind.AFFINE, 0, 2, first=np.zeros(2)), norm],
        [Step(Kind.SELECT, -1, 2, first=np.array([0, -1])), norm],
    ):
        with pytest.raises(ValueError, match=r"step|MLP"):
            MLP(steps)
    with pytest.raises(ValueError, match="rows must be float32"):
        MLP([select, norm]).predict(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="float32 or float64, not int32"):
        MLP([select, norm], row_dtype=np.int32)


# Layers in any order

COVERED: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "linear": lambda dtype: nn.Linear(6, 3, dtype=dtype),
    "no-bias": lambda dtype: nn.Linear(6, 3, bias=False, dtype=dtype),
    "relu": lambda dtype: layers(nn.ReLU(), dtype),
    "sigmoid": lambda dtype: layers(nn.Sigmoid(), dtype),
    "tanh": lambda dtype: layers(nn.Tanh(), dtype),
    "gelu": lambda dtype: layers(nn.GELU(), dtype),
    "gelu-tanh": lambda dtype: layers(nn.GELU(approximate="tanh"), dtype),
    "batch-norm": lambda dtype: layers(trained_norm(8, dtype), dtype),
    "norm-first": lambda dtype: nn.Sequential(trained_norm(6, dtype), nn.Linear(6, 2, dtype=dtype)),
    "one-output": lambda dtype: layers(nn.ReLU(), dtype, outputs=1),
    "wide": lambda dtype: nn.Sequential(nn.Linear(6, 300, dtype=dtype), nn.ReLU(), nn.Linear(300, 64, dtype=dtype)),
    "length": lambda dtype: torch_classes.Reduced(layers(nn.Tanh(), dtype), "length"),
    "kept-length": lambda dtype: torch_classes.Reduced(layers(nn.Tanh(), dtype), "kept"),
    "squeezed": lambda dtype: torch_classes.Reduced(layers(nn.Tanh(), dtype, outputs=1), "squeezed"),
    "reshaped": lambda dtype: torch_classes.Reduced(layers(nn.Tanh(), dtype, outputs=1), "reshaped"),
    "scaled": lambda dtype: torch_classes.Reduced(layers(nn.ReLU(), dtype), "scaled"),
}


def layers(activation: nn.Module, dtype: torch.dtype, outputs: int = 3) -> nn.Module:
    """Three layers with the activation twice, and what does nothing when serving."""
    return nn.Sequential(
        nn.Linear(6, 8, dtype=dtype), activation, nn.Dropout(), nn.Flatten(),
        nn.Linear(8, 8, dtype=dtype), activation, nn.Linear(8, outputs, dtype=dtype),
    )  # fmt: skip


def trained_norm(width: int, dtype: torch.dtype) -> nn.Module:
    """Batch normalisation that has seen data."""
    norm = nn.BatchNorm1d(width, dtype=dtype)
    for _ in range(20):
        norm(3 * torch.randn(50, width, dtype=dtype) + 2)
    return norm


def graph_of(module: nn.Module, how: str, dtype: torch.dtype) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A module as its file has it, and what answers in PyTorch."""
    module = module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "script":
            return torch.jit.script(module), module
        if how == "frozen":
            return torch.jit.freeze(torch.jit.script(module)), module
        if how == "trace":
            return torch.jit.trace(module, torch.zeros(3, 6, dtype=dtype)), module
        rows = {0: torch.export.Dim("rows", min=1)}
        program = torch.export.export(module, (torch.zeros(3, 6, dtype=dtype),), dynamic_shapes=(rows,))
        return program, program.module()


EACH_WAY = list(product(COVERED, ["float64", "float32"], ["script", "frozen", "trace", "export"]))


@pytest.mark.parametrize(
    ("name", "precision", "how"), EACH_WAY if DEEP else EACH_WAY[::3]
)  # 3 and 8 have no common divisor
def test_every_layer_answers_as_pytorch_does(name: str, precision: str, how: str):
    dtype = getattr(torch, precision)
    torch.manual_seed(3)
    module, answer = graph_of(COVERED[name](dtype), how, dtype)
    compiled = compile_mlp(module, answer)
    features = torch.randn(200, 6, dtype=dtype)
    with torch.inference_mode():
        expected = answer(features).numpy()
    found = compiled.predict(features.numpy())
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    tolerance = 1e-13 if dtype == torch.float64 else 3e-6
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert not compiled.takes(features[:, :5].numpy())
    assert not compiled.takes(features[0].numpy())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)), "operation aten::softmax"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.LayerNorm(3)), "operation aten::layer_norm"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.ELU()), "operation aten::elu"),
        (lambda: nn.Sequential(nn.Linear(6, 300), nn.Linear(300, 300)), "91,800 weights; compiled are at most 65,536"),
        (
            lambda: nn.Sequential(nn.Linear(6, 400), nn.Linear(400, 400)),
            "163,200 parameters; compiled are at most 65,536 weights",
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 1100), nn.ReLU(), nn.Linear(1100, 3)),
            "layers that are 2,209 wide together",
        ),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.Flatten(0)), "operation aten::flatten with dimensions"),
        (lambda: nn.ReLU(), "an input whose columns nothing tells"),
        (lambda: nn.Bilinear(6, 6, 2), "2 inputs"),
        (
            lambda: nn.Sequential(nn.Linear(6, 3, dtype=torch.float16)),
            "operation aten::linear with weights that are not",
        ),
    ],
    ids=["softmax", "layer-norm", "elu", "weights", "parameters", "width", "flatten", "no-columns", "inputs", "half"],
)
def test_what_the_steps_do_not_cover_is_declined_with_its_name(make: Callable[[], nn.Module], reason: str):
    module = make()
    with pytest.raises(NotCovered, match=reason):
        compile_mlp(torch.jit.script(module.eval()), module)
    with pytest.raises(NotCovered, match="Python code"):
        compile_mlp(module, module)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("change", ["weight", "bias", "gelu"])
def test_a_network_that_is_another_by_little_is_found_out(change: str, precision: str):
    dtype = getattr(torch, precision)
    torch.manual_seed(4)
    module = layers(nn.GELU(), dtype).eval()
    script = torch.jit.script(module)
    other = layers(nn.GELU(approximate="tanh" if change == "gelu" else "none"), dtype).eval()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        if change == "weight":
            other[4].weight[2, 3] *= 1.001
        elif change == "bias":
            other[0].bias[5] += 0.001
    assert compile_mlp(script, module).graph.precision == (np.float64 if dtype == torch.float64 else np.float32)
    with pytest.raises(NotCovered, match="the compiled steps differ"):
        compile_mlp(script, other)


def test_rows_of_infinities_that_pytorch_answers_otherwise_are_left_to_it():
    module = nn.Sequential(nn.Linear(1, 1), nn.GELU()).eval()

    def answer(rows: Tensor) -> Tensor:
        return module(rows).nan_to_num(7.0, 8.0, 9.0)

    compiled = compile_mlp(torch.jit.script(module), answer)
    assert compiled.finite_only
    assert compiled.takes(np.ones((2, 1), np.float32))
    assert not compiled.takes(np.array([[1], [np.inf]], np.float32))


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_a_float32_classifier_is_served_without_pytorch_from_its_second_start_on(tmp_path: Path, suffix: str):
    torch.manual_seed(5)
    module = layers(nn.ReLU(), torch.float32).eval()
    path = tmp_path / f"m.{suffix}"
    graph, _ = graph_of(module, "script" if suffix == "pt" else "export", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph.save(str(path)) if suffix == "pt" else torch.export.save(graph, str(path))
    features = torch.randn(40, 6)
    answers = []
    for start in range(2):
        model = TorchModel(ModelSettings(name="m", model_dir=path, threads=1))
        model.load()
        assert (model.module is None) == (start == 1)
        assert model.details["compiled_rows"] == ("all" if start else 16)
        if suffix == "pt2":
            assert [(spec.datatype, spec.shape) for spec in model.outputs] == [("FP32", (-1, 3))]
            assert model.batchable
        (answer,) = model.predict({"input": features.numpy()}, Call()).values()
        assert (answer.dtype, answer.shape) == (np.float32, (40, 3))
        answers.append(answer)
    np.testing.assert_allclose(answers[0], answers[1], rtol=3e-6, atol=3e-6)
    with torch.inference_mode():
        np.testing.assert_allclose(answers[1], module(features).numpy(), rtol=3e-6, atol=3e-6)


# The record of a network


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from serinus import Call, ModelSettings
from torch_server import TorchModel
model = TorchModel(ModelSettings(name="m", model_dir=Path(sys.argv[1]), threads=1))
model.load()
for rows in (1, 16, 17, 300):
    answer = model.predict({"features": np.load(sys.argv[2])[:rows]}, Call())["output-0"]
    print(answer.dtype, " ".join(map(float.hex, answer.tolist())))
print("torch" in sys.modules, model.details)
"""


def in_a_process(folder: Path, *more: str) -> list[str]:
    command = [sys.executable, "-c", "\n".join((*more, PROGRAM)), str(folder / "m.pt"), str(folder / "rows.npy")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_network_that_was_compiled_before_needs_no_pytorch(tmp_path: Path):
    model = loaded(tmp_path, torch_classes.Net())
    assert (tmp_path / "m.pt.verdict.json").is_file()
    features = rows(300)
    np.save(tmp_path / "rows.npy", features)
    for more in ((), ("import sys; sys.modules['torch'] = None",)):  # PyTorch is not asked for, and not missed
        *answers, told = in_a_process(tmp_path, *more)
        assert told.startswith("True" if more else "False")
        assert "'compiled_rows': 'all'" in told
        assert "'feature_names': ['c0'" in told
        for line, count in zip(answers, (1, 16, 17, 300), strict=True):
            dtype, *numbers = line.split(" ")
            assert dtype == "float64"
            # To the last bit: they are the same steps.
            np.testing.assert_array_equal(list(map(float.fromhex, numbers)), model._compiled.predict(features[:count]))


def test_the_record_that_ships_with_the_fraud_model_holds():
    """Written by an earlier version, which knew float64 networks of one answer only."""
    folder = Path(__file__).parents[2] / "inferenceservices" / "fraud" / "model"
    record = mlp_records.find(folder / "anomaly.pt", "torch", "")
    assert record is not None
    assert record.compiled.graph.is_flat
    assert record.arguments == ("features",)
    features = np.ones((3, len(record.feature_names)), np.float32)
    assert record.compiled.takes(features)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(folder / "anomaly.pt"))(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(record.compiled.predict(features), expected, rtol=1e-10)


@pytest.mark.parametrize("change", ["file", "engine", "torch", "steps", "damage"])
def test_a_record_of_another_file_or_engine_is_not_used(tmp_path: Path, change: str, monkeypatch):
    loaded(tmp_path, torch_classes.Net())
    path = tmp_path / "m.pt.verdict.json"
    body = json.loads(path.read_text())
    if change == "file":
        with (tmp_path / "m.pt").open("ab") as file:
            file.write(b"\0")
    elif change == "damage":
        path.write_text(path.read_text()[:-9])
    else:
        body |= {"engine": {"engine": 0}, "torch": {"torch": "1.0"}, "steps": {"steps": [{}]}}[change]
        path.write_text(json.dumps(body))
    assert mlp_records.find(tmp_path / "m.pt", "torch", torch.__version__.partition("+")[0]) is None


def light(folder: Path, **settings: Any) -> TorchModel:
    model = TorchModel(ModelSettings(name="m", model_dir=folder / "m.pt", threads=1, **settings))
    model.load()
    return model


def test_what_the_steps_cannot_answer_is_pytorchs_to_answer(tmp_path: Path):
    module = loaded(tmp_path, torch_classes.Net())
    model = light(tmp_path)
    assert model.module is None
    features = rows(8)
    wide = np.repeat(features, 2, axis=1)[:, ::2]
    for given in (features, np.asfortranarray(features), wide, features[:0]):
        expected = module.predict({"features": given}, Call())["output-0"]
        np.testing.assert_allclose(model.predict({"features": given}, Call())["output-0"], expected, rtol=1e-10)
    assert model.predict({"features": features}, Call(outputs=frozenset({"other"}))) == {}
    assert model.module is None
    doubles = model.predict({"features": features.astype(np.float64)}, Call())["output-0"]
    np.testing.assert_allclose(doubles, module.predict({"features": features}, Call())["output-0"], rtol=1e-10)
    assert model.module is not None
    with pytest.raises(InvalidInput, match="refuses"):
        model.predict({"features": features[:, :2]}, Call())
    with pytest.raises(InvalidInput, match="features"):
        model.predict({"a": features, "b": features}, Call())
    model.unload()


@pytest.mark.parametrize("extra", [{"autocast": "bf16"}, {"batch_buckets": [4]}, {"device": "cuda"}])
def test_settings_that_are_pytorchs_load_it(tmp_path: Path, extra: dict[str, Any]):
    loaded(tmp_path, torch_classes.Net())
    if extra == {"device": "cuda"}:
        with pytest.raises(ConfigError, match="GPU"):
            light(tmp_path, extra=extra)
    else:
        assert light(tmp_path, extra=extra).module is not None


def test_a_gpu_that_is_there_is_used_as_before(tmp_path: Path, monkeypatch):
    loaded(tmp_path, torch_classes.Net())
    monkeypatch.setattr("torch_server.model._GPU", tmp_path)
    assert light(tmp_path).module is not None
    assert light(tmp_path, extra={"device": "cpu"}).module is None


def test_declared_tensors_are_those_of_the_steps(tmp_path: Path):
    loaded(tmp_path, torch_classes.Net())
    specs = {"inputs": (TensorSpec("x", "FP32", (-1, 9)),), "outputs": (TensorSpec("y", "FP64", (-1,)),)}
    model = light(tmp_path, **specs)
    assert (model.module, model.batchable, model.inputs, model.outputs) == (None, True, *specs.values())
    assert model.predict({"x": rows(3)}, Call())["y"].shape == (3,)
    single = light(tmp_path, inputs=specs["inputs"], outputs=(TensorSpec("y", "FP32", (-1,)),))
    assert single.predict({"x": rows(3)}, Call())["y"].dtype == np.float32
