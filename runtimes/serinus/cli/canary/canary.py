"""`serinus canary`: a canary judged on evidence."""

from __future__ import annotations

import gc
import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal, cast

import orjson
import typer

from ...canary.policy import DEFAULT_POLICY, load_policy
from ...canary.replay import Replay
from ...errors import ConfigError
from ..command_table import CommandTable

__all__ = ["canary"]

_GZIP: Final = b"\x1f\x8b"
"""How a gzip file begins (RFC 1952, section 2.3.1)."""
_MOST_SECTIONS: Final = 50
"""Of a page: a section has some 40 kB."""
_COMMANDS: Final = {
    "run": ".canary.canary_run:run",
    "status": ".canary.canary_by_hand:status",
    "promote": ".canary.canary_by_hand:promote",
    "rollback": ".canary.canary_by_hand:rollback",
    "report": ".canary.canary_by_hand:report",
    "judge": ".canary.canary_judge:judge",
    "route": ".canary.canary_route:route",
}


class _Commands(CommandTable):
    table = _COMMANDS


canary = typer.Typer(
    name="canary",
    cls=_Commands,
    help="Judge canaries on evidence: roll back, promote, advance a step, or hold and say what is missing.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@canary.command()
def policy() -> None:
    """Print the default policy, to be saved and changed.

    Example: `serinus canary policy > policy.yaml`
    """
    typer.echo(DEFAULT_POLICY.read_text(encoding="utf-8"), nl=False)


@canary.command()
def replay(
    looks: Annotated[
        str,
        typer.Argument(
            metavar="LOOKS.jsonl", help="Recorded looks, one JSON object a line, or that as gzip; - for standard input."
        ),
    ],
    *,
    policy: Annotated[
        Path,
        typer.Option(
            "--policy", help="Policy (default: the one that serinus canary policy prints).", show_default=False
        ),
    ] = DEFAULT_POLICY,
    output: Annotated[
        Literal["text", "json"], typer.Option("--output", "-o", help="text, or a JSON object a line.")
    ] = "text",
    final: Annotated[bool, typer.Option("--final", help="Only the last decision of each run.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the runs as a page for people to this file instead.")
    ] = None,
) -> None:
    """Judge recorded looks: what would have been decided at each, and why.

    A look holds both arms' counts since the rollout began; every metric but requests may be absent, lines of several runs may be mixed:

        {"run": "a", "seconds": 60, "percent": 10, "stable": {"requests": 900, "errors": 4, "latency": {"le_s": [0.01, 0.1],
        "counts": [850, 48, 2]}, "score": {"counts": [90, 91, 89, 90, 90, 90, 90, 90, 90, 90]}}, "canary": {...}}

    Counts are of each bucket alone, the last of what is beyond the last bound. A run ends at its first promote or rollback. Exit status 1
    where a line cannot be used; a look's run ends there, without a decision.

    Examples: `serinus canary replay looks.jsonl`, `serinus canary replay --policy policy.yaml looks.jsonl -o json --final`,
    `serinus canary replay looks.jsonl --html replay.html`
    """
    judged = Replay(load_policy(policy), "standard input" if looks == "-" else looks)
    if html is not None:
        with _opened(looks) as lines:
            _write_page(html, judged, lines, looks)
        judged.raise_problems()
        return
    with _without_collection(), _opened(looks) as lines:
        for decision in judged.final_decisions(lines) if final else judged.decisions(lines):
            if output == "json":
                sys.stdout.write(orjson.dumps(decision.as_json()).decode() + "\n")
            else:
                run = f"{decision.run}: " if decision.run else ""
                sys.stdout.write(f"{run}look {decision.look}: {decision.decision}\n")
                sys.stdout.writelines(f"    {reason}\n" for reason in decision.reasons)
    sys.stdout.flush()
    judged.raise_problems()


def _write_page(path: Path, judged: Replay, lines: Iterable[bytes], file: str) -> None:
    # The page comes with targets and sources: a third of the time that replaying a small file takes without it.
    from ...canary.web.history import RunHistory
    from .canary_choices import write_page

    found: dict[str, RunHistory] = {}
    for look, decision, standing in judged.standings(lines):
        if look.run not in found and len(found) == _MOST_SECTIONS:
            raise ConfigError(
                f"{file} has more than {_MOST_SECTIONS} runs; a page of fewer was expected, choose some of them"
            )
        found.setdefault(look.run, RunHistory()).see(look, decision, standing)
    if not found:
        judged.raise_problems()
        raise ConfigError(f"{file} has no look; a page needs at least one")
    write_page(path, list(found.values()))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Looks and judges make no cycles, and to look for some among a million numbers takes a seventh of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _opened(looks: str) -> Iterator[BinaryIO]:
    if looks == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(looks, "rb")  # noqa: SIM115 # closed below; an error of reading is not one of opening
    except OSError as error:
        raise ConfigError(
            f"{looks}: {error.strerror or error}; a file of looks was expected, one JSON object a line"
        ) from None
    with file:
        if file.peek(2)[:2] != _GZIP:
            yield file
            return
        with gzip.open(file) as unpacked:
            try:
                yield cast("BinaryIO", unpacked)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ConfigError(f"{looks}: cannot be unpacked: {error}; a whole gzip file was expected") from None
