"""A `kserve.Model` as the conformance tests host it: it takes whatever comes, and sets response headers."""

from __future__ import annotations

from typing import Any

import kserve


class Taker(kserve.Model):
    """Says what reached it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, return_response_headers=True)
        self.ready = True

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
            outputs = []
            for tensor in payload.inputs:
                output = kserve.InferOutput(tensor.name, list(tensor.shape), tensor.datatype)
                output.set_data_from_numpy(tensor.as_numpy(), binary_data=False)
                outputs.append(output)
            return kserve.InferResponse(payload.id, self.name, outputs)
        if isinstance(payload, bytes):
            return {"predictions": [len(payload)]}
        if payload["instances"] == ["picture"]:
            response_headers["Content-Type"] = "image/png"
            return b"\x89PNG"
        return {"predictions": payload["instances"]}
