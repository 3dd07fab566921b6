"""The state folder's lock, and what a supervisor that was killed has left in it.

Theory of operation. Whoever holds the lock (flock(2), which ends with its process however that ends) is the supervisor, or ends what an earlier
one left; nobody else starts or ends processes of this folder. The lock file names its holder, so that `serinus down` can end one that does not
answer. Three things end what a killed supervisor started: the kernel's signal to its children, the reaper, and, where both were killed or did not
do, whoever holds the lock next, by the record (`processes/process_record`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import ConfigError
from .control_socket import socket_path
from .processes.process_record import FILE, RecordedProcess, end_processes, identify, read_record

__all__ = ["SUPERVISOR_FILE", "StateBusy", "hold_state", "lock_holder", "recover_state", "tell_absence"]

SUPERVISOR_FILE = "supervisor.json"


class StateBusy(ConfigError):
    """Another process holds the folder."""


def _open(state: Path) -> IO[str]:
    try:
        return (state / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(_unwritable(state, error)) from None


def _unwritable(state: Path, error: OSError) -> str:
    return f"--state-dir {state}: cannot be written: {error.strerror}; make room or rights there, or give another --state-dir"


@contextlib.contextmanager
def hold_state(state: Path) -> Iterator[list[RecordedProcess]]:
    """Make the folder, hold its lock, and end what an earlier supervisor left.

    Yields:
        What was ended.

    Raises:
        StateBusy: another process holds it.
        ConfigError: it cannot be written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
    except OSError as error:
        raise ConfigError(_unwritable(state, error)) from None
    with _open(state) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateBusy(
                f"another serinus up runs in {state}; give it PATHs with serinus up, end it with serinus down, "
                "or use another --state-dir"
            ) from None
        _name_holder(lock)
        yield _clear(state)


def _name_holder(lock: IO[str]) -> None:
    own = identify(os.getpid(), "supervisor")
    try:
        lock.truncate(0)
        if own is not None:  # by no buffer, which would try again when the file is closed
            os.write(lock.fileno(), json.dumps({"pid": own.pid, "start": own.start, "boot": own.boot}).encode())
    except OSError:
        return  # a full disk: the lock holds all the same


def _clear(state: Path) -> list[RecordedProcess]:
    """End what the record names, and remove what says that a supervisor runs."""
    ended = end_processes(read_record(state))
    for path in (state / FILE, state / SUPERVISOR_FILE, socket_path(state)):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return ended


def lock_holder(state: Path) -> RecordedProcess | None:
    """Who holds the lock now; None where nobody does, or it cannot be told."""
    try:
        with (state / "lock").open("r", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                value = json.loads(lock.read())
                found = RecordedProcess(int(value["pid"]), int(value["start"]), str(value["boot"]), "supervisor")
                return found if found.is_running else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def recover_state(state: Path) -> tuple[bool, list[RecordedProcess]]:
    """End what a supervisor that is gone has left.

    Returns:
        Whether one went without having been stopped, and what of it was still there.

    Raises:
        StateBusy: a supervisor lives, though it may not answer yet, or any more.
        ConfigError: the folder cannot be written.
    """
    if not (state / "lock").is_file():
        return False, []
    was_killed = (state / SUPERVISOR_FILE).is_file() or bool(read_record(state))
    if not was_killed and lock_holder(state) is None:
        return False, []
    with hold_state(state) as ended:
        return was_killed, ended


def tell_absence(state: Path) -> ConfigError:
    """Why no supervisor answers, in words; what one that was killed has left is ended first."""
    try:
        was_killed, ended = recover_state(state)
    except StateBusy:
        holder = lock_holder(state)
        who = f"process {holder.pid}" if holder is not None else "a process"
        return ConfigError(
            f"{who} is starting or ending a supervisor in {state}; ask again, or end it with: serinus down"
        )
    if not was_killed:
        return ConfigError(f"nothing runs in {state}; start it with: serinus up PATH")
    left = f"; it left {', '.join(each.title for each in ended)}, which were ended" if ended else ""
    return ConfigError(
        f"the supervisor of {state} is gone without having been stopped (was it killed?){left}; start again with: serinus up PATH"
    )
