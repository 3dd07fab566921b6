"""Which requests need a token: by what they are for, the same over REST and gRPC.

Health is never asked for one: kubelets, load balancers and Knative's queue-proxy have none. Whatever is not named here is
*inference*: routes that a model brings of its own, and any that is added and forgotten.
"""

from __future__ import annotations

from typing import Final

from ..dataplane.access.access_tokens import Tokens, has_credentials
from ..errors import Unauthenticated

__all__ = ["HEALTH", "INFERENCE", "KINDS", "RequestAccess", "grpc_kind", "rest_kind"]

HEALTH: Final = "health"
INFERENCE: Final = "inference"
KINDS: Final = (INFERENCE, "metadata", "control", "metrics", "docs")
"""What `--token_routes` may name."""

_MODEL: Final = "/models/{model}"
_VERSION: Final = "/models/{model}/versions/{version}"
_REST: Final = {
    **dict.fromkeys(
        (
            "/",
            "/v2/health/live",
            "/v2/health/ready",
            *(f"/v2{model}/ready" for model in (_MODEL, _VERSION)),
            *(f"/v1{model}" for model in (_MODEL, _VERSION)),  # KServe's readiness
        ),
        HEALTH,
    ),
    **dict.fromkeys(
        (
            "/v2",
            "/v2/models",
            "/v2/models/stats",
            *(f"/v2{model}{what}" for model in (_MODEL, _VERSION) for what in ("", "/config", "/stats")),
            "/v1/models",
            *(f"/v1{model}/metadata" for model in (_MODEL, _VERSION)),
            "/v1/models/{model}/labels/{label}",
            "/v2/repository/index",
        ),
        "metadata",
    ),
    **dict.fromkeys((f"/v2/repository{_MODEL}/{verb}" for verb in ("load", "unload")), "control"),
    "/metrics": "metrics",
    "/openapi.json": "docs",
    "/docs": "docs",
}
"""By the router's templates."""

_SERVICE: Final = "/inference.GRPCInferenceService/"
_GRPC: Final = {
    **dict.fromkeys(
        (
            *(_SERVICE + name for name in ("ServerLive", "ServerReady", "ModelReady")),
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Watch",
        ),
        HEALTH,
    ),
    **dict.fromkeys(
        (
            _SERVICE + name
            for name in ("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex")
        ),
        "metadata",
    ),
    **dict.fromkeys((_SERVICE + name for name in ("RepositoryModelLoad", "RepositoryModelUnload")), "control"),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "docs",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "docs",
}
"""By full method names."""


def rest_kind(template: str) -> str:
    """Tell what a route is for."""
    return _REST.get(template, INFERENCE)


def grpc_kind(path: str) -> str:
    """Tell what a method is for."""
    return _GRPC.get(path, INFERENCE)


class RequestAccess:
    """Asks requests for a token.

    Args:
        tokens: of which each must carry one.
        kinds: of requests that are asked, of `KINDS`.
    """

    def __init__(self, tokens: Tokens, kinds: frozenset[str] = frozenset(KINDS)) -> None:
        self.tokens = tokens
        self.kinds = kinds

    def check(self, kind: str, authorization: str | None) -> None:
        """Judge a request.

        Args:
            kind: what it is for.
            authorization: the HTTP field or gRPC metadata of this name; None where there is none.

        Raises:
            Unauthenticated: it is of a kind that needs a token, and has none, or another.
        """
        if kind not in self.kinds or self.tokens.accept(authorization):
            return
        came = "another" if has_credentials(authorization) else "none"
        raise Unauthenticated(
            f"this server needs a token, as 'Authorization: Bearer TOKEN'; {came} came",
            invalid=has_credentials(authorization),
        )
