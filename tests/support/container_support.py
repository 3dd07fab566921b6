"""A container engine for tests of `serinus build`: whether one answers, and a program that stands for one that does not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

__all__ = ["engine_answers", "write_engine"]


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
