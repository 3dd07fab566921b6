"""A container engine for tests of `serinus build`: whether one answers, and a program that stands for one that does not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["build_wheel", "engine_answers", "write_engine"]

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".venv" / "bin" / "uv"


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree for this machine, as `make wheel` makes it."""
    if not UV.exists():
        pytest.skip("needs the environment that `make setup` makes")
    environment = {**os.environ, "SERINUS_WHEEL_MACHINE": platform.machine()}
    constraints = str(ROOT / "constraints.txt")
    built = subprocess.run(
        [
            str(UV),
            "build",
            "-q",
            "--python",
            sys.executable,
            "--build-constraints",
            constraints,
            "--wheel",
            "-o",
            str(folder),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("serinus-*.whl")
    return wheel


def engine_answers() -> bool:
    """Whether docker is there and answers."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def write_engine(folder: Path, name: str, *, says: str, status: int) -> Path:
    """A program that says one thing, whatever it is asked."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    program.chmod(0o755)
    return program
