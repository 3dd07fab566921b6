"""Rolling restarts of the fraud service under load: no request is lost. The full run is `python -m benchmarks.rolling_restart`."""

from __future__ import annotations

import asyncio

import pytest

from deferred import Deferred
from depth import draws, only_deep

rolling = Deferred("benchmarks.rolling_restart")

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "form",
    [
        pytest.param("split", marks=only_deep("fused, whose one process is replaced as each of the two")),
        "fused",
    ],
)
def test_rolling_restarts_under_load_lose_no_request_over_rest_and_grpc(form: str) -> None:
    restarts = draws(2, 1)
    body, message = rolling.requests()
    with rolling.running_service(form) as (port, state):
        # A tenth of the benchmark's rate: what is judged is that none is lost, on any machine.
        outcome = asyncio.run(rolling.run_restarts(port, state, restarts=restarts, rate=50, body=body, message=message))
    assert outcome.failures == {}
    assert outcome.restarts == restarts
    assert len(outcome.pids) == (restarts + 1) * (1 if form == "fused" else 2), "each restart made every process anew"
    assert min(map(len, outcome.seconds.values())) > 0
