"""Compile the kernels: `python -m serinus.native.build [--output FILE] [--zig]`.

Takes `$CC`, cc, gcc or clang where one is there, else `ziglang` from PyPI (a whole C compiler in a wheel). The code is for the
baseline of the processor family, so that one library serves every machine of it, and no flag relaxes IEEE arithmetic: the results
must equal the reference's.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["CompilerMissing", "build", "compiler"]

_HERE = Path(__file__).resolve().parent
_FLAGS = (
    "-std=c11",
    "-O3",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Werror",
)


class CompilerMissing(RuntimeError):
    """Neither a system compiler nor ziglang is there."""


def compiler(*, zig: bool = False) -> list[str]:
    """Find the compiler's command line.

    Args:
        zig: take ziglang even where the system has a compiler.

    Raises:
        CompilerMissing: none was found; the message says how to get one.
    """
    if not zig:
        for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
            words = shlex.split(name)
            if words and shutil.which(words[0]):
                return words
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise CompilerMissing("no C compiler (cc, gcc, clang) and no ziglang: pip install ziglang, then build again")


def build(output: Path | None = None, *, zig: bool = False) -> Path:
    """Compile every C file of this folder and its rooms into one shared library, replacing the old one in one step.

    Raises:
        CompilerMissing: see `compiler`.
        subprocess.CalledProcessError: the compiler refused the code.
    """
    target = output or _HERE / "_kernels.so"
    sources = sorted(str(path) for path in _HERE.rglob("*.c"))
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "_kernels.so"
        subprocess.run([*compiler(zig=zig), *_FLAGS, "-I", str(_HERE), "-o", str(fresh), *sources, "-lm"], check=True)
        # Copy beside the target first: only a rename within one file system is a single step for processes that load it.
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(fresh, staged)
        staged.chmod(0o755)
        staged.replace(target)
    return target


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m serinus.native.build", description="Compile serinus's kernels.")
    parser.add_argument("--output", type=Path, help="file to write; default: beside this module")
    parser.add_argument("--zig", action="store_true", help="use ziglang even where the system has a compiler")
    options = parser.parse_args()
    try:
        print(build(options.output, zig=options.zig))
    except CompilerMissing as error:
        print(f"serinus: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
