"""Carries decisions out: changes of a target, told, repeated where an answer was lost, waited for until they are in force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from ..targets.kubernetes_client import Refused
from ..targets.target import Action, Change, Target, TargetChanged, TargetFailed, TargetGone, TargetState
from .run_events import Tell

__all__ = ["Mover", "of_target"]

_T = TypeVar("_T")

_POLL_S: Final = 1.0
_TRIES: Final = 5
_AGAIN_S: Final = 5.0


class Mover:
    """Moves a target.

    Args:
        target: what is moved.
        tell: takes what happens.
        clock: seconds.
        sleep: waits.
        settle_s: longest wait for a change to be in force.
    """

    def __init__(
        self, target: Target, *, tell: Tell, clock: Callable[[], float], sleep: Callable[[float], None], settle_s: float
    ) -> None:
        self._target = target
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        self._settle_s = settle_s

    def set_percent(self, percent: int, seen: TargetState) -> None:
        """Give the canary a share of the traffic, and wait until it has it.

        Raises:
            TargetChanged, TargetFailed: see `Target.change`; a server that fails is asked again before.
        """
        self._change("percent", percent, seen, lambda now: now.percent == percent)
        self.wait("percent", percent)

    def shadow(self, percent: int, seen: TargetState) -> None:
        """Send the canary a copy of so many percent of the requests; 0 ends it.

        Raises:
            TargetChanged, TargetFailed: as `set_percent`.
        """
        self._change("shadow", percent, seen, lambda _: False)
        self.wait("shadow", percent)

    def promote(self, seen: TargetState) -> TargetState:
        """Promote, in as many changes as the target needs, each of which may be the first that is made here.

        Raises:
            TargetChanged, TargetFailed: as `set_percent`.
        """
        for _ in range(3):
            if not seen.canary:
                break
            before = seen
            self._change("promote", 0, seen, lambda now, before=before: now.canary != before.canary)
            self.wait("promote", 0)
            seen = self.state()
            if before.canary != seen.canary or not seen.image_only:
                break
        return seen

    def roll_back(self, seen: TargetState) -> None:
        """Give everything back to stable; after a promotion to the version that is kept warm.

        Raises:
            TargetChanged, TargetFailed: as `set_percent`.
        """
        if seen.canary or seen.warm:
            self._change("rollback", 0, seen, lambda now: not now.canary or now.percent == 0)
            self.wait("rollback", 0)

    def restore(self) -> None:
        """Have a service that was rolled back describe the old version again, and nothing else have traffic meanwhile.

        Raises:
            TargetChanged, TargetFailed: as `set_percent`.
        """
        seen = self.state()
        self._change("restore", 0, seen, lambda now: now.canary not in ("", seen.canary))
        if self.wait("restore", 0):
            self.promote(self.state())

    def let_go(self, seen: TargetState) -> None:
        """Remove what was kept warm; `seen` is the state before the promotion.

        Raises:
            TargetFailed: as `set_percent`.
        """
        self._change("finish", 0, seen, lambda _: False)

    def _change(self, action: Action, percent: int, seen: TargetState, is_done: Callable[[TargetState], bool]) -> None:
        tries = 0

        def change() -> Change | None:
            nonlocal tries
            tries += 1
            if tries > 1 and self._is_done(is_done):
                return None
            return self._target.change(action, percent, seen)

        made = self._insist(change, final=Refused)
        if made is None:
            self._tell("move", f"{action} was done though its answer was lost", percent=percent, patch=[])
        else:
            self.tell(made, percent if action in ("percent", "shadow") else None)

    def _is_done(self, is_done: Callable[[TargetState], bool]) -> bool:
        try:
            return is_done(self._target.state())
        except TargetFailed:
            return False

    def state(self) -> TargetState:
        """Read the target after a change; a server that fails is asked again.

        Raises:
            TargetChanged: the service is gone.
            TargetFailed: it fails too often.
        """
        return self._insist(self._target.state, words="the target was not heard: ")

    def _insist(self, ask: Callable[[], _T], *, words: str = "", final: type[TargetFailed] = TargetChanged) -> _T:
        """Ask the target, a few times where its server fails, which is told in these words.

        Raises:
            TargetChanged: so it is, or gone.
            TargetFailed: it fails too often, or with a `final` error.
        """
        for left in range(_TRIES - 1, -1, -1):
            try:
                return of_target(ask)
            except (TargetChanged, final):
                raise
            except TargetFailed as error:
                if not left:
                    raise
                self._tell("problem", f"{words}{error}; trying again")
                self._sleep(_AGAIN_S)
        raise AssertionError  # the last try returns or raises

    def tell(self, change: Change, percent: int | None) -> None:
        """Tell a change that was made."""
        self._tell("move", change.words, percent=percent, patch=list(change.patch))
        for note in change.notes:
            self._tell("note", note)

    def wait(self, action: Action, percent: int) -> bool:
        """Wait until a change is in force, or the time for it is over, which is told.

        Returns:
            Whether it is in force.
        """
        deadline = self._clock() + self._settle_s
        while True:
            try:
                if of_target(lambda: self._target.is_settled(action, percent)):
                    return True
            except TargetChanged:
                raise
            except TargetFailed as error:
                self._tell("problem", f"the target was not heard: {error}")
            if self._clock() >= deadline:
                self._tell(
                    "problem",
                    f"the change is not in force after {self._settle_s:g} s; looks are not judged until it is",
                )
                return False
            self._sleep(_POLL_S)


def of_target(ask: Callable[[], _T]) -> _T:
    """Ask a target in the midst of a run.

    Raises:
        TargetChanged: somebody else has changed the service, or deleted it.
        TargetFailed: see `Target`.
    """
    try:
        return ask()
    except TargetGone as error:
        raise TargetChanged(f"somebody else has deleted the service: {error}; nothing was done") from None
