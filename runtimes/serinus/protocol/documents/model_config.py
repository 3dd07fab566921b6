"""Triton's model configuration, the part of it that clients such as perf_analyzer read: one document for REST and gRPC.

Source: Triton, model_config.proto and extension_model_configuration.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..types import ModelMetadata
from .json_values import property_text

__all__ = ["ModelConfig"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What is told of one model."""

    metadata: ModelMetadata
    """Shapes whose first dimension is -1 are those of batches."""
    max_batch_rows: int = 0
    """0: the model is not batched, and the shapes are given whole."""
    max_delay_s: float = 0.0
    """The batcher's longest wait, seconds."""
    decoupled: bool = False
    """A request has any number of responses."""

    def document(self) -> dict[str, Any]:
        """Write the `ModelConfig` object, in the names of model_config.proto; `dims` have no batch dimension where rows are batched, and are never empty."""
        metadata, batched = self.metadata, self.max_batch_rows > 0
        document: dict[str, Any] = {
            "name": metadata.name,
            "platform": metadata.platform,
            "backend": metadata.platform,
            "max_batch_size": self.max_batch_rows,
        }
        for key, specs in (("input", metadata.inputs), ("output", metadata.outputs)):
            document[key] = [
                {
                    "name": spec.name,
                    "data_type": kind,
                    "dims": list(dims),
                    **({"reshape": {"shape": []}} if is_scalar else {}),
                    **(
                        {"optional": True} if spec.optional and key == "input" else {}
                    ),  # Triton's outputs have no such field
                }
                for spec in specs
                for kind, dims, is_scalar in (spec.in_config(batched=batched),)
            ]
        if batched:
            document["dynamic_batching"] = {"max_queue_delay_microseconds": round(self.max_delay_s * 1e6)}
        elif reason := metadata.parameters.get("batching_reason"):
            document["parameters"] = {"batching_reason": {"string_value": property_text(reason)}}
        if self.decoupled:
            document["model_transaction_policy"] = {"decoupled": True}
        return document
