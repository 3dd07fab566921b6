"""The reaper, with real process groups: what a supervisor leaves behind is ended, what it has ended itself is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_support import is_running
from serinus.local.run.processes import reaper
from serinus.local.run.processes.reaper_link import Reaper

SLEEPER = "import time; print('up', flush=True); time.sleep(120)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(120)"
WITH_CHILD = (
    "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)']);"
    " print(child.pid, flush=True); time.sleep(120)"
)


def start(code: str) -> tuple[subprocess.Popen[str], str]:
    """A process in a group of its own, and the first line that it wrote."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def reap(text: str, *, grace_s: float | None = None) -> None:
    """Run the program on its whole input."""
    code = [str(Path(reaper.__file__))]
    if grace_s is not None:
        source = Path(reaper.__file__).read_text().replace(f"GRACE_S = {reaper.GRACE_S}", f"GRACE_S = {grace_s}")
        code = ["-c", source]
    subprocess.run([sys.executable, "-I", "-S", *code], input=text, text=True, timeout=30, check=True)


@contextlib.contextmanager
def waited_for(process: subprocess.Popen[str]) -> Iterator[None]:
    """Take note of a child's end as soon as it comes, as its parent would: until then its group is there, and the grace lasts."""
    waiter = threading.Thread(target=process.wait, args=(30,))
    waiter.start()
    yield
    waiter.join()


@pytest.fixture
def started():
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def test_what_is_on_the_list_at_the_end_of_input_is_ended_and_the_rest_is_left_alone(started):
    listed, _ = start(SLEEPER)
    dropped, _ = start(SLEEPER)
    unknown, _ = start(SLEEPER)
    started += [listed, dropped, unknown]
    with waited_for(listed):
        reap(f"+{dropped.pid}\n+{listed.pid}\n-{dropped.pid}\n")
    assert listed.returncode == -signal.SIGTERM
    assert dropped.poll() is None
    assert unknown.poll() is None


@pytest.mark.slow
def test_a_group_goes_with_the_children_of_its_first_process(started):
    process, child = start(WITH_CHILD)
    started.append(process)
    with waited_for(process):
        reap(f"+{process.pid}\n")
    assert process.returncode == -signal.SIGTERM
    assert not is_running(int(child))


def test_what_does_not_heed_sigterm_is_killed_after_the_grace(started):
    deaf, _ = start(DEAF)
    started.append(deaf)
    reap(f"+{deaf.pid}\n", grace_s=0.2)
    assert deaf.wait(10) == -signal.SIGKILL


def test_groups_that_have_gone_and_lines_that_say_nothing_are_no_error():
    gone = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    gone.wait(10)
    reap(f"\n?\n+{gone.pid}\n-1234567\n")


async def test_the_runners_reaper_runs_and_ends_what_is_left_when_its_list_is_closed(started):
    process, _ = await asyncio.to_thread(start, SLEEPER)
    started.append(process)
    ours = Reaper()
    await ours.start()
    ours.began(process.pid)
    ended = asyncio.create_task(asyncio.to_thread(process.wait, 30))
    await ours.close()
    assert await ended == -signal.SIGTERM


async def test_the_runners_reaper_leaves_what_has_ended_alone(started):
    process, _ = await asyncio.to_thread(start, SLEEPER)
    started.append(process)
    ours = Reaper()
    ours.began(process.pid)  # before it runs there is no list
    await ours.start()
    ours.began(process.pid)
    ours.ended(process.pid)
    await ours.close()
    assert process.poll() is None
