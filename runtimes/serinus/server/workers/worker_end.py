"""A worker's end of the channel to its supervisor: answers it, and asks it for what concerns all workers.

A load or unload comes in two messages. `prepare` does all that can fail; the change is then held until `commit` or `discard`. Between the two the name
is busy, and this worker answers by what it had.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from ... import errors
from ...dataplane.plane import Plane
from ...dataplane.registry import Staged
from ...dataplane.telemetry.metrics import Metrics
from ...errors import ModelFailed, SerinusError
from ...settings import ModelSettings
from .worker_channel import Channel

__all__ = ["WorkerEnd", "end_with_parent"]

_log = logging.getLogger("serinus.workers")

_PR_SET_PDEATHSIG: Final = 1
_SNAPSHOT_SHARE: Final = 100


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the supervisor is gone, however it went (prctl(2)): a worker whose loop is held reads no channel."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class WorkerEnd:
    """This process as one of several.

    Args:
        channel: to the supervisor.
        plane: whose models are loaded and unloaded.
        stop: has this process drain and end.
        models: what a start loads, in all versions.
        broken: name to reason of what it cannot, or could not on the others.
    """

    def __init__(
        self,
        channel: Channel,
        plane: Plane,
        stop: Callable[[], None],
        *,
        models: Sequence[ModelSettings],
        broken: Mapping[str, str],
    ) -> None:
        self._channel = channel
        self._plane = plane
        self._stop = stop
        self._models = models
        self._broken = broken
        self.go = asyncio.Event()
        """Set when the ports may be opened."""
        self._present: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._staged: tuple[str, Staged] | None = None
        self._changes: dict[str, int] = {}
        """The number of the change that each name's models come from; see `PresentModels`."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_snapshot = 0.0
        plane.registry.notes_files = True

    def send(self, **message: Any) -> None:
        """Tell the supervisor."""
        self._channel.send(**message)

    async def present(self) -> dict[str, Any] | None:
        """Wait to be told what to load: the set of the other workers; None: what the command line says."""
        return await self._present

    def say_ready(self) -> None:
        """Tell the supervisor that the models are loaded."""
        self.send(type="ready", loaded=self._plane.loaded())

    async def listen(self) -> None:
        """Follow the supervisor until it is gone; then stop."""
        async for message in self._channel.messages():
            kind = message["type"]
            if kind == "ping":
                self.send(type="pong", data=self._snapshot_in_turn())
            elif kind == "begin":
                self._present.set_result(message["present"])
            elif kind == "go":
                self.go.set()
            elif kind == "retire":
                self._stop()
            elif kind == "collect":
                self.send(type="snapshot", id=message["id"], data=self._plane.metrics.snapshot())
            elif kind == "prepare":
                self._spawn(self._prepare(message))
            elif kind == "commit":
                self._spawn(self._end_change(message, self._commit(message["change"])))
            elif kind == "discard":
                self._spawn(self._end_change(message, self._discard()))
            elif kind == "restore":
                self._spawn(self._restore(message))
            elif kind in {"merged", "done"}:
                future = self._waiting.pop(message["id"], None)
                if future is not None and not future.done():
                    future.set_result(message)
        self._stop()

    async def restore(self, present: Mapping[str, Any]) -> list[str]:
        """Bring this worker's models to the set of the others.

        Returns:
            What could not be done.
        """
        changed = {name for name, one in present.items() if self._changes.get(name, 0) != one["change"]}
        problems = await self._plane.restore(
            {name: (one["versions"], one["parameters"]) for name, one in present.items()},
            self._models,
            changed=changed,
            broken=self._broken,
        )
        self._changes = {name: one["change"] for name, one in present.items()}
        return problems

    async def metrics_page(self) -> bytes:
        """Render the metrics of all workers together."""
        answer = await self._ask(type="metrics")
        return Metrics.render_merged(answer["snapshots"])

    async def statistics(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Add up the statistics of all workers."""
        answer = await self._ask(type="metrics")
        return Metrics.merged_statistics(answer["snapshots"])

    async def apply(self, action: str, name: str, parameters: dict[str, Any]) -> None:
        """Load or unload on every worker, or on none.

        Raises:
            SerinusError: why it is done on none.
        """
        # No parameter takes bytes, which the channel cannot carry either: its name is what the refusal is about.
        parameters = {key: "" if isinstance(value, bytes) else value for key, value in parameters.items()}
        answer = await self._ask(type="apply", action=action, name=name, parameters=parameters)
        if answer["error"] is not None:
            kind, text = answer["error"]
            raise getattr(errors, kind, SerinusError)(text)

    def _snapshot_in_turn(self) -> Any:
        """Take a snapshot for the case that this worker dies, as often as a hundredth of its time allows; None: not now."""
        now = time.monotonic()
        if now < self._next_snapshot:
            return None
        data = self._plane.metrics.snapshot()
        self._next_snapshot = now + _SNAPSHOT_SHARE * (time.monotonic() - now)
        return data

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare(self, message: Mapping[str, Any]) -> None:
        error, versions = None, {}
        try:
            action, name = message["action"], message["name"]
            staged = await self._plane.stage(action, name, message["parameters"])
            self._staged = (name, staged)
            versions = {settings.version: dict(servable.files) for settings, _, servable, _ in staged.loaded}
        except Exception as failure:  # noqa: BLE001 # the edge of a request: whatever it is, the supervisor waits for it
            error = _told(failure)
        self.send(type="prepared", id=message["id"], error=error, versions=versions)

    async def _commit(self, change: int) -> None:
        if self._staged is not None:
            name, staged = self._staged
            self._staged = None
            self._changes[name] = change
            await self._plane.commit(staged)

    async def _discard(self) -> None:
        if self._staged is not None:
            _, staged = self._staged
            self._staged = None
            await self._plane.discard(staged)

    async def _end_change(self, message: Mapping[str, Any], work: Awaitable[None]) -> None:
        error = None
        try:
            await work
        except Exception as failure:  # noqa: BLE001 # as above
            error = _told(failure)
        self.send(type="committed", id=message["id"], error=error)

    async def _restore(self, message: Mapping[str, Any]) -> None:
        try:
            problems = await self.restore(message["present"])
        except Exception as failure:  # noqa: BLE001 # as above
            problems = [_told(failure)[1]]
        self.send(type="restored", id=message["id"], loaded=self._plane.loaded(), problems=problems)

    async def _ask(self, **message: Any) -> dict[str, Any]:
        self._next += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = future
        self.send(id=self._next, **message)
        return await future


def _told(error: Exception) -> list[str]:
    """Write an error as the channel carries it: its class by name, and what a client reads."""
    if isinstance(error, SerinusError):
        return [type(error).__name__, str(error)]
    _log.exception("a change of the models failed", exc_info=error)
    return [ModelFailed.__name__, "the models could not be changed; the server's log has the details"]
