"""Both arms of a look, made of the ledger's totals and held against one another."""

from __future__ import annotations

from dataclasses import replace

from .ledger import Ledger
from .revision_counts import ErrorClasses, arm_of, score_bins
from .source import ArmNames, Observation

__all__ = ["observation_of"]


def observation_of(ledger: Ledger, names: ArmNames, errors: ErrorClasses, silent: list[str]) -> Observation:
    """Make an observation.

    Args:
        ledger: with what this look has entered.
        names: the arms.
        errors: which classes are errors.
        silent: arms of which this look has heard nothing, in words; each is a problem.
    """
    problems = [*ledger.problems, *silent]
    notes = list(ledger.notes)
    arms = []
    for revision in (names.stable, names.canary):
        arm, wrong = arm_of(ledger.totals.get(revision, {}), errors)
        problems += [f"{revision}: {each}" for each in wrong]
        arms.append(arm)
    stable, canary = arms
    if stable.latency is not None and canary.latency is not None and stable.latency.le_s != canary.latency.le_s:
        notes.append(
            "the arms' latencies have different buckets and are not compared; serve both with one version of serinus"
        )
    if stable.latency is None or canary.latency is None or stable.latency.le_s != canary.latency.le_s:
        stable, canary = replace(stable, latency=None), replace(canary, latency=None)
    bins = [score_bins(ledger.totals.get(revision, {})) for revision in (names.stable, names.canary)]
    if bins[0] != bins[1] or not bins[0]:
        if any(bins):
            notes.append(
                "the arms' scores have different outputs or bins and are not compared; declare one score for both"
            )
        stable, canary = replace(stable, score=None), replace(canary, score=None)
    return Observation(stable, canary, tuple(problems), tuple(notes))
