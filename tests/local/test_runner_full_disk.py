"""A state folder on a disk that is full: services go on, their logs lose lines, and there is no traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_support import Up, all_ready, manifest
from serinus.local.run.processes.log_files import LogFile

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Two megabytes of memory as a file system; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def up(disk: Path, *more: str) -> list[str]:
    """The command of a service whose state is on a disk."""
    return [
        sys.executable,
        "-m",
        "serinus.cli",
        "up",
        "isvc.yaml",
        "--port",
        "0",
        "--state-dir",
        str(disk / "s"),
        *more,
    ]


def _fill(folder: Path) -> Path:
    file = folder / "ballast"
    with file.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    return file


def test_a_log_that_cannot_be_written_keeps_its_last_lines_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    shown: list[str] = []
    log = LogFile(small_disk / "a.log", "a", lambda _, line: shown.append(line))
    log.feed(b"before\n")
    ballast = _fill(small_disk)
    for number in range(3000):
        log.feed(b"line %d\n" % number)
    assert sum("cannot be written" in line for line in shown) == 1
    assert log.last_lines[-1] == "line 2999"
    ballast.unlink()
    log.feed(b"after\n")
    log.close()
    assert (small_disk / "a.log").read_bytes().endswith(b"after\n")


def test_a_service_goes_on_and_heals_on_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    path = tmp_path / "isvc.yaml"
    path.write_text(manifest("--tag=v1"))
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            up(small_disk),
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    running = Up(process, tmp_path, log)
    running.state = small_disk / "s"
    try:
        running.wait(all_ready, "ready")
        ballast = _fill(small_disk)
        os.kill(running.row["pid"], signal.SIGKILL)
        running.wait(
            lambda s: s["services"][0]["components"][0]["restarts"] == 1 and s["services"][0]["components"][0]["ready"],
            "the restart",
        )
        path.write_text(manifest("--tag=v2"))
        running.wait(lambda s: len(s["services"][0]["components"]) == 2, "the new revision")
        ballast.unlink()
        running.wait(
            lambda s: all_ready(s) and len(s["services"][0]["components"]) == 1, "the new revision alone", 60.0
        )
        assert running.infer()["tag"] == "v2"
        assert "Traceback" not in running.output()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_a_start_on_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest())
    _fill(small_disk)
    done = subprocess.run(up(small_disk), cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_read_only_state_folder_is_told_in_a_line(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for more in ([], ["--detach"]):
        done = subprocess.run(
            up(small_disk, *more), cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 1
        assert "cannot be written: Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr
