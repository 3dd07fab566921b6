"""`serinus canary run`: a canary watched, and promoted or rolled back, on evidence."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
import yaml

from ...canary.policy import Policy, load_policy
from ...canary.policy_annotation import POLICY_ANNOTATION, parse_annotation
from ...canary.rollout.controller import Busy, Controller, RunOptions
from ...canary.rollout.run_events import Ending, Event
from ...canary.rollout.run_files import RunFiles
from ...canary.targets.target import Target, TargetFailed
from ...canary.web.listener import Listener, parse_address
from ...canary.web.live_page import LivePage
from ...errors import ConfigError
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
    make_source,
    make_target,
)
from .canary_view import RunView

__all__ = ["EXIT_STATUS", "run"]

EXIT_STATUS: Final = {
    "promoted": 0,
    "promote": 0,
    "rolled back": 10,
    "rollback": 10,
    "advance": 11,
    "undecided": 12,
    "changed": 13,
    "busy": 14,
    "cannot": 15,
}
"""1 is an error of files or options, 2 a wrong command line, 130 an interruption."""

_MOST_S: Final = 315_360_000.0
"""Of an option: what is more, or infinite, cannot be slept."""
_READERS_S: Final = 5.0
"""A page asks every two seconds."""


def run(
    name: Name,
    *,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
    context: Context = "",
    state_dir: StateDir = Path(".serinus"),
    canary: CanaryName = "",
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            help="Policy (default: the service's annotation serinus.dev/canary-policy, else serinus canary policy's).",
        ),
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)] = 30.0,
    prometheus: Annotated[
        str, typer.Option(help="URL of a Prometheus to read counts from (default: the pods' own pages).")
    ] = "",
    selector: Annotated[str, typer.Option(help='Further matchers for it: namespace="prod",job="models".')] = "",
    revision_label: Annotated[
        str, typer.Option(help="Its label that tells the revision: revision, or service in Standard mode.")
    ] = "",
    series: Annotated[
        Literal["serinus", "knative"],
        typer.Option(help="serinus, or knative: the queue-proxy's, for runtimes of any make."),
    ] = "serinus",
    endpoint: Annotated[
        list[str] | None, typer.Option(help="REVISION=URL of a metrics page, in place of the pods found; repeatable.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Business metric NAME=rate:WHERE, mean:WHERE, or labels:WHERE (late, by id): *.csv, *.jsonl, http://, prom+http://; repeatable."
        ),
    ] = None,
    errors: Annotated[
        Literal["all", "server"], typer.Option(help="Which failures are errors: all, or the server's alone (not 4xx).")
    ] = "all",
    model: Annotated[str, typer.Option(help="Name of the model in the metrics (default: the service's).")] = "",
    metrics_port: Annotated[
        int, typer.Option(help="Port of the pods' metrics, where no annotation says it.", min=1, max=65535)
    ] = 8080,
    warm: Annotated[
        float, typer.Option(help="Seconds that the old version is kept after a promotion, where that can be.")
    ] = 0.0,
    shadow: Annotated[
        int,
        typer.Option(
            help="Before the first step: percent of the requests that the canary gets a copy of; answers are dropped.",
            min=0,
            max=100,
        ),
    ] = 0,
    settle: Annotated[float, typer.Option(help="Longest wait, seconds, for a change to be in force.")] = 600.0,
    for_: Annotated[
        float | None, typer.Option("--for", help="Longest time, seconds, without a verdict (default: the policy's).")
    ] = None,
    restore: Annotated[
        Path | None, typer.Option(help="The old version's manifest, described again after a rollback in Knative mode.")
    ] = None,
    take_over: TakeOver = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing, show what would be done, end with the first verdict.")
    ] = False,
    decide_only: Annotated[
        bool,
        typer.Option(
            "--decide-only", help="For GitOps: change nothing; the verdict is the exit status, JSON and --patch."
        ),
    ] = False,
    patch: Annotated[
        Path | None, typer.Option(help="With --decide-only: file for the JSON patch (kustomize, kubectl).")
    ] = None,
    records: Records = None,
    web: Annotated[
        str,
        typer.Option(
            "--web", metavar="[HOST:]PORT", help="Show the run as a page there (loopback unless HOST says otherwise)."
        ),
    ] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="With --web: a DNS name by which the page is asked for; repeatable.", show_default=False),
    ] = None,
    output: Annotated[
        Literal["auto", "live", "lines", "json"], typer.Option("--output", "-o", help="auto is live on a terminal.")
    ] = "auto",
) -> None:
    """Watch a canary; move its traffic step by step, promote it or roll it back, each on evidence.

    The canary is there already: a new version with `canaryTrafficPercent: 0` (KServe in Knative mode, serinus up), or an entry of `spec.canary`
    (Standard mode). Looks are kept for `serinus canary replay` and `report`. A run that is interrupted leaves the traffic as it is; the next goes on.

    Exit status: 0 promoted, 10 rolled back, 11 one step up (--decide-only), 12 undecided, 13 somebody else changed the service, 14 another run
    is under way, 15 nothing can be moved, 1 an error, 2 a wrong command line, 130 interrupted.

    Examples: `serinus canary run recommender`, `serinus canary run recommender -n prod --prometheus http://prometheus:9090 -o json`
    """
    if patch is not None and not decide_only:
        raise ConfigError("--patch is written by --decide-only; add it")
    for option, seconds in (("--interval", interval), ("--settle", settle), ("--warm", warm), ("--for", for_)):
        if seconds is not None and not 0 <= seconds <= _MOST_S:
            raise ConfigError(f"{option} {seconds:g}: seconds from 0 to {_MOST_S:g} (10 years) were expected")
    moves = not (dry_run or decide_only)
    # A file that makes no sense is said before anything is asked of a cluster.
    given = load_policy(policy) if policy is not None else None
    target = make_target(
        name,
        namespace=namespace,
        kubeconfig=kubeconfig,
        context=context,
        state_dir=state_dir,
        canary=canary,
        take_over=take_over,
        warm_s=warm,
        metrics_port=metrics_port,
        restore=restore,
    )
    source = make_source(
        target,
        prometheus=prometheus,
        selector=selector,
        revision_label=revision_label,
        series=series,
        endpoints=endpoint or [],
        metrics=metric or [],
        errors=errors,
    )
    judged, policy_from = (given, str(policy)) if given is not None else _policy_of(target)
    options = RunOptions(
        interval_s=interval,
        settle_s=settle,
        warm_s=warm,
        shadow_percent=shadow,
        moves=moves,
        for_s=for_,
        policy_from=policy_from,
    )
    view = RunView(output)
    files = make_files(records, state_dir, name)
    page = _Page(web, files, allow_host or [])

    def show(event: Event) -> None:
        view.show(event)
        page.take(event)

    controller = Controller(target, source, judged, files, options, tell=show, model=model)
    view.start()
    # A pod that is evicted, or a service manager, ends a run as Ctrl-C does: the record is released, and copies of requests end.
    before = None
    with contextlib.suppress(ValueError):  # not the main thread, which alone has signals
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ending = controller.run()
        page.wait_for_readers()
    except KeyboardInterrupt:
        controller.release()
        raise typer.Exit(130) from None
    except TargetFailed as error:
        typer.echo(f"serinus canary: {error}", err=True)
        raise typer.Exit(EXIT_STATUS["busy" if isinstance(error, Busy) else "cannot"]) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        view.stop()
        page.close()
    if patch is not None:
        _write_patch(patch, ending)
    if dry_run and ending.kind == "verdict":
        raise typer.Exit(0)
    word = ending.decision.decision if ending.kind == "verdict" and ending.decision is not None else ending.kind
    raise typer.Exit(EXIT_STATUS[word])


def _policy_of(target: Target) -> tuple[Policy, str]:
    """Read the policy that the service itself names, else the default one; and say which it is."""
    try:
        seen = target.state()
    except TargetFailed as error:
        typer.echo(f"serinus canary: {error}", err=True)
        raise typer.Exit(EXIT_STATUS["cannot"]) from None
    if not seen.policy:
        return load_policy(), "the default policy"
    return parse_annotation(seen.policy, seen.service), f"annotation {POLICY_ANNOTATION}"


class _Page:
    """The page of `--web`, or nothing where none is asked for."""

    def __init__(self, address: str, files: RunFiles, allowed_hosts: list[str]) -> None:
        self._page = self._listener = None
        if address:
            self._page = LivePage(files)
            self._listener = Listener(*parse_address(address, "--web"), self._page.answer, allowed_hosts=allowed_hosts)
            self._listener.start()
            typer.echo(f"serinus canary: the run's page is {self._listener.url}", err=True)

    def take(self, event: Event) -> None:
        """Show an event."""
        if self._page is not None:
            self._page.take(event)

    def wait_for_readers(self) -> None:
        """Let a page that is open read the end."""
        if self._page is not None:
            self._page.wait_for_readers(_READERS_S)

    def close(self) -> None:
        """End."""
        if self._listener is not None:
            self._listener.close()


def _write_patch(path: Path, ending: Ending) -> None:
    """Write the verdict's JSON patch, YAML unless the file is called `.json`; an empty list where nothing is to be changed."""
    operations: list[Any] = [dict(each) for each in ending.patch]
    text = (
        json.dumps(operations, indent=2) + "\n"
        if path.suffix == ".json"
        else yaml.safe_dump(operations, sort_keys=False)
    )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
