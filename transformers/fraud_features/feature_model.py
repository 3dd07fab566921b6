"""The features as a model's answer, not as a predictor's request: the first step of an InferenceGraph.

A graph hands one step's V1 answer to the next (`mapPredictionsToInstances`), and knows no other way from outputs to inputs. So `FeatureModel` asks no
predictor: its V1 predictions are the fraud ensemble's instances, its V2 outputs the ensemble's inputs. Transaction ids stay behind; rows keep their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .features import FEATURE_NAMES
from .transformer import FraudFeatures, InferInput, InferOutput, InferResponse

__all__ = ["FeatureModel"]


class FeatureModel(FraudFeatures):
    """Raw transactions in, `features`, `amount` and `terminal_id` out; takes what `FraudFeatures` takes."""

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the ensemble's inputs."""
        return [
            {"name": "features", "datatype": "FP32", "shape": [-1, len(FEATURE_NAMES)]},
            {"name": "amount", "datatype": "FP64", "shape": [-1]},
            {"name": "terminal_id", "datatype": "BYTES", "shape": [-1]},
        ]

    @property
    def serinus_row_inputs(self) -> frozenset[str]:
        """None: rows of several requests are not computed together here."""
        return frozenset()

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer the features; outcomes have been recorded and answered by `preprocess`."""
        if not isinstance(payload.inputs, list) or not payload.inputs:
            return await super().predict(payload, headers, response_headers)
        outputs = [InferOutput(i.name, i.shape, i.datatype, i.as_numpy()) for i in payload.inputs]
        return InferResponse(payload.id or "", self.name, outputs)

    async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """V1: an object of the ensemble's inputs per instance, null for NaN. V2: as they are."""
        if not isinstance(result, InferResponse) or not self.answers_v1():
            return result
        return {"predictions": _instances(result.outputs)}


def _instances(tensors: Sequence[InferInput | InferOutput]) -> list[dict[str, Any]]:
    """Rows of tensors as V1 instances. NaN, which JSON has not, is null; float32 values keep their digits as float64."""
    columns = [[_plain(value) for value in tensor.as_numpy().tolist()] for tensor in tensors]
    names = [tensor.name for tensor in tensors]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value != value else value  # NaN alone differs from itself
