"""Every deliberate difference from a peer has a reason and a test that is there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "runtimes" / "serinus" / "DIFFERENCES.md"
HEAD = ["what", "why", "held by"]


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row != HEAD and set("".join(row)) - set("- ")]


@functools.cache
def functions(file: Path) -> frozenset[str]:
    found = (
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return frozenset(node.name for node in found)


def test_each_peer_has_lines():
    heads = re.findall(r"^## From (.+)$", PAGE.read_text(), re.MULTILINE)
    assert heads == ["all of them", "KServe", "MLServer", "Triton", "TensorFlow Serving"]
    assert len(rows()) > 20


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_a_line_has_a_reason_and_names_a_test_that_exists(row: list[str]):
    what, why, held = row
    assert what
    assert why
    found = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", held)
    assert found, f"{held!r} does not name a test as `tests/room/test_x.py::test_name`"
    assert (ROOT / found[1]).is_file(), found[1]
    assert found[2] in functions(ROOT / found[1]), f"{found[1]} has no {found[2]}"
