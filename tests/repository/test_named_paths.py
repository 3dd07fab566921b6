"""Files that documents, docstrings and comments name as ours are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "tests|serinus|runtimes|manifests|transformers|inferenceservices|server|dataplane|canary|local|engines|loading"
)
NAMED = re.compile(rf"(?<![\w/.~-])((?:{FOLDERS})/[\w./-]*\w\.(?:py|md|yaml|toml|json|c|h))\b")
"""A path that begins in one of our folders."""
OTHERS = {
    "CHANGELOG.md": "names what was there at its time",
    "tests/repository/test_differences_page.py": "names a pattern",
    "tests/repository/test_file_scheduling.py": "makes files of its own",
    "tests/repository/test_named_paths.py": "names one that is not there",
    "runtimes/serinus/server/grpc/native_engine.py": "tells how its engine was examined, by the names of that time",
}
ELSEWHERE = {"manifests/base/clusterservingruntime-my-server.yaml"}
"""What a reader is told to make."""


def paths() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    return listed.stdout.split()


PATHS = paths()
ENDS = {"/".join(path.split("/")[place:]) for path in PATHS for place in range(path.count("/") + 1)}


def is_text(path: str) -> bool:
    named = Path(path).suffix in {".py", ".md", ".c", ".h", ".toml", ".yaml"} or Path(path).name in {
        "Makefile",
        "Dockerfile",
    }
    return named and (ROOT / path).is_file()


def absent(text: str) -> list[str]:
    return [name for name in NAMED.findall(text) if name not in ENDS and name not in ELSEWHERE]


def test_a_path_is_known_by_its_end():
    assert absent("`serinus/errors.py`, tests/repository/test_named_paths.py and tritonserver/server/x.py") == []
    assert absent("see tests/no_such_file.py.") == ["tests/no_such_file.py"]


@pytest.mark.skipif(not PATHS, reason="no git checkout")
def test_files_that_are_named_as_ours_are_there():
    found = {path: absent((ROOT / path).read_text()) for path in PATHS if path not in OTHERS and is_text(path)}
    assert {path: names for path, names in found.items() if names} == {}
