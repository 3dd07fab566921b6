"""`serinus predict`: the rows of a file through a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...errors import ConfigError, SerinusError
from ..serving.options import parse
from ..serving.startup_models import find_models
from ..tables import make_console
from ..typed_inputs import parse_inputs

__all__ = ["predict"]


def predict(
    model: Annotated[
        Path, typer.Argument(help="Model directory or file, as serinus serve takes it.", show_default=False)
    ],
    source: Annotated[Path, typer.Argument(help="Rows: .parquet, .csv or .jsonl.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Answers: .parquet, .csv or .jsonl.", show_default=False)],
    *,
    class_name: Annotated[str | None, typer.Option("--class", help="As serinus serve's.")] = None,
    transformer: Annotated[str, typer.Option(help="As serinus serve's.", show_default=False)] = "",
    setting: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: any other option of serinus serve; repeatable.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns that are inputs: a,b,c. None: found by their names.", show_default=False)
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Columns that go to the output as they are: id,date.", show_default=False)
    ] = None,
    want: Annotated[
        list[str] | None, typer.Option("--want", help="An output that is wanted; repeatable. None: all.")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE of each request; repeatable.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of one request.")] = 256,
    in_flight: Annotated[int, typer.Option(min=1, max=256, help="Requests under way at once.")] = 4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Drop what an interrupted run left.")] = False,
) -> None:
    """Predict the rows of a file, with the answers that the model gives over the wire.

    Memory is bounded whatever the file's size. An interrupted run goes on when the same command is given again; the output is there
    only when it is whole.

        serinus predict ./model rows.parquet answers.parquet --keep id

        serinus predict ./model rows.csv answers.csv --columns age,income
    """
    try:
        from ...bulk.bulk_run import BulkRun, predict_file
    except ImportError as error:
        if error.name is None or not error.name.startswith("pyarrow"):
            raise
        raise ConfigError(
            "serinus predict reads and writes tables with pyarrow: pip install 'serinus[predict]'"
        ) from None
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there; --overwrite replaces it")
    if output.resolve() == source.resolve():
        raise ConfigError(f"{output}: is the input; name another file")
    words = [str(model), *(("--class", class_name) if class_name else ())]
    for one in setting or ():
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise ConfigError(f"--setting {one!r}: expected NAME=VALUE, such as threads=4")
        words += [f"--{name.removeprefix('--')}", value]
    if not model.exists():
        raise ConfigError(f"{model}: no such file or folder")
    found = find_models(parse(words, {}), None).models
    if len(found) != 1:
        raise ConfigError(f"{model} holds {len(found)} models; name the folder of one")
    run = BulkRun(
        settings=found[0],
        source=source,
        output=output,
        rows=rows,
        in_flight=in_flight,
        columns=_names(columns, "--columns"),
        keep=_names(keep, "--keep"),
        want=tuple(want or ()),
        parameters=parse_inputs(parameter or ()),
        transformer=transformer,
    )
    console = make_console()
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = 0
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=None)

        def tell(rows_done: int, total: int | None) -> None:
            nonlocal done
            done = rows_done
            progress.update(task, completed=rows_done, total=total)

        try:
            written = predict_file(run, restart=restart, tell=tell)
        except KeyboardInterrupt:
            progress.stop()
            console.print(f"stopped after {done:,} rows, which are kept: the same command goes on", markup=False)
            raise typer.Exit(130) from None
        except ConfigError:
            raise
        except SerinusError as error:
            raise ConfigError(str(error)) from error
    console.print(f"{output}: {written.rows:,} rows", markup=False)
    if written.formulas:
        console.print(
            f"{output}: {written.formulas:,} texts begin with =, +, - or @, which a spreadsheet runs as formulas: open the file there as text, or "
            "write .parquet",
            markup=False,
        )


def _names(text: str | None, option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if "" in names or len(set(names)) < len(names):
        raise ConfigError(f"{option} {text!r}: expected different names, joined by commas")
    return names
