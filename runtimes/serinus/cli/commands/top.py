"""`serinus top`: what each model and revision does now, from the servers' own pages of metrics."""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...canary.sources.source import fetch
from ...errors import ConfigError, SerinusError
from ...local.run.control_socket import Client
from ...protocol.types import NO_PARAMETERS
from ..asked_service import Headers, Token, parse_headers
from ..model_rates import Look, ModelRates, ProcessState, compare, read_look, sparkline
from ..tables import make_console
from .up import STATE_DIR, StateDir

__all__ = ["Server", "Watch", "Watched", "top"]

_TREND: Final = 20
"""Looks that the bars show."""
_TIMEOUT_S: Final = 5.0
_AT_A_TIME: Final = 16


@dataclass(frozen=True, slots=True)
class Server:
    """Whom to ask."""

    name: str
    """For people: a service's name, or the address."""
    url: str
    """Of the page."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What one server did between two looks."""

    server: Server
    problem: str
    """Why there is no answer; empty: there is one."""
    models: Sequence[ModelRates] = ()
    process: ProcessState | None = None

    def document(self) -> dict[str, Any]:
        """Give it for `-o json`."""
        return {
            "server": self.server.name,
            "url": self.server.url,
            "problem": self.problem or None,
            "process": None if self.process is None else asdict(self.process),
            "models": [asdict(model) for model in self.models],
        }


def top(
    name: Annotated[
        str | None, typer.Argument(help="A local service, NAME or NAMESPACE/NAME; none: all.", show_default=False)
    ] = None,
    *,
    url: Annotated[
        list[str] | None,
        typer.Option(help="A server's address, or its page of metrics, in place of the local services; repeatable."),
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
    header: Headers = None,
    token: Token = None,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="table, or json once.")] = "table",
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show what each model and revision does: requests, errors, latencies, queue, compute, batches, memory, the event loop's lag.

    Numbers are of the time between two looks. Not on a terminal, and with -o json, it looks twice, tells once and ends.

        serinus top

        serinus top --url http://127.0.0.1:8080 -o json

        serinus top --url https://models.example.com --token token.txt
    """
    if name is not None and url:
        raise ConfigError("NAME and --url: give one of them; a service's name is looked up among the local ones")
    fixed = [_server_of(address) for address in url or ()]
    watch = Watch(parse_headers(header, token))

    def servers() -> list[Server]:
        return fixed or _local_servers(Client(state_dir).ask("status", timeout_s=10.0)["services"], name)

    watch.look(servers())
    console = make_console()
    if output == "json" or not console.is_terminal:
        time.sleep(interval)
        seen = watch.look(servers())
        if output == "json":
            typer.echo(json.dumps({"interval_s": interval, "servers": [one.document() for one in seen]}, indent=2))
        else:
            console.print(watch.render(seen, console.width))
        if any(one.problem for one in seen):
            raise typer.Exit(1)
        return
    _live(console, watch, servers, interval)


def _live(console: Console, watch: Watch, servers: Any, interval: float) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                live.update(watch.render(watch.look(servers()), console.width), refresh=True)
        except KeyboardInterrupt:
            return


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    fits: int
    """Characters of the narrowest terminal that shows it."""


_COLUMNS: Final = (
    *(_Column(title, 0) for title in ("SERVER", "MODEL")),
    _Column("REVISION", 100),
    _Column("TREND", 170),
    *(_Column(title, 0) for title in ("REQ/S", "ERR %")),
    _Column("INVALID/S", 160),
    *(_Column(title, 0) for title in ("P50 MS", "P99 MS")),
    *(_Column(title, 110) for title in ("QUEUE MS", "COMPUTE MS")),
    _Column("ROWS/BATCH", 130),
    *(_Column(title, 150) for title in ("IN FLIGHT", "CPU")),
    *(_Column(title, 0) for title in ("MEM MIB", "LOOP MS")),
)
_NAMES: Final = ("SERVER", "MODEL", "REVISION")
_SHORTEST_NAME: Final = 8
_GAP: Final = 2
"""Between two columns: rich's padding of either."""


