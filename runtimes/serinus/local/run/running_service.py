"""One InferenceService as it runs: its plan, what has become of it so far, and its traffic."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from ..plan.deployment_plan import ServicePlan, Track
from ..plan.rollout import Rollout, Share, shares, standard_shares
from ..plan.routing_table import RoutedService

__all__ = ["RunningService"]


@dataclass(slots=True)
class RunningService:
    """One InferenceService as it runs."""

    plan: ServicePlan
    rollout: Rollout = field(default_factory=Rollout)
    chains: dict[str, Track] = field(default_factory=dict)
    """Every chain seen, by its entry's digest: a rollback finds the earlier one here."""
    ready_canaries: dict[str, str] = field(default_factory=dict)
    """Entry digest by name, of the canaries that are ready."""
    percent: int | None = None
    """canaryTrafficPercent in force: the manifest's, or what `set_traffic` put in its place."""
    canary_percents: dict[str, int] = field(default_factory=dict)
    """trafficPercent in force, by canary."""
    mirror: tuple[str, int] | None = None
    """A canary's name (empty: the newest revision) and the percentage of the requests of which it gets a copy."""
    warm_until: float = 0.0
    """Until when the version before a promotion is kept running, on the monotonic clock."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when everything that the plan asks for is ready and routed."""
    problem: str = ""
    """What keeps it from being settled, in words."""
    task: asyncio.Task[None] | None = None

    def split(self) -> tuple[Share, ...]:
        """The traffic now, by entry digest."""
        stable = shares(self.rollout, self.percent)
        canaries = [(name, digest, self.canary_percents.get(name, 0)) for name, digest in self.ready_canaries.items()]
        return standard_shares(stable, canaries) if stable else ()

    def routed(self) -> RoutedService:
        """The service and its traffic now, for the gateway and for `status`."""
        chains = tuple((share, self.chains[share.revision]) for share in self.split())
        copied = None
        if self.mirror is not None:
            name, percent = self.mirror
            # A canary that has been promoted, or has gone, gets no copies any more.
            tags = [share.tag for share, _ in chains]
            if (name or "latest") in tags and len(tags) > 1 and percent:
                copied = (chains[tags.index(name or "latest")][1], percent)
        return RoutedService(self.plan, chains, copied)

    def warm(self) -> Track | None:
        """The chain that was stable before the promotion, while it is kept."""
        left = self.warm_until - time.monotonic()
        return self.chains.get(self.rollout.previous) if left > 0 else None

    def needed(self) -> set[str]:
        """Digests of every revision that it refers to, under way or running."""
        if self.plan.stopped:
            return set()
        tracks = [self.plan.stable, *self.plan.canaries]
        tracks += [self.chains[share.revision] for share in shares(self.rollout, self.percent)]
        warm = self.warm()
        tracks += [warm] if warm is not None else []
        return {component.digest for track in tracks for component in (track.predictor, track.entry)}
