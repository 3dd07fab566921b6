"""`serinus serve` as a process: start, stop, drain, several models, several workers."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import logging
import math
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

import warm_start
from deferred import Deferred
from serinus.cli import main
from serve_support import Served, serving
from waiting import wait_until

pytestmark = pytest.mark.slow  # each test starts servers

xgboost = Deferred("xgboost")

LIGHT = ("--class", "fault_models:Steady", "--model_name", "m")
"""A model that takes nothing to import, where it is the server that is looked at: XGBoost costs each process 1.5 s of CPU."""
SUPPORT = {"PYTHONPATH": str(Path(__file__).resolve().parents[1] / "support")}

SLOW_MODEL = '''
import os
import time
from pathlib import Path
from serinus import Model, TensorSpec

FOLDER = Path(os.environ["SLOW_FOLDER"])


class Slow(Model):
    """Says by one file that it predicts, and goes on when there is another."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    batchable = False
    execution = "thread"

    def predict(self, inputs, call):
        (FOLDER / "entered").touch()
        while not (FOLDER / "go").exists():
            time.sleep(0.01)  # the test is another process
        return {"y": inputs["x"]}
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    rows = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3}, xgboost.DMatrix(rows, rows[:, 0] > 0), 5)
    booster.save_model(folder / "model.ubj")
    return folder


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "slow_model.py").write_text(SLOW_MODEL)
    return {"PYTHONPATH": str(tmp_path), "SLOW_FOLDER": str(tmp_path)}


def _body(values: list[list[float]], name: str = "x") -> dict[str, object]:
    shape = [len(values), len(values[0])]
    return {"inputs": [{"name": name, "shape": shape, "datatype": "FP32", "data": values}]}


def test_a_model_directory_is_served_under_the_name_given(model: Path, tmp_path: Path):
    with serving(tmp_path, str(model), "--model_name", "m", fresh=True) as served:
        assert served.ask("GET", "/v2/health/ready")[0] == 200
        status, answer = served.ask("POST", "/v2/models/m/infer", _body([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], "input-0"))
        assert status == 200
        scores = np.float32(answer["outputs"][0]["data"])
        rows = np.float32([[1, 0, 0, 0], [-1, 0, 0, 0]])
        expected = xgboost.Booster(model_file=model / "model.ubj").inplace_predict(rows)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert served.stop() == 0


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_metrics_have_a_port_of_their_own_where_one_is_named(tmp_path: Path, workers: int):
    """MLServer's `metrics_port`; whichever worker answers there tells of all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [*LIGHT, "--metrics_port", str(port), "--workers", str(workers)]
    with serving(tmp_path, *flags, environment=SUPPORT, timeout_s=90) as served:
        for _ in range(6):
            assert served.ask("POST", "/v2/models/m/infer", _body([[1.0]]))[0] == 200
        metrics = dataclasses.replace(served, http_port=port)
        for _ in range(4):
            status, page = metrics.ask("GET", "/metrics")
            assert status == 200
            assert 'nv_inference_request_success{model="m",version=""} 6' in page
        status, answer = metrics.ask("GET", "/v2")
        assert (status, answer) == (404, {"error": "there is no path '/v2'; there are: /metrics"})
        assert metrics.ask("POST", "/metrics")[0] == 405
        assert served.ask("GET", "/metrics")[0] == 200
        log = served.log.read_text()
        assert workers > 1 or f", metrics on 127.0.0.1:{port}" in log
        assert served.stop() == 0


def test_a_metrics_port_that_is_taken_ends_the_start(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(RuntimeError, match=f"metrics_port: cannot listen on 127.0.0.1:{port}"),
            serving(tmp_path, *LIGHT, "--metrics_port", str(port), environment=SUPPORT),
        ):
            pass


@pytest.mark.parametrize("setting", ["http_port", "grpc_port", "metrics_port"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_is_told_before_any_model_is_loaded(setting: str, workers: str, tmp_path: Path):
    (tmp_path / "late.py").write_text(
        "from serinus import Model\n\nclass Late(Model):\n    def load(self):\n        raise RuntimeError('it was loaded')\n"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = {"http_port": "0", "grpc_port": "0", "metrics_port": "0", setting: str(port)}
        done = _run(
            *("--class", f"{tmp_path / 'late.py'}:Late", "--host", "127.0.0.1", "--workers", workers),
            *(word for name, value in flags.items() for word in (f"--{name}", value)),
        )
    assert done.returncode == (1 if workers == "1" else 2)
    assert "cannot listen on" in done.stderr
    assert str(port) in done.stderr
    assert "it was loaded" not in done.stderr
    assert "Traceback" not in done.stderr


def test_several_directories_are_several_models(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "factor.txt").write_text("3")
    paths = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        settings = {"name": name, "implementation": "fault_models.Reads", "parameters": {"uri": str(elsewhere)}}
        (folder / "model-settings.json").write_text(json.dumps(settings))
        paths.append(str(folder))
    flags = ("--allow_uri", str(elsewhere), "--allow_implementation", "fault_models.*")
    with serving(tmp_path, *paths, *flags, environment=SUPPORT) as served:
        for name in ("a", "b"):
            assert served.ask("GET", f"/v2/models/{name}/ready")[0] == 200


def test_sigterm_answers_what_is_in_flight_and_refuses_what_is_new(slow: dict[str, str], tmp_path: Path):
    flags = ("--class", "slow_model:Slow", "--model_name", "s", "--warmup", "false")
    with serving(tmp_path, *flags, environment=slow) as served:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            flying = pool.submit(served.ask, "POST", "/v2/models/s/infer", _body([[1.5]]))
            wait_until((tmp_path / "entered").exists)
            served.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "stopping: draining" in served.log.read_text())
            assert not flying.done()
            (tmp_path / "go").touch()
            assert flying.result(20)[0] == 200
        assert served.process.wait(20) == 0
        with pytest.raises(ConnectionError):
            served.ask("GET", "/v2/health/live")


def test_a_model_that_does_not_load_ends_the_process_with_its_reason(tmp_path: Path):
    (tmp_path / "model.ubj").write_bytes(b"no model")
    done = _run(str(tmp_path / "model.ubj"))
    assert done.returncode == 1
    assert "model.ubj" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the command in this process: no variable of ours is set, and its logging is undone."""
    for name in os.environ:
        if name.startswith(("SERINUS_", "MLSERVER_")):
            monkeypatch.delenv(name)
    root, ours = logging.getLogger(), logging.getLogger("serinus")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.mark.parametrize("words", [("--http_port", "8081"), ("--metrics_port", "9000", "--grpc_port", "9000")])