class Watch:
    """The looks so far at each server.

    Args:
        headers: of each request, names in lower case.
    """

    def __init__(self, headers: Mapping[str, str] = NO_PARAMETERS) -> None:
        self._headers = headers
        self._before: dict[str, Look] = {}
        self._trends: dict[tuple[str, ...], deque[float]] = defaultdict(lambda: deque(maxlen=_TREND))

    def look(self, servers: Sequence[Server]) -> list[Watched]:
        """Ask all servers at once."""
        if not servers:
            return []
        with ThreadPoolExecutor(min(_AT_A_TIME, len(servers)), thread_name_prefix="top") as pool:
            seen = list(pool.map(self._ask, servers))
        for one in seen:
            for model in one.models:
                self._trends[_key(one, model)].append(model.requests_per_s)
        return seen

    def _ask(self, server: Server) -> Watched:
        try:
            page = fetch(server.url, timeout_s=_TIMEOUT_S, headers=self._headers).body.decode()
            now = read_look(page, time.monotonic())
        except (SerinusError, UnicodeDecodeError) as error:
            self._before.pop(server.url, None)
            return Watched(server, str(error))
        if not now.models and "process_start_time_seconds" not in now.process:
            return Watched(
                server, f"{server.url} is no page of serinus' metrics; name a server that serinus serve runs"
            )
        models, process = compare(self._before.get(server.url), now)
        self._before[server.url] = now
        return Watched(server, "", models, process)

    def render(self, seen: Sequence[Watched], width: int = 200) -> Group:
        """Draw what is wrong and a table, a row a model.

        What does not fit into so many characters is left out, the least wanted first, and long names lose their middle, so that a model stays a line.
        """
        columns = [column for column in _COLUMNS if column.fits <= width]
        rows = [
            self._cells(one, model, is_first=number == 0) for one in seen for number, model in enumerate(one.models)
        ]
        longest = _longest_names([column.title for column in columns], rows, width)
        table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
        for column in columns:
            is_name = column.title in _NAMES
            table.add_column(
                column.title,
                justify="left" if is_name or column.title == "TREND" else "right",
                overflow="fold",
                no_wrap=not is_name,
            )
        for cells in rows:
            shown = {title: _shorten(cells[title], longest) if title in _NAMES else cells[title] for title in cells}
            table.add_row(*(shown[column.title] for column in columns))
        for one in seen:
            if not one.models and not one.problem:
                table.add_row(one.server.name, Text("no model", style="yellow"))
        problems = [Text(f"{one.server.name}: {one.problem}", style="red") for one in seen if one.problem]
        if not seen:
            problems.append(Text("no server is ready yet", style="yellow"))
        refused = sum(one.process.refused_per_s for one in seen if one.process is not None)
        if refused:
            problems.append(Text(f"{refused:.1f} answers/s were errors that reached no model", style="yellow"))
        return Group(*problems, table)

    def _cells(self, one: Watched, model: ModelRates, *, is_first: bool) -> dict[str, str | Text]:
        share = model.error_share * 100
        cells: dict[str, str | Text] = {
            "SERVER": one.server.name if is_first else "",
            "MODEL": Text(f"{model.model} {model.version}".rstrip(), style="" if model.is_ready else "red"),
            "REVISION": model.revision or "-",
            "TREND": Text(sparkline(self._trends[_key(one, model)]), style="cyan"),
            "REQ/S": f"{model.requests_per_s:,.1f}",
            "ERR %": Text(f"{share:.2f}", style="bold red" if share else ""),
            "INVALID/S": f"{model.invalid_per_s:,.1f}",
            "P50 MS": _number(model.p50_ms),
            "P99 MS": _number(model.p99_ms),
            "QUEUE MS": _number(model.queue_ms),
            "COMPUTE MS": _number(model.compute_ms),
            "ROWS/BATCH": "-" if model.batch_rows is None else f"{model.batch_rows:,.1f}",
            "IN FLIGHT": str(model.in_flight),
        }
        process = one.process if is_first else None
        cells |= dict.fromkeys(("CPU", "MEM MIB", "LOOP MS"), "")
        if process is not None:
            cells["CPU"] = f"{process.cpu_cores:.2f}"
            cells["MEM MIB"] = "-" if process.memory_bytes is None else f"{process.memory_bytes / 2**20:,.0f}"
            cells["LOOP MS"] = _number(process.loop_lag_ms)
        return cells


def _key(one: Watched, model: ModelRates) -> tuple[str, ...]:
    return (one.server.url, model.model, model.version, model.revision)


def _number(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds:,.{0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2}f}"


def _longest_names(titles: Sequence[str], rows: Sequence[Mapping[str, str | Text]], width: int) -> int:
    """Characters that a name may have, so that all columns fit."""
    numbers = [title for title in titles if title not in _NAMES]
    taken = sum(max(len(title), *(len(row[title]) for row in rows)) for title in numbers) if rows else 0
    names = len(titles) - len(numbers)
    return max(_SHORTEST_NAME, (width - taken - _GAP * (len(titles) - 1)) // names)


def _shorten(text: str | Text, longest: int) -> str | Text:
    """Leave out the middle of a long name: its end tells it from its like."""
    plain = text.plain if isinstance(text, Text) else text
    if len(plain) <= longest:
        return text
    end = longest // 2
    return Text(f"{plain[: longest - end - 1]}…{plain[-end:]}", style=text.style if isinstance(text, Text) else "")


def _server_of(address: str) -> Server:
    """Read `--url`.

    Raises:
        ConfigError: it is no http:// or https:// address; without either http:// is meant, as for `serinus infer`.
    """
    address = address if "://" in address else f"http://{address}"
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ConfigError(f"--url {address!r}: expected http://HOST:PORT, or the address of a page of metrics")
    whole = address if parts.path.strip("/") else f"{address.rstrip('/')}/metrics"
    return Server(parts.netloc, whole)


def _local_servers(services: Sequence[dict[str, Any]], name: str | None) -> list[Server]:
    """Find the processes of the local services that have a page of models.

    Raises:
        ConfigError: no service is called so.
    """
    wanted = [one for one in services if name is None or name in {one["name"], f"{one['namespace']}/{one['name']}"}]
    if name is not None and not wanted:
        known = ", ".join(f"{one['namespace']}/{one['name']}" for one in services) or "none"
        raise ConfigError(f"{name}: no service is called so; running: {known}")
    found = []
    for service in wanted:
        if service["kind"] == "InferenceGraph":  # its router counts nodes and steps, no models
            continue
        kinds = {each["component"] for each in service["components"]}
        for each in service["components"]:
            if each["ready"]:
                part = f" {each['component']}" if len(kinds) > 1 else ""
                url = f"http://127.0.0.1:{each['http_port']}/metrics"
                found.append(Server(f"{service['namespace']}/{service['name']}{part}", url))
    return found
