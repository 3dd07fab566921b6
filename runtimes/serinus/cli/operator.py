"""The commands for people: typer's table of them, and how an error is shown."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from .. import __version__
from ..errors import ConfigError
from ..native import library
from .canary.canary import canary
from .canary.canary_by_hand import promote, report, rollback
from .canary.canary_by_hand import status as canary_status
from .canary.canary_judge import judge
from .canary.canary_route import route
from .canary.canary_run import run as canary_run
from .commands.bench import bench
from .commands.build import build
from .commands.down import down
from .commands.infer import infer
from .commands.init import init
from .commands.lint import lint
from .commands.logs import logs
from .commands.optimize import optimize
from .commands.predict import predict
from .commands.restart import restart
from .commands.status import status
from .commands.top import top
from .commands.tune import tune
from .commands.up import up

__all__ = ["app", "run"]

app = typer.Typer(
    name="serinus",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        kernels = "compiled kernels" if library() is not None else "no compiled kernels"
        typer.echo(f"serinus {__version__} (Python {platform.python_version()}, {platform.machine()}, {kernels})")
        raise typer.Exit


@app.callback()
def serinus(
    *,
    version: Annotated[  # acted on when it is read
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    """Serve models behind the Open Inference Protocol, the same YAML on this machine and in the cluster, canaries judged on evidence."""


app.command()(up)
app.command()(down)
app.command()(status)
app.command()(top)
app.command()(logs)
app.command()(restart)
app.command()(infer)
app.command()(bench)
app.command()(predict)
app.command()(init)
app.command()(build)
app.command()(lint)
app.command()(optimize)
app.command()(tune)
canary.command("run")(canary_run)
canary.command("status")(canary_status)
canary.command()(promote)
canary.command()(rollback)
canary.command()(report)
canary.command()(judge)
canary.command()(route)
app.add_typer(canary)


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def serve() -> None:
    """Serve models behind the Open Inference Protocol, REST and gRPC (serinus serve --help)."""


def run(words: Sequence[str]) -> int:
    """Run a command; a ConfigError is shown line by line on standard error.

    Returns:
        The exit status: 0, 1 (it failed), 2 (it was asked wrongly).
    """
    try:
        result = app(args=list(words), prog_name="serinus", standalone_mode=False)
    except ConfigError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        for problem in error.problems:
            console.print(problem, markup=False)
        return 1
    except typer.Exit as ended:
        return ended.exit_code
    except typer.Abort:
        return 130
    except Exception as error:
        # typer's own usage errors know how to show themselves; anything else is a bug and keeps its traceback.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show(file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    return result if isinstance(result, int) else 0
