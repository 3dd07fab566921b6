"""The tests of MLServer's host, in the environment that MLServer needs.

MLServer 1.7 wants an older FastAPI than KServe's starlette allows, so the two cannot share one: `tests/mlserver_env` runs in
`.venv-mlserver`, which is made here where `make` has not made it yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import framework_models

REPOSITORY = Path(__file__).parents[2]
FINDS = """
from importlib.util import find_spec
names = ("mlserver_xgboost", "pygrpc_native", "lightgbm", "onnx", "onnxruntime", "serinus", "pytest_asyncio", "pytest_timeout", "httpx")
raise SystemExit(not all(map(find_spec, names)))
"""
PYTHON = REPOSITORY / ".venv-mlserver" / "bin" / "python"


def _make_environment() -> None:
    uv = Path(sys.executable).with_name("uv")
    command = str(uv) if uv.exists() else shutil.which("uv")
    assert command, "uv makes the environment for MLServer: pip install uv"
    links = os.environ.get("PIP_FIND_LINKS")
    found = ["--find-links", links] if links else []
    folder = REPOSITORY / ".venv-mlserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not PYTHON.exists():
        subprocess.run([command, "venv", "-q", "--python", version, str(folder)], check=True, timeout=120)
    packages = [
        "-e",
        f"{REPOSITORY}[mlserver,grpc_native,lightgbm_server,onnx_server]",
        "mlserver-xgboost==1.7.1",
        "onnx",
        "httpx",
        "pytest",
        "pytest-asyncio",
        "pytest-timeout",
    ]
    install = [command, "pip", "install", "-q", "--python", str(PYTHON), *found, *packages]
    subprocess.run(install, check=True, timeout=600)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tests_of_mlservers_environment_pass_there(tmp_path: Path) -> None:
    ready = (
        PYTHON.exists()
        and not subprocess.run(
            [str(PYTHON), "-c", FINDS],
            check=False,
            capture_output=True,
        ).returncode
    )
    if not ready:
        _make_environment()
    command = [str(PYTHON), "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(REPOSITORY / "tests/mlserver_env")]
    command += ["-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "timeout=120", "tests/mlserver_env"]
    framework_models.write(tmp_path)
    framework_models.write_ensemble_answers(tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "tests/mlserver_env"),
        "FRAMEWORK_MODELS": str(tmp_path),
    }
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
