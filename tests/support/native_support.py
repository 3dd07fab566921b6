"""C programs around the kernels: compiled under sanitizers, and the files that they read."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from depth import DEEP
from serinus.native import build

__all__ = [
    "CORPUS", "FUZZ", "LIBFUZZER_TARGETS", "NATIVE", "PROGRAMS", "SANITIZERS", "TESTED", "THREADS", "compile_program", "has_sanitizers",
    "preloaded", "sanitized_library",
]  # fmt: skip

NATIVE = Path(build.__file__).parent
_TESTS = Path(__file__).resolve().parents[1] / "native"
PROGRAMS, FUZZ, CORPUS = _TESTS / "programs", _TESTS / "fuzz", _TESTS / "corpus"

LIBFUZZER_TARGETS = ("json_split", "json_number", "frame_scan")
"""C files of `FUZZ` that each hold one target."""

SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREADS = ("-O1", "-g", "-fsanitize=thread", "-pthread")
"""ThreadSanitizer, which stands no other beside it."""
TESTED = SANITIZERS if DEEP else (*SANITIZERS, "-O0")
"""What is compiled for one short run: without optimisation, which takes a third of the time to compile and leaves every access where it is."""


def compile_program(
    compiler: list[str], program: Path, *sources: Path, flags: tuple[str, ...] = SANITIZERS, shared: bool = False
) -> Path:
    """Compile C files, which may include any of the kernels', into a program or a library.

    Raises:
        AssertionError: the compiler refused them; the message has what it said.
    """
    command = [*compiler, "-std=c11", *flags, f"-I{NATIVE}"]
    command += ["-fPIC", "-shared"] if shared else []
    ran = subprocess.run(
        [*command, "-o", str(program), *map(str, sources), "-lm"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return program


def has_sanitizers(compiler: list[str], folder: Path, flags: tuple[str, ...] = SANITIZERS) -> bool:
    """Whether the compiler has the sanitizers' libraries, and what it makes with them runs here: ThreadSanitizer's wants its own layout of memory."""
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [*compiler, *flags, "-o", str(folder / "empty"), str(source)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        return False
    return subprocess.run([str(folder / "empty")], capture_output=True, check=False).returncode == 0


def sanitized_library(folder: Path, flags: tuple[str, ...] = SANITIZERS) -> Path:
    """Compile all kernels by gcc with sanitizers, to be loaded by a Python that was started with `preloaded`."""
    flags = (*flags, "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")
    return compile_program(["gcc"], folder / "_kernels_sanitized.so", *build.sources(), flags=flags, shared=True)


def preloaded() -> dict[str, str]:
    """Environment in which Python loads gcc's AddressSanitizer first, and allocates every array by itself."""
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    return {
        **os.environ,
        "LD_PRELOAD": found.strip(),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at its end
    }
