"""Every image as a container with the rights of the manifests and half a CPU: the V2 protocol, its threads, its end."""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import grpc
from conformance_support import infer_message
from image_support import (
    EXAMPLES,
    ROOT,
    SUPPORT,
    Container,
    build,
    container,
    docker,
    example,
    has_engine,
    make_variable,
    request_of,
)
from serinus.protocol import _open_inference_pb2 as pb
from waiting import wait_until

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # the first build of an image downloads its framework
    pytest.mark.skipif(not has_engine(), reason="needs a Docker engine"),
]

IMAGES = make_variable("IMAGES")


def test_every_image_has_an_example():
    assert sorted(IMAGES) == sorted(EXAMPLES)


@pytest.fixture(scope="module", params=IMAGES)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Container]]:
    build(request.param)
    with example(request.param, tmp_path_factory.mktemp(request.param)) as started:
        yield request.param, started


def test_it_answers_its_example_over_rest_and_grpc(running: tuple[str, Container]):
    name, started = running
    metadata = started.ask("/v2/models/model")
    request = request_of(name, metadata)
    answer = started.ask("/v2/models/model/infer", request)
    assert answer["outputs"]
    assert all(output["data"] for output in answer["outputs"])
    message = infer_message(
        "model", request["inputs"], outputs=request.get("outputs", ()), parameters=request.get("parameters")
    )
    with grpc.insecure_channel(f"127.0.0.1:{started.grpc_port}") as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        reply = pb.ModelInferResponse.FromString(method(message.SerializeToString(), timeout=60))
    assert [output.name for output in reply.outputs] == [output["name"] for output in answer["outputs"]]
    assert [list(output.shape) for output in reply.outputs] == [output["shape"] for output in answer["outputs"]]


def test_it_runs_as_a_user_without_rights(running: tuple[str, Container]):
    _, started = running
    assert docker("exec", started.id, "id", "-u") == "1000"
    assert docker("exec", started.id, "sh", "-c", "grep CapEff /proc/1/status").split()[1].strip("0") == ""
    assert docker("inspect", "-f", "{{.HostConfig.ReadonlyRootfs}}", started.id) == "true"


def test_half_a_cpu_means_one_thread_of_a_predict(running: tuple[str, Container]):
    name, started = running
    assert "0.5 CPUs: 1 thread" in started.logs(), started.logs()
    told = started.ask("/v2/models/model").get("properties", {}).get("threads", "1")
    assert told.split()[0].strip(",:;") == "1", (name, told)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores, of which the limit is less")
def test_half_a_cpu_means_one_thread_of_numpys_own_pool_too(tmp_path: Path):
    """NumPy is loaded before the command line is read. See tests/serve/test_native_pools.py."""
    shutil.copy(SUPPORT / "pool_models.py", tmp_path)
    environment = {"PYTHONPATH": "/models", "SERINUS_CLASS": "pool_models:Pools"}
    mounts = {tmp_path: "/models"}
    with container(build("serinus_base"), "--model_name", "pools", mounts=mounts, environment=environment) as started:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [0]}]}
        assert started.ask("/v2/models/pools/infer", body)["outputs"][0]["data"] == [1]


@pytest.mark.parametrize("name", IMAGES)
def test_it_passes_the_conformance_suite(name: str, tmp_path: Path):
    """tests/conformance itself, with each of its servers a container of this image (see serve_support.serving)."""
    suites = ["tests/conformance/test_extensions.py", "tests/conformance/test_tensors.py"]
    layers = make_variable(f"call layers_of,{name}")
    if "kserve" in layers:
        suites.append("tests/conformance/test_hosted.py")
    if "mlflow" in layers:  # the image that has every runtime which they ask for
        suites.append("tests/conformance/test_runtimes.py")
    if "xgboost" not in layers:  # the contributions that it asks for are the Booster's work
        suites += ["--deselect", "tests/conformance/test_extensions.py::test_extension[metadata-of-a-booster]"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            str(tmp_path / "t"),
            *suites,
        ],
        cwd=ROOT,
        env={**os.environ, "SERVE_IMAGE": build(name)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 1000  # the suites have about 1,200 cases


@pytest.mark.parametrize("name", IMAGES)
def test_docker_stop_loses_no_request_in_flight(name: str, tmp_path: Path):
    models = tmp_path / "models"
    models.mkdir()
    (models / "slow.py").write_text(SLOW)
    environment = {"PYTHONPATH": "/models", "SERINUS_CLASS": "slow:Slow", "SERINUS_TRANSFORMER": ""}
    flags = ("--model_name", "slow", "--execution", "thread")  # its predict on zeros, which is measured, takes no time
    with container(build(name), *flags, mounts={models: "/models"}, environment=environment) as started:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [7]}]}
        with concurrent.futures.ThreadPoolExecutor(9) as threads:
            asked = [threads.submit(started.ask, "/v2/models/slow/infer", body) for _ in range(8)]
            wait_until(lambda: in_flight(started) == 8)
            stopped = threads.submit(docker, "stop", "-t", "60", started.id)
            answers = [each.result() for each in asked]
            stopped.result()
        assert [answer["outputs"][0]["data"] for answer in answers] == [[7]] * 8
        assert docker("inspect", "-f", "{{.State.ExitCode}}", started.id) == "0"


def in_flight(started: Container) -> int:
    """Requests that wait or are being predicted, as the server's own metrics say."""
    with urllib.request.urlopen(f"http://127.0.0.1:{started.port}/metrics", timeout=30) as answer:
        found = re.findall(r"^serinus_requests_in_flight\{[^}]*\} (\S+)$", answer.read().decode(), re.MULTILINE)
    return int(sum(map(float, found)))


SLOW = '''
import time

from serinus import Model, TensorSpec


class Slow(Model):
    """Answers after two seconds; eight rows at once."""

    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)

    def predict(self, inputs, call):
        if inputs["x"].any():
            time.sleep(2)
        return {"y": inputs["x"]}
'''
