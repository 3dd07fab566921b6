"""The step before the first: the canary gets copies of requests, its answers are dropped, and it is judged by what it counts of them.

Theory of operation. The gateway sends a copy of so many percent of the requests to the canary and forgets what it answers, so no client is touched.
Errors, latencies and scores of the copies are compared with those of all that the stable version answered, by the same judge under the same policy;
its looks are a run of their own (`RUN shadow`), with the percentage 0, and their evidence is not carried over. Copies are a random part of stable's
own requests, so both arms saw the same kind of requests, and in part the very same: their difference varies less than the judge takes it to, which makes it
slower and no less right. Business metrics say nothing here: nobody saw the answers.

Copies end with the step, however it ends: whoever calls `Shadow.judge` sees to that (`Controller`), also where the run is interrupted, fails or
finds the service changed, and where an earlier one was killed amid its copies.

It ends well where the judge would go a step up or promote: the minimum has been had and nothing leans against the canary.
"""

from __future__ import annotations

from collections.abc import Callable

from ..judge import Decision
from ..targets.target import TargetState
from .look_taker import LookTaker
from .mover import Mover

__all__ = ["Shadow"]


class Shadow:
    """One shadow step.

    Args:
        looker: takes its looks, with a judge of its own.
        mover: begins and ends the copies.
        percent: of the requests.
        interval_s: between looks.
        most_s: longest time; None: as long as it takes.
    """

    def __init__(
        self,
        looker: LookTaker,
        mover: Mover,
        *,
        percent: int,
        interval_s: float,
        most_s: float | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._looker = looker
        self._mover = mover
        self._percent = percent
        self._interval_s = interval_s
        self._most_s = most_s
        self._sleep = sleep

    def judge(self, seen: TargetState, run: str, look_at_target: Callable[[], TargetState]) -> Decision | None:
        """Judge until there is a verdict.

        Args:
            seen: the service now; the canary has no traffic.
            run: the name of the run that it comes before.
            look_at_target: gives the service as it is at the next look, and raises where somebody else has changed it.

        Returns:
            The verdict; None: there was none in time.
        """
        self._looker.begin(f"{run} shadow", None)
        self._mover.shadow(self._percent, seen)
        self._looker.leave_out_until_now(seen)
        found: Decision | None = None
        while found is None and (self._most_s is None or self._looker.passed_s < self._most_s):
            self._sleep(self._interval_s)
            seen = look_at_target()
            decision = self._looker.look(seen)
            if decision is not None and decision.decision != "hold":
                found = decision
        return found
