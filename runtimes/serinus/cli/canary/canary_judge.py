"""`serinus canary judge`: the judge over HTTP."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from ...canary.policy import DEFAULT_POLICY, load_policy
from ...canary.web.judge_answers import JudgeAnswers
from ...canary.web.judged_runs import JudgedRuns
from ...canary.web.listener import Listener

__all__ = ["judge"]


def judge(
    *,
    policy: Annotated[
        Path,
        typer.Option(
            "--policy", help="Policy (default: the one that serinus canary policy prints).", show_default=False
        ),
    ] = DEFAULT_POLICY,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one, which is printed.", min=0, max=65535)] = 8099,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A DNS name by which it is asked, such as judge.example.org; repeatable. Addresses and names of Services go by themselves.",
            show_default=False,
        ),
    ] = None,
    most_runs: Annotated[
        int, typer.Option(help="Runs that are kept; the least recently posted to are forgotten first.", min=1)
    ] = 1000,
) -> None:
    """Judge looks that are posted: for Argo Rollouts, Flagger and pipelines, which move traffic themselves.

    `POST /looks` takes a look, or a list of them, and answers a decision each; `GET /decision?run=NAME` the last one. `POST /flagger/HOOK` answers
    200 or 409 by it. State is in memory: after a restart post a run's looks again, all of them (they are cumulative, the last ones do not suffice).
    There is no authentication: listen beyond loopback only where a network policy says who may post.

    Example: `serinus canary judge --policy policy.yaml --port 8099`
    """
    runs = JudgedRuns(load_policy(policy), most_runs)
    listener = Listener(host, port, JudgeAnswers(runs).answer, allowed_hosts=allow_host or ())
    done = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: done.set())
    listener.start()
    typer.echo(f"serinus canary judge: {listener.url}")
    done.wait()
    listener.close()
