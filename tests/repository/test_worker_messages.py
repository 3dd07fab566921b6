"""What a process of `pytest -n` tells, by tests/support/worker_messages.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
CONFTEST = """
import os
from worker_messages import tell_less

def pytest_configure(config):
    if not os.environ.get("TELL_ALL"):
        tell_less(config)

def pytest_runtest_logreport(report):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ["TOLD"], "a") as told:
            told.write(f"{report.nodeid.partition('::test_')[2]} {report.when} {report.outcome}\\n")
"""
TESTS = """
import pytest

@pytest.fixture
def fails():
    print("said by the fixture")
    raise ValueError("at the start")

@pytest.fixture
def fails_after():
    yield
    raise ValueError("at the end")

def test_passes():
    print("said by nobody's wish")

def test_fails():
    print("said before it failed")
    assert 1 == 2

def test_has_no_start(fails):
    pass

def test_has_no_end(fails_after):
    pass

@pytest.mark.skip(reason="not now")
def test_skipped():
    pass

@pytest.mark.xfail(reason="known")
def test_known():
    assert 0

def test_passes_too():
    pass
"""
ALL = {
    "passes": ["setup passed", "call passed", "teardown passed"],
    "fails": ["setup passed", "call failed", "teardown passed"],
    "has_no_start": ["setup failed", "teardown passed"],
    "has_no_end": ["setup passed", "call passed", "teardown failed"],
    "skipped": ["setup skipped", "teardown passed"],
    "known": ["setup passed", "call skipped", "teardown passed"],
    "passes_too": ["setup passed", "call passed", "teardown passed"],
}


def run(folder: Path, *words: str, tell_all: str = "") -> tuple[dict[str, list[str]], str]:
    """Run the tests in a process of pytest-xdist: what the one that prints was told of each, and what it printed."""
    folder.mkdir()
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "--dist", "loadfile", "-p", "no:cacheprovider"]
    command += ["-p", "xdist.plugin", *words]  # of the plugins that are installed only the one that is looked at
    environment = {
        **os.environ,
        "PYTHONPATH": str(SUPPORT),
        "TOLD": str(folder / "told"),
        "TELL_ALL": tell_all,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):  # this run's own
        environment.pop(name, None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    told: dict[str, list[str]] = {}
    for line in (folder / "told").read_text().splitlines():
        name, _, phase = line.partition(" ")
        told.setdefault(name, []).append(phase)
    return told, done.stdout.rpartition(" in ")[0]


@pytest.mark.slow  # four processes
def test_of_a_test_that_passes_its_call_is_told_and_of_any_other_all_is_printed(tmp_path: Path):
    less, printed = run(tmp_path / "less")
    everything, printed_of_all = run(tmp_path / "all", tell_all="1")
    assert everything == ALL
    assert less == {
        **ALL,
        "passes": ["call passed"],
        "passes_too": ["call passed"],
        "has_no_end": ["call passed", "setup passed", "teardown failed"],
    }
    assert "said before it failed" in printed
    assert printed == printed_of_all


@pytest.mark.slow  # two processes, twice
@pytest.mark.parametrize("words", ["--durations=3", "--junitxml=junit.xml", "-vv", "-rP"])
def test_who_asks_for_times_or_for_what_passing_tests_print_is_told_all(tmp_path: Path, words: str):
    told, _ = run(tmp_path / "asked", words)
    assert told == ALL
