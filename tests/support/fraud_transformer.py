"""A `FraudFeatures` that has its predictor in the same process."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse

from fraud_features.store import MemoryStore
from fraud_features.transformer import FraudFeatures
from fraud_support import NOW_S


class Behind(FraudFeatures):
    """With a predictor in this process: its score is the row's amount, so a mix-up of rows shows."""

    def __init__(self) -> None:
        super().__init__("fraud", store=MemoryStore(), clock=lambda: NOW_S)
        self.load()
        self.asked: list[InferRequest] = []
        self.rows_off = 0

    async def _grpc_predict(self, payload: Any, headers: Any = None) -> InferResponse:
        self.asked.append(payload)
        await asyncio.sleep(0)
        amount = payload.get_input_by_name("amount").as_numpy()
        n = len(amount) + self.rows_off
        return InferResponse(
            payload.id or "",
            "fraud",
            [
                InferOutput("score", [n], "FP32", np.resize(amount.astype(np.float32), n)),
                InferOutput("decision", [n], "BYTES", np.array([b"approve"] * n, object)),
            ],
        )
