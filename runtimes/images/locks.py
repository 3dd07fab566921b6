"""Write the locks of the images' layers: every package with its version and the hashes of its files.

    python runtimes/images/locks.py            # all; `make locks`
    python runtimes/images/locks.py xgboost    # one

A lock is what the layer's file in `layers/` asks for and all that it needs, by the versions of constraints.txt, for the Python and the platform
of the images. The builds of PyTorch for CPUs are named by version alone, in a file of their own: their index is not the package index.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports] # what Python 3.10 has of it comes with the tests

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOCKS = HERE / "locks"
PLATFORM = "x86_64-manylinux_2_28"
"""What is resolved for. The hashes are of all files of a version, so arm64 installs the same; 2.28 is what PyTorch's wheels ask for."""


def layers() -> dict[str, dict[str, Any]]:
    """The layers by name (README.md says what each key means)."""
    return {file.stem: tomllib.loads(file.read_text()) for file in sorted((HERE / "layers").glob("*.toml"))}


@functools.cache
def python() -> str:
    """The images' version of Python, as `3.11`: that of the Dockerfile.

    Raises:
        ValueError: the Dockerfile names no version.
    """
    found = re.search(
        r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)", (ROOT / "runtimes" / "Dockerfile").read_text(), re.MULTILINE
    )
    if found is None:
        raise ValueError("runtimes/Dockerfile: expected ARG PYTHON_IMAGE=python:3.X...")
    return found[1]


def normalise(name: str) -> str:
    """Write the name of a package as all others write it (PyPA, Names and normalization)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """The package's name in `tensorflow[and-cuda]>=2.18; python_version > "3"`, with its extras, normalised."""
    found = re.match(r"\s*([A-Za-z0-9._-]+)\s*(\[[^]]*\])?", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} is no requirement: expected a name such as `numpy>=1.26`")
    return normalise(found[1]) + (found[2] or "").replace(" ", "").lower()


@functools.cache
def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(extras: Iterable[str]) -> list[str]:
    """What extras of pyproject.toml ask for, those of extras of ours within them instead of their names."""
    table: dict[str, list[str]] = {normalise(name): lines for name, lines in project()["optional-dependencies"].items()}
    found: list[str] = []
    for extra in extras:
        for line in table[normalise(extra)]:
            if (ours := re.fullmatch(r"serinus\[([^]]+)\]", line)) is not None:
                found += requirements(ours[1].split(","))
            else:
                found.append(line)
    return list(dict.fromkeys(found))


def wanted(layer: Mapping[str, Any]) -> list[str]:
    """The requirements of a layer; those that pyproject.toml has too as they stand there."""
    declared = {name_of(line): line for line in requirements(project()["optional-dependencies"])}
    asked = [*requirements(layer.get("extras", ())), *(declared.get(name_of(line), line) for line in layer["requires"])]
    return [*project()["dependencies"], *asked] if layer.get("extras") else asked


def lock(name: str, layer: Mapping[str, Any]) -> None:
    """Write one layer's lock.

    Raises:
        subprocess.CalledProcessError: uv found no versions; what it said is on standard error.
    """
    unhashed = layer.get("unhashed", [])
    with tempfile.TemporaryDirectory() as folder:
        asked, left_out = Path(folder) / "requirements.in", Path(folder) / "excludes.txt"
        asked.write_text("\n".join(wanted(layer)) + "\n")
        left_out.write_text("\n".join(layer.get("without", [])) + "\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", "-q", "--no-header", "--no-annotate", "--no-build"]
        command += ["-c", str(ROOT / "constraints.txt"), "--excludes", str(left_out)]
        command += ["--python-version", python(), "--python-platform", PLATFORM]
        if unhashed:
            # A folder of wheels that holds the build for CPUs, as the Makefile takes it, or else PyTorch's own index of them.
            wheels = os.environ.get("PIP_FIND_LINKS")
            command += ["--find-links", wheels] if wheels else ["--torch-backend", "cpu"]
        command += [argument for package in unhashed for argument in ("--no-emit-package", package)]
        packages = _run([*command, "--generate-hashes", str(asked)])
        (LOCKS / f"{name}.txt").write_text(f"# Written by `make locks`, for Python {python()}.\n{packages}")
        if unhashed:
            emitted = _run([*command[: command.index("--no-emit-package")], str(asked)])
            versions = dict(line.split("==") for line in emitted.splitlines() if "==" in line)
            pinned = [f"{package}=={versions[package].split('+')[0]}\n" for package in unhashed]
            (LOCKS / f"{name}-by-version.txt").write_text("".join(["# Written by `make locks`.\n", *pinned]))


def _run(command: list[str]) -> str:
    # Nothing that a user's configuration says of indexes may be written down.
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(names: list[str]) -> None:
    """Write the locks of these layers, or all."""
    LOCKS.mkdir(exist_ok=True)
    every = layers()
    if unknown := set(names) - every.keys():
        raise SystemExit(f"layers/ has no {', '.join(sorted(unknown))}; it has {', '.join(every)}")
    for name in names or every:
        print(f"runtimes/images/locks/{name}.txt", flush=True)
        lock(name, every[name])


if __name__ == "__main__":
    main(sys.argv[1:])
