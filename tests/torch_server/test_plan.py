"""Small TorchScript networks as compiled steps: held against PyTorch, used for few rows, and left alone where anything is other."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from serinus import Call, ModelSettings, TensorSpec
from serinus.errors import ConfigError, InvalidInput
from serinus.native import library
from serinus.native.dense.mlp import Kind, Network, Step
from torch_server import TorchModel, plan, stored
from torch_server.module import TorchModule

pytestmark = [
    pytest.mark.slow,  # importing PyTorch takes ~2 s
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.skipif(library() is None, reason="the kernels are not built"),
]

NAMES = [f"c{at}" for at in range(9)]


class Net(nn.Module):
    """Every step that there is; `change` stands for what other networks do otherwise."""

    def __init__(
        self, widths: tuple[int, int, int] = (5, 16, 7), seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def made(*shape: int) -> nn.Buffer:
            return nn.Buffer(torch.randn(*shape, generator=generator, dtype=dtype))

        width, first, second = widths
        self.feature_names = NAMES
        self.columns = nn.Buffer(torch.randperm(9, generator=generator)[:width])
        self.shift, self.scale = made(width), made(width)
        self.w1, self.b1, self.w2, self.b2, self.w3 = (
            made(width, first), made(first), made(first, second), made(second), made(second, width),
        )  # fmt: skip

    def normal(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.shift, torch.asinh(features.index_select(1, self.columns).double()), self.scale)

    def forward(self, features: Tensor) -> Tensor:
        normal = self.normal(features).nan_to_num(0.5, 3.0, -3.0)
        hidden = torch.relu(torch.addmm(self.b1, normal, self.w1))
        hidden = torch.relu(torch.addmm(self.b2, hidden, self.w2))
        return torch.log(torch.linalg.vector_norm(torch.addmm(normal, hidden, self.w3, beta=-1), 2, [1]))


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
    model = loaded(tmp_path, Net(widths))
    assert model.details["compiled_rows"] == plan.MOST_ROWS
    features = rows(300)
    with torch.inference_mode():
        expected = model._module(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(model._network.predict(features), expected, rtol=1e-10, atol=1e-10)


def test_few_rows_take_the_steps_and_many_take_pytorch_with_the_same_float32(tmp_path: Path, monkeypatch):
    model = loaded(tmp_path, Net())
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
    for count in (1, plan.MOST_ROWS, plan.MOST_ROWS + 1, 100):
        model.predict({"features": features[:count]}, Call())
    assert asked == [plan.MOST_ROWS + 1, 100]


def test_rows_in_any_memory_order_and_of_other_types_are_answered(tmp_path: Path):
    model = loaded(tmp_path, Net())
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


class Sigmoid(Net):
    def forward(self, features: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.sigmoid(self.normal(features)), 2, [1])


class Scaled(Net):
    def forward(self, features: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.addmm(self.b1, self.normal(features), self.w1, alpha=2), 2, [1])


class OtherNorm(Net):
    def forward(self, features: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.normal(features), 1, [1])


class Matrix(Net):
    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.normal(features))


class OverRows(Net):
    def forward(self, features: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.normal(features), 2, [0])


class Earlier(Net):
    def forward(self, features: Tensor) -> Tensor:
        unused = torch.log(torch.linalg.vector_norm(self.normal(features), 2, [1]))
        return torch.linalg.vector_norm(torch.relu(self.normal(features)), 2, [1]) + unused


@pytest.mark.parametrize("kind", [Sigmoid, Scaled, OtherNorm, Matrix, OverRows, Earlier])
def test_a_network_with_anything_else_in_it_is_pytorchs(tmp_path: Path, kind: Callable[[], nn.Module]):
    model = loaded(tmp_path, kind())
    assert model._network is None
    assert "compiled_rows" not in model.details
    features = rows(5)
    answer = model.predict({"features": features}, Call())["output-0"]
    with torch.inference_mode():
        np.testing.assert_array_equal(answer, model._module(torch.from_numpy(features)).numpy())


def test_steps_that_answer_otherwise_are_not_used(tmp_path: Path, monkeypatch):
    wrong = Net(seed=5)
    network = Network(plan._steps(torch.jit.freeze(torch.jit.script(wrong.eval())).graph))
    monkeypatch.setattr(plan, "Network", lambda steps: network)
    assert loaded(tmp_path, Net(seed=6))._network is None


def test_autocast_and_missing_kernels_leave_all_to_pytorch(tmp_path: Path, monkeypatch):
    assert loaded(tmp_path, Net(), autocast="bf16")._network is None
    monkeypatch.setattr("serinus.native.trees.walker.library", lambda: None)
    assert loaded(tmp_path, Net())._network is None


def test_steps_that_do_not_fit_are_refused():
    select = Step(Kind.SELECT, -1, 2, first=np.array([0, 3]))
    norm = Step(Kind.NORM, 0, 1)
    assert Network([select, norm]).columns == 4
    for steps in (
        [],
        [norm],
        [select],
        [select, Step(Kind.RELU, 0, 3), norm],
        [select, Step(Kind.RELU, 5, 2), norm],
        [select, Step(Kind.DENSE, 0, 3, first=np.zeros(3), second=np.zeros((3, 2))), norm],
        [select, Step(Kind.DENSE, 0, 3, second=np.zeros((2, 3)), other=0), norm],
        [select, Step(Kind.DENSE, 0, 3000, first=np.zeros(3000), second=np.zeros((2, 3000))), norm],
        [select, Step(Kind.AFFINE, 0, 2, first=np.zeros(2)), norm],
        [Step(Kind.SELECT, -1, 2, first=np.array([0, -1])), norm],
    ):
        with pytest.raises(ValueError, match=r"step|network"):
            Network(steps)
    with pytest.raises(ValueError, match="rows must be float32"):
        Network([select, norm]).predict(np.zeros((2, 3), np.float32))


# What is kept of a network


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
    model = loaded(tmp_path, Net())
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
            np.testing.assert_array_equal(list(map(float.fromhex, numbers)), model._network.predict(features[:count]))


@pytest.mark.parametrize("change", ["file", "engine", "torch", "steps", "damage"])
def test_what_was_kept_of_another_file_or_engine_is_not_used(tmp_path: Path, change: str, monkeypatch):
    loaded(tmp_path, Net())
    verdict = tmp_path / "m.pt.verdict.json"
    body = json.loads(verdict.read_text())
    if change == "file":
        with (tmp_path / "m.pt").open("ab") as file:
            file.write(b"\0")
    elif change == "damage":
        verdict.write_text(verdict.read_text()[:-9])
    else:
        body |= {"engine": {"engine": 0}, "torch": {"torch": "1.0"}, "steps": {"steps": [{}]}}[change]
        verdict.write_text(json.dumps(body))
    assert stored.find(tmp_path / "m.pt") is None


def light(folder: Path, **settings: Any) -> TorchModel:
    model = TorchModel(ModelSettings(name="m", model_dir=folder / "m.pt", threads=1, **settings))
    model.load()
    return model


def test_what_the_steps_cannot_answer_is_pytorchs_to_answer(tmp_path: Path):
    module = loaded(tmp_path, Net())
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
    loaded(tmp_path, Net())
    if extra == {"device": "cuda"}:
        with pytest.raises(ConfigError, match="GPU"):
            light(tmp_path, extra=extra)
    else:
        assert light(tmp_path, extra=extra).module is not None


def test_a_gpu_that_is_there_is_used_as_before(tmp_path: Path, monkeypatch):
    loaded(tmp_path, Net())
    monkeypatch.setattr("torch_server.model._GPU", tmp_path)
    assert light(tmp_path).module is not None
    assert light(tmp_path, extra={"device": "cpu"}).module is None


def test_declared_tensors_are_those_of_the_steps(tmp_path: Path):
    loaded(tmp_path, Net())
    specs = {"inputs": (TensorSpec("x", "FP32", (-1, 9)),), "outputs": (TensorSpec("y", "FP64", (-1,)),)}
    model = light(tmp_path, **specs)
    assert (model.module, model.batchable, model.inputs, model.outputs) == (None, True, *specs.values())
    assert model.predict({"x": rows(3)}, Call())["y"].shape == (3,)
    single = light(tmp_path, inputs=specs["inputs"], outputs=(TensorSpec("y", "FP32", (-1,)),))
    assert single.predict({"x": rows(3)}, Call())["y"].dtype == np.float32
