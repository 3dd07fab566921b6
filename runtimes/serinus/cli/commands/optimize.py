"""`serinus optimize`: compare the forms of a model and keep the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ...errors import ConfigError
from ...tuning.forms import report
from ...tuning.forms.optimizer import Options, write_winner
from ...tuning.forms.optimizer import optimize as compare_forms
from ..tables import make_console

__all__ = ["optimize"]


def optimize(
    model: Annotated[Path, typer.Argument(help="Model directory or file.", show_default=False)],
    *,
    inputs: Annotated[Path | None, typer.Option(help="Rows: an .npz, or a V2 request in JSON.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything made.")] = Path("optimized"),
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,64",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the median counts.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Of each form and batch size in a round.")] = 0.3,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest relative difference (default: by precision).")
    ] = None,
    top1: Annotated[float, typer.Option(min=0, max=1, help="Least agreement of the top class.")] = 0.99,
    threads: Annotated[int, typer.Option(min=0, help="Native threads of one predict; 0: the CPU limit.")] = 0,
    prefer: Annotated[Literal["balanced", "latency", "throughput"], typer.Option(help="What wins.")] = "balanced",
) -> None:
    """Export a model to the forms that apply, compare outputs, speed and memory, and write the best as a model directory.

    Writes OUTPUT/report.json, report.md, plot.png, forms/ and winner/. Ctrl-C keeps what was measured.
    """
    options = Options(
        batches=_sizes(batch),
        rounds=rounds,
        seconds=seconds,
        tolerance=tolerance,
        least_top1=top1,
        threads=threads,
        prefer=prefer,
    )
    output.mkdir(parents=True, exist_ok=True)
    console = make_console()
    words = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*words, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        comparison = compare_forms(
            model,
            output,
            options,
            inputs=inputs,
            say=lambda text, share: progress.update(task, description=text, completed=share),
        )
    if not comparison.measured:
        console.print("Interrupted before anything was measured.")
        raise typer.Exit(130)
    table = Table(*report.columns(comparison), box=None, header_style="bold", pad_edge=False)
    for measured in comparison.measured:
        table.add_row(*report.row(comparison, measured))
    console.print(table)
    for skipped in comparison.skipped:
        console.print(f"not made: {skipped.name}: {skipped.reason}", markup=False)
    (output / "report.json").write_text(json.dumps(report.as_json(comparison), indent=2) + "\n", encoding="utf-8")
    (output / "report.md").write_text(report.as_markdown(comparison), encoding="utf-8")
    try:
        from ...tuning.plots import plot_forms
    except ImportError as error:
        console.print(f"no plot: {error.name} is not installed (pip install 'serinus[tuning]')")
    else:
        plot_forms(comparison, output / "plot.png")
    folder = write_winner(comparison, output / "winner")
    console.print(
        f"winner: {comparison.winner.form.name if comparison.winner else '-'}; run it: serinus serve {folder}"
    )
    if comparison.interrupted:
        raise typer.Exit(130)


def _sizes(text: str) -> tuple[int, ...]:
    """Read `1,8,64`.

    Raises:
        ConfigError: no such list.
    """
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        raise ConfigError(f"--batch {text!r}: expected whole numbers of at least 1, such as 1,8,64")
    return tuple(sizes)
