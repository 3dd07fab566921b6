"""Takes looks, has them judged, and moves traffic: one run of one canary.

Theory of operation. A run is of one pair of revisions and is named by them. At each look the target is read first: if the service is not as this
run left it (other revisions, another percentage), somebody else has changed it, and the run ends without touching anything. Then the source is
asked. A look with problems is not judged: nothing moves on what is not sure. A sound one is appended to the run's looks and judged.

After each change of the split the run waits until it is in force. What was answered in between belongs to neither split and is left out of the
counts. A promotion or rollback may take several changes; which one is under way is in the record, that is kept with the service.

A controller that ends without a decision leaves traffic and record as they are. The next one finds the record, replays the run's looks into a new
judge (from its files, else from those few that the record holds) and goes on. Two at a time are kept apart by the record's holder and its age.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..errors import InvalidInput, SerinusError
from .arm_sums import add_arms, subtract_arms
from .judge import Decision, Judge
from .looks import Arm, Look, parse_look
from .policy import Policy
from .run_files import RunFiles
from .sources.source import ArmNames, Observation, Source
from .targets.target import Action, Target, TargetChanged, TargetFailed, TargetState

__all__ = ["Busy", "Controller", "Ending", "Event", "RunOptions"]

EndingKind = Literal["promoted", "rolled back", "undecided", "changed", "verdict"]
_NOTHING: Final = Arm(requests=0)
_KEPT_LOOKS: Final = 24
"""In the record: the last one, and those at which the split changed. A look has about 1 kB, an annotation at most 256 KiB."""
_POLL_S: Final = 1.0
_MISSED_LOOKS: Final = 4
"""A holder that has not renewed the record for so many intervals is gone."""


class Busy(TargetFailed):
    """Another controller drives this service now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run goes."""

    interval_s: float = 30.0
    """Between looks. Prometheus' usual 15 s scrapes are seen twice."""
    settle_s: float = 600.0
    """Longest wait for a change to be in force: pods of a rolled predictor may load a while."""
    warm_s: float = 0.0
    """How long the old version is kept after a promotion, where the target can."""
    moves: bool = True
    """False: nothing is changed; the run ends with the first verdict other than hold."""
    for_s: float | None = None
    """Longest time without a verdict; None: the policy's maximum."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `details` are JSON values."""

    kind: Literal["begin", "look", "problem", "move", "note", "end"]
    words: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    kind: EndingKind
    decision: Decision | None
    words: str
    patch: tuple[Mapping[str, Any], ...] = ()
    """What a run that moves nothing would have changed, as a JSON patch."""


