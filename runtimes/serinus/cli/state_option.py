"""The option that says where the local runner's state is, for every command that asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

__all__ = ["STATE_DIR", "StateDir"]

STATE_DIR: Final = Path(".serinus")

StateDir = Annotated[Path, typer.Option("--state-dir", help="Folder of logs, gateway files and the control socket.")]
