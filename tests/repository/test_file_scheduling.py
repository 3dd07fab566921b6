"""Files side by side (`pytest -n`), by the scheduler of tests/support/file_scheduling.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
CONFTEST = """
from file_scheduling import FileScheduling

def pytest_xdist_make_scheduler(config, log):
    return FileScheduling(config, log, ("one/", "other/"))
"""
FILE = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_it(number, request):
    with open(os.environ["RAN"], "a") as ran:
        ran.write(f"{request.node.nodeid} {os.environ['PYTEST_XDIST_WORKER']}\\n")
"""


@pytest.mark.slow  # three processes
def test_every_test_runs_once_a_file_in_one_process_and_folders_that_belong_together_too(tmp_path: Path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    for folder in ("many", "one", "other"):
        (tmp_path / folder).mkdir()
        for number in range(5):
            (tmp_path / folder / f"test_{number}.py").write_text(FILE)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), "RAN": str(tmp_path / "ran")}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    assert set(Counter(name for name, _ in ran).values()) == {1}
    assert len(ran) == 3 * 5 * 6
    processes: dict[str, set[str]] = {}
    for name, process in ran:
        processes.setdefault(name.partition("::")[0], set()).add(process)
    assert all(len(found) == 1 for found in processes.values())
    assert len(set().union(*(found for file, found in processes.items() if not file.startswith("many/")))) == 1
    assert len(set().union(*processes.values())) == 2
