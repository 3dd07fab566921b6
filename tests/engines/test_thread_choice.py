"""How many threads a predict gets: by measurement, bounded in time; by the operator's word; told in the metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import xgboost_support
from deferred import Deferred
from lightgbm_server import LightGBMModel
from serinus import settings as serinus_settings
from serinus.engines import thread_choice
from serinus.engines.thread_choice import ThreadChoice, measure
from serinus.model import Call
from serinus.settings import ModelSettings
from xgboost_server import XGBoostModel

onnx = Deferred("onnx")
torch = Deferred("torch")


class Machine:
    """A clock, and a framework whose batches take `cost(rows, threads)` seconds of it."""

    def __init__(self, cost: Callable[[int, int], float]) -> None:
        self.now = 0.0
        self.calls: list[tuple[int, int]] = []
        self._cost = cost

    def clock(self) -> float:
        return self.now

    def predict(self, rows: int, threads: int) -> None:
        self.calls.append((rows, threads))
        self.now += self._cost(rows, threads)

    def measure(self, most: int = 4, most_rows: int = 4096) -> ThreadChoice:
        return measure(self.predict, most, most_rows=most_rows, clock=self.clock)


def waking(rows: int, threads: int) -> float:
    """Waking threads costs 200 us, a row 2 us of work that they share."""
    return 2e-6 * rows / threads + (200e-6 if threads > 1 else 10e-6)


def test_small_batches_get_one_thread_and_large_ones_all():
    choice = Machine(waking).measure()
    assert [choice.of(rows) for rows in (1, 8, 64, 511, 512, 4096)] == [1, 1, 1, 1, 4, 4]
    assert str(choice) == "1, and 4 from 512 rows (measured at load)"


COSTS: dict[str, tuple[Callable[[int, int], float], str]] = {
    "threads that always win": (lambda rows, threads: 1e-3 * rows / threads, "4 (measured at load)"),
    "threads that win a little": (
        lambda rows, threads: 1e-6 * rows * (0.9 if threads > 1 else 1),
        "1, and 4 from 32768 rows (measured at load)",
    ),
    "rows that are not joined": (waking, "1 (measured at load)"),
}


@pytest.mark.parametrize("name", COSTS)
def test_threads_must_be_worth_their_cpu(name: str):
    cost, said = COSTS[name]
    assert str(Machine(cost).measure(most_rows=1 if name.startswith("rows") else 4096)) == said


def test_measuring_ends_in_time_whatever_a_row_takes():
    slow = Machine(lambda rows, threads: 0.4 * rows)
    choice = slow.measure()
    assert slow.now <= thread_choice.BUDGET_S + 2 * 0.4
    assert choice.of(1) == 1
    assert choice.of(8) == 4, "what was too large to be tried has more work for each thread"
    for row_s in (1e-6, 1e-4, 1e-2):
        machine = Machine(lambda rows, threads, row_s=row_s: row_s * rows)
        machine.measure()
        longest = max(row_s * rows for rows, _ in machine.calls)
        assert machine.now <= thread_choice.BUDGET_S + 2 * longest


def test_one_cpu_is_one_thread_and_nothing_is_measured():
    machine = Machine(waking)
    assert str(machine.measure(most=1)) == "1"
    assert machine.calls == []


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serinus_settings, "cpu_limit", lambda: 2.0)
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


SAID = r"^(1|2|1, and 2 from \d+ rows) \(measured at load\)$"


def _said(threads: object) -> str:
    import re

    assert isinstance(threads, str)
    assert re.match(SAID, threads), threads
    return threads


@pytest.mark.slow  # both frameworks
@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("framework", ["xgboost", "lightgbm"])
def test_a_booster_is_measured_and_answers_the_same_with_any_threads(tmp_path: Path, framework: str):
    if framework == "xgboost":
        path, kind = xgboost_support.save(xgboost_support.train(), tmp_path), XGBoostModel
    else:
        import lightgbm_support

        path, kind = lightgbm_support.save(lightgbm_support.train(), tmp_path), LightGBMModel
    data = np.random.default_rng(0).normal(size=(5000, 6))
    answers = []
    for threads in (0, 1, 2):
        model = kind(ModelSettings(name="m", model_dir=path, threads=threads, extra={"engine": "booster"}))
        model.load()
        rows = data.astype(model.adapter_class.input_dtype)
        answers.append([model.predict({"x": rows[:count]}, Call())["predict"] for count in (1, 100, 5000)])
        if threads:
            assert model.details["threads"] == str(threads)
        else:
            _said(model.details["threads"])
    for few, all_threads in zip(answers[1], answers[2], strict=True):
        np.testing.assert_array_equal(few, all_threads)
    for measured, one in zip(answers[0], answers[1], strict=True):
        np.testing.assert_array_equal(measured, one)


def _graph(folder: Path, columns: int = 64) -> Path:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(np.eye(columns, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", columns])],
        [helper.make_tensor_value_info("y", kind, ["n", columns])],
        [weights],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "m.onnx")
    )
    return folder / "m.onnx"


@pytest.mark.usefixtures("two_cpus")
def test_a_graph_is_measured_unless_a_number_is_named(tmp_path: Path):
    from onnx_server import OnnxModel

    path = _graph(tmp_path)
    data = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    for threads in (0, 1, 2):
        model = OnnxModel(ModelSettings(name="m", model_dir=path, threads=threads))
        model.load()
        for count in (1, 3000):
            np.testing.assert_array_equal(model.predict({"x": data[:count]}, Call())["y"], data[:count])
        if threads:
            assert model.details["threads"] == str(threads)
        else:
            _said(model.details["threads"])


@pytest.mark.usefixtures("two_cpus")
def test_a_large_graph_is_not_held_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from onnx_server import OnnxModel, session_threads

    monkeypatch.setattr(session_threads, "_HELD_TWICE_BYTES", 1000)
    model = OnnxModel(ModelSettings(name="m", model_dir=_graph(tmp_path)))
    model.load()
    assert model.details["threads"] == "2"
    assert model._sessions.of(1) is model._sessions.of(4096)


@pytest.mark.slow  # importing PyTorch takes ~4 s
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.usefixtures("two_cpus")
def test_a_module_is_measured_unless_a_number_is_named(tmp_path: Path):
    from serinus import TensorSpec
    from torch_server.module import TorchModule

    module = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.Flatten()).eval()
    torch.jit.script(module).save(str(tmp_path / "m.pt"))
    data = np.random.default_rng(0).normal(size=(600, 1, 9)).astype(np.float32)
    inputs, outputs = (TensorSpec("x", "FP32", (-1, 1, 9)),), (TensorSpec("y", "FP32", (-1, 28)),)
    before = torch.get_num_threads()
    try:
        for threads in (0, 1, 2):
            settings = ModelSettings(name="m", model_dir=tmp_path, threads=threads, inputs=inputs, outputs=outputs)
            model = TorchModule(settings)
            model.load()
            for count in (1, 600):
                wanted = module(torch.from_numpy(data[:count])).detach().numpy()
                np.testing.assert_allclose(model.predict({"x": data[:count]}, Call())["y"], wanted, atol=1e-6)
            if threads:
                assert (model.details["threads"], torch.get_num_threads()) == (str(threads), threads)
            else:
                _said(model.details["threads"])
    finally:
        torch.set_num_threads(before)
