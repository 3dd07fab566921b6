"""`serinus down`: stop one service, or everything."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from ...errors import ConfigError
from ...local.run.control_socket import Client, NotRunning
from .up import STATE_DIR, StateDir

__all__ = ["down"]


def down(
    name: Annotated[
        str, typer.Argument(help="A service (NAME or NAMESPACE/NAME); none: everything.", show_default=False)
    ] = "",
    *,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Stop a service, or everything; requests in flight are finished first."""
    client = Client(state_dir)
    if name:
        client.ask("down", name=name)
        typer.echo(f"{name}: stopped")
        return
    try:
        pid = int(client.ask("down")["pid"])
    except NotRunning:
        typer.echo(f"nothing runs in {state_dir}")
        return
    end = time.monotonic() + 120.0
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            typer.echo("stopped")
            return
        if _is_zombie(pid):
            typer.echo("stopped")
            return
        time.sleep(0.05)
    raise ConfigError(
        f"the supervisor (process {pid}) is still there after two minutes; see {state_dir / 'supervisor.log'}"
    )


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and only waits for its parent to ask (a container without an init process)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[-1].split()[:1] == [b"Z"]
    except OSError:
        return False
