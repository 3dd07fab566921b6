"""What a server answers of itself and of its models, over REST and gRPC, as values (inference_rest.md and inference_grpc.md, "Metadata")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from ..errors import UpstreamFailed
from ..protocol import _open_inference_pb2 as pb  # type: ignore[attr-defined] # generated
from ..protocol.types import ModelMetadata, ServerMetadata, TensorSpec

__all__ = ["model_document", "model_message", "model_question", "server_document", "server_message"]


def model_question(model: str, version: str) -> bytes:
    """Write a ModelMetadataRequest."""
    return pb.ModelMetadataRequest(name=model, version=version).SerializeToString()


def model_message(message: bytes) -> ModelMetadata:
    """Read a ModelMetadataResponse."""
    metadata = pb.ModelMetadataResponse.FromString(message)
    inputs, outputs = (
        tuple(TensorSpec(entry.name, entry.datatype, tuple(entry.shape)) for entry in entries)
        for entries in (metadata.inputs, metadata.outputs)
    )
    versions = tuple(metadata.versions)
    return ModelMetadata(metadata.name, versions, metadata.platform, inputs, outputs, dict(metadata.properties))


def server_message(message: bytes) -> ServerMetadata:
    """Read a ServerMetadataResponse."""
    metadata = pb.ServerMetadataResponse.FromString(message)
    return ServerMetadata(metadata.name, metadata.version, tuple(metadata.extensions))


def model_document(body: bytes, peer: str) -> ModelMetadata:
    """Read the JSON of a model's metadata.

    Raises:
        UpstreamFailed: it is not V2's.
    """
    document = _object(body, peer)
    try:
        inputs, outputs = (
            tuple(
                TensorSpec(str(entry["name"]), str(entry["datatype"]), tuple(int(size) for size in entry["shape"]))
                for entry in document.get(role) or ()
            )
            for role in ("inputs", "outputs")
        )
        return ModelMetadata(
            str(document["name"]),
            tuple(str(version) for version in document.get("versions") or ()),
            str(document.get("platform", "")),
            inputs,
            outputs,
            dict(document.get("properties") or document.get("parameters") or {}),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UpstreamFailed(f"{peer}'s metadata of a model is not V2's ({error!r}): {body[:200]!r}") from error


def server_document(body: bytes, peer: str) -> ServerMetadata:
    """Read the JSON of a server's metadata.

    Raises:
        UpstreamFailed: it is not V2's.
    """
    document = _object(body, peer)
    extensions = document.get("extensions") or []
    if not isinstance(extensions, list):
        raise UpstreamFailed(f"{peer}'s metadata is not V2's: its extensions are no list: {body[:200]!r}")
    return ServerMetadata(
        str(document.get("name", "")), str(document.get("version", "")), tuple(str(word) for word in extensions)
    )


def _object(body: bytes, peer: str) -> Mapping[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise UpstreamFailed(f"{peer}'s metadata is no JSON object: {body[:200]!r}")
    return document
