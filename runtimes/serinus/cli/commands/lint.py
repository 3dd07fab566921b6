"""`serinus lint`: what KServe would refuse, or accept and not do, before it is applied."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigError
from ...manifests.documents import Document
from ...manifests.kustomization import live_documents
from ...manifests.problems import Problem, Problems
from ...manifests.reading import check, read_documents
from ..lint_reports import Form, render
from ..policy_annotations import check_policy_annotations
from ..serving.serve_arguments import check_serve_arguments

__all__ = ["lint"]

_EXAMPLES = """\b
Examples:
  serinus lint inferenceservices/                 every manifest below a folder
  helm template . | serinus lint -                what Helm renders
  serinus lint -o sarif manifests > lint.sarif    for code scanning
  serinus lint --previous live service.yaml       also what may not change in the cluster
  serinus lint --kserve-version 0.15 service.yaml
"""


def lint(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Files, folders (searched to the bottom; one with a kustomization is rendered), - for standard input.",
            show_default=False,
            allow_dash=True,
        ),
    ],
    *,
    output: Annotated[
        Form, typer.Option("--output", "-o", help="text, json, sarif, or github (annotations).")
    ] = "text",
    strict: Annotated[bool, typer.Option(help="Exit status 1 for warnings, too.")] = False,
    previous: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|live",
            help="What is there now: a file or folder, or `live` to ask the cluster with kubectl.",
            show_default=False,
        ),
    ] = None,
    kserve_version: Annotated[
        str | None,
        typer.Option(
            "--kserve-version",
            metavar="0.N",
            help="The cluster's KServe: warn of fields that it does not have.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check manifests by the API server's schemas, KServe's own rules, and what its users stumbled over.

    One line a finding: `file:line:field: message: mend [what happens]`; the last line counts. Exit status 1 where there are errors.
    """
    version = _version(kserve_version)
    before, unread = _previous(previous, paths)
    checked = check(paths, previous=before, kserve_version=version, more=_check_ours)
    checked.problems = [*unread, *checked.problems]
    typer.echo(render(checked, output, metadata.version("serinus")))
    if any(strict or problem.severity == "error" for problem in checked.problems):
        raise typer.Exit(1)


lint.__doc__ = f"{lint.__doc__}\n{_EXAMPLES}"


def _check_ours(documents: Sequence[Document], problems: Problems) -> None:
    """What KServe knows nothing of: arguments of our images, our annotations."""
    check_serve_arguments(documents, problems)
    check_policy_annotations(documents, problems)


def _version(written: str | None) -> tuple[int, int] | None:
    if written is None:
        return None
    match = re.fullmatch(r"v?(\d+)\.(\d+)(\.\d+)?", written)
    if match is None:
        raise typer.BadParameter(
            f"{written!r} is not a version of KServe: write such as 0.15", param_hint="--kserve-version"
        )
    return int(match[1]), int(match[2])


def _previous(written: str | None, paths: Sequence[Path]) -> tuple[Sequence[Document], Sequence[Problem]]:
    if written is None:
        return (), ()
    problems = Problems()
    if written != "live":
        return read_documents([Path(written)], problems), problems.all
    asked = [document for path in paths if str(path) != "-" for document in read_documents([path], Problems())]
    try:
        return live_documents(asked), ()
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--previous") from None
