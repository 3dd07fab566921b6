"""Who decides whether rows of several requests are joined, and where what was found is kept."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataplane_processes import Summed
from dataplane_support import serving
from serinus import Call, InferRequest, Model, ModelSettings, Tensor, TensorSpec
from serinus.dataplane.joining.independence import BUDGET_S, examine
from serinus.dataplane.joining.sampling import scenes
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.errors import InvalidInput
from serinus.loading import settings_from_directory
from serinus.model import Provenance
from serinus.protocol.types import Signature
from serinus.settings import BatchSettings

X = (TensorSpec("x", "FP32", (-1, 3)),)
Predict = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]


def half(rows: np.ndarray, digits: int) -> np.ndarray:
    """Answers that depend on the number of rows in their last digits, as other kernels do."""
    return rows.astype(np.float64) * (1 + 10.0**-digits * (len(rows) % 2))


PURE: dict[str, tuple[Predict, str, str]] = {
    "rows": (lambda x: {"y": x["x"] * 2}, "independent", "alone and joined"),
    "rounding of fp32": (lambda x: {"y": half(x["x"], 6).astype(np.float32)}, "independent", ""),
    "more than rounding": (
        lambda x: {"y": half(x["x"], 3).astype(np.float32)},
        "dependent",
        r"by 0\.00\d+ of its magnitude; 0\.0001 is allowed",
    ),
    "fp16": (lambda x: {"y": half(x["x"], 3).astype(np.float16)}, "independent", ""),
    "one integer": (
        lambda x: {"y": (x["x"][:, 0] * 100).astype(int) + (len(x["x"]) == 5)},
        "dependent",
        "a row of output 'y'",
    ),
    "one of two outputs": (lambda x: {"y": x["x"], "z": np.cumsum(x["x"], 0)}, "dependent", "output 'z'"),
    "a huge constant beside it": (
        lambda x: {"y": np.concatenate([x["x"] * 0 - 3e38, np.cumsum(x["x"], 0)], 1)},
        "dependent",
        "output 'y'",
    ),
    "a scalar": (lambda x: {"y": x["x"].sum()}, "dependent", r"shape \[\] for 1 row"),
    "one answer for all": (lambda x: {"y": x["x"].sum(0, keepdims=True)}, "dependent", r"shape \[1, 3\] for 2 rows"),
    "as long as the value": (
        lambda x: {"y": np.zeros((1, int(abs(x["x"][0, 0] * 10))))},
        "dependent",
        "depends on the values",
    ),
    "nan": (lambda x: {"y": np.sqrt(x["x"])}, "independent", ""),
    "nothing but nan": (lambda x: {"y": x["x"] * np.nan}, "refused", "all random rows get the same answer"),
    "spoilt by a neighbour": (
        lambda x: {"y": np.where(np.isnan(x["x"]).any(), np.float32(0), x["x"])},
        "dependent",
        "beside extreme neighbours",
    ),
    "scaled by the largest": (
        lambda x: {"y": np.round(x["x"] / max(np.abs(x["x"]).max(), 100.0) * 100) / 100},
        "dependent",
        "beside loud neighbours",
    ),
    "strings": (lambda x: {"y": x["x"].astype(str).astype(object)}, "independent", ""),
}


@pytest.mark.parametrize("case", PURE)
def test_rows_are_independent_where_each_gets_what_it_gets_alone(case):
    predict, outcome, reason = PURE[case]
    finding = examine(predict, scenes(X, None), clock=lambda: 0.0)
    assert finding.outcome == outcome, finding
    assert re.search(reason, finding.reason)


def test_what_takes_longer_than_the_budget_is_not_found_independent():
    now = [0.0]

    def slow(x: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        now[0] += len(x["x"]) * 1.0
        return {"y": x["x"]}

    finding = examine(slow, scenes(X, None), clock=lambda: now[0])
    assert finding.outcome == "late"
    assert f"not found out in {BUDGET_S:.0f} s" in finding.reason
    assert now[0] <= BUDGET_S + 6  # the predict that was under way


def test_a_slow_model_is_tried_in_few_and_small_batches():
    now, rows = [0.0], [0]

    def slow(x: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        now[0] += len(x["x"]) * 0.05
        rows[0] = max(rows[0], len(x["x"]))
        return {"y": x["x"]}

    finding = examine(slow, scenes(X, None), clock=lambda: now[0])
    assert (finding.outcome, rows[0]) == ("independent", 6)
    assert now[0] < BUDGET_S / 2


def test_integers_beyond_those_that_work_are_left_out():
    table = np.float32([[1.0], [2.0]])

    def embed(x: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        return {"y": table[x["ids"]]}

    specs = (TensorSpec("ids", "INT64", (-1,)),)
    assert examine(embed, scenes(specs, None), clock=lambda: 0.0).outcome == "independent"


def test_a_model_that_takes_only_what_it_gave_is_varied_around_that():
    def choosy(x: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        if not (np.abs(x["x"] - 1000) < 500).all():
            raise ValueError("out of range")
        return {"y": x["x"]}

    given = {"x": np.full((1, 3), 1000, np.float32)}
    assert examine(choosy, scenes(X, given), clock=lambda: 0.0).outcome == "independent"
    refused = examine(choosy, scenes(X, None), clock=lambda: 0.0)
    assert refused.outcome == "refused"
    assert "random inputs are refused, so nothing was shown: ValueError: out of range" in refused.reason


class File(Model):
    """Somebody else's graph: "rows" doubles, "sums" sums up, "refuses" takes nothing random, "noise" takes only zeros and counts them."""

    batching = "earned"
    inputs = X
    outputs = (TensorSpec("y", "FP32", (-1, 3)),)
    checks = 0
    """Predicts of what is not all zeros."""
    version_of_framework = "1"

    def load(self):
        path = self.settings.model_dir
        self.kind = path.read_text()
        self.provenance = Provenance((path,), {"framework": self.version_of_framework})
        self.signatures = {"sums": Signature(self.inputs, self.outputs), "main": Signature(self.inputs, self.outputs)}
        self.default_signature = "main"

    def predict(self, inputs, call):
        x = inputs["x"]
        type(self).checks += bool(x.any())  # warming up is done with zeros
        if self.kind == "refuses" and x.any():
            raise InvalidInput("no such row")
        sums = self.kind == "sums" or call.parameters.get("signature_name") == "sums"
        return {"y": np.cumsum(x, axis=0) if sums else x * 2}


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Callable[..., ModelSettings]]:
    File.checks, File.version_of_framework = 0, "1"

    def make(kind: str = "rows", **fields: Any) -> ModelSettings:
        (tmp_path / "model.bin").write_text(kind)
        return ModelSettings(name="m", model_dir=tmp_path / "model.bin", **fields)

    return make


