"""`serinus logs`: what the processes of a service wrote."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.text import Text

from ...errors import ConfigError
from ...local.run.control_socket import Client, ControlFailed, NotRunning
from ..state_option import STATE_DIR, StateDir
from ..tables import COLOURS, make_console, tail

__all__ = ["logs"]


def logs(
    name: Annotated[str, typer.Argument(help="A service, a revision, or gateway; none: all.", show_default=False)] = "",
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of each log's last lines.", min=0)] = 100,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show the logs of a service's processes, each line with its process's name; also of what has ended."""
    console = make_console()
    colours: dict[str, str] = {}

    def show(path: Path, line: str) -> None:
        title = path.stem
        colour = colours.setdefault(title, COLOURS[len(colours) % len(COLOURS)])
        console.print(Text.assemble((f"{title} | ", colour), Text.from_ansi(line)))

    files = _files(state_dir, name)
    if not files:
        known = ", ".join(path.stem for path in sorted((state_dir / "logs").glob("*.log"))) or "none"
        raise ConfigError(f"no log of {name or 'anything'} in {state_dir / 'logs'}; there are: {known}")
    for path in files:
        for line in tail(path, lines):
            show(path, line)
    if follow:
        try:
            _follow(state_dir, name, show)
        except KeyboardInterrupt:
            return


def _files(state: Path, name: str) -> list[Path]:
    """Log files of a service, of one revision, or all."""
    files = sorted((state / "logs").glob("*.log"))
    if not name:
        return files
    plain = name.split("/", 1)[-1]
    titles = {f"{plain}-predictor", f"{plain}-transformer"}
    try:
        for service in Client(state).ask("status", timeout_s=10.0)["services"]:
            if name in {service["name"], f"{service['namespace']}/{service['name']}"}:
                titles |= {row["revision"].rsplit("-", 1)[0] for row in service["components"]}
    except (ControlFailed, NotRunning):
        pass  # nothing runs: the files that are there are shown all the same
    found = []
    for path in files:
        revision = path.stem
        for container in (".kserve-container", ".transformer-container"):
            revision = revision.removesuffix(container)
        if plain in {path.stem, revision} or revision.rsplit("-", 1)[0] in titles:
            found.append(path)
    return found


def _follow(state: Path, name: str, show: Callable[[Path, str], None]) -> None:
    """Print what is appended, in new files as well, until Ctrl-C."""
    opened: dict[Path, BinaryIO] = {}
    for path in _files(state, name):
        opened[path] = path.open("rb")
        opened[path].seek(0, 2)
    rest: dict[Path, bytes] = {}
    next_look = 0.0
    while True:
        if time.monotonic() > next_look:
            next_look = time.monotonic() + 1.0
            for path in _files(state, name):
                if path not in opened:
                    opened[path] = path.open("rb")
                elif opened[path].tell() > path.stat().st_size:  # begun anew
                    opened[path].close()
                    opened[path] = path.open("rb")
        for path, file in opened.items():
            *whole, rest[path] = (rest.get(path, b"") + file.read()).split(b"\n")
            for line in whole:
                show(path, line.decode("utf-8", "replace"))
        time.sleep(0.1)
