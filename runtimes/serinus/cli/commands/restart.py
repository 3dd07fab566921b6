"""`serinus restart`: new processes for old ones, one after another."""

from __future__ import annotations

from typing import Annotated

import typer

from ...local.run.control_socket import Client
from ..state_option import STATE_DIR, StateDir

__all__ = ["restart"]


def restart(
    name: Annotated[str, typer.Argument(help="A service: NAME or NAMESPACE/NAME.", show_default=False)],
    *,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Restart a service without losing a request: each new process is ready before the old one drains and ends."""
    for revision in Client(state_dir).ask("restart", name=name, timeout_s=3600.0)["restarted"]:
        typer.echo(f"{revision}: restarted")
