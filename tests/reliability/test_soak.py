"""Seconds of load with clients that vanish: the server counts what the clients count. Half an hour of it is `python -m benchmarks.soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from deferred import Deferred
from depth import draws

soak = Deferred("benchmarks.soak")

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_metrics_equal_the_clients_counts_to_the_request_and_memory_is_flat(tmp_path: Path) -> None:
    counts = soak.soak(tmp_path, draws(10, 4), measure_s=draws(2, 1))
    assert counts.vanished > 0
    assert min(counts.answered["rest"], counts.answered["grpc"]) > 0
    assert counts.problems == []
