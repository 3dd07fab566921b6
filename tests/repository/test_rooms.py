"""A room of the library is small enough to hold in mind: few files, no large class, one word for one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[2] / "runtimes" / "serinus"
MOST_FILES = 14
MOST_LINES = 350
LARGE_CLASSES = {"server/http/connection.py"}
"""HTTP/1.1 is one state machine, and every step of a request passes through it: parted, each step would be two calls more."""
STEMS_OF_TWO = {"mlserver_host"}
"""hosts/mlserver_host.py keeps the name by which model-settings.json of users know hosts/mlserver."""


def sources(folder: Path = LIBRARY) -> list[Path]:
    """Source files that people wrote, anywhere below a folder."""
    found = (path for path in folder.rglob("*") if path.suffix in {".py", ".c", ".h", ".inc"})
    return sorted(
        path
        for path in found
        if path.stem not in {"__init__", "__main__"} and not path.stem.endswith(("_pb2", "_pb2_grpc"))
    )


MODULES = [path for path in sources() if path.suffix == ".py"]


def relative(path: Path) -> str:
    return path.relative_to(LIBRARY).as_posix()


FOLDERS = sorted({path.parent for path in sources()})


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_a_folder_holds_no_more_files_than_one_can_keep_in_mind(folder: Path):
    files = [path.name for path in sources(folder) if path.parent == folder]
    assert len(files) <= MOST_FILES, (
        f"{len(files)} files, expected {MOST_FILES} at most; give a part of them a folder: {files}"
    )


def test_no_class_is_longer_than_can_be_read_at_once():
    long = {
        f"{relative(path)}: {node.name}": node.end_lineno - node.lineno + 1
        for path in MODULES
        if (text := path.read_text()).count("\n") >= MOST_LINES  # no class is longer than its file
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
        and relative(path) not in LARGE_CLASSES
        and node.end_lineno - node.lineno >= MOST_LINES
    }
    assert long == {}


def test_no_stem_of_a_module_means_two_things():
    places = defaultdict(list)
    for path in MODULES:
        if path.stem not in STEMS_OF_TWO:
            places[path.stem].append(relative(path))
    assert {stem: found for stem, found in places.items() if len(found) > 1} == {}


def found(pattern: str, *folders: str) -> list[str]:
    """Files and lines that match, below folders of the library (all of it: none named)."""
    return [
        f"{relative(path)}:{text.count(chr(10), 0, match.start()) + 1}"
        for path in MODULES
        if not folders or relative(path).split("/")[0] in folders
        for text in [path.read_text()]
        for match in re.finditer(pattern, text)
    ]


def test_the_data_plane_and_the_servers_ask_no_model_what_it_is():
    """A model is served by what it answers: the servable knows, chosen once when the model is loaded."""
    assert found(r"isinstance\([^()]*,\s*\(?[^()]*RequestModel", "dataplane", "server") == []


def test_a_v1_body_becomes_a_request_in_one_place():
    assert len(found(r"v1_codec\.to_request\(")) == 1
