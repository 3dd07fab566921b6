"""`serinus bench`: load for a service that runs, and its latencies from the intended start."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ...client import Client
from ...errors import ConfigError, SerinusError
from ...tuning.forms.samples import generate_samples, read_samples
from ...tuning.load.loadgen import Job, LoadResult
from ...tuning.load.request_messages import MOST_MESSAGES, request_messages
from ...tuning.load.server_under_test import run_job
from ...tuning.slo import Slo, parse_duration, parse_rate
from ..asked_service import AskedService, Headers, Model, Token, find_service, parse_headers
from ..state_option import STATE_DIR, StateDir
from ..tables import make_console

__all__ = ["bench"]

_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


def bench(
    name: Annotated[
        str, typer.Argument(help="A service, NAME or NAMESPACE/NAME; with --url a model.", show_default=False)
    ],
    *,
    rate: Annotated[str, typer.Option(help="Requests per second: 500, 500/s or 30000/min.")] = "100/s",
    duration: Annotated[str, typer.Option(help="How long: 30s, 2m.")] = "10s",
    inputs: Annotated[
        Path | None, typer.Option(help="Rows: an .npz, or a V2 request in JSON. None: made up.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of one request.")] = 1,
    slo: Annotated[
        str | None, typer.Option(help='What must hold, else the exit status is 1: "p99<20ms".', show_default=False)
    ] = None,
    connections: Annotated[int, typer.Option(min=1, max=900, help="Most at once.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after the end to wait for answers.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of the arrival times.")] = 1,
    url: Annotated[
        str | None,
        typer.Option(
            help="A server's address, http://HOST:PORT, in place of a service that runs here; NAME is then the model's.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    version: Annotated[
        str, typer.Option(help="The model's version; none: the server chooses.", show_default=False)
    ] = "",
    header: Headers = None,
    token: Token = None,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="table or json.")] = "table",
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Send requests at a rate, whether or not the answers keep up, and show how long they took.

    Arrivals are a Poisson process; a latency counts from the moment that its request was meant to start, so a slow server cannot
    slow the load down and hide its delay. Half a second of load before the duration is sent and not counted. A request that fails or is
    refused counts as never answered. Exit status 1 where one did, or where
    --slo does not hold.

        serinus bench fraud --rate 500 --duration 30s --inputs request.json --slo 'p99<20ms'

        serinus bench doubler --url http://127.0.0.1:8080 --rate 2000
    """
    wanted = Slo.parse(slo) if slo is not None else None
    per_second, seconds = parse_rate(rate), parse_duration(duration, "--duration")
    asked = find_service(name, url=url, model=model, state_dir=state_dir, over_grpc=False)
    host, port = _address(asked)
    headers = parse_headers(header, token)
    samples = read_samples(inputs) if inputs is not None else _made_up(asked, version, rows, headers)
    strictest = tuple(objective.quantile for objective in wanted.objectives) if wanted is not None else ()
    job = Job(
        host=host,
        port=port,
        messages=request_messages(
            samples,
            rows,
            model=asked.model,
            version=version,
            host=asked.host or f"{host}:{port}",
            headers=tuple(headers.items()),
        ),
        rate_per_s=per_second,
        duration_s=seconds,
        timeout_s=timeout,
        connections=connections,
        seed=seed,
        quantiles=tuple(sorted({*_QUANTILES, *strictest})),
    )
    result = _run(job, show=output == "table")
    holds = wanted is None or wanted.excess(result.quantiles_s) <= 1
    if output == "json":
        typer.echo(json.dumps(_as_json(result, wanted, holds), indent=2))
    else:
        _show(result, wanted, holds)
    if not holds or result.answered < result.sent:
        raise typer.Exit(1)


def _address(asked: AskedService) -> tuple[str, int]:
    parts = urlsplit(asked.url if "://" in asked.url else f"http://{asked.url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"--url {asked.url}: bench speaks plain HTTP; expected http://HOST:PORT")
    return parts.hostname, parts.port or 80


def _made_up(asked: AskedService, version: str, rows: int, headers: Mapping[str, str]) -> dict[str, np.ndarray]:
    with Client(asked.url, host=asked.host, headers=headers, timeout_s=10) as client:
        try:
            metadata = client.metadata(asked.model, version)
        except ConfigError:
            raise
        except SerinusError as error:
            raise ConfigError(asked.told(error)) from error
    return generate_samples(metadata.inputs, MOST_MESSAGES * rows)


def _run(job: Job, *, show: bool) -> LoadResult:
    """Run the generator, with a bar that shows the time."""
    if not show:
        return run_job(job)
    whole = job.warmup_s + job.duration_s
    over = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=make_console(), transient=True) as progress:
        task = progress.add_task(f"{job.rate_per_s:,.0f} requests/s", total=whole)

        def tick() -> None:
            while not over.wait(0.25):
                progress.advance(task, 0.25)

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            return run_job(job)
        finally:
            over.set()
            thread.join()


def _as_json(result: LoadResult, wanted: Slo | None, holds: bool) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "rate_per_s": result.rate_per_s,
        "sent": result.sent,
        "answered": result.answered,
        "failures": result.failures,
        "said": result.said,
        "achieved_per_s": result.achieved_per_s,
        "latency_s": {f"p{key * 100:g}": finite(value) for key, value in result.quantiles_s.items()},
        "mean_s": finite(result.mean_s),
        "generator_lag_p99_s": finite(result.lag_p99_s),
        "generator_kept_up": result.kept_up,
        **({"slo": str(wanted), "slo_holds": holds} if wanted is not None else {}),
    }


def _show(result: LoadResult, wanted: Slo | None, holds: bool) -> None:
    console = make_console()
    lost = result.sent - result.answered
    console.print(
        f"{result.sent} sent at {result.rate_per_s:,.0f}/s on average (Poisson), {result.answered} answered, {lost} not"
        f"; {result.achieved_per_s:,.1f}/s answered in time",
        markup=False,
        soft_wrap=True,
    )
    for reason, count in sorted(result.failures.items()):
        told = f", the first of them: {result.said[reason]}" if result.said.get(reason) else ""
        console.print(f"  {count} x {reason}{told}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("LATENCY")
    table.add_column("ms", justify="right")
    for quantile, value in result.quantiles_s.items():
        table.add_row(f"p{quantile * 100:g}", f"{value * 1e3:.2f}" if math.isfinite(value) else "not answered")
    table.add_row("mean", f"{result.mean_s * 1e3:.2f}" if math.isfinite(result.mean_s) else "-")
    console.print(table)
    if not result.kept_up:
        console.print(
            "the load generator was late itself: this says more of this machine than of the server", markup=False
        )
    if wanted is not None:
        console.print(f"{wanted}: {'holds' if holds else 'does not hold'}", markup=False)
