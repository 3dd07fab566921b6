"""No bytes of a model file end the process: mutations of good files, each loaded and asked in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from depth import draws

SUPPORT = Path(__file__).parents[1] / "support" / "damaged_files.py"

COUNTS = {
    ("onnx",): draws(150, 20),
    ("torchscript", "pt2"): draws(13, 4),
    ("saved_model",): draws(25, 6),
    ("skops", "skops_svc"): draws(50, 10),
    ("cbm", "cbm_json"): draws(25, 4),
}
"""Mutations of each of a framework's formats, so that all together take a quarter of a minute of CPU, with DEEP=1 a whole one; `damaged_files.py` has
the command for more."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("formats", COUNTS, ids=" ".join)
def test_no_mutation_of_a_file_ends_the_process(formats: tuple[str, ...]):
    arguments = [sys.executable, str(SUPPORT), *formats, "--count", str(COUNTS[formats])]
    ran = subprocess.run(arguments, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    for named in formats:
        found = re.search(
            rf"^{named}, seeds .*: (\d+) served, (\d+) refused, (\d+) error, (\d+) crash, (\d+) slow",
            ran.stdout,
            re.MULTILINE,
        )
        assert found is not None, ran.stdout
        served, refused, _, crashes, slow = map(int, found.groups())
        assert (crashes, slow) == (0, 0), ran.stdout  # it names the seeds
        assert served > 0, named
        assert refused > 0, named
