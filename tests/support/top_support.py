"""Pages of metrics for `serinus top`, written as a server writes them."""

from __future__ import annotations

from serinus.dataplane.batching.pending_request import Batch, BatchKey, PendingRequest
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import InvalidInput, ModelFailed
from serinus.model import Call
from serinus.protocol.types import InferRequest

__all__ = ["happen"]


def happen(
    metrics: Metrics,
    model: str,
    version: str = "",
    *,
    answered: int = 0,
    failed: int = 0,
    invalid: int = 0,
    rows: int = 1,
    queue_s: float = 0.001,
    compute_s: float = 0.004,
) -> None:
    """Count requests of a model, each in a batch of its own."""
    statistics = metrics.statistics(model, version)

    def pending() -> PendingRequest:
        key = BatchKey(None, (), Call())
        return PendingRequest(InferRequest(model, ()), lambda _: None, 10.0, None, None, key, (), rows, 0)

    for _ in range(answered):
        batch = Batch([pending()], rows, 10.0 + queue_s)
        batch.infer_from, batch.infer_to = batch.started, batch.started + compute_s
        statistics.answered(batch, batch.infer_to)
    for _ in range(failed):
        statistics.failed(ModelFailed("x"), pending(), 10.1)
    for _ in range(invalid):
        statistics.failed(InvalidInput("x"), pending(), 10.1)
