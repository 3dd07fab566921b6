"""Files side by side (`pytest -n`), by the scheduler of tests/support/file_scheduling.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from file_scheduling import next_file

SUPPORT = Path(__file__).parents[1] / "support"
CONFTEST = """
import os
from file_scheduling import FileScheduling

def pytest_xdist_make_scheduler(config, log):
    return FileScheduling(config, log, by_folder="BY_FOLDER" in os.environ)
"""
FILE = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_it(number, request):
    with open(os.environ["RAN"], "a") as ran:
        ran.write(f"{request.node.nodeid} {os.environ['PYTEST_XDIST_WORKER']}\\n")
"""


DYING = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_it(number):
    with open(os.environ["RAN"], "a") as ran:
        ran.write(f"{number}\\n")
    if number == 3 and not os.path.exists(os.environ["RAN"] + "-died"):
        open(os.environ["RAN"] + "-died", "w").close()
        os._exit(9)
"""


def run_side_by_side(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a folder's tests in two processes; they write what ran into the file `ran`."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    # Of the plugins that are installed only the one that is looked at: all of them take each process half a second of CPU to import.
    command += ["-p", "xdist.plugin"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(SUPPORT),
        "RAN": str(folder / "ran"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow  # four processes
def test_a_process_that_dies_is_told_by_its_test_and_another_runs_what_is_left_of_its_file(tmp_path: Path):
    """What has ended is not run again; the test in which it died is, as under pytest-xdist's own scheduler."""
    (tmp_path / "test_dying.py").write_text(DYING)
    done = run_side_by_side(tmp_path)
    assert done.returncode == 1, done.stdout
    assert "crashed while running 'test_dying.py::test_it[3]'" in done.stdout
    assert (tmp_path / "ran").read_text().split() == ["0", "1", "2", "3", "3", "4", "5"]


QUEUE = ["tests/bulk/test_a.py", "tests/rest/test_b.py", "tests/grpc/test_c.py", "tests/hosts/test_d.py", "test_e.py"]


@pytest.mark.parametrize(
    ("begun", "given"),
    [
        ({}, "tests/bulk/test_a.py"),
        ({"frameworks": "other"}, "tests/rest/test_b.py"),
        ({"frameworks": "other", "tests/rest": "this"}, "tests/rest/test_b.py"),
        ({"frameworks": "other", "tests/rest": "other"}, "tests/grpc/test_c.py"),
        ({"tests/rest": "other", "tests/grpc": "other"}, "tests/bulk/test_a.py"),
        ({"frameworks": "other", "tests/rest": "other", "tests/grpc": "other"}, "test_e.py"),
        ({"frameworks": "other", "tests/rest": "other", "tests/grpc": "other", "": "other"}, "tests/bulk/test_a.py"),
    ],
)
def test_a_process_is_given_what_it_has_begun_or_nobody_has_and_what_others_have_at_the_end(
    begun: dict[str, str], given: str
):
    assert next_file(QUEUE, begun, "this") == given


@pytest.mark.slow  # three processes
@pytest.mark.parametrize("by_folder", [False, True])
def test_every_test_runs_once_and_a_file_in_one_process(
    tmp_path: Path, by_folder: bool, monkeypatch: pytest.MonkeyPatch
):
    if by_folder:
        monkeypatch.setenv("BY_FOLDER", "1")
    for folder in ("many", "other"):
        (tmp_path / folder).mkdir()
        for number in range(5):
            (tmp_path / folder / f"test_{number}.py").write_text(FILE)
    done = run_side_by_side(tmp_path)
    assert done.returncode == 0, done.stdout
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    assert set(Counter(name for name, _ in ran).values()) == {1}
    assert len(ran) == 2 * 5 * 6
    processes: dict[str, set[str]] = {}
    for name, process in ran:
        processes.setdefault(name.partition("::")[0], set()).add(process)
    assert all(len(found) == 1 for found in processes.values())
    assert len(set().union(*processes.values())) == 2
