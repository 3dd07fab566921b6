"""Compile the kernels: `python -m serinus.native.build [--output FILE] [--zig] [--machine x86_64|aarch64] [--check]`.

Takes `$CC`, cc, gcc or clang where one is there, else `ziglang` from PyPI (a whole C compiler in a wheel). The code is for the
baseline of the processor family, so that one library serves every machine of it, and no flag relaxes IEEE arithmetic: the results
must equal the reference's. A warning of some new compiler is printed and stops nobody's installation; `--check`, which `make lint`
runs, makes it an error.
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

__all__ = ["FLAGS", "PLATFORM_TAGS", "BuildError", "CompilerMissing", "build", "compiler", "sources"]

_HERE = Path(__file__).resolve().parent

FLAGS = (
    "-std=c11",
    "-O3",
    "-g0",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
)
"""What the library is compiled with, by whichever compiler."""

PLATFORM_TAGS = {machine: f"manylinux_2_17_{machine}.manylinux2014_{machine}" for machine in ("x86_64", "aarch64")}
"""Machines that `make wheel` makes wheels for, and their tags: manylinux2014 (PEP 599) is glibc 2.17 or later."""

_GLIBC = "2.17"


class BuildError(RuntimeError):
    """The kernels cannot be compiled; the message has what the compiler said."""


class CompilerMissing(BuildError):
    """Neither a system compiler nor ziglang is there."""


def compiler(*, zig: bool = False, machine: str | None = None) -> list[str]:
    """Find the compiler's command line.

    Args:
        zig: take ziglang even where the system has a compiler.
        machine: one of `PLATFORM_TAGS`, for which ziglang compiles on any other; None: this one.

    Raises:
        CompilerMissing: none was found; the message says how to get one.
    """
    if not zig and machine is None:
        for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
            words = shlex.split(name)
            if words and shutil.which(words[0]):
                return words
    if importlib.util.find_spec("ziglang") is not None:
        # Without a target zig takes all that the processor of the building machine has.
        target = ["-mcpu=baseline"] if machine is None else ["-target", f"{machine}-linux-gnu.{_GLIBC}"]
        return [sys.executable, "-m", "ziglang", "cc", *target]
    wanted = (
        "no C compiler (cc, gcc, clang) and no ziglang" if machine is None else f"no ziglang to compile for {machine}"
    )
    raise CompilerMissing(f"{wanted}: pip install ziglang, then build again")


def sources() -> list[Path]:
    """Every C file of this folder and its rooms, sorted."""
    return sorted(_HERE.rglob("*.c"))


def build(
    output: Path | None = None, *, zig: bool = False, machine: str | None = None, warnings_are_errors: bool = False
) -> Path:
    """Compile every C file into one shared library, replacing the old one in one step.

    Args:
        output: file to write; None: `_kernels.so` beside this module.
        zig: see `compiler`.
        machine: see `compiler`.
        warnings_are_errors: for checks of this code; other people's compilers may know other warnings.

    Raises:
        CompilerMissing: see `compiler`.
        BuildError: the compiler refused the code.
    """
    target = output or _HERE / "_kernels.so"
    flags = [*FLAGS, "-Werror"] if warnings_are_errors else [*FLAGS]
    command = [*compiler(zig=zig, machine=machine), *flags, "-I", str(_HERE)]
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "_kernels.so"
        try:
            ran = subprocess.run(
                [*command, "-o", str(fresh), *map(str, sources()), "-lm"],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise BuildError(f"{shlex.join(command)}: {error}") from error
        if ran.returncode != 0 or not fresh.is_file():
            raise BuildError(f"{shlex.join(command)} ended with {ran.returncode}:\n{ran.stderr.strip()}")
        sys.stderr.write(ran.stderr)
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
    parser.add_argument("--machine", choices=sorted(PLATFORM_TAGS), help="compile for its glibc 2.17, with ziglang")
    parser.add_argument("--check", action="store_true", help="warnings are errors, and nothing is written")
    options = parser.parse_args()
    try:
        if options.check:
            with tempfile.TemporaryDirectory() as folder:
                build(Path(folder) / "_kernels.so", zig=options.zig, machine=options.machine, warnings_are_errors=True)
        else:
            print(build(options.output, zig=options.zig, machine=options.machine))
    except BuildError as error:
        print(f"serinus: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
