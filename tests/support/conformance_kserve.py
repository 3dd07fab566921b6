"""A `kserve.Model` as the conformance tests host it: it takes whatever comes, and sets response headers."""

from __future__ import annotations

import time
from typing import Any

import kserve
from kserve.errors import InferenceError, InvalidInput, ModelNotReady

RAISED = {
    "invalid": InvalidInput("column 'amount' is missing"),
    "inference": InferenceError("the weights are corrupt"),
    "not-ready": ModelNotReady("taker"),
    "not-implemented": NotImplementedError("no such mode"),
    "shape": ValueError("cannot reshape array of size 3 into shape (2,)"),
}


class Taker(kserve.Model):
    """Says what reached it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, return_response_headers=True)
        self.ready = True
        self.ill_until = 0.0

    async def healthy(self) -> bool:
        """Be ill for three seconds after a V1 body has said so."""
        return time.monotonic() >= self.ill_until

    def load(self) -> bool:
        """Have nothing to load."""
        return True

    async def predict(
        self, payload: Any, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> Any:
        """Answer a V1 body, whatever it is, or give the tensors of a V2 request back."""
        assert response_headers is not None
        response_headers |= {"x-taken": type(payload).__name__, "content-length": "1"}
        if isinstance(payload, kserve.InferRequest):
            if payload.inputs[0].name in RAISED:
                raise RAISED[payload.inputs[0].name]
            outputs = []
            for tensor in payload.inputs:
                output = kserve.InferOutput(tensor.name, list(tensor.shape), tensor.datatype)
                output.set_data_from_numpy(tensor.as_numpy(), binary_data=False)
                outputs.append(output)
            return kserve.InferResponse(payload.id, self.name, outputs)
        if isinstance(payload, bytes):
            return {"predictions": [len(payload)]}
        if payload["instances"] == ["ill"]:
            self.ill_until = time.monotonic() + 3
        if payload["instances"] == ["picture"]:
            response_headers["Content-Type"] = "image/png"
            return b"\x89PNG"
        return {"predictions": payload["instances"]}


class Through(kserve.Model):
    """A transformer that changes nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    def load(self) -> bool:
        """Have nothing to load."""
        return True
