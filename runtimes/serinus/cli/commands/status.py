"""`serinus status`: what runs, and what gets which traffic."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from ...local.run.control_socket import Client
from ..tables import curl_line, make_console, show_services
from .up import STATE_DIR, StateDir

__all__ = ["status"]


def status(
    *,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="table or json.")] = "table",
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show every service: processes, ports, readiness, restarts, traffic. Exit status 1 where one is not ready."""
    found = Client(state_dir).ask("status")
    if output == "json":
        typer.echo(json.dumps({key: value for key, value in found.items() if key != "ok"}, indent=2))
    else:
        console = make_console()
        show_services(console, found["services"])
        for service in found["services"]:
            if service["ready"]:
                console.print(curl_line(service, found["gateway"], ()), markup=False)
    if not all(service["ready"] or service["stopped"] for service in found["services"]):
        raise typer.Exit(1)
