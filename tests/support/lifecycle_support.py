"""A server that runs in a test's own process, with what it needs of that process stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dataplane_support import Doubler
from http_support import Answer, Raw
from rest_support import wire
from serinus import Model, ModelSettings
from serinus.server import lifecycle
from serinus.server.file_watch import FileWatch
from serinus.server.lifecycle import Launch, _Stop
from serinus.settings import ServerSettings

__all__ = ["HOST", "Bound", "Life", "ask", "launch_of", "note_collections", "reasons_of"]

HOST = "127.0.0.1"


class Bound:
    """Stands for `ExitBound`, whose signals are the process's."""

    def __init__(self, wish: _Stop) -> None:
        self.wish = wish
        self.done: list[Any] = []

    def listen(self) -> None:
        self.done.append("listen")

    def begin(self) -> None:
        self.done.append("begin")
        self.wish.ask()

    def settle(self, status: int) -> None:
        self.done.append(status)


class Life:
    """A server that runs in this process."""

    def __init__(self, launch: Launch) -> None:
        self.wish = _Stop()
        self.bound = Bound(self.wish)
        self.watch = FileWatch()
        self.ports: asyncio.Future[tuple[int, int | None]] = asyncio.get_running_loop().create_future()
        served = lifecycle._serve(launch, self._announce, self.wish, self.bound, self.watch)  # type: ignore[arg-type] # as far as it is asked
        self.status = asyncio.ensure_future(served)

    def _announce(self, *ports: Any) -> None:
        self.ports.set_result(ports)

    async def announced(self) -> tuple[int, int | None]:
        """The ports of REST and gRPC."""
        await asyncio.wait({self.ports, self.status}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        if not self.ports.done():
            self.status.result()
        return self.ports.result()

    async def ended(self) -> int:
        """The status, once it has ended as it is wished."""
        self.wish.ask()
        return await asyncio.wait_for(self.status, 20)


def launch_of(*models: str, factory: Callable[[ModelSettings], Model] = Doubler, **fields: Any) -> Launch:
    """One model "m" unless told, over REST alone unless told."""
    own = {name: fields.pop(name) for name in list(fields) if name in Launch.__dataclass_fields__}
    chosen = {"host": HOST, "http_port": 0, "grpc_port": 0, "enable_grpc": False, "drain_timeout_s": 2.0, **fields}
    named = [ModelSettings(name=name, warmup=False) for name in models or ("m",)]
    return Launch(**{"server": ServerSettings(**chosen), "models": named, "factory": factory, **own})


def note_collections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is asked of the collector, whose freezing would be this test process's for good."""
    done: list[str] = []
    collector = SimpleNamespace(collect=lambda: done.append("collect"), freeze=lambda: done.append("freeze"))
    monkeypatch.setattr(lifecycle, "gc", collector)
    return done


async def ask(port: int, path: str) -> Answer:
    client = await Raw.open(port)
    try:
        await client.send(wire("GET", path))
        return await client.answer()
    finally:
        await client.close()


async def reasons_of(port: int) -> dict[str, str]:
    """Why models are not served, by name, as the index of the repository tells it."""
    client = await Raw.open(port)
    try:
        await client.send(wire("POST", "/v2/repository/index", {}))
        return {entry["name"]: entry.get("reason", "") for entry in (await client.answer()).json}
    finally:
        await client.close()
