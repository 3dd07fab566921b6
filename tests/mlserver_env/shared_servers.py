"""Servers that these tests share, one of each kind: each imports MLServer, three seconds of CPU, and stock MLServer all frameworks besides."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import COUNTDOWN, OURS, RUNTIME, Address, free_port, process, serving_folder, wait_until_loaded

__all__ = ["empty", "framework_models", "frameworks", "model_file", "ours", "stock"]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
CLASSIC = ("classic-lightgbm", "classic-sklearn")
"""Models of other runtimes' formats, for the runtime of several."""


def _describe(folder: Path, name: str, document: dict[str, Any]) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "model-settings.json").write_text(json.dumps({**document, "name": name}))


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """`serinus serve` with all of OURS."""
    folder = tmp_path_factory.mktemp("ours")
    for name, document in OURS.items():
        _describe(folder, name, document)
    with serving_folder("serinus", folder, "--repository_control", "on", gzip_enabled=False) as address:
        yield address


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """`serinus serve` with none of OURS until it is loaded by request, as Seldon's agent has it, and with Triton's streams."""
    folder = tmp_path_factory.mktemp("empty")
    for name, document in OURS.items():
        _describe(folder, name, document)
    http, grpc = free_port(), free_port()
    address = Address(f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    flags = ["--host", "127.0.0.1", "--http_port", str(http), "--grpc_port", str(grpc), "--allow_implementation", "*"]
    flags += ["--model_repository", str(folder), "--load_models_at_startup", "false", "--grpc_stream_form", "triton"]
    with process(["serinus", "serve", *flags], folder, f"{address.url}/v2/health/ready"):
        yield address


@pytest.fixture(scope="session")
def framework_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/support/framework_models.py writes: in FRAMEWORK_MODELS, or written now; an empty folder where .venv is not there."""
    if given := os.environ.get("FRAMEWORK_MODELS"):
        return Path(given)
    folder = tmp_path_factory.mktemp("framework_models")
    if PYTHON.exists():
        program = ROOT / "tests" / "support" / "framework_models.py"
        subprocess.run([str(PYTHON), str(program), str(folder)], check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def frameworks(framework_models: Path) -> Path:
    """The same; skips where it is empty."""
    if not (framework_models / "ensemble.json").exists():
        pytest.skip("there is no .venv, which has the frameworks: make setup")
    return framework_models


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory, framework_models: Path, model_file: Path) -> Iterator[Address]:
    """Stock `mlserver start` with a class that streams, one of ours that does, and a model of each runtime by the runtime's own settings."""
    folder = tmp_path_factory.mktemp("stock")
    _describe(folder, "m", {"implementation": "models.Speaking"})
    _describe(folder, "countdown", COUNTDOWN)
    parameters = {"uri": "./model.json", "extra": {"class": "xgboost_server"}}
    _describe(folder, "classifier", {"implementation": RUNTIME, "parameters": parameters})
    shutil.copy(model_file, folder / "classifier" / "model.json")
    models = ["m", "countdown", "classifier"]
    if (framework_models / "ensemble.json").exists():
        beside = tmp_path_factory.mktemp("packages")
        _put_behind(Path((framework_models / "packages.txt").read_text()), beside, folder)
        names = [path.name for path in framework_models.iterdir() if path.is_dir()]
        for name in (*names, *CLASSIC):
            shutil.copytree(framework_models / name.removeprefix("classic-"), folder / name)
            _describe_by_its_own(folder, name, "classic_server" if name in CLASSIC else f"{name}_server")
            models.append(name)
        shutil.copytree(ROOT / "inferenceservices" / "fraud" / "model", folder / "fraud")
        _describe_by_its_own(folder, "fraud", "ensemble_server")
        models.append("fraud")
    with serving_folder("mlserver", folder, gzip_enabled=False) as address:
        wait_until_loaded(address, *models)
        yield address


def _describe_by_its_own(folder: Path, name: str, runtime: str) -> None:
    """Name the model in the settings that the runtime comes with, beside what the model's say of its tensors."""
    document = json.loads((ROOT / "runtimes" / runtime / "model-settings.json").read_text())
    path = folder / name / "model-settings.json"
    tensors = json.loads(path.read_text()) if path.exists() else {}
    document["parameters"]["version"] = "4"
    _describe(folder, name, {**tensors, **document})


def _put_behind(packages: Path, beside: Path, folder: Path) -> None:
    """Put the frameworks of .venv, gigabytes that this environment need not have a second time, behind the packages of MLServer's.

    Only what those lack comes from there, and KServe, which cannot run beside them, does not.
    """
    for package in packages.iterdir():
        if not package.name.startswith("kserve"):
            (beside / package.name).symlink_to(package)
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.path.append({str(beside)!r})\n")


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of XGBoost's, of five columns."""
    import numpy as np
    import xgboost

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 5)).astype(np.float32)
    labels = (rows.sum(axis=1) > 0).astype(int)
    model = xgboost.XGBClassifier(n_estimators=20, max_depth=3).fit(rows, labels)
    path = tmp_path_factory.mktemp("xgb") / "model.json"
    model.save_model(path)
    return path
