"""The commands for people: typer's table of them, each imported when it is asked for, and how an error is shown."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from rich.console import Console

from .. import __version__
from ..errors import ConfigError
from ..native import library
from .command_table import CommandTable

__all__ = ["COMMANDS", "app", "run"]

COMMANDS: Final = {
    "up": ".commands.up:up",
    "down": ".commands.down:down",
    "status": ".commands.status:status",
    "top": ".commands.top:top",
    "logs": ".commands.logs:logs",
    "restart": ".commands.restart:restart",
    "infer": ".commands.infer:infer",
    "bench": ".commands.bench:bench",
    "predict": ".commands.predict:predict",
    "init": ".commands.init:init",
    "build": ".commands.build_image:build",
    "lint": ".commands.lint:lint",
    "optimize": ".commands.optimize:optimize",
    "tune": ".commands.tune:tune",
    "canary": ".canary.canary:canary",
}
"""Name to module and function (or table of commands), in the order of the help."""


class _Commands(CommandTable):
    table = COMMANDS


app = typer.Typer(
    name="serinus",
    cls=_Commands,
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
