"""A container's CPU limit bounds the pools of native libraries, NumPy's too, and the log says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serinus import native_pools
from serinus.native_pools import POOLS, bound_pools, describe_limit
from serve_support import serving

SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.mark.parametrize(
    ("limit", "cores", "threads", "said"),
    [
        (0.5, 64, "1", "0.5 CPUs: 1 thread of a predict"),
        (2.5, 64, "2", "2.5 CPUs: 2 threads of a predict"),
        (4.0, 4, None, "4 CPUs: 4 threads of a predict"),
    ],
)
def test_pools_are_bounded_where_the_limit_is_under_the_cores(limit, cores, threads, said, monkeypatch):
    monkeypatch.setattr(native_pools, "cpu_limit", lambda: limit)
    environment: dict[str, str] = {}
    bound_pools(environment, cores=cores)
    assert environment == ({} if threads is None else dict.fromkeys(POOLS, threads))
    assert said in describe_limit(limit)


def test_what_the_operator_has_set_stays(monkeypatch):
    monkeypatch.setattr(native_pools, "cpu_limit", lambda: 0.5)
    environment = {"OMP_NUM_THREADS": "3"}
    bound_pools(environment, cores=64)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OPENBLAS_NUM_THREADS"] == "1"


QUOTA = """
import pathlib

read_text = pathlib.Path.read_text


def with_quota(self, *arguments, **options):
    return "50000 100000" if str(self) == "/sys/fs/cgroup/cpu.max" else read_text(self, *arguments, **options)


pathlib.Path.read_text = with_quota
"""
"""Python imports `sitecustomize` before all else: what the kernel would say in a container with half a CPU."""


@pytest.fixture
def half_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for variable in POOLS:  # the suite sets one of them
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "sitecustomize.py").write_text(QUOTA)
    return {"PYTHONPATH": f"{tmp_path}:{SUPPORT}"}


def openblas_threads(folder: Path, environment: dict[str, str], *flags: str) -> int:
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]}
    words = ("--class", "pool_models:Pools", "--model_name", "m", *flags)
    with serving(
        folder, *words, environment=environment, fresh=True
    ) as served:  # its sitecustomize, and NumPy's import
        status, answer = served.ask("POST", "/v2/models/m/infer", body)
        assert status == 200, answer
        assert "0.5 CPUs: 1 thread of a predict" in served.log.read_text()
    return answer["outputs"][0]["data"][0]


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores, of which the limit is less")
@pytest.mark.parametrize(
    "flags", [(), ("--execution", "process"), ("--workers", "2")], ids=["one process", "process model", "workers"]
)
def test_numpys_own_pool_is_bounded_though_numpy_is_loaded_before_the_flags_are_read(
    flags: tuple[str, ...], half_a_cpu: dict[str, str], tmp_path: Path
):
    assert openblas_threads(tmp_path, half_a_cpu, *flags) == 1


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores, of which the limit is less")
def test_the_operators_number_for_numpys_pool_stays(half_a_cpu: dict[str, str], tmp_path: Path):
    assert openblas_threads(tmp_path, {**half_a_cpu, "OPENBLAS_NUM_THREADS": "2"}) == 2


def test_a_process_that_only_imports_serinus_is_left_as_it_was(half_a_cpu: dict[str, str]):
    clean = {name: value for name, value in os.environ.items() if name not in POOLS}
    code = f"import os, serinus; print([name for name in {POOLS} if name in os.environ])"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve"], env={**clean, **half_a_cpu}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
