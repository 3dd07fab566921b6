"""Support of the fraud pipeline's tests: transactions by the handful, a real redis-server, an oracle for the windows."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fraud_features.schema import COLUMNS, RawTensor
from fraud_features.store import DELAY_DAYS, KEEP_DAYS, Batch
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "inferenceservices" / "fraud"
NOW_S = 1_750_000_000.0
"""June 2025: "now" for tests that hand in a clock."""
START_S = 1_740_000_000


def values(n: int, seed: int = 0, *, customers: int = 5, terminals: int = 4, step_s: int = 600) -> dict[str, list[Any]]:
    """Columns of n good transactions, as Python lists; ids are unique per seed."""
    r = np.random.default_rng(seed)
    return {
        "transaction_id": [f"s{seed}-{row}" for row in range(n)],
        "datetime": (START_S + np.cumsum(r.integers(0, 2 * step_s, n))).tolist(),
        "customer_id": [f"C{v}" for v in r.integers(0, customers, n)],
        "terminal_id": [f"T{v}" for v in r.integers(0, terminals, n)],
        "amount": np.round(r.gamma(2, 30, n), 2).tolist(),
        "type": [("CP", "CNP")[v] for v in r.integers(0, 2, n)],
        "shipping_lat": r.uniform(-30, 3, n).tolist(),
        "shipping_long": r.uniform(-70, -35, n).tolist(),
        "billing_lat": r.uniform(-30, 3, n).tolist(),
        "billing_long": r.uniform(-70, -35, n).tolist(),
        "terminal_lat": r.uniform(-30, 3, n).tolist(),
        "terminal_long": r.uniform(-70, -35, n).tolist(),
    }


DATATYPES = {column.name: column.datatypes[0] for column in COLUMNS}


def tensors(columns: dict[str, list[Any]]) -> dict[str, RawTensor]:
    """Columns as V2 JSON brings them: lists."""
    return {name: RawTensor(DATATYPES.get(name, "FP64"), [len(data)], data) for name, data in columns.items()}


def raw_bytes(items: list[str]) -> bytes:
    """BYTES in the protocol's raw form."""
    return b"".join(struct.pack("<I", len(item.encode())) + item.encode() for item in items)


def instances(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Columns as V1 instances."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def batch(columns: dict[str, list[Any]]) -> Batch:
    """Columns as the store takes them."""
    return Batch(
        ids=[v.encode() for v in columns["transaction_id"]],
        seconds=columns["datetime"],
        customers=[v.encode() for v in columns["customer_id"]],
        terminals=[v.encode() for v in columns["terminal_id"]],
        cents=[round(v * 100) for v in columns["amount"]],
        lats=columns["shipping_lat"],
        longs=columns["shipping_long"],
    )


class Oracle:
    """The store's rules by brute force: every event is kept, and every window counted over all of them."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, bytes], list[list[int]]] = {}
        self.last: dict[bytes, tuple[int, float, float]] = {}

    def add(self, one: Batch, at: int) -> list[float]:
        row: list[float] = []
        seconds, cents = one.seconds[at], one.cents[at]
        for kind, key in (("c", one.customers[at]), ("t", one.terminals[at])):
            events = self.events.setdefault((kind, key), [])
            newest = max([seconds, *(event[0] for event in events)])
            day = seconds // 86400
            if day <= newest // 86400 - KEEP_DAYS:
                row += [1, 1, 1, 1, cents, cents, cents, 0, 0, 0, 0, 0, 0]
                continue
            events.append([seconds, cents, 0])
            row += self._windows(events, seconds, cents, newest)
        last = self.last.get(one.customers[at])
        known = last is not None and seconds - last[0] <= KEEP_DAYS * 86400
        row += last if known and last is not None else [np.nan] * 3
        if last is None or seconds >= last[0]:
            self.last[one.customers[at]] = (seconds, one.lats[at], one.longs[at])
        return row

    def label(self, customer: bytes, terminal: bytes, seconds: int) -> None:
        for key in (("c", customer), ("t", terminal)):
            for event in self.events[key]:
                if event[0] == seconds and not event[2]:
                    event[2] = 1
                    break

    @staticmethod
    def _windows(events: list[list[int]], seconds: int, cents: int, newest: int) -> list[float]:
        def span(tile_s: int, tiles: int, end: int, keep: int) -> list[list[int]]:
            oldest = newest // tile_s - keep
            return [e for e in events if end - tiles < e[0] // tile_s <= end and e[0] // tile_s > oldest]

        day = seconds // 86400
        tens = span(600, 6, seconds // 600, 6) if seconds // 600 > newest // 600 - 6 else [[0, cents, 0]]
        hours = span(3600, 24, seconds // 3600, 24) if seconds // 3600 > newest // 3600 - 24 else [[0, cents, 0]]
        week, month = span(86400, 7, day, KEEP_DAYS), span(86400, 30, day, KEEP_DAYS)
        known = [span(86400, tiles, day - DELAY_DAYS, KEEP_DAYS) for tiles in (1, 7, 30)]
        return [
            len(tens), len(hours), len(week), len(month),
            sum(e[1] for e in hours), sum(e[1] for e in week), sum(e[1] for e in month),
            *(len(k) for k in known), *(sum(e[2] for e in k) for k in known),
        ]  # fmt: skip


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A real redis-server without persistence on a port of its own; yields its URL."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on the PATH (Debian: apt-get install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        binary,
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            assert process.poll() is None, "redis-server ended at once"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        wait_until(listens)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)