async def start(settings: ModelSettings) -> tuple[int, str]:
    """Start and stop; gives the predicts that checked, and how the model is batched."""
    File.checks = 0
    async with serving(File, settings) as plane:
        return File.checks, plane.registry.find("m").model.details["batching"]


DECISIONS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "shown": ("rows", {}, "joined", "rows got the same answers alone and joined"),
    "shown otherwise": ("sums", {}, "alone", "differs from its answer alone"),
    "not shown": ("refuses", {}, "alone", "random inputs are refused"),
    "the owner's no": ("rows", {"batchable": False}, "alone", "its settings say 'batchable': false"),
    "the owner's yes, shown": ("rows", {"batchable": True}, "joined", "'batchable': true; rows got the same"),
    "the owner's yes, shown otherwise": (
        "sums",
        {"batchable": True},
        "alone",
        "'batchable': true, but joined with others",
    ),
    "the owner's yes, not shown": (
        "refuses",
        {"batchable": True},
        "joined",
        "'batchable': true; random inputs are refused",
    ),
    "no warm-up": ("rows", {"warmup": False}, "alone", "warm-up is off, so nothing was checked"),
    "no warm-up, the owner's yes": ("rows", {"warmup": False, "batchable": True}, "joined", "warm-up is off"),
    "one row at a time": ("rows", {"batch": BatchSettings(max_batch_rows=1)}, "alone", "max_batch_rows is 1"),
}


