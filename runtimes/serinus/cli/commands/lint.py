"""`serinus lint`: what KServe would refuse, or accept and not do, before it is applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ...manifests.reading import check

__all__ = ["lint"]


def lint(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Manifests: files, folders, or folders with a kustomization.", show_default=False),
    ],
    *,
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="text or json.")] = "text",
    strict: Annotated[bool, typer.Option(help="Exit status 1 for warnings, too.")] = False,
) -> None:
    """Check InferenceServices and ServingRuntimes by KServe's own rules and by what its users stumbled over.

    One line a finding: `file:line:field: message: mend`. Exit status 1 where there are errors.
    """
    problems = [problem for path in paths for problem in check([path])]
    if output == "json":
        typer.echo(json.dumps([problem.as_json() for problem in problems], indent=2))
    else:
        for problem in problems:
            typer.echo(str(problem))
    if any(strict or problem.severity == "error" for problem in problems):
        raise typer.Exit(1)
