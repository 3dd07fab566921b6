"""The fuzz targets over their committed corpus, under sanitizers; `make fuzz` goes on from there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from depth import draws
from native_support import (
    CORPUS,
    FUZZ,
    LIBFUZZER_TARGETS,
    TESTED,
    compile_program,
    has_sanitizers,
    preloaded,
    sanitized_library,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    if not has_sanitizers(["gcc"], made):
        pytest.skip("gcc has no sanitizer libraries here")
    return made


def _files(target: str) -> list[str]:
    files = sorted(map(str, (CORPUS / target).iterdir()))
    assert len(files) > 10
    return files


@pytest.mark.parametrize("target", LIBFUZZER_TARGETS)
def test_the_corpus_of_a_kernel_raises_no_complaint(target: str, folder: Path):
    program = compile_program(["gcc"], folder / target, FUZZ / f"{target}.c", FUZZ / "replay.c", flags=TESTED)
    files = _files(target)
    ran = subprocess.run([str(program), *files], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert int(ran.stdout) == len(files)


def _model_arrays(folder: Path, *arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run model_arrays.py, after some Python, with kernels that AddressSanitizer watches."""
    library = folder / "_kernels_sanitized.so"
    if not library.exists():
        sanitized_library(folder, TESTED)
    code = f"import runpy, sys; {before}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(FUZZ / "model_arrays.py"), *arguments, "--library", str(library)]
    return subprocess.run(command, env=preloaded(), capture_output=True, text=True, check=False)


def test_arrays_of_a_model_file_are_refused_or_walked_within_their_bounds(folder: Path):
    files = _files("model_arrays")
    ran = _model_arrays(folder, *files, "--seconds", str(draws(5, 1)))
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert int(ran.stdout.split()[0]) > len(files)


def test_the_watch_notices_a_walk_outside_its_arrays(folder: Path):
    """With the check of nodes that have two parents put out of action, the file that has one must not pass."""
    unchecked = "import numpy as np; np.bincount = lambda *_, **__: np.zeros(1, int)"
    ran = _model_arrays(folder, str(CORPUS / "model_arrays" / "two-parents"), before=unchecked)
    assert ran.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in ran.stderr
