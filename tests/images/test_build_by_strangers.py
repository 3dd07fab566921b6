"""`serinus build` of files of one's own in an empty folder with the wheel alone, by each engine; then run by the line that it prints."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import classic_models
from container_support import UV, build_wheel
from image_support import BASE, ROOT
from waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]

CLASS = """
from serinus import Model, TensorSpec


class Mine(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 6)),)
    outputs = (TensorSpec("y", "FP32", (-1, 6)),)

    def predict(self, inputs, call):
        return {"y": 2 * inputs["x"]}
"""


def _docker_with_buildkit() -> str:
    """A docker whose builds are BuildKit's: one with buildx, or one of before version 23, which has it built in; empty: none."""
    for folder in os.environ["PATH"].split(os.pathsep):
        program = Path(folder) / "docker"
        if program.is_file():
            told = subprocess.run(
                [program, "version", "-f", "{{.Client.Version}}"], capture_output=True, text=True, check=False
            )
            has_buildx = (
                subprocess.run([program, "buildx", "version"], capture_output=True, check=False).returncode == 0
            )
            if told.returncode == 0 and (has_buildx or int(told.stdout.split(".")[0]) < 23):
                return str(program)
    return ""


def _command(engine: str) -> tuple[str, dict[str, str]]:
    """The engine's command and the variables that choose it, or a skip where it is not here."""
    if engine == "podman":
        if (
            shutil.which("podman") is None
            or subprocess.run(["podman", "image", "exists", BASE], capture_output=True, check=False).returncode
        ):
            pytest.skip(f"needs podman, and {BASE} in it")
        return "podman", {}
    program = _docker_with_buildkit() if engine == "buildkit" else shutil.which("docker") or ""
    if not program or subprocess.run([program, "info"], capture_output=True, check=False).returncode:
        pytest.skip(f"needs {'a docker with BuildKit' if engine == 'buildkit' else 'a Docker engine'}")
    return program, {"DOCKER_BUILDKIT": "1" if engine == "buildkit" else "0"}


@pytest.fixture(scope="module")
def serinus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel of this tree and nothing else."""
    folder = tmp_path_factory.mktemp("stranger")
    wheel = build_wheel(folder / "dist")
    python = folder / "environment" / "bin" / "python"
    for command in (
        [str(UV), "venv", "-q", "--python", sys.executable, str(python.parents[1])],
        [str(UV), "pip", "install", "-q", "--python", str(python), "-c", str(ROOT / "constraints.txt"), str(wheel)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    wheel.unlink()
    return python.with_name("serinus")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "empty"
    made.mkdir()
    return made


def build_and_run(serinus: Path, engine: str, folder: Path, path: str, name: str) -> Iterator[tuple[str, str]]:
    """Build, check what was said, and run the printed line; gives the address and all that was said."""
    command, variables = _command(engine)
    environment = {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **variables}
    tag = f"serinus-stranger-{engine}:1"
    done = subprocess.run(
        [serinus, "build", path, "--tag", tag, "--name", name, "--engine", command, "--timeout", "240"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    try:
        assert done.returncode == 0, said[-6000:]
        (line,) = [text for text in said.splitlines() if text.startswith("run it: ")]
        words = shlex.split(line.removeprefix("run it: "))
        assert words[0] == command
        assert {"--read-only", "--cap-drop", "ALL", "no-new-privileges"} <= set(words)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = [word.replace("127.0.0.1:8080:", f"127.0.0.1:{port}:") for word in words]
        identity = f"serinus-stranger-{os.getpid()}"
        with subprocess.Popen(
            [*words[:2], "--name", identity, *words[2:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            try:
                wait_until(
                    lambda: _answers(f"http://127.0.0.1:{port}/v2/health/ready") or running.poll() is not None,
                    limit_s=240,
                )
                assert running.poll() is None
                yield f"http://127.0.0.1:{port}/v2/models/{name}", said
            finally:
                subprocess.run([command, "rm", "-f", identity], capture_output=True, check=False)
                running.wait(60)
    finally:
        subprocess.run([command, "rmi", "-f", tag], capture_output=True, check=False)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def infer(url: str) -> Any:
    """Ask for three rows under the name and datatype that the metadata say; gives the values of the first output."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        spec = json.loads(answer.read())["inputs"][0]
    data = classic_models.rows(3)
    tensor = {
        "name": spec["name"],
        "datatype": spec["datatype"],
        "shape": list(data.shape),
        "data": data.reshape(-1).tolist(),
    }
    request = urllib.request.Request(
        f"{url}/infer", json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["outputs"][0]["data"]


@pytest.mark.parametrize("engine", ["docker", "buildkit", "podman"])
def test_a_class_is_built_and_run_by_each_engine(engine: str, serinus: Path, folder: Path):
    (folder / "mine.py").write_text(CLASS)
    for url, said in build_and_run(serinus, engine, folder, ".", "mine"):
        assert "as user 1000, without capabilities, on a read-only file system" in said
        classic_models.expected(2 * classic_models.rows(3), infer(url))


@pytest.mark.parametrize("kind", ["sklearn", "xgboost", "catboost cbm"])
def test_a_model_file_is_built_and_run(kind: str, serinus: Path, folder: Path):
    answer = classic_models.write(kind, folder)
    (file,) = folder.iterdir()
    for url, said in build_and_run(serinus, "docker", folder, file.name, "mine"):
        assert "as user 1000, without capabilities, on a read-only file system" in said
        np.testing.assert_allclose(np.reshape(infer(url), answer.shape), answer, rtol=2e-6, atol=1e-6)


def test_a_folder_of_mlflows_is_built_and_run(serinus: Path, folder: Path):
    answer = classic_models.write_mlflow(folder / "flow")
    for url, said in build_and_run(serinus, "docker", folder, "flow", "mine"):
        assert "as user 1000, without capabilities, on a read-only file system" in said
        np.testing.assert_allclose(np.reshape(infer(url), answer.shape), answer, rtol=2e-6, atol=1e-6)