class Controller:
    """One run.

    Args:
        target: whose traffic.
        source: of counts.
        policy: what is judged by.
        files: where looks and events go.
        options: how it goes.
        tell: gets each event.
        clock: seconds since the epoch.
        sleep: waits; raises KeyboardInterrupt where the user wants to stop.
        model: name of the model in the metrics; empty: the target's.
    """

    def __init__(
        self,
        target: Target,
        source: Source,
        policy: Policy,
        files: RunFiles,
        options: RunOptions,
        *,
        tell: Callable[[Event], None],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        model: str = "",
    ) -> None:
        self._target = target
        self._source = source
        self._policy = policy
        self._files = files
        self._options = options
        self._tell_view = tell
        self._clock = clock
        self._sleep = sleep
        self._model = model
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._judge = Judge(policy)
        self._run = ""
        self._began = 0.0
        self._base = (_NOTHING, _NOTHING)
        """What the run had counted before this controller."""
        self._left_out = (_NOTHING, _NOTHING)
        """What this controller's source counted while the split changed."""
        self._raw = (_NOTHING, _NOTHING)
        """What the source said at the last sound look."""
        self._looks: list[Look] = []
        self._decision: Decision | None = None
        self._expected: TargetState | None = None
        self._phase = "judging"

    def run(self) -> Ending:
        """Go on until a decision is carried out, or cannot be.

        Raises:
            Busy: another controller drives this service.
            TargetFailed: there is nothing to move, or a change was refused for good.
            ConfigError: files cannot be written.
        """
        try:
            seen = self._begin()
            if self._phase == "promote":
                ending = self._promote(seen)
            elif self._phase == "rollback":
                ending = self._roll_back(seen)
            else:
                ending = self._judge_until_decided(seen)
        except TargetChanged as error:
            ending = Ending("changed", self._decision, str(error))
        self._tell("end", ending.words, ending=ending.kind, decision=self._decision and self._decision.as_json())
        return ending

    # The beginning

    def _begin(self) -> TargetState:
        target, moves = self._target, self._options.moves
        seen = target.state()
        record = target.load_record() if moves else None
        run = f"{seen.service} {seen.stable} > {seen.canary}"
        same = record is not None and (record.get("stable"), record.get("canary")) == (seen.stable, seen.canary)
        if record is not None:
            self._refuse_if_held(record)
            # The change may have been made already: then the canary is not there any more, and what is left is to end the run.
            if record.get("phase") in ("promote", "rollback") and (
                same or not seen.canary or seen.stable == record.get("canary")
            ):
                self._phase = str(record["phase"])
                same = True
            elif not same:
                self._tell(
                    "note",
                    f"a record of {record.get('stable')} > {record.get('canary')} was found, which is over; a new run begins",
                )
        if seen.problems and self._phase == "judging":
            raise TargetFailed(f"{seen.service}: {'; '.join(seen.problems)}")
        self._began = self._clock()
        # One that only decides keeps no record: its looks are found by the revisions alone.
        self._run = str(record["run"]) if record is not None and same else f"{run} @{self._began:.0f}" if moves else run
        self._resume(record if same else None)
        self._expected = seen
        details = {
            "stable": seen.stable,
            "canary": seen.canary,
            "percent": seen.percent,
            "mode": seen.mode,
            "notes": list(seen.notes),
        }
        self._tell("begin", f"{seen.canary} beside {seen.stable}", **details)
        for note in seen.notes:
            self._tell("note", note)
        self._save_record(seen)
        return seen

    def _refuse_if_held(self, record: Mapping[str, Any]) -> None:
        holder, renewed = record.get("holder"), record.get("renewed")
        age = self._clock() - float(renewed) if isinstance(renewed, int | float) else float("inf")
        every = float(record.get("interval_s") or self._options.interval_s)
        if holder and holder != self._holder and age < _MISSED_LOOKS * every:
            raise Busy(f"{holder} drives this canary and was there {age:.0f} s ago; wait for it, or end it first")

    def _resume(self, record: Mapping[str, Any] | None) -> None:
        looks = self._files.looks(self._run) if record is not None or not self._options.moves else []
        where = str(self._files.looks_path)
        if not looks and record is not None:
            where = "the record beside the service; looks between changes of the split are not there"
            looks = [parse_look(json.dumps(each)) for each in record.get("looks") or ()]
        for look in looks:
            self._judge.see(look)
        if looks:
            self._looks = looks
            self._base = (looks[-1].stable, looks[-1].canary)
            self._began = self._clock() - looks[-1].seconds
            self._tell(
                "note",
                f"the run is resumed with {len(looks)} looks from {where}; what was answered since the last one is not counted",
            )

    # Judging

    def _judge_until_decided(self, seen: TargetState) -> Ending:
        first = int(self._policy.steps[0])
        if self._options.moves and (seen.percent or 0) < first:
            seen = self._move(first, seen)
        else:
            self._wait_settled("percent", seen.percent or 0)
        self._leave_out_until_now(seen)
        while True:
            self._sleep(self._options.interval_s)
            seen = self._look_at_target()
            verdict = self._look(seen)
            if verdict is not None and verdict.decision != "hold":
                if not self._options.moves:
                    return self._verdict(verdict, seen)
                if verdict.decision == "promote":
                    return self._promote(seen)
                if verdict.decision == "rollback":
                    return self._roll_back(seen)
                seen = self._move(int(verdict.next_percent or 0), seen)
                self._leave_out_until_now(seen)
            else:
                self._save_record(seen)
            ending = self._out_of_time(seen)
            if ending is not None:
                return ending

    def _look_at_target(self) -> TargetState:
        """Read the target and hold it to what this run left."""
        expected = self._expected
        try:
            seen = self._target.state()
        except TargetChanged:
            raise
        except TargetFailed as error:
            self._tell("problem", f"the target was not heard: {error}")
            assert expected is not None  # noqa: S101 # `_begin` has set it
            return expected
        if expected is not None:
            before, after = ((each.stable, each.canary, each.percent, each.version) for each in (expected, seen))
            if before != after:
                raise TargetChanged(
                    f"{seen.service} was changed by somebody else: stable, canary, percentage, edition were {', '.join(map(str, before))}, and are "
                    f"{', '.join(map(str, after))}; nothing was done"
                )
        return seen

    def _look(self, seen: TargetState) -> Decision | None:
        """Take a look and judge it; None: it could not be judged."""
        observed = self._observe(seen)
        problems = list(observed.problems)
        if not seen.ready:
            problems.append(f"the canary {seen.canary} is not ready")
        if seen.served_percent is not None and seen.served_percent != seen.percent:
            problems.append(f"{seen.percent} % were asked for, and {seen.served_percent} % are in force")
        stable, canary = self._counts(observed)
        last = self._looks[-1] if self._looks else None
        for name, arm, before, share in (
            ("stable", stable, last.stable if last else _NOTHING, 100 - (seen.percent or 0)),
            ("canary", canary, last.canary if last else _NOTHING, seen.percent or 0),
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
            run=self._run,
            seconds=max(self._clock() - self._began, last.seconds if last else 0.0),
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
        self._looks.append(look)
        self._files.write_look(look)
        self._decision = decision
        words = f"{decision.decision}: {decision.reasons[0]}" if decision.reasons else decision.decision
        verdict = {**decision.as_json(), "next_percent": decision.next_percent, "evidence": dict(decision.evidence)}
        self._tell("look", words, counts=look.as_json(), verdict=verdict)
        return decision

    def _observe(self, seen: TargetState) -> Observation:
        return self._source.observe(ArmNames(seen.stable, seen.canary, self._model or seen.model))

    def _counts(self, observed: Observation) -> tuple[Arm, Arm]:
        stable, canary = (
            add_arms(base, subtract_arms(arm, left_out))
            for base, arm, left_out in zip(self._base, (observed.stable, observed.canary), self._left_out, strict=True)
        )
        return stable, canary

    def _leave_out_until_now(self, seen: TargetState) -> None:
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

    def _out_of_time(self, seen: TargetState) -> Ending | None:
        limit, maximum = self._options.for_s, self._policy.maximum_s
        passed = self._clock() - self._began
        if limit is not None and passed >= limit:
            return self._undecided(seen, f"no verdict within {limit:g} s")
        if maximum is None or passed < maximum:
            return None
        if self._policy.at_maximum == "rollback" and self._options.moves:
            return self._roll_back(seen)
        return self._undecided(seen, f"no verdict within the policy's maximum of {maximum:g} s; a person has to decide")

    def _undecided(self, seen: TargetState, words: str) -> Ending:
        self._save_record(seen, held=False)
        missing = f": {'; '.join(self._decision.reasons)}" if self._decision is not None else ""
        return Ending("undecided", self._decision, f"{words}{missing}; traffic stays at {seen.percent} %")

    def _verdict(self, decision: Decision, seen: TargetState) -> Ending:
        action: Action = (
            "percent" if decision.decision == "advance" else "promote" if decision.decision == "promote" else "rollback"
        )
        change = self._target.planned(action, int(decision.next_percent or 0), seen)
        for note in change.notes:
            self._tell("note", note)
        return Ending(
            "verdict", decision, f"{decision.decision}: {change.words}; nothing was changed", tuple(change.patch)
        )

    # Moving

    def _move(self, percent: int, seen: TargetState) -> TargetState:
        change = self._target.change("percent", percent, seen)
        self._tell("move", change.words, percent=percent, patch=list(change.patch))
        for note in change.notes:
            self._tell("note", note)
        self._wait_settled("percent", percent)
        return self._expect()

    def _expect(self) -> TargetState:
        seen = self._expected = self._target.state()
        self._save_record(seen)
        return seen

    def _promote(self, seen: TargetState) -> Ending:
        """Promote; in as many changes as the target needs, each of which may be the first that this controller makes."""
        self._enter("promote", seen)
        for _ in range(3):
            if not seen.canary:
                break
            change = self._target.change("promote", 0, seen)
            self._tell("move", change.words, patch=list(change.patch))
            for note in change.notes:
                self._tell("note", note)
            self._wait_settled("promote", 0)
            before, seen = seen, self._target.state()
            if before.canary != seen.canary or not seen.image_only:
                break
        self._keep_warm(seen)
        self._target.save_record(None)
        words = f"promoted after {_told(self._looks)}"
        return Ending("promoted", self._decision, words)

    def _keep_warm(self, seen: TargetState) -> None:
        expected = self._expected
        if not self._options.warm_s or expected is None or not self._options.moves:
            return
        if not self._target.keeps_warm or not expected.canary:
            self._tell("note", f"in mode {seen.mode} the old version is not kept warm after a promotion")
            return
        self._tell("note", f"the old version {expected.stable} is kept without traffic for {self._options.warm_s:g} s")
        self._sleep(self._options.warm_s)
        change = self._target.change("finish", 0, expected)
        self._tell("move", change.words, patch=list(change.patch))

    def _roll_back(self, seen: TargetState) -> Ending:
        self._enter("rollback", seen)
        notes: tuple[str, ...] = ()
        if seen.canary:
            change = self._target.change("rollback", 0, seen)
            notes = change.notes
            self._tell("move", change.words, patch=list(change.patch))
            for note in notes:
                self._tell("note", note)
            self._wait_settled("rollback", 0)
        self._target.save_record(None)
        return Ending("rolled back", self._decision, f"rolled back after {_told(self._looks)}")

    def _enter(self, phase: str, seen: TargetState) -> None:
        """Keep with the service what is about to be done, before it is."""
        self._phase = phase
        self._save_record(seen)

    def _wait_settled(self, action: Action, percent: int) -> None:
        deadline = self._clock() + self._options.settle_s
        while True:
            try:
                if self._target.is_settled(action, percent):
                    return
            except TargetChanged:
                raise
            except TargetFailed as error:
                self._tell("problem", f"the target was not heard: {error}")
            if self._clock() >= deadline:
                self._tell(
                    "problem",
                    f"the change is not in force after {self._options.settle_s:g} s; looks are not judged until it is",
                )
                return
            self._sleep(_POLL_S)

    # What is kept and told

    def _save_record(self, seen: TargetState, *, held: bool = True) -> None:
        if not self._options.moves:
            return
        boundaries = [one for one, following in itertools.pairwise(self._looks) if following.percent != one.percent]
        boundaries += self._looks[-1:]
        self._target.save_record(
            {
                "run": self._run,
                "stable": seen.stable,
                "canary": seen.canary or (self._expected.canary if self._expected else ""),
                "percent": seen.percent,
                "phase": self._phase,
                "holder": self._holder if held else "",
                "renewed": self._clock(),
                "interval_s": self._options.interval_s,
                "looks": [look.as_json() for look in boundaries[-_KEPT_LOOKS:]],
            }
        )

    def release(self) -> None:
        """Let another controller go on at once; for one that was interrupted."""
        if self._expected is not None and self._options.moves:
            try:
                self._save_record(self._expected, held=False)
            except SerinusError as error:
                self._tell("problem", f"the record could not be released: {error}")

    def _tell(self, kind: Any, words: str, **details: Any) -> None:
        event = Event(kind, words, {"run": self._run, "time": round(self._clock(), 3), **details})
        self._files.write_event({"kind": kind, "words": words, **event.details})
        self._tell_view(event)


def _told(looks: list[Look]) -> str:
    if not looks:
        return "no look of this run"
    last = looks[-1]
    return f"{len(looks)} looks, {last.canary.requests:,} requests of the canary and {last.stable.requests:,} of stable"
