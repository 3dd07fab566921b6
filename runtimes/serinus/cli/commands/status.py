"""`serinus status`: what runs, and what gets which traffic."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from ...local.run.control_socket import Client, NotRunning
from ...local.run.state_folder import tell_absence
from ..state_option import STATE_DIR, StateDir
from ..tables import curl_line, make_console, show_refused, show_services, show_trouble

__all__ = ["status"]


def status(
    *,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="table or json.")] = "table",
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show every service: processes, ports, readiness, restarts, traffic. Exit status 1 where one is not ready or a process is in a crash loop."""
    try:
        found = Client(state_dir).ask("status", timeout_s=30.0)
    except NotRunning:
        raise tell_absence(state_dir) from None
    if output == "json":
        typer.echo(json.dumps({key: value for key, value in found.items() if key != "ok"}, indent=2))
    else:
        console = make_console()
        show_services(console, found["services"])
        show_trouble(console, found)
        show_refused(console, found)
        for service in found["services"]:
            if service["ready"]:
                console.print(curl_line(service, found["gateway"], ()), markup=False)
    rows = [found["gateway"], *(row for service in found["services"] for row in service["components"])]
    well = all(service["ready"] or service["stopped"] for service in found["services"])
    if not well or not found["gateway"]["ready"] or any(row["crash_loop"] for row in rows):
        raise typer.Exit(1)
