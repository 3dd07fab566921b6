"""Which processes a supervisor has started, in a file: whoever comes after one that was killed ends what it left.

Theory of operation. One line a process, JSON: its pid, which is also its group's, the time of its start in ticks since the machine's, and the
machine's own start. A pid alone may be another process's by now; with both times it cannot. The file is written whole and renamed at each
change, so it is old or new; of one that was damaged all the same, the whole lines count. A record that cannot be written (a full disk) is told
once and stops nothing: the reaper and the kernel's own signal still end what a killed supervisor leaves.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessRecord", "RecordedProcess", "end_processes", "identify", "read_record"]

FILE = "processes.jsonl"
GRACE_S = 5.0
"""From SIGTERM to SIGKILL: what is ended here has no gateway in front of it any more."""


@dataclass(frozen=True, slots=True)
class RecordedProcess:
    """One process, told apart from every other that had or will have its pid."""

    pid: int
    start: int
    """Ticks from the machine's start to the process's (proc(5), stat, starttime)."""
    boot: str
    """The machine's own start (/proc/sys/kernel/random/boot_id)."""
    title: str

    @property
    def is_running(self) -> bool:
        """Whether it, or what is left of its group, is there."""
        if self.boot != _boot():
            return False
        start, state = _stat(self.pid)
        if start is not None:
            return start == self.start and (state != "Z" or _group_lives(self.pid))
        # No process has this pid, so no other group can: the number stays taken as long as the group has a member.
        return _group_lives(self.pid)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to its group, if it is there."""
        if self.is_running:
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):
                return


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _stat(pid: int) -> tuple[int | None, str]:
    """Start and state of a process; None where there is none, or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
        return int(fields[19]), fields[0].decode()
    except (OSError, IndexError, ValueError):
        return None, ""


def _group_lives(group: int) -> bool:
    """Whether a group has a member that is no zombie."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_bytes().rsplit(b")", 1)[1].split()
            except (OSError, IndexError):
                continue
            if int(fields[2]) == group and fields[0] != b"Z":
                return True
    return False


def identify(pid: int, title: str) -> RecordedProcess | None:
    """Say who a running process is; None where it has gone, or the system has no /proc."""
    start, _ = _stat(pid)
    return RecordedProcess(pid, start, _boot(), title) if start is not None else None


def read_record(folder: Path) -> list[RecordedProcess]:
    """What a state folder's record names; lines that cannot be read are passed over."""
    try:
        text = (folder / FILE).read_bytes().decode("utf-8", "replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
            found.append(
                RecordedProcess(int(value["pid"]), int(value["start"]), str(value["boot"]), str(value["title"]))
            )
        except (ValueError, KeyError, TypeError):
            continue
    return [each for each in found if each.pid > 1]


class ProcessRecord:
    """The record of a supervisor that runs.

    Args:
        folder: the state folder.
        say: told once where it cannot be written.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._path = folder / FILE
        self._say = say
        self._known: dict[int, RecordedProcess] = {}
        self._told = False

    def began(self, pid: int, title: str) -> None:
        """Name a process that has been started."""
        found = identify(pid, title)
        if found is not None:
            self._known[pid] = found
            self._write()

    def ended(self, pid: int) -> None:
        """Strike it out."""
        if self._known.pop(pid, None) is not None:
            self._write()

    def _write(self) -> None:
        lines = [
            json.dumps({"pid": each.pid, "start": each.start, "boot": each.boot, "title": each.title})
            for each in self._known.values()
        ]
        partial = self._path.with_name(self._path.name + ".partial")
        try:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            partial.replace(self._path)
            self._told = False
        except OSError as error:
            if not self._told:
                self._told = True
                self._say(f"{self._path}: cannot be written: {error.strerror}; processes go on without a record")


def end_processes(processes: Sequence[RecordedProcess], *, grace_s: float = GRACE_S) -> list[RecordedProcess]:
    """End processes and their groups: SIGTERM, and SIGKILL when the grace is over.

    Returns:
        Those that were still there.
    """
    found = [each for each in processes if each.is_running]
    for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, GRACE_S)):
        for each in found:
            each.signal_group(number)
            if number == signal.SIGTERM:
                each.signal_group(signal.SIGCONT)  # one that is stopped would not see the other
        end = time.monotonic() + limit_s
        while any(each.is_running for each in found) and time.monotonic() < end:
            time.sleep(0.05)
    return found
