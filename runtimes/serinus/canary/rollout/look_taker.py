"""Looks of a run: counts of both arms since it began, over several controllers and without what belongs to no split.

A look with problems is none: it is told, nothing is appended and nothing judged.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ...errors import InvalidInput
from ..judge import Decision, Judge
from ..looks import Arm, Look, parse_look
from ..sources.source import ArmNames, Observation, Source
from ..targets.target import TargetState
from .arm_sums import add_arms, resume_arm, subtract_arms
from .run_events import Tell
from .run_files import RunFiles

__all__ = ["LookTaker"]

_NOTHING: Final = Arm(requests=0)


class LookTaker:
    """Takes looks and has them judged.

    Args:
        source: of counts.
        judge: of this run.
        files: where looks go.
        tell: takes what happens.
        clock: seconds since the epoch.
        model: name of the model in the metrics; empty: the target's.
        shadow_percent: of the requests that the canary gets copies of; 0: its requests are clients' own.
    """

    def __init__(
        self,
        source: Source,
        judge: Judge,
        files: RunFiles,
        *,
        tell: Tell,
        clock: Callable[[], float],
        model: str,
        shadow_percent: int = 0,
    ) -> None:
        self.looks: list[Look] = []
        self.decision: Decision | None = None
        """After the last look."""
        self.run = ""
        self.began = 0.0
        self.since_s: float = 0.0
        """When the run began, seconds since the epoch, with the time between two controllers."""
        self._source = source
        self._judge = judge
        self._files = files
        self._tell = tell
        self._clock = clock
        self._model = model
        self._shadow_percent = shadow_percent
        self._base = (_NOTHING, _NOTHING)
        """What the run had counted before this controller."""
        self._left_out = (_NOTHING, _NOTHING)
        """What this controller's source counted while the split changed."""
        self._raw = (_NOTHING, _NOTHING)
        """What the source said at the last sound look."""

    @property
    def passed_s(self) -> float:
        """Since the run began, without the time between two controllers."""
        return self._clock() - self.began

    def begin(self, run: str, kept: Sequence[Mapping[str, Any]] | None, since_s: float | None = None) -> None:
        """Begin a run, or go on with one.

        Args:
            run: its name.
            kept: looks that were kept beside the service, where the run's files are not here; None: it is a new run.
            since_s: when it began, as was kept beside the service; the run's files may say so, too.
        """
        self.run, self.began = run, self._clock()
        told = [float(event["time"]) for event in self._files.events(run) if isinstance(event.get("time"), int | float)]
        self.since_s = min(self.began, *told, self.began if since_s is None else since_s)
        if kept is None:
            return
        looks, where = self._files.looks(run), str(self._files.looks_path)
        if not looks and kept:
            where = "the record beside the service; looks between changes of the split are not there"
            looks = [parse_look(json.dumps(each)) for each in kept]
        for look in looks:
            self._judge.see(look)
        if looks:
            self.looks = looks
            self._base = (looks[-1].stable, looks[-1].canary)
            self.began = self._clock() - looks[-1].seconds
            words = f"the run is resumed with {len(looks)} looks from {where}; what was answered since the last one is not counted"
            self._tell("note", words)

    def restart(self) -> None:
        """Begin to count the time now; nothing has been looked at yet."""
        self.began = self._clock()

    def look(self, seen: TargetState) -> Decision | None:
        """Take a look and judge it; None: it could not be judged."""
        observed = self._observe(seen)
        problems = list(observed.problems)
        if not seen.ready:
            problems.append(f"the canary {seen.canary} is not ready")
        if seen.served_percent is not None and seen.served_percent != seen.percent:
            problems.append(f"{seen.percent} % were asked for, and {seen.served_percent} % are in force")
        stable, canary = self._counts(observed)
        last = self.looks[-1] if self.looks else None
        for name, arm, before, share in (
            ("stable", stable, last.stable if last else _NOTHING, 100 - (seen.percent or 0)),
            ("canary", canary, last.canary if last else _NOTHING, self._shadow_percent or seen.percent or 0),
        ):
            if not problems and share > 0 and arm.requests == before.requests:
                self._tell("note", f"no request reached the {name} arm since the last look")
        for note in observed.notes:
            self._tell("note", note)
        if problems:
            for problem in problems:
                self._tell("problem", problem)
            return None
        look = Look(
            run=self.run,
            seconds=max(self.passed_s, last.seconds if last else 0.0),
            percent=float(seen.percent or 0),
            stable=stable,
            canary=canary,
        )
        try:
            decision = self._judge.look(look)
        except InvalidInput as error:
            self._tell("problem", str(error))
            return None
        self._raw = (observed.stable, observed.canary)
        self.looks.append(look)
        self._files.write_look(look)
        self.decision = decision
        words = f"{decision.decision}: {decision.reasons[0]}" if decision.reasons else decision.decision
        verdict = {**decision.as_json(), "next_percent": decision.next_percent, "evidence": dict(decision.evidence)}
        extra = {"shadow": self._shadow_percent} if self._shadow_percent else {}
        standing = self._judge.standing().as_json()
        said = f"{'shadow: ' if extra else ''}{words}"
        self._tell("look", said, counts=look.as_json(), verdict=verdict, standing=standing, **extra)
        return decision

    def leave_out_until_now(self, seen: TargetState) -> None:
        """Leave out what was counted since the last look: it belongs to neither split."""
        observed = self._observe(seen)
        for problem in observed.problems:
            self._tell("problem", problem)
        now = (observed.stable, observed.canary)
        self._left_out = (
            add_arms(self._left_out[0], subtract_arms(now[0], self._raw[0])),
            add_arms(self._left_out[1], subtract_arms(now[1], self._raw[1])),
        )
        self._raw = now

    def _observe(self, seen: TargetState) -> Observation:
        return self._source.observe(ArmNames(seen.stable, seen.canary, self._model or seen.model, self.since_s))

    def _counts(self, observed: Observation) -> tuple[Arm, Arm]:
        stable, canary = (
            _with_whole(resume_arm(base, subtract_arms(arm, left_out)), arm, observed.whole)
            for base, arm, left_out in zip(self._base, (observed.stable, observed.canary), self._left_out, strict=True)
        )
        return stable, canary

    def boundaries(self, most: int) -> list[Look]:
        """Give the last look, and those before the split changed; the latest ones."""
        found = [one for one, following in itertools.pairwise(self.looks) if following.percent != one.percent]
        return [*found, *self.looks[-1:]][-most:]

    def __str__(self) -> str:
        if not self.looks:
            return "no look of this run"
        last = self.looks[-1]
        return f"{len(self.looks)} looks, {last.canary.requests:,} requests of the canary and {last.stable.requests:,} of stable"


def _with_whole(resumed: Arm, observed: Arm, whole: frozenset[str]) -> Arm:
    """The arm with what its source counts since the run began taken as it is: what it had before is in it."""
    rates = {name: observed.rates[name] for name in whole & observed.rates.keys()}
    return replace(resumed, rates={**resumed.rates, **rates}) if rates else resumed
