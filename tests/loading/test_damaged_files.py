"""No bytes of a model file end the process: mutations of good files, each loaded and asked in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support" / "damaged_files.py"

COUNTS = {
    "onnx": 150,
    "torchscript": 15,
    "pt2": 10,
    "saved_model": 25,
    "skops": 60,
    "skops_svc": 40,
    "cbm": 30,
    "cbm_json": 20,
}
"""Mutations of each format, so that each takes half a minute on an idle CPU; `damaged_files.py` has the command for more."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("named", COUNTS)
def test_no_mutation_of_a_file_ends_the_process(named: str):
    arguments = [sys.executable, str(SUPPORT), named, "--count", str(COUNTS[named])]
    ran = subprocess.run(arguments, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = re.search(r"(\d+) served, (\d+) refused, (\d+) error, (\d+) crash, (\d+) slow", ran.stdout)
    assert found is not None, ran.stdout
    served, refused, _, crashes, slow = map(int, found.groups())
    assert (crashes, slow) == (0, 0), ran.stdout  # it names the seeds
    assert served > 0
    assert refused > 0
