"""Pods of a revision replaced one after another, and taken away: the rolling restart.

Theory of operation. A new pod is ready, and the gateway reaches it, before the old one drains and ends. A new process that cannot start, or that
the gateway does not reach, ends the restart with the old one in place. One restart at a time; while it goes on a revision has one pod more than it asks for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from ...errors import ConfigError
from .revision import Pod, Revision

__all__ = ["PodRotation"]

_REACH_S = 120.0
"""Longest wait for the gateway's own check of a new process that is ready; it takes milliseconds, and seconds where the cores are others'."""
_PAUSE_S = 0.2


class PodRotation:
    """Replaces pods.

    Args:
        publish: tells the gateway what is there, and says whether it has taken it.
        drain: lets pods finish what they have, and stops them.
        say: gets lines about what is done.
    """

    def __init__(
        self,
        *,
        publish: Callable[[], Awaitable[bool]],
        drain: Callable[[Sequence[Pod]], Awaitable[None]],
        say: Callable[[str], None],
    ) -> None:
        self._publish = publish
        self._drain = drain
        self._say = say
        self._lock = asyncio.Lock()

    async def shrink(self, revision: Revision) -> None:
        """Drain and stop the pods that a revision has beyond those that its plan asks for."""
        async with self._lock:  # a rolling restart has one pod more for a while
            extra = revision.pods[revision.plan.replicas :]
            await self._drain(extra)
            for pod in extra:
                revision.pods.remove(pod)
        await self._publish()

    async def roll(self, digests: Sequence[str], find: Callable[[str], Revision | None]) -> list[str]:
        """Replace every process of some revisions by a new one, one pod after another, losing no request.

        Args:
            digests: of the revisions.
            find: gives the one that runs now, if it still does.

        Returns:
            Names of those that run.

        Raises:
            ConfigError: a new process ends again and again; the old one stays.
        """
        done = []
        async with self._lock:
            for digest in digests:
                revision = find(digest)
                if revision is not None:
                    await self._roll(revision)
                    done.append(revision.name)
        return done

    async def _wait_new(self, revision: Revision, new: Pod) -> Pod:
        """Wait until a new pod is ready, and the gateway reaches it; gives the one that is, which may be its successor.

        Raises:
            ConfigError: a process of it ends again and again, or the gateway does not reach it for long.
        """
        ready = asyncio.create_task(new.wait_ready(), name=f"new pod of {revision.name}")
        try:
            while not ready.done():
                await asyncio.wait({ready}, timeout=_PAUSE_S)
                _refuse_loop(revision, new.latest)
        finally:
            ready.cancel()
        end = time.monotonic() + _REACH_S
        # It may die once it was ready: what the gateway has taken then is that it is gone.
        while not (await self._publish() and new.latest.is_reached):
            _refuse_loop(revision, new.latest)
            if time.monotonic() > end:
                raise ConfigError(
                    f"{revision.name}: the gateway has not reached the new process within {_REACH_S:.0f} s; the old one stays. "
                    "serinus logs gateway says more"
                )
            await asyncio.sleep(_PAUSE_S)
        return new.latest

    async def _roll(self, revision: Revision) -> None:
        self._say(f"{revision.name}: rolling restart")
        for old in list(revision.pods):
            new = revision.new_pod()
            revision.pods.append(new)
            new.start(aside=True)
            try:
                new = await self._wait_new(revision, new)
            except (asyncio.CancelledError, ConfigError):
                new = new.latest
                if new in revision.pods:
                    revision.pods.remove(new)
                await new.stop()
                raise
            await self._drain([old])
            if old in revision.pods:
                revision.pods.remove(old)
            await self._publish()
        self._say(f"{revision.name}: restarted")


def _refuse_loop(revision: Revision, pod: Pod) -> None:
    looping = [process for process in pod.processes if process.is_crash_looping]
    if looping:
        told = "\n".join(f"  {line}" for line in list(looping[0].log.last_lines)[-10:])
        raise ConfigError(
            f"{revision.name}: the new process {looping[0].last_exit}, {looping[0].restarts} times; the old one stays. "
            f"Its last lines:\n{told}"
        )
