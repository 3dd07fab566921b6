"""`FeaturesStep`: the features as an answer, for graphs that carry them to the model themselves (a Pipeline of Seldon Core 2).

Takes what `FraudFeatures` takes and counts it alike. It asks no predictor: it answers the tensors that the ensemble takes, and the
transaction ids, which the ensemble would not give back.
"""

from __future__ import annotations

from typing import Any

from kserve import InferOutput, InferRequest, InferResponse

from .features import FEATURE_NAMES
from .transformer import FraudFeatures

__all__ = ["FeaturesStep"]


class FeaturesStep(FraudFeatures):
    """Raw transactions to features: `serinus serve --class fraud_features.step:FeaturesStep`."""

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the answer: ids, and what the ensemble takes."""
        return [
            {"name": "transaction_id", "datatype": "BYTES", "shape": [-1]},
            {"name": "features", "datatype": "FP32", "shape": [-1, len(FEATURE_NAMES)]},
            {"name": "amount", "datatype": "FP64", "shape": [-1]},
            {"name": "terminal_id", "datatype": "BYTES", "shape": [-1]},
        ]

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer the features; `postprocess` puts the ids before them.

        Args:
            payload: what `preprocess` returned.
            headers: the request's.
            response_headers: not used.
        """
        if type(payload) is not InferRequest:  # outcomes, which `preprocess` has recorded and answered
            return await super().predict(payload, headers, response_headers)
        outputs = [InferOutput(t.name, list(t.shape), t.datatype, t.data) for t in payload.inputs]
        return InferResponse(payload.id or "", self.name, outputs, parameters=payload.parameters)

    @property
    def serinus_row_inputs(self) -> frozenset[str]:
        """None: there is no model behind, whose rows could be scored together."""
        return frozenset()
