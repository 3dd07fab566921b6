"""The feature store in Redis (or Valkey): one memory for several workers and replicas.

Theory of operation. The rules live in `store.lua`, which runs inside Redis, so the updates of a request are atomic against every
other client, and a request costs one round trip: its chunks and its labels go out in one pipeline. A request of up to
`chunk_rows` rows is one script and so atomic as a whole; a longer one is atomic chunk by chunk, because a script blocks Redis
for everybody (~60 us a row). Numbers travel as little-endian doubles both ways, so they are those of `MemoryStore` to the last bit.

Memory is bounded by expiry: an entity lives `KEEP_DAYS` + 1 days after it was last touched, an id `id_window_s`. Both run on
Redis's own clock. Set `maxmemory-policy` to `volatile-ttl` to make it evict instead of refusing when it is full.

All keys carry one hash tag, so in Redis Cluster they lie in one slot; scale out with one prefix per service.
"""

from __future__ import annotations

import struct
from importlib.resources import files
from typing import Any, Final

import numpy as np

from .schema import Labels
from .store import AGGREGATES, KEEP_DAYS, Batch, Row, StoreStats

try:
    import redis.asyncio as redis
    from redis.exceptions import NoScriptError, RedisError
except ImportError as error:  # pragma: no cover # the extra that brings it is always there in our environments
    raise ImportError(
        "FEATURE_STORE_URL names Redis, but its client is missing: pip install 'serinus[fraud-features]'"
    ) from error

__all__ = ["RedisStore", "StoreUnavailable"]

_SCRIPT: Final = files(__package__ or "fraud_features").joinpath("store.lua").read_text(encoding="utf-8")
_ROW_BYTES: Final = 8 * len(AGGREGATES)
_ROW: Final = struct.Struct(f"<{len(AGGREGATES)}d")


class StoreUnavailable(OSError):
    """Redis could not be reached, or refused; nothing is known to have been counted."""


class RedisStore:
    """`FeatureStore` over redis.asyncio."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "fraud",
        id_window_s: int = 2 * 86400,
        chunk_rows: int = 128,
        timeout_s: float = 2.0,
    ) -> None:
        """Connect on first use.

        Args:
            url: redis://, rediss:// (TLS) or unix://, as redis-py reads it; the path is the database's number.
            prefix: of every key; services with other data need another one.
            id_window_s: time after which an id is forgotten, and a retry counted anew.
            chunk_rows: rows of one script, ~8 ms during which Redis serves nobody else.
            timeout_s: of connecting and of each answer.
        """
        self._url = url
        self._prefix = b"{%s}:" % prefix.encode()
        self._id_window_s = id_window_s
        self._chunk_rows = chunk_rows
        self._client: Any = redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        self._sha = ""
        self._repeated = 0

    async def update(self, batch: Batch) -> list[Row]:
        """Count and look up; see `FeatureStore`."""
        p = self._prefix
        order, calls = batch.order(), []
        for start in range(0, len(batch), self._chunk_rows):
            part = order[start : start + self._chunk_rows]
            keys: list[bytes] = []
            numbers: list[float] = []
            for at in part:
                keys += (p + b"i:" + batch.ids[at], p + b"c:" + batch.customers[at], p + b"t:" + batch.terminals[at])
                numbers += (batch.seconds[at], batch.cents[at], batch.lats[at], batch.longs[at])
            blob = struct.pack(f"<{len(numbers)}d", *numbers)
            calls.append((len(keys), *keys, "update", blob, (KEEP_DAYS + 1) * 86400, self._id_window_s))
        answers = await self._run(calls)
        self._repeated += sum(repeats for _, repeats in answers)
        blob = b"".join(rows for rows, _ in answers)
        if len(batch) == 1:
            return [_ROW.unpack(blob)]
        rows: list[Row] = [()] * len(batch)
        for at, row in zip(order, _ROW.iter_unpack(blob), strict=True):
            rows[at] = row
        return rows

    async def record_labels(self, labels: Labels) -> list[bool]:
        """Record outcomes; see `FeatureStore`."""
        p, calls = self._prefix, []
        for start in range(0, len(labels), self._chunk_rows):
            part = range(start, min(len(labels), start + self._chunk_rows))
            keys: list[bytes] = []
            for at in part:
                keys += (p + b"l:" + labels.ids[at], p + b"c:" + labels.customers[at], p + b"t:" + labels.terminals[at])
            numbers = np.array([(labels.seconds[at], labels.frauds[at]) for at in part], "<f8").tobytes()
            calls.append((len(keys), *keys, "label", numbers, (KEEP_DAYS + 1) * 86400))
        return [bool(changed) for answer in await self._run(calls) for changed in answer]

    async def stats(self) -> StoreStats:
        """Count keys by walking the key space: for a look, not for every scrape."""
        counts = {b"c": 0, b"t": 0, b"i": 0, b"l": 0}
        at = len(self._prefix)
        try:
            async for key in self._client.scan_iter(match=self._prefix.replace(b"[", b"\\[") + b"*", count=1000):
                kind = key[at : at + 1]
                if kind in counts:
                    counts[kind] += 1
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error
        return StoreStats("redis", counts[b"c"], counts[b"t"], counts[b"i"], counts[b"l"], self._repeated, -1)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _run(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        """One round trip, and a second one where Redis does not know the script yet (its first use, or a restart)."""
        try:
            if not self._sha:
                self._sha = await self._client.script_load(_SCRIPT)
            try:
                return await self._send(calls)
            except NoScriptError:
                # No call of the pipeline has run: they all name the same script.
                self._sha = await self._client.script_load(_SCRIPT)
                return await self._send(calls)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    async def _send(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        if len(calls) == 1:
            return [await self._client.evalsha(self._sha, *calls[0])]
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(self._sha, *call)
        return await pipeline.execute()

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        # The URL may hold a password: name only where it points.
        where = self._url.rpartition("@")[2].partition("?")[0]
        return StoreUnavailable(f"the feature store at {where} does not answer ({type(error).__name__}); try again")
