"""The judge over HTTP: looks in, decisions out, in the forms that Argo Rollouts' web provider and Flagger's webhooks ask.

Sources: argo-rollouts docs/features/analysis.md and docs/analysis/web.md (any status but 2xx is an error of the measurement; the result is
what jsonPath finds); docs.flagger.app/usage/webhooks (a 2xx status lets pass; the body has name, namespace, phase and metadata).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from ...errors import InvalidInput
from ..judge import Decision
from ..looks import Look, parse_look
from .judged_runs import JudgedRuns
from .listener import Answer, Request, as_json

__all__ = ["JudgeAnswers"]

_MOST_LOOKS: Final = 10_000
_MOST_NAME: Final = 512
"""Of a run: namespace, service and both revisions, each of at most 63 or 253 characters in a cluster, and a time."""
_OUTCOMES: Final = {"promote": "success", "rollback": "failure", "advance": "inconclusive", "hold": "inconclusive"}

_FLAGGER: Final[Mapping[str, tuple[str, ...]]] = {
    "rollout": ("hold", "advance", "promote"),
    "confirm-traffic-increase": ("advance", "promote"),
    "confirm-promotion": ("promote",),
    "rollback": ("rollback",),
}
"""By the webhook's type: the decisions that are answered with 200. A rollback hook that passes rolls back."""


class JudgeAnswers:
    """Answers requests.

    Args:
        runs: judged.
    """

    def __init__(self, runs: JudgedRuns) -> None:
        self._runs = runs
        self._routes: Mapping[tuple[str, str], Callable[[Request], Answer]] = {
            ("POST", "/looks"): self._looks,
            ("GET", "/decision"): self._decision,
            ("DELETE", "/decision"): self._forget,
            ("GET", "/runs"): lambda _: as_json(200, {"runs": self._runs.names()}),
            ("GET", "/healthz"): lambda _: as_json(200, {"status": "ok"}),
            ("GET", "/metrics"): lambda _: self._metrics(),
            **{("POST", f"/flagger/{hook}"): self._flagger for hook in _FLAGGER},
        }

    def answer(self, request: Request) -> Answer:
        """Answer a request; what it does wrong is told in `error`."""
        route = self._routes.get((request.method, request.path))
        if route is None:
            methods = [method for method, path in self._routes if path == request.path]
            if methods:
                return as_json(405, {"error": f"{request.path} is asked with {' or '.join(methods)}"})
            paths = ", ".join(f"{method} {path}" for method, path in self._routes)
            return as_json(404, {"error": f"there is no {request.path[:100]}; there are {paths}"})
        try:
            return route(request)
        except InvalidInput as error:
            return as_json(400, {"error": str(error)})

    def _looks(self, request: Request) -> Answer:
        try:
            value = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"not JSON: {error}; a look was expected, or a list of looks") from None
        if not isinstance(value, list):
            decision = self._runs.see([_look(value, "")])[0]
            return as_json(200, _told(decision))
        if not 0 < len(value) <= _MOST_LOOKS:
            raise InvalidInput(f"{len(value)} looks; 1 to {_MOST_LOOKS} were expected")
        looks = [_look(each, f"look {index} of {len(value)}: ") for index, each in enumerate(value, 1)]
        return as_json(200, [_told(decision) for decision in self._runs.see(looks)])

    def _decision(self, request: Request) -> Answer:
        run = _run_of(request)
        decision = self._runs.decision(run)
        if decision is None:
            return as_json(
                404, {"error": f"no look of run {run!r} was posted, or it was forgotten; POST /looks tells them"}
            )
        return as_json(200, _told(decision))

    def _forget(self, request: Request) -> Answer:
        run = _run_of(request)
        if not self._runs.forget(run):
            return as_json(404, {"error": f"there is no run {run!r}"})
        return as_json(200, {"forgotten": run})

    def _flagger(self, request: Request) -> Answer:
        try:
            value = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(
                f"not JSON: {error}; what Flagger sends was expected: name, namespace, metadata"
            ) from None
        if not isinstance(value, dict):
            raise InvalidInput("an object with name, namespace and metadata was expected")
        metadata = value.get("metadata")
        told = metadata.get("run") if isinstance(metadata, dict) else None
        run = told or f"{value.get('namespace')}/{value.get('name')}"
        if not told and not (isinstance(value.get("namespace"), str) and isinstance(value.get("name"), str)):
            raise InvalidInput("metadata.run, or name and namespace, were expected, to say whose decision is asked for")
        hook = request.path.rpartition("/")[2]
        decision = self._runs.decision(str(run))
        if decision is None:
            # Before the first look nothing speaks against the canary, and nothing for it.
            status = 200 if hook == "rollout" else 409
            return as_json(status, {"run": run, "decision": None, "reasons": ["no look was posted yet"]})
        return as_json(200 if decision.decision in _FLAGGER[hook] else 409, _told(decision))

    def _metrics(self) -> Answer:
        counts = self._runs.counts()
        lines = []
        for name, kind, words, value in (
            ("runs", "gauge", "Runs that are kept.", len(self._runs)),
            ("looks_total", "counter", "Looks that were judged.", counts.looks),
            ("refused_looks_total", "counter", "Looks that did not follow those before.", counts.refused),
            ("forgotten_runs_total", "counter", "Runs that made room for others.", counts.forgotten),
        ):
            full = f"serinus_canary_judge_{name}"
            lines += [f"# HELP {full} {words}", f"# TYPE {full} {kind}", f"{full} {value}"]
        full = "serinus_canary_judge_decisions_total"
        lines += [f"# HELP {full} Decisions after looks.", f"# TYPE {full} counter"]
        lines += [f'{full}{{decision="{name}"}} {count}' for name, count in counts.decisions.items()]
        return Answer(200, ("\n".join(lines) + "\n").encode(), "text/plain; version=0.0.4; charset=utf-8")


def _look(value: Any, where: str) -> Look:
    try:
        look = parse_look(orjson.dumps(value))
    except InvalidInput as error:
        raise InvalidInput(f"{where}{error}") from None
    if len(look.run) > _MOST_NAME:
        raise InvalidInput(f"{where}run: {len(look.run)} characters; {_MOST_NAME} at most were expected")
    return look


def _run_of(request: Request) -> str:
    run = request.query.get("run")
    if run is None:
        raise InvalidInput("?run=NAME is missing; the run of the looks was expected")
    return run


def _told(decision: Decision) -> dict[str, Any]:
    return {
        **decision.as_json(),
        "outcome": _OUTCOMES[decision.decision],
        "next_percent": decision.next_percent,
        # JSON has no infinity, and a client of another make would fail over it.
        "evidence": {name: value if math.isfinite(value) else None for name, value in decision.evidence.items()},
    }
