"""Ctrl-C at any moment of the start: no traceback, no process left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_support import command
from depth import draws
from local_support import is_running, manifest
from serinus.quiet_interrupt import is_command
from waiting import wait_until


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/x/bin/serinus", "up"], True),
        (["-m", "serinus.cli", "up"], True),
        (["-X", "-m", "serinus.cli"], True),
        (["-m", "pytest"], False),
        (["-c", "import serinus"], False),
        (["script.py", "serinus"], False),
        (["-m"], False),
        ([], False),
    ],
)
def test_only_the_command_itself_changes_what_ctrl_c_does(words: list[str], expected: bool) -> None:
    assert is_command(words) == expected


def test_a_program_that_imports_serinus_keeps_its_keyboard_interrupt() -> None:
    code = "import signal, serinus; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"


def interrupt_after(folder: Path, seconds: float, *words: str) -> tuple[str, set[int]]:
    """Start `serinus up` as a terminal would, in a group of its own; Ctrl-C after a time; its output and what of its processes is left."""
    mark = f"interrupted-{os.urandom(8).hex()}"
    command = [sys.executable, "-m", "serinus.cli", "up", "isvc.yaml", "--port", "0", *words]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "INTERRUPTED": mark},
    )
    time.sleep(seconds)  # what is tried: this moment
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    return said, marked(mark)


def marked(mark: str) -> set[int]:
    """Processes that inherited a variable: every one that the command started, at whatever depth."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return {pid for pid in found if is_running(pid)}


def check(said: str, left: set[int]) -> None:
    # Before it runs any of our code the interpreter shows what it likes.
    own = "serinus" in said.split("Traceback", 1)[-1]
    assert "Traceback" not in said or not own, said
    wait_until(lambda: not any(map(is_running, left)))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--detach",)], ids=["foreground", "detached"])
def test_ctrl_c_at_any_moment_of_the_start_shows_no_traceback_and_leaves_no_process(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    (tmp_path / "isvc.yaml").write_text(manifest("--start_after=1"))
    moments = random.Random(seed).sample([step * 0.05 for step in range(3, 100)], draws(6, 3))
    for moment in moments:
        said, left = interrupt_after(tmp_path, moment, *more)
        if more and "curl -s" in said:  # it had done its work before
            assert command(tmp_path, "down").returncode == 0
        check(said, left)
