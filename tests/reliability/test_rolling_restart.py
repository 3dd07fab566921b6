"""Rolling restarts of the fraud service under load: no request is lost. The full run is `python -m benchmarks.rolling_restart`."""

from __future__ import annotations

import asyncio

import pytest

from deferred import Deferred

rolling = Deferred("benchmarks.rolling_restart")

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("form", ["fused", "split"])
def test_two_rolling_restarts_under_load_lose_no_request_over_rest_and_grpc(form: str) -> None:
    body, message = rolling.requests()
    with rolling.running_service(form) as (port, state):
        # A tenth of the benchmark's rate: what is judged is that none is lost, on any machine.
        outcome = asyncio.run(rolling.run_restarts(port, state, restarts=2, rate=50, body=body, message=message))
    assert outcome.failures == {}
    assert outcome.restarts == 2
    assert len(outcome.pids) == (2 if form == "fused" else 4), "each restart made every process anew"
    assert min(map(len, outcome.seconds.values())) > 0
