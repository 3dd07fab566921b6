"""What every process of a test run pays before its first test."""

from __future__ import annotations

import subprocess
import sys
import types
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
PROGRAM = f"""
import sys
import pytest
status = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests"])
print("status", int(status), *(name for name in {FRAMEWORKS!r} if name in sys.modules))
"""


@pytest.mark.slow  # it collects every test
def test_collecting_every_test_imports_no_framework():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "status 0", done.stdout[-3000:]


@pytest.mark.slow  # it collects every test, once
def test_asking_for_the_tests_that_run_alone_finds_them_all():
    """tests/conftest.py leaves files without the marker alone where `-m alone` is asked for, and looks at all for other words."""

    def found(words: str) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            words,
            "tests",
        ]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "::" in line]

    some = found("alone")
    assert some
    assert some == found("alone and alone")


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
