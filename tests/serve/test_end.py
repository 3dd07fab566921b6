"""The end of a server comes in time, whatever its models do; its status tells whether all was answered."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

import warm_start
from depth import DEEP
from serve_support import Served, serving
from waiting import wait_until
from warm_start import WarmProcess

pytestmark = pytest.mark.slow  # each test starts servers

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SOON_S = 30
"""Far more than a second of drain takes on a busy machine, far less than the ten minutes of a model."""
FLAGS = ("--model_name", "m", "--warmup", "false", "--drain_timeout_s", "1")
NEGATIVE = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [-1.0]}]}
POSITIVE = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(SUPPORT), "STUCK_FOLDER": str(tmp_path)}


def rest(served: Served) -> int:
    return served.ask("POST", "/v2/models/m/infer", NEGATIVE)[0]


def rest_v1(served: Served) -> int:
    return served.ask("POST", "/v1/models/m:predict", {"instances": [[-1.0]]})[0]


def grpc(served: Served) -> str:
    tensor = InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.full((1, 1), -1, np.float32))
    with InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        try:
            client.infer("m", [tensor])
        except InferenceServerException as error:
            return str(error.status())
    return "OK"


def rest_stream(served: Served) -> str:
    """Read a stream until it breaks off."""
    try:
        served.ask("POST", "/v2/models/m/infer_stream", NEGATIVE)
    except (http.client.IncompleteRead, ConnectionError):
        return "broken off"
    return "ended"


@contextlib.contextmanager
def asked(
    ask: Callable[[Served], Any], folder: Path, model: str, *more: str, environment: dict[str, str]
) -> Iterator[tuple[Served, concurrent.futures.Future[Any]]]:
    """A server whose model has begun with a request, and what the client is told in the end."""
    flags = ("--class", f"stuck_models:{model}", *FLAGS, *more)
    with serving(folder, *flags, environment=environment) as served, concurrent.futures.ThreadPoolExecutor() as pool:
        flying = pool.submit(ask, served)
        wait_until((folder / "begun").exists)
        yield served, flying


@pytest.mark.parametrize("name", ["Plain", "InProcess"])
@pytest.mark.parametrize(
    ("ask", "told"), [(rest, 503), (rest_v1, 503), (grpc, "StatusCode.UNAVAILABLE")], ids=["REST", "V1", "gRPC"]
)
def test_a_predict_that_hangs_does_not_hold_the_end_and_its_client_is_told(
    name: str, ask: Callable[[Served], Any], told: Any, environment: dict[str, str], tmp_path: Path
):
    with serving(tmp_path, "--class", f"stuck_models:{name}", *FLAGS, environment=environment) as served:
        children = psutil.Process(served.process.pid).children(recursive=True)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            flying = pool.submit(ask, served)
            wait_until((tmp_path / "begun").exists)
            assert served.stop(timeout_s=SOON_S) == 124
            assert flying.result(SOON_S) == told
        assert psutil.wait_procs(children, timeout=SOON_S)[1] == []
        assert "1 requests were not answered in 1 s" in served.log.read_text()


@pytest.mark.parametrize("engine", ["native", "grpcio"])
def test_a_grpc_call_that_hangs_is_told_on_each_engine(engine: str, environment: dict[str, str], tmp_path: Path):
    with asked(grpc, tmp_path, "Plain", "--grpc", engine, environment=environment) as (served, flying):
        assert served.stop(timeout_s=SOON_S) == 124
        assert flying.result(SOON_S) == "StatusCode.UNAVAILABLE"


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
@pytest.mark.parametrize("ask", [rest, rest_stream])
def test_a_task_or_a_stream_without_an_end_does_not_hold_the_end_either(
    ask: Callable[[Served], Any], http: str, environment: dict[str, str], tmp_path: Path
):
    with asked(ask, tmp_path, "Streams", "--http", http, environment=environment) as (served, flying):
        assert served.stop(timeout_s=SOON_S) == 124
        assert flying.result(SOON_S) in (503, "broken off", "ended")


def test_a_predict_that_holds_the_loop_is_told_of_with_its_place_and_a_reason_for_kubernetes(
    environment: dict[str, str], tmp_path: Path
):
    message = tmp_path / "termination-log"
    message.touch()
    with asked(rest, tmp_path, "Inline", "--termination_message_path", str(message), environment=environment) as (
        served,
        flying,
    ):
        assert served.stop(timeout_s=SOON_S) == 124
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            flying.result(SOON_S)
        for text in (served.log.read_text(), message.read_text()):
            assert "requests are unanswered" in text
            assert "predict (" in text
            assert "stuck_models.py" in text


@pytest.mark.parametrize("name", ["Unloads", "HoldsEverything", "Leftover"])
def test_what_hangs_after_the_drain_does_not_hold_the_end(name: str, environment: dict[str, str], tmp_path: Path):
    with serving(tmp_path, "--class", f"stuck_models:{name}", *FLAGS, environment=environment) as served:
        assert served.ask("POST", "/v2/models/m/infer", POSITIVE)[0] == 200
        # Where C code holds the GIL, the net below has one status for all ends.
        assert served.stop(timeout_s=SOON_S) == (1 if name == "HoldsEverything" else 0)
        log = served.log.read_text()
        assert name != "HoldsEverything" or "stuck_models.py" in log


def test_a_signal_during_a_load_that_stalls_ends_the_process_with_status_0(environment: dict[str, str], tmp_path: Path):
    process = start("--class", "stuck_models:Loads", environment=environment)
    wait_until((tmp_path / "loading").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SOON_S) == 0


SIGNALS, MODELS, WORKERS = (signal.SIGTERM, signal.SIGINT), ("Plain", "Inline"), ("1", "2")
PAIRS = [
    (signal.SIGTERM, "Plain", "1"),
    (signal.SIGTERM, "Inline", "2"),
    (signal.SIGINT, "Plain", "2"),
    (signal.SIGINT, "Inline", "1"),
]
"""Each two of signal, model and workers meet; a deep run has all three."""


@pytest.mark.parametrize(
    ("number", "name", "workers"), list(itertools.product(SIGNALS, MODELS, WORKERS)) if DEEP else PAIRS
)
def test_a_second_signal_ends_everything_at_once(
    number: signal.Signals, name: str, workers: str, environment: dict[str, str], tmp_path: Path
):
    flags = ("--class", f"stuck_models:{name}", *FLAGS, "--drain_timeout_s", "600", "--workers", workers)
    with (
        serving(tmp_path, *flags, environment=environment) as served,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        children = psutil.Process(served.process.pid).children(recursive=True)
        flying = pool.submit(rest, served)
        wait_until((tmp_path / "begun").exists)
        served.process.send_signal(number)
        if (name, workers) == ("Plain", "1"):
            wait_until(lambda: "stopping" in served.log.read_text())
        with pytest.raises(subprocess.TimeoutExpired):
            served.process.wait(1)
        served.process.send_signal(number)
        assert served.process.wait(SOON_S) == 128 + number
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            flying.result(SOON_S)
        assert psutil.wait_procs(children, timeout=SOON_S)[1] == []


def test_workers_end_within_the_bound_and_their_status_is_the_groups(environment: dict[str, str], tmp_path: Path):
    with asked(rest, tmp_path, "Inline", "--workers", "2", environment=environment) as (served, flying):
        assert served.stop(timeout_s=SOON_S) == 124
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            flying.result(SOON_S)


def test_a_model_that_does_not_load_is_a_reason_for_kubernetes(tmp_path: Path):
    message = tmp_path / "termination-log"
    message.touch()
    (tmp_path / "model.ubj").write_bytes(b"no model")
    process = start(str(tmp_path / "model.ubj"), "--termination_message_path", str(message), environment={})
    assert process.wait(SOON_S) == 1
    assert "model.ubj" in message.read_text()


def test_a_termination_message_is_written_where_there_is_such_a_file_alone(tmp_path: Path):
    missing = tmp_path / "termination-log"
    (tmp_path / "model.ubj").write_bytes(b"no model")
    process = start(str(tmp_path / "model.ubj"), "--termination_message_path", str(missing), environment={})
    assert process.wait(SOON_S) == 1
    assert not missing.exists()


def test_a_group_that_is_signalled_answers_what_its_process_models_have(tmp_path: Path, environment: dict[str, str]):
    """systemd, and a shell's Ctrl-C, signal every process of the group."""
    flags = ("--class", "stuck_models:InProcess", *FLAGS)
    with serving(tmp_path, *flags, environment=environment) as served:
        os.killpg(served.process.pid, signal.SIGTERM)
        assert served.process.wait(SOON_S) == 0
        assert "ended while it predicted" not in served.log.read_text()


def start(*arguments: str, environment: dict[str, str]) -> WarmProcess | subprocess.Popen[Any]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SERINUS_", "MLSERVER_"))}
    flags = ["--host", "127.0.0.1", "--http_port", "0", "--grpc_port", "0"]
    return warm_start.start(["serve", *flags, *arguments], env={**clean, **environment})
