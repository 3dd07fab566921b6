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

import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...errors import SerinusError
from ..judge import Decision, Judge
from ..policy import Policy
from ..sources.source import Source
from ..targets.kubernetes_client import Refused
from ..targets.target import Action, Target, TargetChanged, TargetFailed, TargetState
from .look_taker import LookTaker
from .mover import Mover, of_target
from .run_events import Ending, Event, EventKind
from .run_files import RunFiles
from .shadow import Shadow

__all__ = ["Busy", "Controller", "RunOptions"]

_KEPT_LOOKS: Final = 24
"""In the record: the last one, and those at which the split changed. A look has about 1 kB, an annotation at most 256 KiB."""
_TRIES: Final = 5
_AGAIN_S: Final = 5.0
"""Between two tries of a write: an API server that restarts, or a leader that is elected, takes some seconds."""
_MISSED_LOOKS: Final = 4
"""A holder that has not renewed the record for so many intervals is gone."""

_ACTIONS: Final[Mapping[str, Action]] = {"advance": "percent", "promote": "promote", "rollback": "rollback"}
"""What a decision asks of the target."""


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
    shadow_percent: int = 0
    """Of the requests that the canary gets a copy of before the first step; 0: there is no shadow step."""
    moves: bool = True
    """False: nothing is changed; the run ends with the first verdict other than hold."""
    for_s: float | None = None
    """Longest time without a verdict; None: the policy's maximum."""
    policy_from: str = ""
    """Where the policy was read, for the report."""


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
        self._policy = policy
        self._files = files
        self._options = options
        self._tell_view = tell
        self._clock = clock
        self._sleep = sleep
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._looker, self._shadow_looker = (
            LookTaker(source, Judge(policy), files, tell=self._tell, clock=clock, model=model, shadow_percent=percent)
            for percent in (0, options.shadow_percent)
        )
        self._mover = Mover(target, tell=self._tell, clock=clock, sleep=sleep, settle_s=options.settle_s)
        self._expected: TargetState | None = None
        """The service as this run left it."""
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
            ending = Ending("changed", self._looker.decision, str(error))
        self._tell(
            "end", ending.words, ending=ending.kind, decision=self._looker.decision and self._looker.decision.as_json()
        )
        return ending

    # The beginning

    def _begin(self) -> TargetState:
        target, moves = self._target, self._options.moves
        seen = target.state()
        record = target.load_record() if moves else None
        run = f"{seen.service} {seen.stable} > {seen.canary}"
        if record is not None and record.get("identity", seen.identity) != seen.identity:
            self._tell("note", f"{seen.service} was {_created_again(seen)} since its record was kept; a new run begins")
            record = None
        same = record is not None and (record.get("stable"), record.get("canary")) == (seen.stable, seen.canary)
        if record is not None:
            _refuse_if_held(record, self._holder, self._clock(), self._options.interval_s)
            # The change may have been made already: then the canary is not there any more, and what is left is to end the run.
            is_restoring = self._target.can_restore and seen.stable == record.get("stable")
            if record.get("phase") in ("promote", "rollback") and (
                same or not seen.canary or seen.stable == record.get("canary") or is_restoring
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
        # One that only decides keeps no record: its looks are found by the revisions, of the service that this one is.
        fresh = f"{run} @{self._clock():.0f}" if moves else f"{run} of {seen.identity}" if seen.identity else run
        goes_on = record is not None and same
        kept = record.get("looks") or () if record is not None else ()
        self._looker.begin(
            str(record["run"]) if record is not None and same else fresh,
            kept if goes_on or not moves else None,
            _seconds(record.get("began")) if record is not None and same else None,
        )
        self._expected = seen
        details = {
            "stable": seen.stable,
            "canary": seen.canary,
            "percent": seen.percent,
            "mode": seen.mode,
            "notes": list(seen.notes),
            "policy": self._options.policy_from,
            "quantile": self._policy.latency.quantile if self._policy.latency is not None else None,
        }
        self._tell("begin", f"{seen.canary} beside {seen.stable}", **details)
        for note in seen.notes:
            self._tell("note", note)
        self._save_record(seen, is_first=True)
        if moves:
            self._end_copies(seen)  # of a run that was killed amid them
        return seen

    # Judging

    def _judge_until_decided(self, seen: TargetState) -> Ending:
        first = int(self._policy.steps[0])
        if self._options.shadow_percent and self._options.moves and not seen.percent and not self._looker.looks:
            ending = self._judge_shadow(seen)
            if ending is not None:
                return ending
        if self._options.moves and (seen.percent or 0) < first:
            seen = self._move(first, seen)
        else:
            self._mover.wait("percent", seen.percent or 0)
        self._looker.leave_out_until_now(seen)
        while True:
            self._sleep(self._options.interval_s)
            seen = self._look_at_target()
            verdict = self._looker.look(seen)
            if verdict is not None and verdict.decision != "hold":
                if not self._options.moves:
                    return self._verdict(verdict, seen)
                if verdict.decision == "promote":
                    return self._promote(seen)
                if verdict.decision == "rollback":
                    return self._roll_back(seen)
                seen = self._move(int(verdict.next_percent or 0), seen)
                self._looker.leave_out_until_now(seen)
            else:
                self._save_record(seen)
            ending = self._out_of_time(seen)
            if ending is not None:
                return ending

    def _judge_shadow(self, seen: TargetState) -> Ending | None:
        """Judge the canary by copies of requests; None: it may have some of its own."""
        if not self._target.can_shadow:
            raise TargetFailed(
                f"{seen.service} is in mode {seen.mode}: its copies are made by an HTTPRoute of yours, which serinus canary route prints; leave out --shadow"
            )

        def look_at_target() -> TargetState:
            now = self._look_at_target()
            self._save_record(now)
            return now

        limits = [each for each in (self._options.for_s, self._policy.maximum_s) if each is not None]
        shadow = Shadow(
            self._shadow_looker,
            self._mover,
            percent=self._options.shadow_percent,
            interval_s=self._options.interval_s,
            most_s=min(limits, default=None),
            sleep=self._sleep,
        )
        try:
            decision = shadow.judge(seen, self._looker.run, look_at_target)
        except BaseException:
            try:
                self._end_copies(self._target.state())
            except SerinusError as error:
                self._tell("problem", f"copies of requests may go on, they could not be ended: {error}")
            raise
        self._end_copies(self._target.state())
        if decision is None or decision.decision == "rollback":
            self._looker.decision = self._shadow_looker.decision
            if decision is not None:
                return self._roll_back(seen)
            return self._undecided(seen, "no verdict on the copies in time")
        self._looker.restart()
        return None

    def _end_copies(self, seen: TargetState) -> None:
        """Send the canary no copies of requests any more, if it gets any."""
        if seen.shadow:
            self._mover.shadow(0, seen)

    def _look_at_target(self) -> TargetState:
        """Read the target and hold it to what this run left."""
        expected = self._expected
        try:
            seen = of_target(self._target.state)
        except TargetChanged:
            raise
        except TargetFailed as error:
            self._tell("problem", f"the target was not heard: {error}")
            assert expected is not None  # noqa: S101 # `_begin` has set it
            return expected
        if expected is not None:
            _check_unchanged(expected, seen)
        return seen

    def _out_of_time(self, seen: TargetState) -> Ending | None:
        limit, maximum = self._options.for_s, self._policy.maximum_s
        passed = self._looker.passed_s
        if limit is not None and passed >= limit:
            return self._undecided(seen, f"no verdict within {limit:g} s")
        if maximum is None or passed < maximum:
            return None
        if self._policy.at_maximum == "rollback" and self._options.moves:
            return self._roll_back(seen)
        return self._undecided(seen, f"no verdict within the policy's maximum of {maximum:g} s; a person has to decide")

    def _undecided(self, seen: TargetState, words: str) -> Ending:
        self._save_record(seen, held=False)
        missing = f": {'; '.join(self._looker.decision.reasons)}" if self._looker.decision is not None else ""
        return Ending("undecided", self._looker.decision, f"{words}{missing}; traffic stays at {seen.percent} %")

    def _verdict(self, decision: Decision, seen: TargetState) -> Ending:
        change = self._target.planned(_ACTIONS[decision.decision], int(decision.next_percent or 0), seen)
        for note in change.notes:
            self._tell("note", note)
        return Ending(
            "verdict", decision, f"{decision.decision}: {change.words}; nothing was changed", tuple(change.patch)
        )

    # Moving

    def _move(self, percent: int, before: TargetState) -> TargetState:
        self._mover.set_percent(percent, before)
        seen = self._mover.state()
        if (seen.stable, seen.canary, seen.percent) != (before.stable, before.canary, percent):
            raise TargetChanged(
                f"{seen.service} was changed by somebody else while {percent} % came into force: it has {seen.stable}, {seen.canary} and "
                f"{seen.percent} % now; nothing more was done"
            )
        self._expected = seen
        self._save_record(seen)
        return seen

    def _promote(self, seen: TargetState) -> Ending:
        self._enter("promote", seen)
        self._keep_warm(self._mover.promote(seen))
        self._keep(None)
        return Ending("promoted", self._looker.decision, f"promoted after {self._looker}")

    def _keep_warm(self, seen: TargetState) -> None:
        expected = self._expected
        if not self._options.warm_s or expected is None:
            return
        if not self._target.keeps_warm or not expected.canary:
            self._tell("note", f"in mode {seen.mode} the old version is not kept warm after a promotion")
            return
        self._tell("note", f"the old version {expected.stable} is kept without traffic for {self._options.warm_s:g} s")
        if self._target.lets_go:
            return
        self._sleep(self._options.warm_s)
        self._mover.let_go(expected)

    def _roll_back(self, seen: TargetState) -> Ending:
        self._enter("rollback", seen)
        self._mover.roll_back(seen)
        if self._target.can_restore:
            self._mover.restore()
        self._keep(None)
        looker = self._looker if self._looker.looks else self._shadow_looker
        return Ending("rolled back", looker.decision, f"rolled back after {looker}")

    def _enter(self, phase: str, seen: TargetState) -> None:
        """Keep with the service what is about to be done, before it is."""
        self._phase = phase
        self._save_record(seen)

    # What is kept and told

    def _save_record(self, seen: TargetState, *, held: bool = True, is_first: bool = False) -> None:
        if not self._options.moves:
            return
        record = {
            "run": self._looker.run,
            "stable": self._expected.stable if self._expected else seen.stable,
            "canary": self._expected.canary if self._expected else seen.canary,
            "percent": seen.percent,
            "identity": self._expected.identity if self._expected else seen.identity,
            "phase": self._phase,
            "holder": self._holder if held else "",
            "renewed": self._clock(),
            "interval_s": self._options.interval_s,
            "began": self._looker.since_s,
            "looks": [look.as_json() for look in self._looker.boundaries(_KEPT_LOOKS)],
        }
        try:
            self._keep(record)
        except TargetChanged:
            raise
        except TargetFailed as error:
            if self._phase != "judging":
                raise
            if is_first:
                # Nobody could go on after a crash, and nothing would keep a second controller away.
                raise TargetFailed(f"the run's record cannot be kept, so nothing is moved: {error}") from None
            self._tell("problem", f"the record could not be kept: {error}")

    def _keep(self, record: Mapping[str, Any] | None) -> None:
        """Keep a record with the service; a server that fails is asked again."""
        for left in range(_TRIES - 1, -1, -1):
            try:
                self._target.save_record(record)
                return
            except TargetChanged:
                kept = self._target.load_record()
                if (kept is not None and kept.get("holder") != self._holder) or not left:
                    raise
                # The answer to our own write was lost.
            except Refused:
                raise
            except TargetFailed:
                if not left:
                    raise
                self._sleep(_AGAIN_S)

    def release(self) -> None:
        """Let another controller go on at once; for one that was interrupted."""
        if self._expected is not None and self._options.moves:
            try:
                self._save_record(self._expected, held=False)
            except SerinusError as error:
                self._tell("problem", f"the record could not be released: {error}")

    def _tell(self, kind: EventKind, words: str, **details: Any) -> None:
        event = Event(kind, words, {"run": self._looker.run, "time": round(self._clock(), 3), **details})
        self._files.write_event({"kind": kind, "words": words, **event.details})
        self._tell_view(event)


def _refuse_if_held(record: Mapping[str, Any], holder: str, now_s: float, interval_s: float) -> None:
    """Leave a service to who drives it.

    Raises:
        Busy: somebody else does, and was there not long ago.
    """
    by, renewed = record.get("holder"), record.get("renewed")
    # Of a time to come: a clock was set back since, by so much.
    age = abs(now_s - float(renewed)) if isinstance(renewed, int | float) else float("inf")
    every = float(record.get("interval_s") or interval_s)
    if by and by != holder and age < _MISSED_LOOKS * every:
        raise Busy(f"{by} drives this canary and was there {age:.0f} s ago; wait for it, or end it first")


def _check_unchanged(expected: TargetState, seen: TargetState) -> None:
    """Hold a service to what a run left.

    Raises:
        TargetChanged: it is something else.
    """
    before, after = ((each.stable, each.canary, each.percent, each.version) for each in (expected, seen))
    if seen.identity != expected.identity:
        raise TargetChanged(
            f"{seen.service} was deleted and created again by somebody else (its uid was {expected.identity}, and is {seen.identity}); "
            "nothing was done"
        )
    if before != after:
        raise TargetChanged(
            f"{seen.service} was changed by somebody else: stable, canary, percentage, edition were {', '.join(map(str, before))}, and are "
            f"{', '.join(map(str, after))}; nothing was done"
        )


def _created_again(seen: TargetState) -> str:
    return "started anew with serinus up" if seen.mode == "local" else "deleted and created again"


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