@pytest.mark.parametrize("case", DECISIONS)
async def test_a_no_always_wins_and_a_yes_where_nothing_can_be_shown(graph, case, caplog):
    kind, fields, how, reason = DECISIONS[case]
    async with serving(File, graph(kind, **fields)) as plane:
        parameters = plane.model_metadata("m").parameters
        assert parameters["batching"] == how
        assert reason in parameters["batching_reason"]
        assert (plane.model_config("m").max_batch_rows > 0) is (how == "joined")
        if kind != "refuses":
            x = np.float32([[1, 2, 3]])
            requests = [InferRequest("m", [Tensor.of("x", x * n)]) for n in range(8)]
            answers = await asyncio.gather(*(plane.infer(request) for request in requests))
            for n, answer in enumerate(answers):
                assert answer.outputs[0].data.tolist() == (x * n * (1 if kind == "sums" else 2)).tolist()
    doubts = [record for record in caplog.records if record.levelname == "WARNING" and "batchable" in record.message]
    assert bool(doubts) is (case == "the owner's yes, shown otherwise")


async def test_each_signature_earns_its_own_batching(graph):
    async with serving(File, graph("rows")) as plane:
        served = plane.registry.find("m")
        assert served.batchable
        assert "differs from its answer alone" in served.model.unbatched_signatures["sums"]
        assert "main" not in served.model.unbatched_signatures
        x = np.float32([[1, 2, 3]])
        parameters = {"signature_name": "sums"}
        requests = [InferRequest("m", [Tensor.of("x", x * n)], parameters=parameters) for n in range(8)]
        answers = await asyncio.gather(*(plane.infer(request) for request in requests))
        assert [answer.outputs[0].data[0, 0] for answer in answers] == list(range(8))
        two = await plane.infer(InferRequest("m", [Tensor.of("x", np.ones((2, 3), np.float32))], parameters=parameters))
        assert two.outputs[0].data.tolist() == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize("kind", ["rows", "sums", "refuses"])
async def test_a_later_start_checks_nothing_until_what_decides_the_answers_changes(graph, kind, tmp_path):
    checks, how = await start(graph(kind))
    assert checks > 0
    assert (tmp_path / "model.bin.batching.verdict.json").is_file()
    assert await start(graph(kind)) == (0, how)
    File.version_of_framework = "2"
    assert (await start(graph(kind)))[0] > 0
    assert await start(graph(kind)) == (0, how)
    other = {"rows": "sums", "sums": "rows", "refuses": "rows"}[kind]
    checks, how = await start(graph(other))
    assert checks > 0
    assert how == ("alone" if other == "sums" else "joined")


async def test_a_record_that_came_with_the_files_is_left_by_a_start_with_another_framework(graph, tmp_path):
    await start(graph())
    came = (tmp_path / "model.bin.batching.verdict.json").read_bytes()
    File.version_of_framework = "2"
    assert (await start(graph()))[0] > 0
    assert (tmp_path / "model.bin.batching.verdict.json").read_bytes() == came
    assert (await start(graph()))[0] == 0
    File.version_of_framework = "1"
    assert (await start(graph()))[0] == 0


async def test_a_record_in_a_folder_that_cannot_be_written_is_kept_in_the_cache(graph, tmp_path):
    settings = graph()
    (tmp_path / "model.bin.batching.verdict.json").mkdir()  # as good as unwritable, for root too
    assert (await start(settings))[0] > 0
    assert len(list((tmp_path / "cache" / "verdicts").iterdir())) == 1
    assert (await start(settings))[0] == 0


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"sha256": 1}', b"[]"])
async def test_a_damaged_record_is_no_record(graph, damage, tmp_path):
    settings = graph("sums")
    (tmp_path / "model.bin.batching.verdict.json").write_bytes(damage)
    assert (await start(settings))[1] == "alone"


