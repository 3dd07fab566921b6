"""`serinus down`: stop one service, or everything."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigError
from ...local.run.control_socket import Client, ControlFailed, NotRunning
from ...local.run.processes.process_record import RecordedProcess
from ...local.run.state_folder import StateBusy, lock_holder, recover_state
from ..state_option import STATE_DIR, StateDir

__all__ = ["down"]

ANSWER_S = 10.0
"""A supervisor that is well answers in milliseconds."""
STOP_S = 120.0
"""Longest wait for a supervisor that has been told to stop: requests in flight end, processes have their grace."""


def down(
    name: Annotated[
        str, typer.Argument(help="A service (NAME or NAMESPACE/NAME); none: everything.", show_default=False)
    ] = "",
    *,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Stop a service, or everything; requests in flight are finished first.

    What a supervisor that was killed has left is ended, too, and a supervisor that does not answer is killed.
    """
    client = Client(state_dir)
    if name:
        client.ask("down", name=name)
        typer.echo(f"{name}: stopped")
        return
    holder = lock_holder(state_dir)
    try:
        pid = int(client.ask("down", timeout_s=ANSWER_S)["pid"])
    except NotRunning:
        if holder is None:
            _clear_up(state_dir)
            return
        # One that starts or ends has no socket; it heeds the signal.
        _signal(holder, signal.SIGTERM)
        _signal(holder, signal.SIGCONT)  # one that is stopped would not see it
        pid = holder.pid
    except ControlFailed:
        if holder is None:
            raise
        _signal(holder, signal.SIGKILL)
        pid = holder.pid
        typer.echo(f"the supervisor (process {pid}) did not answer and was killed", err=True)
    if not _wait_gone(pid, STOP_S):
        if holder is None:
            raise ConfigError(
                f"the supervisor (process {pid}) is still there after {STOP_S:.0f} s; end it with: kill -9 {pid}"
            )
        _signal(holder, signal.SIGKILL)
        _wait_gone(pid, ANSWER_S)
        typer.echo(f"the supervisor (process {pid}) was still there after {STOP_S:.0f} s and was killed", err=True)
    _recover(state_dir)
    typer.echo("stopped")


def _signal(process: RecordedProcess, number: signal.Signals) -> None:
    if process.is_running:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return


def _recover(state: Path) -> None:
    """End what is left. The lock of a process is held until its last thread is gone, a moment after its main thread."""
    end = time.monotonic() + ANSWER_S
    while True:
        try:
            recover_state(state)
            return
        except StateBusy:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)


def _clear_up(state: Path) -> None:
    """End what a supervisor that is gone has left."""
    was_killed, ended = recover_state(state)
    if ended:
        typer.echo(f"the supervisor was gone; ended what it left: {', '.join(each.title for each in ended)}")
    elif was_killed:
        typer.echo("the supervisor was gone without having been stopped; it left no process")
    else:
        typer.echo(f"nothing runs in {state}")


def _wait_gone(pid: int, limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if _is_zombie(pid):
            return True
        time.sleep(0.05)
    return False


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and only waits for its parent to ask (a container without an init process)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[-1].split()[:1] == [b"Z"]
    except OSError:
        return False
