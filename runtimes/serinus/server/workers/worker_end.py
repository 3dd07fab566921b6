"""A worker's end of the channel to its supervisor: answers it, and asks it for what concerns all workers."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from ... import errors
from ...dataplane.plane import Plane
from ...dataplane.telemetry.metrics import Metrics
from ...errors import SerinusError
from .worker_channel import Channel

__all__ = ["WorkerEnd", "end_with_parent"]

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the supervisor is gone, however it went (prctl(2)): a worker whose loop is held reads no channel."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class WorkerEnd:
    """This process as one of several: answers its supervisor and asks it."""

    def __init__(self, channel: Channel, plane: Plane, stop: Callable[[], None]) -> None:
        self._channel = channel
        self._plane = plane
        self._metrics = plane.metrics
        self._stop = stop
        self.go = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, **message: Any) -> None:
        """Tell the supervisor."""
        self._channel.send(**message)

    async def listen(self) -> None:
        """Follow the supervisor until it is gone; then stop."""
        async for message in self._channel.messages():
            kind = message["type"]
            if kind == "go":
                self.go.set()
            elif kind == "collect":
                self.send(type="snapshot", id=message["id"], data=self._metrics.snapshot())
            elif kind == "do":
                task = asyncio.ensure_future(self._do(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif kind in {"merged", "done"}:
                future = self._waiting.pop(message["id"], None)
                if future is not None and not future.done():
                    future.set_result(message)
        self._stop()

    async def _do(self, message: dict[str, Any]) -> None:
        error = None
        try:
            if message["action"] == "load":
                await self._plane.load(message["name"], message["parameters"])
            else:
                await self._plane.unload(message["name"], message["parameters"])
        except SerinusError as failure:
            error = [type(failure).__name__, str(failure)]
        self.send(type="applied", id=message["id"], error=error)

    async def _ask(self, **message: Any) -> dict[str, Any]:
        self._next += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = future
        self.send(id=self._next, **message)
        return await future

    async def metrics_page(self) -> bytes:
        """Render the metrics of all workers together."""
        answer = await self._ask(type="metrics")
        return Metrics.render_merged(answer["snapshots"])

    async def statistics(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Add up the statistics of all workers."""
        answer = await self._ask(type="metrics")
        return Metrics.merged_statistics(answer["snapshots"])

    async def apply(self, action: str, name: str, parameters: dict[str, Any]) -> None:
        """Load or unload on every worker.

        Raises:
            SerinusError: the first worker's refusal.
        """
        # No parameter takes bytes, which the channel cannot carry either: its name is what the refusal is about.
        parameters = {key: "" if isinstance(value, bytes) else value for key, value in parameters.items()}
        answer = await self._ask(type="apply", action=action, name=name, parameters=parameters)
        if answer["error"] is not None:
            kind, text = answer["error"]
            raise getattr(errors, kind, SerinusError)(text)
