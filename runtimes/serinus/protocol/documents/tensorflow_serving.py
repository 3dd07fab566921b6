"""What TensorFlow Serving's REST API tells of a model: its status and its signatures.

Source: TensorFlow Serving, api_rest.md, "Model status API" and "Model Metadata API", and the messages behind them,
get_model_status.proto and get_model_metadata.proto, in protobuf's JSON: int64 is a string, what is not set is written all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..types import ModelMetadata, Signature, TensorSpec

__all__ = ["DEFAULT_SIGNATURE", "metadata_document", "version_status"]

DEFAULT_SIGNATURE: Final = "serving_default"
"""tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: also what a model is called by that has one function and no name for it."""

_NO_VERSION: Final = "0"
"""What an int64 that is not set is in protobuf's JSON: the model is not versioned."""
_STATES: Final[Mapping[str, str]] = {
    "LOADING": "LOADING",
    "READY": "AVAILABLE",
    "UNLOADING": "UNLOADING",
    "UNAVAILABLE": "END",
}
"""Of Triton's model repository extension: ModelVersionStatus.State."""
_DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
}
"""Datatypes as tensorflow/core/framework/types.proto calls them."""


def version_status(entry: Mapping[str, str], *, failed: bool) -> dict[str, Any]:
    """Write one ModelVersionStatus.

    Args:
        entry: of the repository's index: version, state and reason.
        failed: the reason is an error.
    """
    status = {"error_code": "UNKNOWN", "error_message": entry.get("reason", "")} if failed else None
    return {
        "version": entry.get("version") or _NO_VERSION,
        "state": _STATES.get(entry["state"], "UNKNOWN"),
        "status": status or {"error_code": "OK", "error_message": ""},
    }


def metadata_document(metadata: ModelMetadata, version: str) -> dict[str, Any]:
    """Write a GetModelMetadataResponse.

    Args:
        metadata: of the model; the tensors of one without signatures are those of `DEFAULT_SIGNATURE`.
        version: the one that it is of; empty: unversioned.
    """
    signatures = metadata.signatures or {DEFAULT_SIGNATURE: Signature(metadata.inputs, metadata.outputs)}
    return {
        "model_spec": {"name": metadata.name, "signature_name": "", "version": version or _NO_VERSION},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    name: {
                        "inputs": _tensors(signature.inputs),
                        "outputs": _tensors(signature.outputs),
                        "method_name": "tensorflow/serving/predict",
                        "defaults": {},
                    }
                    for name, signature in signatures.items()
                }
            }
        },
    }


def _tensors(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    return {
        spec.name: {
            "dtype": _DTYPES[spec.datatype],
            "tensor_shape": {"dim": [{"size": str(size), "name": ""} for size in spec.shape], "unknown_rank": False},
            "name": spec.name,
        }
        for spec in specs
    }