def test_two_settings_of_one_port_are_refused(words: tuple[str, ...], here: None, capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "/no/such/folder", *words]) == 2
    assert f"{words[0]} and --grpc_port are both {words[1]}" in capsys.readouterr().err


def test_rest_and_metrics_may_share_a_port_and_grpc_that_is_off_has_none(
    here: None, capsys: pytest.CaptureFixture[str]
):
    for words in (("--http_port", "0", "--metrics_port", "0"), ("--http_port", "8081", "--no-enable-grpc")):
        assert main(["serve", "/no/such/folder", *words]) == 2
        assert "are both" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to serve"),
        (["/no/such/folder"], "/no/such/folder"),
        (["--http_prot", "1"], "did you mean --http-port"),
        (["--ssl_certfile", "c.pem"], "both --ssl_certfile and --ssl_keyfile"),
        (["--ssl_certfile", "c.pem", "--ssl_keyfile", "k.pem"], "--ssl_certfile c.pem: no such file"),
    ],
    ids=["nothing", "missing", "typo", "half-tls", "no-pem"],
)
def test_wrong_options_end_with_status_2_and_say_why(
    arguments: list[str], message: str, here: None, capsys: pytest.CaptureFixture[str]
):
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "port"),
    [((), "8443"), (("--http_port", "9000"), "9000")],
    ids=["none named", "named"],
)
def test_with_tls_rest_listens_where_kserves_server_would(
    words: Sequence[str], port: str, tmp_path: Path, here: None, capsys: pytest.CaptureFixture[str]
):
    pem = tmp_path / "both.pem"
    pem.touch()
    assert main(["serve", "--ssl_certfile", str(pem), "--ssl_keyfile", str(pem), *words, "--show_settings"]) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("http_port ")]
    assert line.split()[1] == port


