"""One JSON object a line over a socket: how the supervisor of `--workers N` and its workers talk.

Messages, by their `type`:

worker to supervisor
    ready       the models are loaded; carries nothing
    listening   the ports are open: `http_port`, `grpc_port` (null where there is none)
    snapshot    answer to `collect` with the same `id`: `data` is the worker's metrics snapshot
    metrics     please collect from everybody: `id`
    apply       please do this on every worker: `id`, `action` (load, unload), `name`, `parameters`
    applied     answer to `do` with the same `id`: `error` is null or [kind, message]
supervisor to worker
    go          all workers of the first round are ready: open the ports
    collect     send your snapshot: `id`
    merged      answer to `metrics` with the same `id`: `snapshots`
    do          `id`, `action`, `name`, `parameters`
    done        answer to `apply` with the same `id`: `error` is null or [kind, message]

The end of the stream is a message too: a worker whose supervisor is gone drains and stops, so nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

__all__ = ["Channel"]

_LINE_BYTES = 64 * 1024 * 1024  # a snapshot of some thousand series is ~1 MB


class Channel:
    """Both directions of one control socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Channel:
        """Wrap a connected socket; the channel closes it."""
        reader, writer = await asyncio.open_connection(sock=sock, limit=_LINE_BYTES)
        return cls(reader, writer)

    def send(self, **message: Any) -> None:
        """Queue one message; a peer that has gone is no error, its end shows in `messages`."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what the peer says until it closes."""
        while True:
            try:
                line = await self._reader.readline()
            except (ConnectionError, ValueError):
                return
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)

    async def close(self) -> None:
        """Close both directions."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            await self._writer.wait_closed()
