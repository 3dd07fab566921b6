"""What every process of a test run pays before its first test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from deferred import Deferred

REPOSITORY = Path(__file__).parents[2]
FRAMEWORKS = (
    "tensorflow",
    "torch",
    "kserve",
    "xgboost",
    "lightgbm",
    "onnx",
    "onnxruntime",
    "sklearn",
    "pandas",
    "schemathesis",
)
CHOICES: dict[str, list[str]] = {
    "all": [],
    "alone": ["-m", "alone"],
    "quick": ["-m", "not slow and not alone"],
}
"""What `make test` and `make test-quick` ask for, by names of this file."""
PROGRAM = f"""
import json, sys
from pathlib import Path
import pytest

class Told:
    def pytest_collection_finish(self, session):
        self.told = [(item.nodeid, *(bool(item.get_closest_marker(name)) for name in ("alone", "slow"))) for item in session.items]

told, status = {{}}, 0
for name, words in {CHOICES!r}.items():
    plugin = Told()
    status = status or int(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *words, "tests"], plugins=[plugin]))
    told[name] = plugin.told
Path(sys.argv[1]).write_text(json.dumps(told))
print("status", status, *(name for name in {FRAMEWORKS!r} if name in sys.modules))
"""


@dataclass(frozen=True)
class Collected:
    """What a process of its own collected."""

    ids: dict[str, list[str]]
    """By the choice."""
    alone: list[str]
    """Ids of all those that have the marker."""
    quick: list[str]
    """Ids of all those that have neither this one nor slow."""
    said: str
    """Its last line: the status, and the frameworks that were imported."""


def slow(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that collects every test: 5 s of CPU, and minutes on a machine that does other things too."""
    return pytest.mark.slow(pytest.mark.timeout(300)(test))


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    """All tests, by a process whose hashes of strings are others than this one's; then those of each choice, whose modules it has by then."""
    file = tmp_path_factory.mktemp("all") / "told.json"
    command = [sys.executable, "-c", PROGRAM, str(file)]
    environment = {**os.environ, "PYTHONHASHSEED": "12"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(file.read_text())
    return Collected(
        {choice: [name for name, *_ in tests] for choice, tests in told.items()},
        [name for name, is_alone, _ in told["all"] if is_alone],
        [name for name, is_alone, is_slow in told["all"] if not is_alone and not is_slow],
        done.stdout[-3000:],
    )


@slow
def test_collecting_every_test_imports_no_framework(collected: Collected):
    assert collected.said.splitlines()[-1] == "status 0", collected.said


@slow
def test_a_test_has_the_same_id_in_every_process(collected: Collected, request: pytest.FixtureRequest):
    """The processes of a run must agree on the ids, and who runs one test again names it by its id: none holds a time, an address or an order of a set."""
    here = Counter(item.nodeid for item in request.session.items)
    assert sorted((here - Counter(collected.ids["all"])).elements()) == []


@slow
def test_asking_for_the_tests_that_run_alone_or_are_quick_finds_them_all(collected: Collected):
    """tests/conftest.py leaves files alone of which such a choice wants no test."""
    assert collected.alone
    assert plain(collected.ids["alone"]) == plain(collected.alone)
    assert plain(collected.ids["quick"]) == plain(collected.quick)


def plain(ids: list[str]) -> list[str]:
    """With one backslash for several: pytest escapes an id anew each time that it collects in a process."""
    return [re.sub(r"\\+", r"\\", name) for name in ids]


def test_a_deferred_name_is_imported_when_it_is_used_and_not_before(tmp_path, monkeypatch):
    (tmp_path / "dear.py").write_text("class Thing:\n    size = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    module, thing = Deferred("dear"), Deferred("dear", "Thing")
    assert repr(thing) == "<deferred dear.Thing>"
    assert not hasattr(thing, "__bases__")
    assert "dear" not in sys.modules
    assert isinstance(thing(), module.Thing)
    assert isinstance(module.Thing(), thing)
    assert not isinstance(3, thing)
    assert thing.size == 3
    assert issubclass(type("Smaller", types.resolve_bases((thing,)), {}), module.Thing)
    with pytest.raises(TypeError, match="not the object itself"):
        thing.size = 4
    monkeypatch.delitem(sys.modules, "dear")
