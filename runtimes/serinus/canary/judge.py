"""The judge: policy and looks in, a decision at each look out. Pure; it keeps what it has seen, and no clock but the looks' own.

Rollback. Each guardrail brings evidence E_k that the canary is worse, of expectation 1 at most while it is not. Their weighted mean is
evidence against "the canary is worse in nothing", and reaches 1 / level ever with probability `level` at most, however often one looks
(Ville's inequality). A mean is never weaker than splitting the level (Bonferroni): a guardrail whose own E_k reaches 1 / (its share of the
level) suffices for it. A metric that looks begin to tell later gets its share of the evidence as it stands then, as money is moved between bets.

Promotion. Every guardrail must bring evidence that the canary is not worse by its margin, each at the whole promotion level: a canary that is
worse in one of them passes that one with probability `promotion_level` at most, whatever the others do (intersection-union test: Berger, Technometrics 1982).

Between the two the canary goes up the steps, once each has had its minimum and nothing leans against it; else the judge holds and says
what is missing. Where looks tell how many distinct users (affinity keys) there were, a user's requests count as one: all logarithms of evidence
are multiplied by users / requests, as if the requests of one user had all turned out alike. What latencies say while the canary, or a replica
that a step up has added, may be cold, rolls nothing back; the next step and the promotion wait while it is against the canary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

from .evidence.blocks import LEAST
from .evidence.multinomial import log_split_evidence
from .guardrails import make_watches
from .look_order import check_follows
from .looks import Look
from .policy import Policy
from .standing import GuardrailStanding, Standing
from .watch import Watch, evidence_text, users_per_request

__all__ = ["Decision", "Judge", "Verdict"]

Verdict = Literal["hold", "advance", "promote", "rollback"]

_LEANING: Final = 0.5
"""The next step waits while log E against the canary is more than this part of what rolls it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do after a look, and why."""

    run: str
    look: int
    """Its number in the run, from 1."""
    decision: Verdict
    metric: str | None
    """The one that decided, or that most is missing of; None: none did."""
    reasons: tuple[str, ...]
    """In words, the weightiest first."""
    requests_needed: int | None
    """Of both arms at the present split until a promotion, if the canary is as good as stable; None: cannot be told. 0 once decided."""
    next_percent: float | None = None
    """Where `advance` goes."""
    evidence: dict[str, float]
    """log E against the canary, a metric; what rolls back is their weighted mean."""

    @property
    def is_final(self) -> bool:
        """Whether the rollout ends with it."""
        return self.decision in {"promote", "rollback"}

    def as_json(self) -> dict[str, Any]:
        """The line that `serinus canary replay` prints."""
        return {
            "run": self.run,
            "look": self.look,
            "decision": self.decision,
            "metric": self.metric,
            "reasons": list(self.reasons),
            "requests_needed": self.requests_needed,
        }


class Judge:
    """One rollout under a policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._watches = make_watches(policy)
        self._log_shares: dict[str, float] = {}
        """Logarithm of what each told metric's evidence is multiplied by in their mean."""
        self._waits_for_counts = bool(policy.rates or policy.means)
        """Whether a promotion may be reached without the end of a block, as outcomes come."""
        self._rolls_back_at = -math.log(policy.level)
        self._promotes_at = -math.log(policy.promotion_level)
        self._evidence: tuple[float, str | None] | None = None
        """What `_against` gave last; None: there was no look after the warm-up."""
        self._known: Look | None = None
        self._number = 0
        self._warm: Look | None = None
        """The look that ended the warm-up."""
        self._step: Look | None = None
        """The last look before the present step; None: the step is the first."""
        self._split = 0.0
        self._split_began: Look | None = None
        self._next: float | None = None
        """The policy's next step; None: looks do not tell the percent, or only the promotion is left."""
        self._had_minimum = False
        """Whether the present step has had its minimum."""
        self._verdict: Verdict = "hold"
        self._metric: str | None = None

    def look(self, look: Look) -> Decision:
        """Decide after a look, with reasons.

        Args:
            look: the next of the run; the first that is given is the first.

        Raises:
            InvalidInput: it does not follow the looks before.
        """
        self.see(look)
        return self.explain()

    def see(self, look: Look) -> Verdict:
        """Decide after a look; `explain` gives the reasons.

        Raises:
            InvalidInput: it does not follow the looks before.
        """
        before = self._known
        known = look if before is None else check_follows(before, look)
        self._known = known
        self._number += 1
        is_new_step = before is not None and known.percent != before.percent
        if before is None or is_new_step:
            if before is not None:
                self._split = self._log_split(before)
            self._step = self._split_began = before
            self._had_minimum = False
            percent = known.percent
            self._next = (
                next((step for step in self._policy.steps if percent < step < 100), None)
                if percent is not None
                else None
            )
        self._verdict, self._metric = self._decide(look, before, is_new_step=is_new_step)
        return self._verdict

    def _decide(self, look: Look, before: Look | None, *, is_new_step: bool) -> tuple[Verdict, str | None]:
        policy = self._policy
        is_warm_from_zero = not policy.warm_up_requests and not policy.warm_up_s
        if self._warm is None and (
            look.canary.requests >= policy.warm_up_requests and look.seconds >= policy.warm_up_s
        ):
            self._warm = look
        if self._warm is None:
            return self._at_maximum(look)
        changed = self._evidence is None or look.canary.affinity_keys is not None
        for watch in self._watches:
            if not is_new_step and watch.passes(look):
                continue
            if watch.see(look, from_zero=is_warm_from_zero, before=before, is_new_step=is_new_step):
                changed = True
                if watch.name not in self._log_shares and watch.has_begun:
                    self._admit(watch)
        if changed or self._evidence is None:
            self._evidence = self._against()
        elif self._had_minimum and not self._waits_for_counts and self._verdict == "advance":
            return "advance", None  # no block has ended: nothing is known that was not
        against, metric = self._evidence
        if against >= self._rolls_back_at:
            return "rollback", metric
        if not self._had_minimum:
            self._had_minimum = self._has_minimum()
        if self._had_minimum and not self._leaning_while_cold() and not any(each.obstacle() for each in self._watches):
            if self._is_promoted():
                return "promote", None
            if self._next is not None and against < _LEANING * self._rolls_back_at:
                return "advance", None
        return self._at_maximum(look)

    def _at_maximum(self, look: Look) -> tuple[Verdict, str | None]:
        late = self._policy.maximum_s is not None and look.seconds >= self._policy.maximum_s
        return ("rollback" if late and self._policy.at_maximum == "rollback" else "hold"), None

    def _admit(self, watch: Watch) -> None:
        """Give a metric its share of the evidence as it stands."""
        if watch.weight <= 0:
            return
        told = [each for each in self._watches if each.name in self._log_shares]
        total = self._against()[0] if told else 0.0
        weight = watch.weight / (watch.weight + sum(each.weight for each in told))
        for each in told:
            self._log_shares[each.name] += math.log1p(-weight)
        self._log_shares[watch.name] = math.log(weight) + total

    def _against(self) -> tuple[float, str | None]:
        """Log E against the canary, and the metric that most of it is of."""
        discount = self._discount()
        parts = [
            (self._log_shares[watch.name] + watch.evidence(discount), watch.name)
            for watch in self._watches
            if watch.name in self._log_shares
        ]
        if not parts:
            return 0.0, None
        most, metric = max(parts)
        return most + math.log(sum(math.exp(part - most) for part, _ in parts)), metric

    def _leaning_while_cold(self) -> list[Watch]:
        """Guardrails that the next step and a promotion wait for, though nothing of it is held against the canary."""
        # What leans does so by evidence above 1, whatever a request counts for.
        leaning = [watch for watch in self._watches if watch.leaning > 0]
        if not leaning:
            return leaning
        discount = self._discount()
        return [watch for watch in leaning if watch.leaning * discount >= _LEANING * self._rolls_back_at]

    def _discount(self) -> float:
        """Users a request; 1 where it is not told."""
        return 1.0 if self._known is None else users_per_request(self._known)

    def _is_promoted(self) -> bool:
        """Whether every guardrail lets the canary through; stops at the first that does not."""
        discount = self._discount()
        told = 0
        for watch in self._watches:
            if not watch.is_told:
                if watch.required:
                    return False
                continue
            told += 1
            if not watch.has_begun or not watch.lets_through(self._promotes_at, discount):
                return False
        return told > 0

    def _of_step(self) -> tuple[int, int, float]:
        """Requests of stable and of the canary, and seconds, that count for the present step's minimum."""
        known = self._known
        if known is None:
            return 0, 0, 0.0
        since = self._warm if self._step is None or _is_before(self._step, self._warm) else self._step
        if since is None or (since is self._warm and not self._policy.warm_up_requests and not self._policy.warm_up_s):
            return known.stable.requests, known.canary.requests, known.seconds
        return (
            known.stable.requests - since.stable.requests,
            known.canary.requests - since.canary.requests,
            known.seconds - since.seconds,
        )

    def _has_minimum(self) -> bool:
        """Whether the present step has lasted long enough, and stable has answered enough to be compared at all."""
        known = self._known
        # Of a stable that is given nothing, nothing is waited for: there is no next step.
        is_compared = self._of_step()[0] >= LEAST or (known is not None and (known.percent or 0) >= 100)
        return is_compared and self._minimum_missing() == (0.0, 0.0)

    def _minimum_missing(self) -> tuple[float, float]:
        """Requests of the canary and seconds that the step's minimum lacks."""
        _, requests, seconds = self._of_step()
        return max(0.0, self._policy.minimum_requests - requests), max(0.0, self._policy.minimum_s - seconds)

    def _log_split(self, until: Look) -> float:
        """Evidence that requests are not split as asked, over all steps until a look."""
        percent = until.percent
        if percent is None or not 0 < percent < 100:
            return self._split
        began = self._split_began
        if began is not None and until.canary.affinity_keys is not None and until.stable.affinity_keys is not None:
            # Users stay where they are: those that a later step brings to the canary were stable's, and are new to one arm alone.
            return self._split
        canary, stable = _units(until)
        if began is not None:
            before = _units(began)
            canary, stable = canary - before[0], stable - before[1]
        return self._split + log_split_evidence(canary, stable, percent / 100)

    def explain(self) -> Decision:
        """The decision after the last look, with reasons."""
        known = self._known
        if known is None:
            raise ValueError("no look was seen")
        metric, needed = self._metric, 0.0
        if self._verdict == "rollback":
            reasons = self._rollback_reasons()
        elif self._verdict == "promote":
            reasons = self._promotion_reasons()
        else:
            reasons, metric, needed = self._hold_reasons(known)
        against = {watch.name: watch.against for watch in self._watches if watch.has_begun}
        return Decision(
            run=known.run,
            look=self._number,
            decision=self._verdict,
            metric=metric,
            reasons=tuple(reasons + self._warnings(known)),
            requests_needed=math.ceil(needed) if needed < math.inf else None,
            next_percent=self._next if self._verdict == "advance" else None,
            evidence=against,
        )

    def standing(self) -> Standing:
        """Where the rollout stands after the last look."""
        known, discount = self._known, self._discount()
        found = []
        for watch in self._watches:
            if not watch.is_told or known is None:
                missing = "not told by the looks" + (", and required" if watch.required else "")
                found.append(GuardrailStanding(watch.name, "", 0.0, not watch.required, missing, None))
                continue
            ahead = watch.promotion(self._promotes_at, discount) if watch.has_begun else watch.warming_up(known)
            needed = math.ceil(ahead.requests_needed) if ahead.requests_needed < math.inf else None
            words = watch.words() if watch.has_begun else ""
            found.append(
                GuardrailStanding(watch.name, words, watch.against * discount, ahead.reached, ahead.missing, needed)
            )
        return Standing(self._against()[0], self._rolls_back_at, self._promotes_at, tuple(found))

    def _rollback_reasons(self) -> list[str]:
        if self._metric is None:
            return [
                f"the maximum of {_duration(self._policy.maximum_s or 0.0)} has passed without enough evidence to promote"
            ]
        total = self._against()[0]
        reasons = [
            f"evidence {evidence_text(total)} that the canary is worse; {evidence_text(self._rolls_back_at)} rolls it back"
        ]
        ordered = sorted(self._watches, key=lambda watch: watch.name != self._metric)
        return [f"{ordered[0].name}: {ordered[0].words()}", *reasons]

    def _promotion_reasons(self) -> list[str]:
        level = f"evidence {evidence_text(self._promotes_at)} or more each that it is not worse by the margin"
        told = [f"{watch.name}: {watch.words()}" for watch in self._watches if watch.is_told]
        return [level, *told, *self._not_told()]

    def _hold_reasons(self, known: Look) -> tuple[list[str], str | None, float]:
        """Reasons, the metric that most is missing of, and the requests that a promotion needs."""
        share = self._share(known)
        if self._warm is None:
            missing = self._policy.warm_up_requests - known.canary.requests
            wait = f"the canary has answered {known.canary.requests:,} of {self._policy.warm_up_requests:,} requests"
            if missing <= 0:
                wait = f"{known.seconds:g} of {self._policy.warm_up_s:g} s have passed"
            return [f"warming up: {wait}", *self._late(known)], None, math.inf
        requests_missing, seconds_missing = self._minimum_missing()
        reasons: list[str] = []
        needed = requests_missing / share if requests_missing and share else 0.0
        if requests_missing and not share:
            needed = math.inf
        if requests_missing:
            reasons.append(f"the canary has {requests_missing:,.0f} requests less at this step than the minimum")
        if seconds_missing:
            reasons.append(f"the step is {_duration(seconds_missing)} shorter than the minimum")
        is_told = any(watch.is_told for watch in self._watches)
        if is_told and not requests_missing and not seconds_missing and not self._had_minimum:
            reasons.append("stable has answered next to nothing at this step, so that there is nothing to compare with")
        metric, discount = None, self._discount()
        for watch in self._watches:
            if not watch.is_told:
                continue
            found = watch.promotion(self._promotes_at, discount) if watch.has_begun else watch.warming_up(known)
            if found.reached:
                continue
            counted = f"; {watch.words()}" if watch.has_begun else ""
            reasons.append(
                f"{watch.name}: {found.missing}{_lasting(found.requests_needed, known, self._step)}{counted}"
            )
            if metric is None or found.requests_needed > needed:
                metric = watch.name
            needed = max(needed, found.requests_needed)
        against, leaning = self._against()
        if against >= _LEANING * self._rolls_back_at:
            metric = leaning
            reasons.insert(
                0,
                f"{leaning}: evidence {evidence_text(against)} against the canary, {evidence_text(self._rolls_back_at)} rolls it back",
            )
        for watch in self._leaning_while_cold():
            metric = watch.name
            if not watch.has_begun:
                continue  # that it is warming up is said
            slow = f"evidence {evidence_text(watch.leaning * discount)} against the canary"
            reasons.insert(0, f"{watch.name}: {slow} in its warm-up; nothing goes on until it is seen warm")
        for watch in self._watches:
            obstacle = watch.obstacle() if self._had_minimum else ""
            if obstacle:
                metric, needed = watch.name, math.inf
                reasons.insert(0, f"{watch.name}: {obstacle}")
        if not is_told:
            reasons.append("looks tell nothing that a guardrail is of")
            needed = math.inf
        if self._verdict == "advance":
            reasons.insert(0, f"the step has had its minimum and nothing is against the next, {self._next:g} %")
        missing = self._not_told()
        if any(watch.required and not watch.is_told for watch in self._watches):
            needed = math.inf
        return [*reasons, *missing, *self._late(known)], metric, needed

    def _not_told(self) -> list[str]:
        return [
            f"{watch.name}: not told by the looks, {'and required' if watch.required else 'not judged'}"
            for watch in self._watches
            if not watch.is_told
        ]

    def _late(self, known: Look) -> list[str]:
        if self._policy.maximum_s is None or known.seconds < self._policy.maximum_s:
            return []
        return [f"the maximum of {_duration(self._policy.maximum_s)} has passed: a person has to decide"]

    def _warnings(self, known: Look) -> list[str]:
        found = [
            f"warning: {watch.name}: {text}"
            for watch in self._watches
            for text in [watch.warning(self._rolls_back_at)]
            if text
        ]
        if self._log_split(known) >= self._rolls_back_at:
            canary, stable = _units(known)
            percent = f", {known.percent:g} % was asked for" if self._split_began is None else " over all steps"
            found.append(
                f"warning: split: the canary got {100 * canary / (canary + stable):.3g} % of the traffic{percent}; "
                "is it routed at random?"
            )
        return found

    def _share(self, known: Look) -> float:
        """The canary's of the traffic at this step."""
        if known.percent is not None and 0 < known.percent < 100:
            return known.percent / 100
        total = known.canary.requests + known.stable.requests
        return known.canary.requests / total if total else self._policy.steps[0] / 100


def _is_before(one: Look, other: Look | None) -> bool:
    return other is not None and one.canary.requests < other.canary.requests


def _lasting(requests: float, known: Look, since: Look | None) -> str:
    """About how many requests that is, and how long at the rate since the step began; empty: it cannot be told."""
    if requests == math.inf:
        return ""
    before, seconds = (since.canary.requests + since.stable.requests, since.seconds) if since is not None else (0, 0.0)
    had, passed = known.canary.requests + known.stable.requests - before, known.seconds - seconds
    rate = had / passed if passed > 0 else 0.0
    lasting = f", {_duration(requests / rate)} at {rate:.3g} a second" if rate else ""
    return f", about {math.ceil(requests):,} requests more{lasting}"


def _units(look: Look) -> tuple[int, int]:
    """What was randomised, of the canary and of stable: users where they are told, else requests."""
    if look.canary.affinity_keys is not None and look.stable.affinity_keys is not None:
        return look.canary.affinity_keys, look.stable.affinity_keys
    return look.canary.requests, look.stable.requests


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
