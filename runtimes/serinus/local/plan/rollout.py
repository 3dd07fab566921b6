"""Which revision gets which share, by Knative's and KServe's rules. Pure.

Source: ksvc_reconciler.go 132-164 (traffic) and status.go 567-636 (bookkeeping) of KServe 0.21. The first revision of a
service gets everything whatever `canaryTrafficPercent` says. With a percentage the newest gets it and the last that had
100 keeps the rest; without one, or with 100, the newest is rolled out. A percentage on a revision that is already rolled
out goes back: the one before becomes the rolled-out one again, so 0 after a promotion is a rollback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Rollout", "Share", "advance", "shares", "standard_shares"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What KServe keeps in `status.components.predictor`; revisions by digest, empty: none."""

    latest: str = ""
    rolled_out: str = ""
    previous: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """A revision's part of the traffic, percent; tag `latest`, `prev`, or a canary's name."""

    revision: str
    percent: int
    tag: str


def advance(rollout: Rollout, newest: str, percent: int | None) -> Rollout:
    """The books after `newest` has become ready."""
    if not rollout.rolled_out:
        return Rollout(newest, newest, "")
    if percent is None or percent >= 100:
        if newest == rollout.rolled_out:
            return Rollout(newest, newest, rollout.previous)
        return Rollout(newest, newest, rollout.rolled_out)
    if newest == rollout.rolled_out and rollout.previous:
        return Rollout(newest, rollout.previous, "")
    return Rollout(newest, rollout.rolled_out, rollout.previous)


def shares(rollout: Rollout, percent: int | None) -> tuple[Share, ...]:
    """The stable track's split."""
    if not rollout.latest:
        return ()
    if percent is None or percent >= 100 or rollout.latest == rollout.rolled_out:
        return (Share(rollout.latest, 100, "latest"),)
    return (Share(rollout.latest, percent, "latest"), Share(rollout.rolled_out, 100 - percent, "prev"))


def standard_shares(stable: Sequence[Share], canaries: Sequence[tuple[str, str, int]]) -> tuple[Share, ...]:
    """The split with `spec.canary`: each ready canary its percentage, the stable track the rest.

    Args:
        stable: the stable track's own split (one revision in Standard mode).
        canaries: name, revision and percent of every canary that is ready; others get nothing (httproute 684-743).
    """
    taken = sum(percent for _, _, percent in canaries)
    rest = tuple(Share(share.revision, share.percent * (100 - taken) // 100, share.tag) for share in stable)
    return (*rest, *(Share(revision, percent, name) for name, revision, percent in canaries))
