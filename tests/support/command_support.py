"""`serinus` as somebody types it in a folder, run in this process: one of its own takes 0.4 s of CPU to import what this one has."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import warm_start

__all__ = ["command"]


def command(folder: Path, *words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `serinus WORDS` in a folder; its status and what it wrote.

    In a process of its own where it must be one: with `--detach` it leaves a child behind, for which its parent would have to wait, and a canary's
    run takes signals and its time.
    """
    if {"--detach", "-d"} & set(words) or words[0] == "canary":
        return warm_start.run(words, env={**os.environ, **environment}, cwd=folder, stdin=stdin, timeout_s=120)
    from serinus.cli import main as serinus

    out, err = io.StringIO(), io.StringIO()
    with _in(folder, environment), _reading(stdin), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = serinus(words)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _in(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    here, before = Path.cwd(), {name: os.environ.get(name) for name in environment}
    os.chdir(folder)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.chdir(here)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _reading(text: str) -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(text.encode()))
    try:
        yield
    finally:
        sys.stdin = before
