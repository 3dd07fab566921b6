"""Whose traffic is moved, behind one interface: what a target says of itself, and what it is asked to do.

Theory of operation. The controller looks at a target (`state`), decides, and asks for one change, naming the state that it decided on. A target
refuses where what it finds is not that state any more (`TargetChanged`): somebody else has edited the service, and nobody decides on what they
have not seen. A change is one request that is done or not; what takes several (a promotion that rolls pods) is named by a phase that is kept
with the service, so that whoever comes next goes on from there.

Every change can also be told instead of made: `planned` gives it as a JSON patch (RFC 6902) that kubectl and kustomize take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ...errors import SerinusError
from ..sources.pod_scrape import Endpoint

__all__ = ["Action", "Change", "Target", "TargetChanged", "TargetFailed", "TargetGone", "TargetState"]

Action = Literal["percent", "shadow", "promote", "rollback", "finish", "restore"]
"""Move traffic, send copies of requests, make the canary stable, give everything back to stable, let go of what was kept warm, describe the old
version again."""


class TargetFailed(SerinusError):
    """The target cannot be reached, or refuses; the message says what was asked, what it said and how to mend it."""


class TargetGone(TargetFailed):
    """There is no service of that name."""


class TargetChanged(TargetFailed):
    """Somebody else has changed the service since it was looked at; nothing was done."""


@dataclass(frozen=True, slots=True)
class TargetState:
    """A service and its canary at one moment."""

    service: str
    """`namespace/name`."""
    mode: str
    """Knative, Standard or local."""
    stable: str
    """Its revision, as the metrics call it."""
    canary: str
    """Its revision; empty: there is none."""
    percent: int | None
    """Of the traffic, that the service asks for; None: there is no canary."""
    served_percent: int | None
    """That is in force, as far as the target says."""
    ready: bool
    """The canary takes traffic."""
    model: str
    """Name of the model, for the metrics."""
    version: str
    """Changes with every edit that anybody makes to the specification."""
    problems: tuple[str, ...] = ()
    """Why nothing can be moved; empty: it can."""
    notes: tuple[str, ...] = ()
    """What whoever reads the report should know."""
    warm: str = ""
    """Without a canary: the revision that was stable before a promotion and can have all traffic back at once."""
    image_only: bool = False
    """Standard mode: the versions differ in their image alone, and promotion rolls stable's pods."""
    shadow: int = 0
    """Percent of the requests that the canary gets a copy of."""
    identity: str = ""
    """Another one of a service that was deleted and created again under its name; empty: not told."""
    policy: str = ""
    """Text of the annotation serinus.dev/canary-policy; empty: there is none."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change, as it would be made."""

    words: str
    patch: Sequence[Mapping[str, Any]] = ()
    """Operations of a JSON patch on the InferenceService; empty: nothing is to be changed."""
    notes: tuple[str, ...] = field(default=())


class Target(Protocol):
    """A service whose traffic can be moved."""

    keeps_warm: bool
    """After a promotion the old version can be kept running without traffic."""
    lets_go: bool
    """What is kept warm is let go by the target itself when its time is over."""
    can_shadow: bool
    """Copies of requests can be sent to the canary."""
    can_restore: bool
    """After a rollback the service still describes the new version, and the old one's description is at hand."""

    def state(self) -> TargetState:
        """Look.

        Raises:
            TargetFailed: the service is not there, or the target does not answer.
        """
        ...

    def planned(self, action: Action, percent: int, seen: TargetState) -> Change:
        """Tell a change without making it; the arguments are those of `change`."""
        ...

    def change(self, action: Action, percent: int, seen: TargetState) -> Change:
        """Make a change.

        Args:
            action: what.
            percent: of the traffic; for `percent` alone.
            seen: the state that the change was decided on.

        Raises:
            TargetChanged: the service is not as it was seen.
            TargetFailed: refused, or no answer. Asking again is safe.
        """
        ...

    def is_settled(self, action: Action, percent: int) -> bool:
        """Tell whether a change is in force."""
        ...

    def endpoints(self) -> list[Endpoint]:
        """Whom to ask for metrics."""
        ...

    def load_record(self) -> dict[str, Any] | None:
        """Give what a controller has kept with the service; None: nothing."""
        ...

    def save_record(self, record: Mapping[str, Any] | None) -> None:
        """Keep something with the service in place of what was kept; None: remove it.

        Raises:
            TargetChanged: another controller has kept something since it was loaded.
            TargetFailed: no answer, or no right to.
        """
        ...
