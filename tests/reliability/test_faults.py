"""The fault table, row by row: what the client is told, what neighbours and probes notice, and that it heals. Times are for `python -m benchmarks.faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from deferred import Deferred
from depth import DEEP, draws

table = Deferred("benchmarks.faults.table")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAMES = (
    *("raises-thread", "raises-process", "hangs-thread", "hangs-process", "nan-thread", "shape-thread"),
    *("shape-process", "output-missing", "exits-process", "crashes-process", "killed-process", "exits-worker"),
    *("leaks", "kill-server", "kill-worker", "stop-worker", "kill-group", "kill-predictor", "kill-transformer"),
    *("kill-envoy", "kill-up", "kill-redis", "cache-full", "log-full", "corrupt-load", "corrupt-start"),
    *("stalled-storage", "slow-reader", "slow-sender", "clock-forward", "clock-back"),
    *("log-stalled", "log-closed", "descriptors", "shm-full", "tmp-full", "no-memory", "stop-process", "signals"),
    *("scrapes", "loads", "threads", "threads-process", "stop-envoy", "stop-up", "terminal-stalled"),
    *("clock-up-forward", "clock-up-back", "kill-redis-up", "stop-redis-up"),
)
ONLY_DEEP = {
    "clock-back": "clock-forward",
    "clock-up-back": "clock-up-forward",
    "exits-process": "crashes-process, killed-process",
    "shape-process": "shape-thread, raises-process",
    "kill-redis-up": "kill-redis, stop-redis-up",
    "kill-predictor": "kill-transformer, and tests/local/test_runner.py",
    "stop-envoy": "kill-envoy, and tests/local/test_runner_healing.py",
    "kill-worker": "exits-worker, stop-worker, and tests/serve/test_process.py",
    "kill-group": "kill-server, and tests/serve/test_process.py",
}
"""Faults of a deep run, and what shows the same kind in every run."""


def test_every_fault_has_a_test() -> None:
    assert set(table.ROWS) == set(NAMES)


# 320 MiB of answers keep the cores busy; beside another test, the neighbour's five seconds may pass meanwhile.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.alone] if name == "slow-reader" else [])
        for name in NAMES
        if DEEP or name not in ONLY_DEEP
    ],
)
def test_a_fault_is_told_to_its_client_alone_and_heals(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neighbour and probes are asked twenty times a second each in a deep run and in the benchmark; half of it shows what is lost.
    monkeypatch.setattr("benchmarks.faults.rows.PAUSE_S", draws(50, 100) / 1000)
    row = table.ROWS[name]
    if missing := table.can_run(row):
        pytest.skip(missing)
    observed = row.run(tmp_path)
    print(table.shown(row, observed))
    assert table.broken(row, observed) == []
