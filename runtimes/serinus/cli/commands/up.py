"""`serinus up`: InferenceServices and InferenceGraphs on this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ...errors import ConfigError
from ...local.plan.deployment_plan import DOMAINS, PlanOptions
from ...local.plan.image_commands import parse_image_options
from ...local.run.control_socket import Client, ControlFailed, NotRunning
from ...local.run.daemon import Daemon, DaemonOptions
from ...local.run.reconciler import RunOptions
from ...local.run.storage import cache_folder, parse_mounts, read_storage_config
from ..tables import COLOURS, curl_line, make_console, show_services, tail

__all__ = ["STATE_DIR", "up"]

STATE_DIR = Path(".serinus")

StateDir = Annotated[Path, typer.Option("--state-dir", help="Folder of logs, gateway files and the control socket.")]


def up(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Manifests: files, folders, or folders with a kustomization.", show_default=False),
    ],
    *,
    port: Annotated[int, typer.Option(help="The gateway's port, REST and gRPC; 0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="The gateway's address.")] = "127.0.0.1",
    state_dir: StateDir = STATE_DIR,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when everything is ready.")] = False,
    image: Annotated[
        list[str] | None, typer.Option(help="NAME=COMMAND: what to run for an image that is not ours; repeatable.")
    ] = None,
    mount: Annotated[
        list[str] | None,
        typer.Option(help="CLAIM=FOLDER or URI=FOLDER: where a pvc:// (or any URI) lies here; repeatable."),
    ] = None,
    runtimes: Annotated[
        list[Path] | None,
        typer.Option(
            help="File or folder with ServingRuntimes to choose from; `kserve`: KServe's own, served by our images; repeatable."
        ),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(help="Template of hosts, as KServe's domainTemplate: {{.Name}} and {{.Namespace}}; repeatable."),
    ] = None,
    pull: Annotated[bool, typer.Option("--pull", help="Fetch models again that are in the cache already.")] = False,
    storage_config: Annotated[
        Path | None,
        typer.Option(
            help="JSON or YAML file that stands for the Secret storage-config of model.storage: fields (type, bucket, ...) by key."
        ),
    ] = None,
    propagate_header: Annotated[
        list[str] | None,
        typer.Option(
            help="Regular expression of headers that an InferenceGraph passes on to its steps, as KServe's router.headers.propagate; repeatable."
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(help="minReplicas above this number is lowered to it.", min=1)] = 1,
    watch: Annotated[bool, typer.Option(help="Make a new revision when a manifest changes.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Leave the processes' logs to serinus logs.")] = False,
    timeout: Annotated[float, typer.Option(help="With --detach: seconds until it gives up.")] = 180.0,
) -> None:
    """Run InferenceServices and InferenceGraphs on this machine, behind one gateway.

    Where one runs already in the state folder, the manifests are applied to it: a changed one makes a new revision, which gets
    traffic when it is ready.
    """
    console = make_console()
    client = Client(state_dir)
    folders = [path if path.is_dir() else path.parent for path in paths]
    if client.is_running:
        if pull:
            raise ConfigError("--pull is for the start: serinus down first, then serinus up --pull")
        try:
            status = client.ask(
                "apply", paths=[str(path.resolve()) for path in paths], wait_s=timeout, timeout_s=timeout + 60
            )
        except ControlFailed as error:
            raise ConfigError(error.problems) from None
        _show_status(console, status, folders)
        if not all(service["ready"] for service in status["services"]):
            raise typer.Exit(1)
        return
    if detach:
        _detach(console, client, folders, timeout)
        return
    try:
        options = DaemonOptions(
            run=RunOptions(
                state=state_dir,
                host=host,
                port=port,
                mounts=parse_mounts(mount or []),
                cache=cache_folder(),
                pull=pull,
            ),
            plan=PlanOptions(
                images=parse_image_options(image or []),
                domains=(*(domain or ()), *DOMAINS),
                max_replicas=replicas,
                propagate=tuple(propagate_header or ()),
                storage_config=read_storage_config(storage_config) if storage_config is not None else {},
            ),
            paths=tuple(path.resolve() if not _is_below(path) else path for path in paths),
            runtimes=tuple(runtimes or ()),
            watch=watch,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    screen = _Screen(console, quiet=quiet)

    def settled(status: dict[str, Any]) -> None:
        _show_status(console, status, folders)
        if sys.stdout.isatty():
            console.print("Ctrl-C stops everything.", style="dim")

    asyncio.run(Daemon(options, show=screen.show, say=screen.say, settled=settled).run())


def _is_below(path: Path) -> bool:
    """Whether a path can stay as it was typed: it is relative, and the daemon never changes its folder."""
    return not path.is_absolute()


class _Screen:
    """Lines of all processes on one terminal, each with its name in its colour."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._colours: dict[str, str] = {}

    def show(self, title: str, line: str) -> None:
        """Print a process's line."""
        if self._quiet:
            return
        colour = self._colours.setdefault(title, COLOURS[len(self._colours) % len(COLOURS)])
        self._console.print(Text.assemble((f"{title} | ", colour), Text.from_ansi(line)))

    def say(self, line: str) -> None:
        """Print a line of the supervisor's own."""
        self._console.print(Text.assemble(("serinus | ", "bold"), line))


def _show_status(console: Console, status: dict[str, Any], folders: list[Path]) -> None:
    console.print()
    show_services(console, status["services"])
    console.print()
    for service in status["services"]:
        if service["ready"]:
            console.print(curl_line(service, status["gateway"], folders), markup=False, style="bold")


def _detach(console: Console, client: Client, folders: list[Path], timeout_s: float) -> None:
    """Start the same command without --detach in a session of its own, and wait until it is ready."""
    words = [word for word in sys.argv[1:] if word not in {"--detach", "-d"}]
    client.state.mkdir(parents=True, exist_ok=True)
    log = client.state / "supervisor.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "serinus.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    end = time.monotonic() + timeout_s
    reason = f"not ready after {timeout_s:.0f} s"
    while time.monotonic() < end:
        if child.poll() is not None:
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            raise ConfigError(text.splitlines() or f"the supervisor ended with exit code {child.returncode}")
        try:
            status = client.ask("status", timeout_s=10.0)
        except NotRunning:
            time.sleep(0.1)
            continue
        services = status["services"]
        if services and all(service["ready"] for service in services):
            _show_status(console, status, folders)
            return
        problem = next((service["problem"] for service in services if service["problem"]), "")
        failing = [
            row for service in services for row in service["components"] if row["restarts"] >= 3 and not row["ready"]
        ]
        if problem or failing:
            reason = problem or f"{failing[0]['revision']} {failing[0]['last_exit']} {failing[0]['restarts']} times"
            for row in failing:
                for line in tail(Path(row["log"]), 15):
                    console.print(f"{row['revision']} | {line}", markup=False)
            break
        time.sleep(0.1)
    child.terminate()
    child.wait(60)
    raise ConfigError(f"{reason}; everything was stopped, the logs are in {client.state / 'logs'}")
