"""One JSON object a line over a socket: how the supervisor of `--workers N` and its workers talk.

Messages, by their `type`:

worker to supervisor
    ready       the models are loaded: `loaded` (name to version to its files)
    listening   the ports are open: `http_port`, `grpc_port` (null where there is none)
    pong        answer to `ping`, from the worker's event loop: `data` is a metrics snapshot, or null
    snapshot    answer to `collect` with the same `id`: `data` is the worker's metrics snapshot
    metrics     please collect from everybody: `id`
    apply       please do this on every worker: `id`, `action` (load, unload), `name`, `parameters`
    prepared    answer to `prepare` with the same `id`: `error` is null or [kind, message], `versions` those that the name will have, with
                their files
    committed   answer to `commit` or `discard` with the same `id`: `error` is null or [kind, message]
    restored    answer to `restore` with the same `id`: `loaded`, and `problems` (texts)
    memory      this worker's memory has passed its share: `reason`
supervisor to worker
    begin       load: `present` is null (what the command line says) or the set that the other workers have
    go          open the ports
    ping        answer, if your event loop turns
    collect     send your snapshot: `id`
    merged      answer to `metrics` with the same `id`: `snapshots`
    prepare     do all of it but its effect: `id`, `action`, `name`, `parameters`
    commit      have it happen: `id`, `change`
    discard     give it up: `id`
    restore     bring your models to this set: `id`, `present`
    done        answer to `apply` with the same `id`: `error` is null or [kind, message]
    retire      drain and end, for a clean start

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