def test_help_lists_every_option_with_examples():
    done = _run("--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert "--predictor_protocol" in done.stdout


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _run(*LIGHT, "--host", "127.0.0.1", "--http_port", str(port), "--no-enable-grpc", environment=SUPPORT)
        assert done.returncode == 1
        assert str(port) in done.stderr


def test_workers_share_the_port_and_one_page_of_metrics(tmp_path: Path):
    with serving(tmp_path, *LIGHT, "--workers", "2", environment=SUPPORT, timeout_s=90) as served:
        for _ in range(40):
            assert served.ask("POST", "/v2/models/m/infer", _body([[0.0]]))[0] == 200
        pages = [served.ask("GET", "/metrics")[1] for _ in range(6)]
        counts = {_count(page) for page in pages}
        assert counts == {40.0}
        told = [served.ask("GET", "/v2/models/m/stats")[1] for _ in range(6)]
        assert {document["model_stats"][0]["inference_count"] for document in told} == {40}
        assert served.ask("GET", "/v2/models/none/stats")[0] == 404
        with InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
            told = client.get_inference_statistics("m").model_stats[0]
        assert told.inference_stats.success.count == 40
        assert served.stop() == 0


def test_a_killed_worker_is_replaced_and_counters_never_fall(tmp_path: Path):
    with serving(tmp_path, *LIGHT, "--workers", "2", environment=SUPPORT, timeout_s=90) as served:
        body = _body([[0.0]])
        for _ in range(20):
            assert served.ask("POST", "/v2/models/m/infer", body)[0] == 200
        assert _count(served.ask("GET", "/metrics")[1]) == 20.0
        victim = _workers(served)[0]
        victim.kill()
        wait_until(lambda: len(_workers(served)) == 2 and victim.pid not in {w.pid for w in _workers(served)})
        for _ in range(20):
            assert served.ask("POST", "/v2/models/m/infer", body)[0] == 200
        wait_until(lambda: _count(served.ask("GET", "/metrics")[1]) == 40.0)


def test_a_supervisor_that_is_killed_leaves_no_worker(tmp_path: Path):
    with serving(tmp_path, *LIGHT, "--workers", "2", environment=SUPPORT, timeout_s=90) as served:
        workers = _workers(served)
        assert len(workers) == 2
        os.kill(served.process.pid, signal.SIGKILL)
        gone, alive = psutil.wait_procs(workers, timeout=40)
        assert alive == []
        assert len(gone) == 2


def test_a_repository_request_reaches_every_worker(tmp_path: Path):
    repository = tmp_path / "repository"
    (repository / "m").mkdir(parents=True)
    (repository / "m" / "model-settings.json").write_text('{"name": "m", "implementation": "fault_models.Steady"}')
    flags = ["--model_repository", str(repository), "--load_models_at_startup", "false", "--workers", "2"]
    flags += ["--allow_implementation", "fault_models.*"]
    with serving(tmp_path, *flags, environment=SUPPORT, timeout_s=90) as served:
        assert served.ask("POST", "/v2/repository/models/m/load", {})[0] == 200
        assert {served.ask("GET", "/v2/models/m/ready")[0] for _ in range(12)} == {200}
        assert served.ask("POST", "/v2/repository/models/m/unload", {})[0] == 200
        assert 200 not in {served.ask("GET", "/v2/models/m/ready")[0] for _ in range(12)}
        assert served.ask("POST", "/v2/repository/models/none/load", {})[0] in {400, 404}
        with InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
            for name in ("file:1/model.ubj", "config"):
                with pytest.raises(InferenceServerException, match=f"INVALID_ARGUMENT.*'{name}'"):
                    client.load_model("m", config="{}", files={name: b"\xff"})
        assert "Traceback" not in served.log.read_text()


def _workers(served: Served) -> list[psutil.Process]:
    return [child for child in psutil.Process(served.process.pid).children() if child.status() != psutil.STATUS_ZOMBIE]


def _count(page: str) -> float:
    lines = [line for line in page.splitlines() if line.startswith("nv_inference_request_success{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _run(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SERINUS_", "MLSERVER_"))}
    return warm_start.run(["serve", *arguments], env={**clean, **(environment or {})})


def test_every_limit_of_a_request_is_a_setting(tmp_path: Path):
    flags = ["--max_tensor_bytes", "64", "--max_tensors", "2", "--max_rank", "3", "--max_json_depth", "9"]
    flags += ["--max_name_bytes", "8", "--max_body_bytes", "4096", "--class", "limited_model:Doubler"]
    (tmp_path / "limited_model.py").write_text(
        "from serinus import Model\n\nclass Doubler(Model):\n    def predict(self, inputs, call):\n        return inputs\n"
    )
    environment = {"PYTHONPATH": str(tmp_path)}

    def tensor(name: str, shape: list[int]) -> dict[str, Any]:
        return {"name": name, "datatype": "FP32", "shape": shape, "data": [1] * math.prod(shape)}

    with serving(tmp_path, *flags, environment=environment) as server:
        for document, setting in (
            ({"inputs": [tensor("x", [17])]}, "max_tensor_bytes"),
            ({"inputs": [tensor("x", [1])] * 3}, "max_tensors"),
            ({"inputs": [tensor("x", [1, 1, 1, 1])]}, "max_rank"),
            ({"inputs": [{**tensor("x", [1]), "parameters": {"a": [[[[[[[[1]]]]]]]]}}]}, "max_json_depth"),
            ({"inputs": [tensor("x" * 9, [1])]}, "max_name_bytes"),
            ({"inputs": [tensor("x", [1])], "id": "x" * 5000}, "max_body_bytes"),
        ):
            status, answer = server.ask("POST", "/v2/models/model/infer", document)
            smaller_would_do = setting in ("max_body_bytes", "max_tensor_bytes", "max_tensors")
            assert status == (413 if smaller_would_do else 400), (setting, status, answer)
            assert setting in answer["error"]


SCRIPT = """
import kserve


class Named(kserve.Model):
    def predict(self, payload, headers=None):
        return {"predictions": [self.name]}


if __name__ == "__main__":
    models = [Named("first"), Named("second")]
    for model in models:
        model.load()
    kserve.ModelServer().start(models)
"""


@pytest.mark.slow  # importing KServe takes the server a second or two
def test_a_script_of_several_models_serves_each_and_loads_it_again(tmp_path: Path) -> None:
    path = tmp_path / "several.py"
    path.write_text(SCRIPT)
    with serving(tmp_path, "--class", str(path), "--repository_control", "on") as server:
        assert server.ask("GET", "/v1/models") == (200, {"models": ["first", "second"]})
        assert server.ask("POST", "/v2/repository/models/second/load")[0] == 200
        answers = [server.ask("POST", f"/v1/models/{name}:predict", {"instances": []}) for name in ("first", "second")]
    assert answers == [(200, {"predictions": ["first"]}), (200, {"predictions": ["second"]})]
