"""Who may change what a server serves: load and unload models by request.

The decision is made once, at start, from the settings (`serinus.cli.serving.repository_control`). A request is judged by what it brings, never by the
address that it comes from: in a pod with a sidecar proxy (Istio's, Linkerd's) every peer is 127.0.0.1, so a rule that trusts the
loopback peer would trust the whole cluster. What may be trusted is the address that the server listens on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...errors import Forbidden, Unauthenticated
from .access_tokens import Tokens, has_credentials

__all__ = ["OPEN", "RepositoryAccess"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryAccess:
    """Whether models are loaded and unloaded by request, and what such a request must bring."""

    mode: Literal["off", "loopback", "token", "open"] = "off"
    """`loopback`: no token, because only this machine reaches the server. `open`: no token, because the owner says so."""
    tokens: Tokens = field(default_factory=Tokens)
    """Of which `Authorization: Bearer` must carry one in mode `token`."""
    reason: str = "start the server with --model_repository DIR or --repository_control on"
    """How to switch it on, or why it is off all the same; ends the refusal."""

    @property
    def is_on(self) -> bool:
        """Whether anybody at all may load and unload."""
        return self.mode != "off"

    def check(self, authorization: str | None) -> None:
        """Judge a request that would load or unload.

        Args:
            authorization: the HTTP field or gRPC metadata of this name; None where there is none.

        Raises:
            Forbidden: repository control is off.
            Unauthenticated: a token is wanted, and this is none or another one.
        """
        if self.mode == "off":
            raise Forbidden(
                f"models are neither loaded nor unloaded by request: repository control is off; {self.reason}"
            )
        if self.mode != "token":
            return
        if not self.tokens.accept(authorization):
            came = "another" if has_credentials(authorization) else "none"
            raise Unauthenticated(
                f"loading and unloading needs the token of --repository_token_file as 'Authorization: Bearer TOKEN'; {came} came",
                realm="repository",
                invalid=has_credentials(authorization),
            )


OPEN = RepositoryAccess(mode="open")
"""For servers whose only callers are trusted: tests, and code that holds the plane itself."""