@pytest.mark.parametrize(("kind", "joined"), [("rows", True), ("sums", False)])
@pytest.mark.slow
async def test_a_model_in_processes_gets_the_same_verdict_and_is_told_it(tmp_path, kind, joined):
    (tmp_path / "model.bin").write_text(kind)
    settings = ModelSettings(name="m", model_dir=tmp_path / "model.bin", instances=2)
    async with serving(Summed, settings) as plane:
        served = plane.registry.find("m")
        assert (served.execution, served.batchable) == ("process", joined)
        for _ in range(4):
            answer = await plane.infer(InferRequest("m", [Tensor.of("x", np.float32([[1, 2], [3, 4]]))]))
            assert answer.outputs[1].data.tolist() == [int(joined)] * 2


async def test_a_model_whose_checks_are_apart_is_checked_in_a_process_that_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(Summed, "execution", "inline")
    monkeypatch.setattr(Summed, "checks_apart", True, raising=False)
    (tmp_path / "model.bin").write_text("sums")
    async with serving(Summed, ModelSettings(name="m", model_dir=tmp_path / "model.bin")) as plane:
        assert plane.registry.find("m").model.details["batching"] == "alone"


async def test_a_class_of_ones_own_is_believed():
    class Own(File):
        batching = "declared"

        def load(self):
            self.kind = "sums"

    async with serving(Own) as plane:
        assert plane.model_config("m").max_batch_rows == 4096
        assert "batching" not in plane.model_metadata("m").parameters
    async with serving(Own, ModelSettings(name="m", batchable=False)) as plane:
        assert plane.model_config("m").max_batch_rows == 0


async def test_a_load_with_max_batch_size_0_says_no_until_the_next_load(graph):
    plane = Plane(Registry(File))
    await plane.start([graph()])
    try:
        await plane.load("m", {"config": json.dumps({"max_batch_size": 0})})
        assert plane.model_config("m").max_batch_rows == 0
        assert "its settings say 'batchable': false" in plane.model_metadata("m").parameters["batching_reason"]
        await plane.load("m")
        assert plane.model_config("m").max_batch_rows == 4096
    finally:
        await plane.close()


@pytest.mark.parametrize("size", [0, 1])
def test_max_batch_size_0_or_1_in_the_settings_says_no(tmp_path, size):
    document = {"name": "m", "implementation": "onnx_server", "max_batch_size": size}
    (tmp_path / "model-settings.json").write_text(json.dumps(document))
    assert settings_from_directory(tmp_path)[0].batchable is False


@pytest.mark.parametrize("value", [True, False])
def test_batchable_is_read_from_the_settings(tmp_path, value):
    document = {"name": "m", "implementation": "onnx_server", "batchable": value}
    (tmp_path / "model-settings.json").write_text(json.dumps(document))
    assert settings_from_directory(tmp_path)[0].batchable is value


async def test_a_configuration_of_tritons_beside_the_model_says_no(graph, tmp_path):
    (tmp_path / "config.pbtxt").write_text('name: "m"\nmax_batch_size: 0\n')
    async with serving(File, graph()) as plane:
        assert "config.pbtxt" in plane.model_metadata("m").parameters["batching_reason"]
    (tmp_path / "config.pbtxt").write_text('name: "m"\nmax_batch_size: 8\n')
    async with serving(File, graph()) as plane:
        assert plane.model_config("m").max_batch_rows == 4096


async def test_an_optional_output_is_checked_too(graph):
    class Optional(File):
        outputs = (*File.outputs, TensorSpec("sums", "FP32", (-1, 3), optional=True))

        def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
            asked = call.outputs is not None and "sums" in call.outputs
            return {"y": inputs["x"] * 2, **({"sums": np.cumsum(inputs["x"], 0)} if asked else {})}

    async with serving(Optional, graph()) as plane:
        assert "output 'sums'" in plane.model_metadata("m").parameters["batching_reason"]
