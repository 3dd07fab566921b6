"""Comparing forms: agreement, the winner, samples, and `serinus optimize` on tiny real models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from absent_packages import BESIDE_TENSORFLOW, without
from depth import only_deep
from serinus.cli import main
from serinus.errors import ConfigError
from serinus.loading import settings_from_directory
from serinus.protocol.types import InferRequest, RequestedOutput, Tensor, TensorSpec
from serinus.testing import InMemoryClient
from serinus.tuning.forms import report
from serinus.tuning.forms.agreement import compare
from serinus.tuning.forms.form_process import FormFailed, FormProcess
from serinus.tuning.forms.model_forms import Form, Skipped
from serinus.tuning.forms.optimizer import Comparison, Measured, Options, Timing, choose, write_winner
from serinus.tuning.forms.samples import generate_samples, read_samples, take_rows
from serinus.tuning.search import Config
from serinus.tuning.tuner import write_model_settings
from serve_support import serving


def test_differences_are_told_absolute_relative_and_by_the_top_class() -> None:
    reference = {"y": np.array([[0.0, 4.0], [2.0, 1.0]], np.float32)}
    found = compare(reference, {"y": np.array([[0.0, 4.0], [1.0, 2.0]], np.float32)})
    assert (found.max_abs, found.max_rel, found.top1) == (1.0, 0.25, 0.5)
    assert not found.within(0.3, 0.99)
    assert found.within(0.3, 0.5)
    assert not found.within(0.2, 0.5)


def test_one_output_is_compared_whatever_its_name_and_missing_ones_are_said() -> None:
    reference = {"a": np.ones(3, np.float32)}
    assert compare(reference, {"b": np.ones(3, np.float32)}).within(0, 1)
    assert "[2]" in compare(reference, {"a": np.ones(2, np.float32)}).problem
    assert "missing" in compare({**reference, "c": np.ones(1)}, reference).problem


def test_nan_agrees_with_nan_alone() -> None:
    nan = {"y": np.array([np.nan, 1.0], np.float32)}
    assert compare(nan, nan).max_rel == 0
    assert compare(nan, {"y": np.array([0.0, 1.0], np.float32)}).max_rel == np.inf


def measured(name: str, one: float, many: float, *, accepted: bool = True) -> Measured:
    y = {"y": np.ones(1)}
    timings = {1: Timing([one], [one]), 64: Timing([many], [many])}
    form = Form(name=name, path=Path(), package="onnx_server")
    return Measured(form, compare(y, y), accepted, timings=timings)


def test_the_fastest_form_that_agrees_wins_by_what_is_preferred() -> None:
    forms = [
        measured("original", 1.0, 10.0),
        measured("wrong", 0.01, 0.01, accepted=False),
        measured("quick", 0.4, 9.0),
        measured("wide", 0.9, 3.0),
    ]
    for prefer, winner in (("latency", "quick"), ("throughput", "wide"), ("balanced", "wide")):
        chosen = choose(forms, Options(batches=(1, 64), prefer=prefer))  # type: ignore[arg-type]
        assert chosen is not None
        assert chosen.form.name == winner


def test_the_original_stays_where_nothing_is_clearly_faster() -> None:
    chosen = choose([measured("original", 1.0, 1.0), measured("same", 0.98, 0.98)], Options(batches=(1, 64)))
    assert chosen is not None
    assert chosen.form.name == "original"
    assert choose([], Options()) is None


def test_samples_are_generated_by_spec_and_seed() -> None:
    specs = [
        TensorSpec("x", "FP32", (-1, 3)),
        TensorSpec("i", "INT64", (-1,)),
        TensorSpec("o", "FP32", (-1,), optional=True),
    ]
    samples = generate_samples(specs, 5)
    assert {name: (array.shape, array.dtype.name) for name, array in samples.items()} == {
        "x": ((5, 3), "float32"),
        "i": ((5,), "int64"),
    }
    assert np.array_equal(samples["x"], generate_samples(specs, 5)["x"])
    with pytest.raises(ConfigError, match="BYTES"):
        generate_samples([TensorSpec("s", "BYTES", (-1,))], 1)
    with pytest.raises(ConfigError, match="declares no inputs"):
        generate_samples([], 1)


def test_rows_begin_again_at_the_end() -> None:
    taken = take_rows({"x": np.arange(3)}, 5, start=2)
    assert taken["x"].tolist() == [2, 0, 1, 2, 0]


def test_inputs_are_read_from_npz_and_from_requests(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.ones((2, 3), np.float32))
    assert read_samples(tmp_path / "rows.npz")["x"].shape == (2, 3)
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    (tmp_path / "request.json").write_text(json.dumps(body))
    assert read_samples(tmp_path / "request.json")["x"].tolist() == [[1, 2]]
    (tmp_path / "bad.json").write_text("{}")
    np.savez(tmp_path / "uneven.npz", x=np.ones(2), y=np.ones(3))
    for name in ("bad.json", "uneven.npz", "absent.npz"):
        with pytest.raises(ConfigError, match=name):
            read_samples(tmp_path / name)


def test_a_report_names_what_was_not_made_and_an_interrupt() -> None:
    comparison = Comparison("m", "generated", Options(batches=(1, 64)), [measured("original", 1.0, 2.0)])
    comparison.skipped.append(Skipped("onnx-tensorrt", "no GPU is here"))
    comparison.interrupted = True
    text = report.as_markdown(comparison)
    assert "- onnx-tensorrt: no GPU is here" in text
    assert "Interrupted" in text
    assert json.loads(json.dumps(report.as_json(comparison)))["forms"][0]["batches"]["64"]["rows_per_s"] == 32


def test_a_worker_that_dies_or_cannot_load_is_a_failed_form(tmp_path: Path) -> None:
    with FormProcess() as process, pytest.raises(FormFailed, match="no such file"):
        process.ask("load", path=tmp_path / "absent.onnx", threads=1)
    process = FormProcess()
    process._process.kill()
    with process, pytest.raises(FormFailed, match="ended with status"):
        process.ask("memory")


@pytest.mark.parametrize(
    ("words", "said"), [(["--batch", "1,x"], "--batch"), (["--batch", "0"], "--batch"), ([], "no such")]
)
def test_a_wrong_call_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["optimize", str(tmp_path / "absent.onnx"), "-o", str(tmp_path / "out"), *words]) == 1
    assert said in capsys.readouterr().err


def test_the_winner_is_written_afresh_and_shares_no_settings_with_what_it_was_made_of(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "model.onnx").write_bytes(b"x" * 2**21)
    (source / "model-settings.json").write_text('{"implementation": "onnx_server"}')
    won = measured("original", 1.0, 2.0)
    won = replace(won, form=replace(won.form, path=source))
    comparison = Comparison("m", "generated", Options(), [won], winner=won)
    folder = tmp_path / "winner"
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"of an earlier run")
    assert write_winner(comparison, folder) == folder
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model-settings.json"}
    write_model_settings(folder, Config(threads=3))
    assert "threads" not in (source / "model-settings.json").read_text()
    # The winner of one run is optimised again, into the same folder.
    again = replace(won, form=replace(won.form, path=folder))
    write_winner(Comparison("m", "generated", Options(), [again], winner=again), folder)
    assert (folder / "model.onnx").stat().st_size == 2**21


@pytest.mark.slow
def test_a_torch_model_is_optimised_and_the_winner_serves_the_same_answers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    torch.manual_seed(1)
    layers = [
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(144, 5),
    ]
    module = torch.nn.Sequential(*layers, torch.nn.Softmax(1)).eval()
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.trace(module, torch.zeros(2, 3, 8, 8)).save(str(folder / "model.pt"))
    settings = {
        "name": "tiny",
        "implementation": "torch_server",
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 5]}],
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))
    (folder / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    out = tmp_path / "out"
    assert main(["optimize", str(folder), "-o", str(out), "--batch", "1,4", "--rounds", "2", "--seconds", "0.02"]) == 0
    found = json.loads((out / "report.json").read_text())
    forms = {form["name"]: form for form in found["forms"]}
    assert {"original", "torchscript-frozen", "torch-bf16", "onnx", "onnx-int8"} <= set(forms)
    assert forms["onnx"]["max_rel"] < 1e-4
    assert forms["onnx"]["accepted"]
    assert forms["torch-bf16"]["max_rel"] > 0
    assert {item["name"] for item in found["skipped"]} >= {"torch-fp16", "onnx-tensorrt"}
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "winner" / "labels.txt").read_text().startswith("a")
    pixels = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [2, 3, 8, 8], "data": pixels.ravel().tolist()}]}
    with serving(tmp_path, str(out / "winner")) as server:
        status, answer = server.ask("POST", "/v2/models/tiny/infer", body)
    assert status == 200, answer
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (2, 5)), expected, atol=2e-2)


def saved_model(folder: Path) -> Path:
    """A SavedModel of one signature, softmax, whose labels stand in a file of another name."""
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("tf2onnx")

    class Scores(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
        def scores(self, x: object) -> dict[str, object]:
            return {"scores": tf.nn.softmax(x)}

    module = Scores()
    tf.saved_model.save(module, str(folder / "1"), signatures=module.scores)
    (folder / "names.txt").write_text("a\nb\nc\n")
    settings = {"implementation": "tensorflow_server", "parameters": {"uri": ".", "extra": {"labels": "names.txt"}}}
    (folder / "model-settings.json").write_text(json.dumps(settings))
    return folder


CLASSIFIED = RequestedOutput("scores", {"classification": 1})


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorFlow's own
def test_a_savedmodel_becomes_onnx_and_keeps_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow_server.export import export

    for name, value in without(tmp_path, *BESIDE_TENSORFLOW).items():  # of the process that converts
        monkeypatch.setenv(name, value)
    (source,) = settings_from_directory(saved_model(tmp_path / "model"))
    (form,) = [made for made in export(source, {}, tmp_path / "forms") if isinstance(made, Form)]
    (settings,) = settings_from_directory(form.path)
    x = np.array([[0, 9, 1]], np.float32)
    with InMemoryClient(replace(settings, name="m")) as client:
        (found,) = client.infer({"x": x}).values()
        classified = client.request(InferRequest("m", [Tensor.of("x", x)], outputs=[CLASSIFIED]))
    np.testing.assert_allclose(found, np.exp(x) / np.exp(x).sum(), rtol=1e-5)
    assert classified.outputs[0].data.ravel()[0].endswith(b":1:b")


@only_deep("test_a_savedmodel_becomes_onnx_and_keeps_its_labels, and the command, test_a_torch_model_is_optimised")
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorFlow's own
def test_a_savedmodel_is_optimised_and_its_onnx_form_answers_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = saved_model(tmp_path / "model")
    words = ["optimize", str(folder), "-o", str(out), "--batch", "1", "--rounds", "1", "--seconds", "0.02"]
    assert main(words) == 0
    forms = {form["name"]: form for form in json.loads((out / "report.json").read_text())["forms"]}
    assert forms["onnx"]["max_rel"] < 1e-5
    assert forms["onnx"]["top1"] == 1
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0, 9, 1]}],
        "outputs": [{"name": "scores", "parameters": {"classification": 1}}],
    }
    with serving(tmp_path, str(out / "forms" / "onnx"), "--model_name", "m") as server:
        status, answer = server.ask("POST", "/v2/models/m/infer", body)
    assert status == 200, answer
    assert answer["outputs"][0]["data"][0].endswith(":1:b")
