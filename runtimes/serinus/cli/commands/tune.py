"""`serinus tune`: find settings that hold an SLO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ...errors import ConfigError
from ...tuning.patches import check_target, write_patch
from ...tuning.search import describe
from ...tuning.slo import Slo, parse_duration, parse_rate
from ...tuning.tuner import Tuned, write_model_settings
from ...tuning.tuner import tune as find_settings
from ..tables import make_console

__all__ = ["tune"]


def tune(
    model: Annotated[Path, typer.Argument(help="Model directory or file.", show_default=False)],
    *,
    slo: Annotated[
        str, typer.Option(help='What must hold: "p99<20ms", or several joined by commas.', show_default=False)
    ],
    rate: Annotated[str | None, typer.Option(help="Load of all replicas together: 200/s. Sizes the replicas.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="Rows: an .npz, or a V2 request in JSON.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of one request.")] = 1,
    budget: Annotated[str, typer.Option(help="Time for the search.")] = "120s",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report and the plot.")] = Path("tuned"),
    write: Annotated[
        Path | None, typer.Option(help="Folder of an InferenceService: writes a kustomize patch there.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Leave model-settings.json as it is.")] = False,
    class_name: Annotated[str | None, typer.Option("--class", help="As serinus serve's.")] = None,
) -> None:
    """Search batch rows, delay, threads, instances and workers for the highest rate that holds an SLO.

    Starts `serinus serve` on loopback and loads it with Poisson arrivals, latency counted from the intended start. Writes
    OUTPUT/trials.json and plot.png, the model's `model-settings.json`, and with --write a kustomize patch. Exit status 1 where
    no settings hold the SLO. Ctrl-C keeps what was measured.
    """
    wanted = Slo.parse(slo)
    load = parse_rate(rate) if rate is not None else None
    console = make_console()
    if write is not None:
        check_target(write)
    _make_folder(output)
    tuned = find_settings(
        model,
        wanted,
        rate_per_s=load,
        inputs=inputs,
        rows=rows,
        budget_s=parse_duration(budget),
        arguments=["--class", class_name] if class_name else [],
        say=lambda text: console.print(text, markup=False),
    )
    (output / "trials.json").write_text(json.dumps(_as_json(tuned), indent=2) + "\n", encoding="utf-8")
    try:
        from ...tuning.plots import plot_frontier
    except ImportError as error:
        console.print(f"no plot: {error.name} is not installed (pip install 'serinus[tuning]')")
    else:
        found = tuned.found
        plot_frontier(found.trials, found.config, tuned.start, wanted, output / "plot.png", f"{model.name}: {wanted}")
    console.print()
    _show(console, tuned, load)
    if tuned.found.best is None or tuned.resources is None:
        raise typer.Exit(1)
    if not dry_run:
        console.print(f"settings: {write_model_settings(model, tuned.found.config)}", markup=False)
        if tuned.found.config.workers > 1:
            # A model's settings are read by every worker; how many there are is the server's own.
            console.print(
                f"and of the server itself: serinus serve --workers {tuned.found.config.workers} "
                f"(SERINUS_WORKERS={tuned.found.config.workers})",
                markup=False,
            )
    if write is not None:
        file, named = write_patch(write, tuned.found.config, tuned.resources)
        note = "" if named else "; name it under patches: in the kustomization yourself"
        console.print(f"patch: {file}{note}", markup=False)
    if tuned.found.ended == "interrupted":
        raise typer.Exit(130)


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be made: {error.strerror}; name a folder of your own") from None


def _show(console: Console, tuned: Tuned, load: float | None) -> None:
    found, slo = tuned.found, tuned.slo

    def line(text: str) -> None:
        console.print(text, markup=False)

    endings = {
        "settled": "no setting that is left to try does better",
        "budget": "the budget was spent before every setting was tried; a longer --budget may find more",
        "generator": "the load generator could go no higher on this machine: the rate is a lower bound",
        "interrupted": "interrupted: the best until then",
    }
    line(f"{len(found.trials)} trials; {endings[found.ended]}")
    if found.best is None:
        near = found.nearest
        at = ", ".join(f"p{q * 100:g} {value * 1e3:.2f} ms" for q, value in sorted(near.quantiles_s.items()))
        line(f"no settings hold {slo}; the best found: {at} at {near.rate_per_s:,.1f}/s with {describe(near.config)}")
    else:
        best = found.best
        at = ", ".join(f"p{q * 100:g} {value * 1e3:.2f} ms" for q, value in sorted(best.quantiles_s.items()))
        line(f"{slo} holds up to {best.rate_per_s:,.0f}/s with {describe(best.config)}: {at}")
        own = [t.rate_per_s for t in found.trials if t.config == tuned.start and slo.excess(t.quantiles_s) <= 1]
        if tuned.start != found.config:
            line(f"as it was: {max(own):,.0f}/s" if own else "as it was: at no rate")
    if tuned.limit is not None:
        line(f"what binds: {tuned.limit[0]}: {tuned.limit[1]}")
    sized = tuned.resources
    if sized is not None:
        carried = f" for {load:,.0f}/s" if load else ""
        line(
            f"a pod: {sized.cpu:g} CPUs, {sized.memory_mib} Mi; replicas {sized.min_replicas} to {sized.max_replicas}{carried} "
            f"(at 80 % of the capacity); containerConcurrency {sized.container_concurrency}"
        )


def _as_json(tuned: Tuned) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if value < float("inf") else None

    def config(of: Any) -> dict[str, Any]:
        return {name: getattr(of, name) for name in of.__dataclass_fields__}

    found = tuned.found
    return {
        "slo": str(tuned.slo),
        "ended": found.ended,
        "config": config(found.config),
        "start": config(tuned.start),
        "capacity_per_s": found.best.rate_per_s if found.best else None,
        "limit": tuned.limit,
        "resources": config(tuned.resources) if tuned.resources else None,
        "trials": [
            {
                "config": config(trial.config),
                "rate_per_s": trial.rate_per_s,
                "achieved_per_s": trial.achieved_per_s,
                "sent": trial.sent,
                "failed": trial.failed,
                "quantiles_s": {f"p{q * 100:g}": finite(value) for q, value in trial.quantiles_s.items()},
                "kept_up": trial.kept_up,
                "server": config(trial.observed) if trial.observed else None,
            }
            for trial in found.trials
        ],
    }
