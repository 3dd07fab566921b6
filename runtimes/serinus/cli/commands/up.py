"""`serinus up`: InferenceServices and InferenceGraphs on this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Annotated, Any, cast

import typer
from rich.console import Console
from rich.text import Text

from ...errors import ConfigError
from ...impatient_stream import ImpatientStream
from ...local.plan.deployment_plan import DOMAINS, PlanOptions
from ...local.plan.image_commands import parse_image_options
from ...local.run.control_socket import Client, ControlFailed, NotRunning
from ...local.run.daemon import Daemon, DaemonOptions
from ...local.run.reconciler import RunOptions
from ...local.run.state_folder import StateBusy, lock_holder
from ...local.run.storage import cache_folder, parse_mounts, read_storage_config
from ..state_option import STATE_DIR, StateDir
from ..tables import COLOURS, curl_line, make_console, show_services, show_trouble

__all__ = ["BUSY_S", "up"]

BUSY_S = 30.0
"""Longest wait for a supervisor that starts or ends in the same folder."""
_SETTLE_S = 0.5
"""For a reader to take the last lines."""


def up(
    context: typer.Context,
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
    traffic when it is ready. Options that are given then hold for these paths from now on; those of the gateway cannot be changed.
    """
    console = make_console()
    client = Client(state_dir)
    folders = [path if path.is_dir() else path.parent for path in paths]
    try:
        options = DaemonOptions(
            run=RunOptions(state=state_dir, host=_address(host), port=port, cache=cache_folder(), pull=pull),
            plan=PlanOptions(
                images=parse_image_options(image or []),
                domains=(*(domain or ()), *DOMAINS),
                max_replicas=replicas,
                propagate=tuple(propagate_header or ()),
                collector=os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
                storage_config=read_storage_config(storage_config) if storage_config is not None else {},
                mounts={prefix: str(folder.resolve()) for prefix, folder in parse_mounts(mount or []).items()},
            ),
            paths=tuple(path.resolve() if not _is_below(path) else path for path in paths),
            runtimes=tuple(runtimes or ()),
            watch=watch,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    end = time.monotonic() + BUSY_S
    while True:
        if client.is_running:
            _apply(console, client, _given(context, options), folders, timeout, pull=pull)
            return
        try:
            if detach:
                _detach(console, client, folders, timeout)
            else:
                _run(options, folders, quiet=quiet)
            return
        except StateBusy:
            # Another serinus up starts this very moment (then it takes our paths as soon as it answers), or one ends.
            if time.monotonic() > end:
                raise ConfigError(_busy(state_dir)) from None
            time.sleep(0.1)


def _address(host: str) -> str:
    """The address of a name such as `localhost`: Envoy listens on addresses alone.

    Raises:
        ConfigError: no such name.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"--host {host}: {error.strerror or error}; give an address of this machine, as 127.0.0.1 or ::1"
        ) from None
    return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])


def _run(options: DaemonOptions, folders: list[Path], *, quiet: bool) -> None:
    """Be the supervisor; a terminal that is stopped, or a pager, stops nothing."""
    told = logging.StreamHandler(cast("IO[str]", ImpatientStream(2)))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", handlers=[told])
    sys.stdout.flush()
    out = ImpatientStream(1)
    console = make_console(cast("IO[str]", out))
    screen = _Screen(console, quiet=quiet)

    def settled(status: dict[str, Any]) -> None:
        _show_status(console, status, folders)
        if sys.stdout.isatty():
            console.print("Ctrl-C stops everything.", style="dim")

    try:
        asyncio.run(Daemon(options, show=screen.show, say=screen.say, settled=settled).run())
    finally:
        out.settle(_SETTLE_S)


def _busy(state: Path) -> str:
    holder = lock_holder(state)
    who = f"process {holder.pid}" if holder is not None else "a process"
    return f"{who} is the supervisor of {state}, and does not answer; end it with: serinus down; or use another --state-dir"


def _given(context: typer.Context, options: DaemonOptions) -> dict[str, Any]:
    """Paths, and the options that were written on the command line, for a supervisor that runs."""
    plan = options.plan
    values: dict[str, Any] = {
        "port": options.run.port,
        "host": options.run.host,
        "image": {name: list(words) for name, words in plan.images.items()},
        "mount": dict(plan.mounts),
        "runtimes": [str(path.resolve() if path.exists() else path) for path in options.runtimes],
        "domain": list(plan.domains[: -len(DOMAINS)]),
        "storage_config": dict(plan.storage_config),
        "propagate_header": list(plan.propagate),
        "replicas": plan.max_replicas,
        "watch": options.watch,
    }
    written = {
        name: value
        for name, value in values.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    return {"paths": [str(path.resolve()) for path in options.paths], "options": written}


def _apply(
    console: Console, client: Client, given: dict[str, Any], folders: list[Path], timeout_s: float, *, pull: bool
) -> None:
    """Apply manifests to the supervisor that runs, and wait for their services; what else runs there is not what was asked for."""
    if pull:
        raise ConfigError("--pull is for the start: serinus down first, then serinus up --pull")
    try:
        status = client.ask("apply", **given, wait_s=timeout_s, timeout_s=timeout_s + 60)
    except ControlFailed as error:
        raise ConfigError(error.problems) from None
    _show_status(console, status, folders)
    applied = [each for each in status["services"] if f"{each['namespace']}/{each['name']}" in status["applied"]]
    if not all(service["ready"] for service in applied):
        show_trouble(console, status)
        raise typer.Exit(1)


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
    """Start the same command without --detach in a session of its own, and wait until it is ready.

    Raises:
        StateBusy: another supervisor is starting or ending in the state folder.
        ConfigError: it does not become ready; it was stopped again.
    """
    words = [word for word in sys.argv[1:] if word not in {"--detach", "-d"}]
    log = client.state / "supervisor.log"
    try:
        client.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        client.state.chmod(
            0o700
        )  # refused where it is another user's, whose links would lead what is written elsewhere
        out = log.open("ab")  # where two start at once both write to it, and each behind the other
        out.truncate(0)
    except OSError as error:
        raise ConfigError(
            f"--state-dir {client.state}: cannot be written: {error.strerror}; make room or rights there, or give another --state-dir"
        ) from None
    interrupts: list[int] = []
    # Between the child's start and its name here, Ctrl-C would leave it behind.
    earlier = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    with out:
        child = subprocess.Popen(
            [sys.executable, "-m", "serinus.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        signal.signal(signal.SIGINT, earlier)
        if interrupts:
            signal.raise_signal(signal.SIGINT)
        status, reason = _await_ready(client, child, log, timeout_s)
    except BaseException:
        _end(child)  # Ctrl-C: what was not asked to stay does not
        raise
    if not reason:
        _show_status(console, status, folders)
        return
    show_trouble(console, status, lines=15)
    _end(child)
    raise ConfigError(f"{reason}; everything was stopped, the logs are in {client.state / 'logs'}")


def _await_ready(
    client: Client, child: subprocess.Popen[bytes], log: Path, timeout_s: float
) -> tuple[dict[str, Any], str]:
    """Wait for readiness.

    Returns:
        The last status, and why it is not as wanted; empty: everything is ready.
    """
    end = time.monotonic() + timeout_s
    status: dict[str, Any] = {}
    while time.monotonic() < end:
        if child.poll() not in {None, 0}:
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            raise ConfigError(text.splitlines() or f"the supervisor ended with exit code {child.returncode}")
        try:
            status = client.ask("status", timeout_s=10.0)
        except NotRunning:
            time.sleep(0.1)
            continue
        services = status["services"]
        if services and all(service["ready"] for service in services):
            return status, ""
        problem = next((service["problem"] for service in services if service["problem"]), "")
        failing = [
            row for service in services for row in service["components"] if row["restarts"] >= 3 and not row["ready"]
        ]
        if problem or failing:
            return (
                status,
                problem or f"{failing[0]['revision']} {failing[0]['last_exit']} {failing[0]['restarts']} times",
            )
        time.sleep(0.1)
    if not status:
        raise ConfigError(f"the supervisor did not answer within {timeout_s:.0f} s; see {log}")
    waiting = [row["revision"] for service in status["services"] for row in service["components"] if not row["ready"]]
    return status, f"{', '.join(waiting) or 'a service'}: not ready after {timeout_s:.0f} s"


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(60)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
