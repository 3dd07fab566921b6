"""A process that starts in the place of another takes less of the cores until it is ready, and its full part from then on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from local_support import all_ready, manifest, up
from serinus.local.run.control_socket import Client
from serinus.local.run.processes.cpu_weight import LESS, set_weight
from waiting import wait_until

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="no groups of sessions in this kernel"
)


def _nice(pid: int) -> int:
    """Of the session."""
    return int(Path(f"/proc/{pid}/autogroup").read_text().rsplit(" ", 1)[1])


def _nices(pid: int) -> set[int]:
    """Of every thread of a process and its children."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found.add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
        for child in (task / "children").read_text().split():
            found |= _nices(int(child))
    return found


def test_a_weight_reaches_threads_and_children_and_goes_back() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
        ],
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        wait_until(lambda: children.read_text().strip())
        for nice in (LESS, 0):
            set_weight(process.pid, nice)
            assert _nice(process.pid) == nice
            if os.geteuid() == 0:
                assert _nices(process.pid) == {nice}
    finally:
        child = int(children.read_text())
        process.kill()
        os.kill(child, 9)
        process.wait()


def test_a_process_that_is_gone_has_no_weight() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    set_weight(process.pid, LESS)


OFTEN = """
import ctypes, os, sys
if "again" not in sys.argv:  # CAP_SYS_ADMIN (21) is given to nobody that is begun from here on (PR_CAPBSET_DROP, 24)
    os.setsid()
    ctypes.CDLL(None).prctl(24, 21, 0, 0, 0)
    os.execv(sys.executable, [*sys.orig_argv, "again"])
from serinus.local.run.processes.cpu_weight import LESS, set_weight
from waiting import wait_until

print([set_weight(os.getpid(), nice) for nice in (LESS, 0) * 10].count(False))
wait_until(lambda: set_weight(os.getpid(), 0))
print(open("/proc/self/autogroup").read().rsplit(" ", 1)[1])
"""


def test_a_kernel_that_wants_to_be_asked_later_is_said_to() -> None:
    """It changes one session's weight in a tenth of a second, but for root; who took that for done would stay behind for good."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", OFTEN], env=environment, capture_output=True, text=True, check=True)
    refused, nice = map(int, done.stdout.split())
    assert refused > 0
    assert nice == 0


@pytest.mark.slow
def test_in_a_rolling_restart_the_new_process_stands_back_until_it_is_ready(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest("--ready_after=6"))
    with up(tmp_path, "isvc.yaml") as running:
        old = running.row["pid"]
        assert _nice(old) == 0, "nobody serves beside the first"
        restart = threading.Thread(target=running.cli, args=("restart", "fraud"))
        restart.start()

        def new() -> int | None:
            rows = Client(running.state).ask("status", timeout_s=20)["services"][0]["components"]
            return next((row["pid"] for row in rows if row["pid"] not in {old, None}), None)

        wait_until(new, limit_s=40)
        pid = new()
        assert pid is not None
        wait_until(lambda: _nice(pid) == LESS, limit_s=4)
        restart.join(60)
        running.wait(all_ready, "ready")
        assert _nice(pid) == 0
