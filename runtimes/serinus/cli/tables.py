"""What the commands show of a supervisor's status."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["COLOURS", "curl_line", "make_console", "show_refused", "show_services", "show_trouble", "tail"]

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
"""Of the names in the live log; red is left for trouble."""

_NUMBERS = {"PID", "HTTP", "GRPC", "RESTARTS", "TRAFFIC"}
_STATES = {"ready": "green", "starting": "yellow", "draining": "yellow", "waiting": "red", "unready": "red"}


def make_console(file: IO[str] | None = None) -> Console:
    """A console that never cuts a name short: what is not a terminal is as wide as its lines.

    Args:
        file: where it prints; None: standard output.
    """
    console = Console(file=file, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(file=file, highlight=False, soft_wrap=True, width=240)


def show_services(console: Console, services: Sequence[Mapping[str, Any]]) -> None:
    """Print one table of every process of every service, and why a service is not ready."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SERVICE", "COMPONENT", "REVISION", "PID", "HTTP", "GRPC", "STATE", "RESTARTS", "TRAFFIC"):
        table.add_column(name, no_wrap=True, justify="right" if name in _NUMBERS else "left")
    for service in services:
        for row in service["components"]:
            tags = f" {','.join(row['tags'])}" if row["tags"] and row["tags"] != ["latest"] else ""
            several = sum(other["revision"] == row["revision"] for other in service["components"]) > 1
            table.add_row(
                f"{service['namespace']}/{service['name']}",
                row["component"],
                row["revision"] + (f" {row['container']}" if several else ""),
                str(row["pid"] or "-"),
                str(row["http_port"]),
                str(row["grpc_port"]),
                Text("crash loop", style="red")
                if row["crash_loop"]
                else Text(row["state"], style=_STATES.get(row["state"], "")),
                str(row["restarts"]),
                f"{row['traffic']} %{tags}",
            )
        if not service["components"]:
            state = "stopped" if service["stopped"] else "starting"
            table.add_row(f"{service['namespace']}/{service['name']}", "-", "-", "-", "-", "-", state, "-", "-")
    console.print(table)
    for service in services:
        if service["problem"]:
            console.print(Text(service["problem"], style="red"))


def show_trouble(console: Console, status: Mapping[str, Any], *, lines: int = 10) -> None:
    """Name every process that is not ready, with the last lines that it wrote."""
    gateway = status["gateway"]
    found = [] if gateway["ready"] else [("the gateway", gateway)]
    for service in status["services"]:
        name = f"{service['namespace']}/{service['name']}"
        rows = [
            row for row in service["components"] if not row["ready"] and row["state"] not in {"draining", "stopping"}
        ]
        found += [(f"{name}: {row['component']} {row['revision']} ({row['container']})", row) for row in rows]
        if not service["components"] and not service["ready"] and not service["stopped"] and not service["problem"]:
            console.print(Text(f"{name}: no process yet: its model's files are being fetched", style="red"))
    for name, row in found:
        state = "crash loop" if row["crash_loop"] else f"not ready: {row.get('state', 'starting')}"
        ended = f"; {row['last_exit']}, restarts: {row['restarts']}" if row["last_exit"] else ""
        console.print(Text(f"{name}: {state}{ended}", style="red"))
        for line in row["last_lines"][-lines:] if lines else ():
            console.print(Text(f"  | {line}"))


def show_refused(console: Console, status: Mapping[str, Any]) -> None:
    """Print what of the manifests was refused and is not what runs."""
    for refused in status["refused"]:
        console.print(
            Text(f"{refused['path']}: its newest state is refused; what was there before runs on", style="red")
        )
        for problem in refused["problems"]:
            console.print(Text(f"  {problem}"))


def curl_line(service: Mapping[str, Any], gateway: Mapping[str, Any], folders: Iterable[Path]) -> str:
    """A line that can be pasted: the folder's own request where there is one, else the model's metadata (a graph's counters)."""
    from ..local.run.control_socket import reached_address  # other commands print tables and know no supervisor

    root = f"curl -s -H 'Host: {service['host']}' http://{reached_address(gateway['host'], gateway['port'])}/"
    if service["kind"] == "InferenceGraph":  # it answers POST at any path
        base = f"{root}metrics"
        end = root
    else:
        base = f"{root}v2/models/{service['model']}"
        end = f"{base}/infer"
    # A service in several forms (fraud/split, fraud/fused) keeps its request beside them.
    for request in (place / "request.json" for folder in folders for place in (folder, folder.parent)):
        if request.is_file():
            return f"{end} -H 'Content-Type: application/json' -d @{shlex.quote(str(request))}"
    return base


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file; none where it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(0, size - 256 * max(lines, 1) - 65536))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-lines:] if lines else []
