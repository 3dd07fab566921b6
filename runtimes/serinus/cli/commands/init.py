"""`serinus init`: a model of one's own to start from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ...scaffold.project import write_project
from ..tables import make_console

__all__ = ["init"]


def init(
    path: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    *,
    name: Annotated[
        str,
        typer.Option(help="The model's and its InferenceService's name; default: the folder's.", show_default=False),
    ] = "",
) -> None:
    """Write a model of your own to start from: a class with its test, a sample request, manifests, a canary policy.

    serinus init ./churn && cd churn && serinus serve --class churn.py:Churn ./model
    """
    written = write_project(path, name)
    console = make_console()
    for file in written:
        console.print(str(file), markup=False, emoji=False)
    console.print(f"next: cd {shlex.quote(str(path))}, and its README.md", markup=False, emoji=False)
