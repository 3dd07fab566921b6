"""`serinus canary status`, `promote`, `rollback` and `report`: what a person asks and does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ...canary.looks import parse_look
from ...canary.rollout.mover import Mover
from ...canary.targets.target import Target, TargetFailed, TargetState
from ...canary.web.history import RunHistory
from ...errors import InvalidInput
from .canary_choices import (
    CanaryName,
    Context,
    Kubeconfig,
    Name,
    Namespace,
    Records,
    StateDir,
    TakeOver,
    make_files,
    make_target,
    write_page,
)
from .canary_run import EXIT_STATUS

__all__ = ["promote", "report", "rollback", "status"]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the change and its JSON patch; make none.")]
Output = Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="text or json.")]


def status(
    name: Name,
    *,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
    context: Context = "",
    state_dir: StateDir = Path(".serinus"),
    canary: CanaryName = "",
    output: Output = "text",
) -> None:
    """Show a service's canary: revisions, traffic, whether a run is under way. Exit status 15 where nothing can be moved."""
    target = _target(name, namespace, kubeconfig, context, state_dir, canary)
    seen, record = _looked_at(target)
    if output == "json":
        typer.echo(json.dumps({**asdict(seen), "record": record}, indent=2))
    else:
        typer.echo(f"{seen.service} ({seen.mode}): stable {seen.stable or '-'}, canary {seen.canary or '-'}")
        if seen.canary:
            ready = "ready" if seen.ready else "not ready"
            typer.echo(f"  {seen.percent} % asked for, {seen.served_percent} % in force, {ready}")
        if seen.shadow:
            typer.echo(f"  it gets a copy of {seen.shadow} % of the requests")
        if record:
            age = time.time() - float(record.get("renewed") or 0)
            held = f"held by {record['holder']} {age:.0f} s ago" if record.get("holder") else "held by nobody"
            typer.echo(f"  run {record.get('run')}: {record.get('phase')}, {held}")
            for line in _waiting(record):
                typer.echo(f"  {line}")
        for word, lines in (("problem", seen.problems), ("note", seen.notes)):
            for line in lines:
                typer.echo(f"  {word}: {line}")
    if seen.problems:
        raise typer.Exit(EXIT_STATUS["cannot"])


def _waiting(record: Mapping[str, Any]) -> list[str]:
    """Of each metric whose outcomes come late, how many of the last look's predictions wait for one."""
    looks = record.get("looks")
    if not isinstance(looks, list) or not looks:
        return []
    try:
        look = parse_look(json.dumps(looks[-1]))
    except InvalidInput:
        return []
    return [
        f"{name}: outcomes waited for: canary {rate.waiting:,}, stable {look.stable.rates[name].waiting or 0:,}"
        for name, rate in look.canary.rates.items()
        if rate.waiting is not None and name in look.stable.rates
    ]


def promote(
    name: Name,
    *,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
    context: Context = "",
    state_dir: StateDir = Path(".serinus"),
    canary: CanaryName = "",
    take_over: TakeOver = False,
    dry_run: DryRun = False,
) -> None:
    """Make the canary stable now, whatever the evidence. A run that is under way sees it and ends."""
    target = _target(name, namespace, kubeconfig, context, state_dir, canary, take_over)
    _by_hand(target, "promote", Mover.promote, dry_run=dry_run)


def rollback(
    name: Name,
    *,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
    context: Context = "",
    state_dir: StateDir = Path(".serinus"),
    canary: CanaryName = "",
    take_over: TakeOver = False,
    dry_run: DryRun = False,
) -> None:
    """Give all traffic back to stable now, or to the version that is kept warm. A run that is under way sees it and ends."""
    target = _target(name, namespace, kubeconfig, context, state_dir, canary, take_over)
    _by_hand(target, "rollback", Mover.roll_back, dry_run=dry_run)


