"""Which transport bring a request, for hosted classes that see the difference."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["is_grpc"]


def is_grpc(headers: Mapping[str, str]) -> bool:
    """Tell by its metadata whether a request came over gRPC; in-process requests without any count as REST."""
    return bool(headers) and "host" not in headers and "content-length" not in headers
