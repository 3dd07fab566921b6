"""`serinus infer` and `serinus bench`, as somebody types them, against a real server and a real local service."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from command_support import command
from hosts_support import free_port
from serinus.cli import main
from serinus.cli.asked_service import parse_headers
from serinus.cli.typed_inputs import example_inputs, fit_rows, parse_inputs
from serinus.errors import ConfigError
from serinus.protocol.types import TensorSpec
from serve_support import Served, serving

DOUBLER = """
from serinus import Model, TensorSpec


class Doubler(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    def predict(self, inputs, call):
        return {"y": inputs["x"] * 2}
"""
MANIFEST = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: twice}
spec:
  predictor:
    containers:
      - {name: kserve-container, image: doubler, args: [--model_name, doubler, --http_port, "8080"]}
"""


def cli(*words: str, cwd: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return command(cwd, *words, stdin=stdin, COLUMNS="200", **environment)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("doubler")
    (folder / "doubler.py").write_text(DOUBLER)
    flags = ("--class", "doubler:Doubler", "--model_name", "doubler")
    with serving(folder, *flags, environment={"PYTHONPATH": str(folder)}) as served:
        yield served


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_model_is_asked_with_typed_values_a_file_or_a_whole_request(server: Served, tmp_path: Path, scheme: str):
    url = ("--url", f"{scheme}://127.0.0.1:{server.http_port if scheme == 'http' else server.grpc_port}")
    np.save(tmp_path / "rows.npy", np.array([[1, 2], [3, 4]], np.float32))
    request = {"id": "r1", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [5, 6]}]}
    (tmp_path / "request.json").write_text(json.dumps(request))

    def asked(*words: str, stdin: str = "") -> dict[str, object]:
        done = cli("infer", "doubler", *words, *url, "-o", "json", cwd=tmp_path, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert asked("--input", "x=[[1, 2]]")["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0]}
    ]
    assert asked("-i", "x=[1, 2]")["outputs"][0]["shape"] == [1, 2]  # type: ignore[index] # one row is a batch of one
    assert asked("-i", "x=@rows.npy")["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]  # type: ignore[index]
    assert asked("--json", "request.json")["id"] == "r1"
    assert asked("--json", "-", stdin=json.dumps(request))["outputs"][0]["data"] == [10.0, 12.0]  # type: ignore[index]


@pytest.mark.slow
def test_an_answer_is_a_table_and_without_inputs_the_model_is_described(server: Served, tmp_path: Path):
    url = ("--url", f"http://127.0.0.1:{server.http_port}")
    shown = cli("infer", "doubler", "-i", "x=[[1, 2]]", *url, cwd=tmp_path)
    assert "y       FP32      [1, 2]  [[2. 4.]]" in shown.stdout
    assert "doubler, in " in shown.stdout
    described = cli("infer", "doubler", *url, cwd=tmp_path)
    assert described.returncode == 2
    example = described.stdout.split("ask it so: ")[1].strip()
    assert example == f"serinus infer doubler --url {url[1]} --input 'x=[[0,0]]'", "it is to be copied, address and all"
    again = cli("infer", "doubler", "--input", "x=[[0,0]]", *url, cwd=tmp_path)
    assert again.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("doubler", "-i", "x=[1,2,3]"), "input 'x': shape [1, 3] has 3 in dimension 1"),
        (("nobody", "-i", "x=1"), "model 'nobody' is not known; the models here are 'doubler'"),
        (("doubler", "-i", "z=[[1, 2]]"), "'z'"),
        (("doubler", "-i", "x=word"), "input 'x'"),
        (("doubler", "-i", "x"), "expected NAME=VALUE"),
        (("doubler", "-i", "x=1", "-i", "x=2"), "given twice"),
        (("doubler", "-i", "x=@no.npy"), "cannot be read: No such file"),
        (("doubler", "-i", "x=1", "--json", "-"), "give one of them"),
        (("doubler", "--json", "no.json"), "cannot be read: No such file"),
        (("doubler", "-i", "x=[[1,2]]", "-H", "no colon"), "expected 'NAME: VALUE'"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_line(server: Served, tmp_path: Path, words: tuple[str, ...], says: str):
    done = cli("infer", *words, "--url", f"http://127.0.0.1:{server.http_port}", cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_where_nobody_answers_the_message_says_who_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    port = free_port()
    words = ["infer", "m", "-i", "x=1", "--url", f"http://127.0.0.1:{port}", "--timeout", "3"]
    assert main(words) == 1
    assert f"no connection to the server 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.slow
def test_bench_counts_every_request_and_holds_an_slo(server: Served, tmp_path: Path):
    url = ("--url", f"http://127.0.0.1:{server.http_port}")
    words = ("bench", "doubler", *url, "--rate", "200", "--duration", "1s")
    done = cli(*words, "--slo", "p50<10s", "-o", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["sent"] == result["answered"] > 100
    assert result["slo_holds"] is True
    assert 0 < result["latency_s"]["p50"] <= result["latency_s"]["p99.9"]
    broken = cli(*words, "--slo", "p50<1us", cwd=tmp_path)
    assert broken.returncode == 1
    assert "p50<0.001ms: does not hold" in broken.stdout
    assert "sent at 200/s" in broken.stdout


@pytest.mark.slow
def test_bench_tells_refusals_by_status(server: Served, tmp_path: Path):
    np.savez(tmp_path / "wrong.npz", x=np.zeros((4, 3), np.float32))
    url = ("--url", f"http://127.0.0.1:{server.http_port}")
    done = cli(
        "bench",
        "doubler",
        *url,
        "--rate",
        "50",
        "--duration",
        "1s",
        "--inputs",
        "wrong.npz",
        "-o",
        "json",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert result["answered"] == 0
    assert result["failures"] == {"400": result["sent"]}
    assert "x" in result["said"]["400"]
    assert "shape" in result["said"]["400"]
    assert result["latency_s"]["p50"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--rate", "fast"), "--rate 'fast'"),
        (("--duration", "soon"), "--duration 'soon'"),
        (("--slo", "p99<"), "--slo"),
        (("--url", "grpc://127.0.0.1:1"), "plain HTTP"),
        (("--url", "https://127.0.0.1:1"), "plain HTTP"),
        (("--inputs", "no.npz"), "cannot be read"),
    ],
)
def test_a_bench_that_cannot_be_is_refused_before_it_sends(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
):
    assert main(["bench", "m", "--url", "http://127.0.0.1:9", *words]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_a_service_of_the_local_runner_is_asked_by_its_name(tmp_path: Path):
    (tmp_path / "doubler.py").write_text(DOUBLER)
    (tmp_path / "twice.yaml").write_text(MANIFEST)
    image = f"doubler={sys.executable} -m serinus.cli serve --class doubler:Doubler"
    started = cli("up", "twice.yaml", "-d", "--port", "0", "--image", image, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    try:
        assert started.returncode == 0, started.stderr
        for way in ((), ("--grpc",)):
            done = cli("infer", "twice", "--model", "doubler", "-i", "x=[[1, 2]]", *way, cwd=tmp_path)
            assert "[[2. 4.]]" in done.stdout, done.stderr
        assert "revision" in cli("infer", "twice", "--model", "doubler", "-i", "x=[[1, 2]]", cwd=tmp_path).stdout
        load = cli(
            "bench",
            "default/twice",
            "--model",
            "doubler",
            "--rate",
            "50",
            "--duration",
            "1s",
            "-o",
            "json",
            cwd=tmp_path,
        )
        assert json.loads(load.stdout)["failures"] == {}
        unknown = cli("infer", "thrice", "-i", "x=1", cwd=tmp_path)
        assert "no service is called so; running: default/twice" in unknown.stderr
    finally:
        assert cli("down", cwd=tmp_path).returncode == 0


ROWS = TensorSpec("x", "FP32", (-1, 2))


@pytest.mark.parametrize(
    ("values", "spec", "expected"),
    [
        ([1, 2], ROWS, [[1, 2]]),
        ([[1, 2]], ROWS, [[1, 2]]),
        ("text", TensorSpec("x", "BYTES", (-1,)), ["text"]),
        (3, TensorSpec("x", "FP32", (-1,)), [3]),
        ([1, 2], TensorSpec("x", "FP32", (2, 2)), [1, 2]),
        ([1, 2], TensorSpec("x", "FP32", (-1,), any_rank=True), [1, 2]),
        ([1, 2], None, [1, 2]),
        ([], TensorSpec("x", "FP32", (-1, 0)), [[]]),
    ],
)
def test_one_row_is_taken_for_a_batch_of_one(values: object, spec: TensorSpec | None, expected: object):
    assert fit_rows(values, spec) == expected


def test_an_example_is_one_that_can_be_typed_back():
    specs = [ROWS, TensorSpec("t", "BYTES", (-1,)), TensorSpec("o", "INT8", (-1,), optional=True)]
    assert example_inputs(specs) == """--input 'x=[[0,0]]' --input 't=["text"]'"""
    wide, pixels = TensorSpec("w", "INT32", (-1, 30)), TensorSpec("p", "FP32", (-1, 224, 224, 3))
    (word,) = shlex.split(example_inputs([wide]))[1:]
    assert parse_inputs([word]) == {"w": [[0] * 30]}
    assert example_inputs([pixels]) == "--input 'p=@rows.npy'"
    assert parse_inputs(["x=[[0,0]]", 't=["text"]']) == {"x": [[0, 0]], "t": ["text"]}


def test_a_tokens_file_holds_one_token(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("t0k\n")
    assert parse_headers(["X-A: b:c"], file) == {"x-a": "b:c", "authorization": "Bearer t0k"}
    for text in ("", "two words"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="one token") as refused:
            parse_headers(None, file)
        assert "words" not in str(refused.value)