def report(
    name: Name,
    *,
    state_dir: StateDir = Path(".serinus"),
    records: Records = None,
    run: Annotated[str, typer.Option(help="Which run (default: the last one).")] = "",
    html: Annotated[
        Path | None, typer.Option("--html", help="Write it as a page for people to this file instead.")
    ] = None,
) -> None:
    """Print the report of a service's run as JSON: how it ended, what was decided at each look, what was moved, what was told.

    Example: `serinus canary report recommender --html report.html`
    """
    files = make_files(records, state_dir, name)
    events = list(files.events())
    runs = list(dict.fromkeys(event["run"] for event in events if event.get("run")))
    chosen = run or (runs[-1] if runs else "")
    own = [event for event in events if event.get("run") == chosen]
    if not own:
        told = f"its runs are: {'; '.join(runs)}" if runs else "serinus canary run writes it"
        typer.echo(f"{files.events_path} has no run {chosen or name}; {told}", err=True)
        raise typer.Exit(1)
    if html is not None:
        history = RunHistory()
        for event in own:
            history.take(event)
        write_page(html, [history])
        return
    typer.echo(json.dumps(_report(chosen, own, [look.as_json() for look in files.looks(chosen)]), indent=2))


def _report(run: str, events: list[dict[str, Any]], looks: list[dict[str, Any]]) -> dict[str, Any]:
    def of(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["kind"] == kind]

    begins, ends, verdicts = of("begin"), of("end"), of("look")
    has_users = bool(looks) and all("affinity_keys" in looks[-1][arm] for arm in ("stable", "canary"))
    return {
        "run": run,
        "began": begins[0]["time"] if begins else None,
        "ended": ends[-1]["time"] if ends else None,
        "ending": ends[-1]["ending"] if ends else "under way, or interrupted",
        "words": ends[-1]["words"] if ends else "",
        "service": {key: begins[-1].get(key) for key in ("mode", "stable", "canary", "policy", "notes")}
        if begins
        else {},
        "counted": "users" if has_users else "requests",
        "decision": verdicts[-1]["verdict"] if verdicts else None,
        "last_look": looks[-1] if looks else None,
        "looks": [
            {
                "time": event["time"],
                "percent": event["counts"].get("percent"),
                **({"shadow": event["shadow"]} if "shadow" in event else {}),
                **event["verdict"],
            }
            for event in verdicts
        ],
        "moves": [{key: event.get(key) for key in ("time", "words", "percent", "patch")} for event in of("move")],
        "problems": [{"time": event["time"], "words": event["words"]} for event in of("problem")],
        "notes": list(dict.fromkeys(event["words"] for event in of("note"))),
    }


def _target(
    name: str,
    namespace: str,
    kubeconfig: Path | None,
    context: str,
    state_dir: Path,
    canary: str,
    take_over: bool = False,
) -> Target:
    return make_target(
        name,
        namespace=namespace,
        kubeconfig=kubeconfig,
        context=context,
        state_dir=state_dir,
        canary=canary,
        take_over=take_over,
    )


def _looked_at(target: Target) -> tuple[TargetState, dict[str, Any] | None]:
    try:
        return target.state(), target.load_record()
    except TargetFailed as error:
        raise _failed(error) from None


def _by_hand(
    target: Target, action: Literal["promote", "rollback"], move: Callable[[Mover, TargetState], Any], *, dry_run: bool
) -> None:
    def tell(kind: str, words: str, **_: Any) -> None:
        typer.echo(words if kind == "move" else f"{kind}: {words}", err=kind == "problem")

    seen, record = _looked_at(target)
    if not seen.canary and not (seen.warm and action == "rollback"):
        typer.echo(f"serinus canary: {seen.service}: {'; '.join(seen.problems) or 'there is no canary'}", err=True)
        raise typer.Exit(EXIT_STATUS["cannot"])
    try:
        if dry_run:
            change = target.planned(action, 0, seen)
            typer.echo(
                json.dumps({"words": change.words, "patch": list(change.patch), "notes": list(change.notes)}, indent=2)
            )
            return
        move(Mover(target, tell=tell, clock=time.time, sleep=time.sleep, settle_s=600.0), seen)
        if record is not None:
            target.save_record(None)
    except TargetFailed as error:
        raise _failed(error) from None
    revision = seen.canary or seen.stable
    typer.echo(f"{revision} was {'promoted' if action == 'promote' else 'rolled back'}")


def _failed(error: TargetFailed) -> typer.Exit:
    typer.echo(f"serinus canary: {error}", err=True)
    return typer.Exit(EXIT_STATUS["cannot"])
