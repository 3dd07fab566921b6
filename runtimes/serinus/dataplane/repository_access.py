"""Who may change what a server serves: load and unload models by request.

The decision is made once, at start, from the settings (`serinus.cli.serving.repository_control`). A request is judged by what it brings, never by the
address that it comes from: in a pod with a sidecar proxy (Istio's, Linkerd's) every peer is 127.0.0.1, so a rule that trusts the
loopback peer would trust the whole cluster. What may be trusted is the address that the server listens on.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Literal

from ..errors import Forbidden, Unauthenticated

__all__ = ["OPEN", "RepositoryAccess"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryAccess:
    """Whether models are loaded and unloaded by request, and what such a request must bring."""

    mode: Literal["off", "loopback", "token", "open"] = "off"
    """`loopback`: no token, because only this machine reaches the server. `open`: no token, because the owner says so."""
    token: str = field(default="", repr=False)
    """What `Authorization: Bearer` must carry in mode `token`."""
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
        scheme, _, given = (authorization or "").partition(" ")
        # Compared even where there is none, so that no answer comes sooner than another.
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogatepass"), self.token.encode())
        if not (same and scheme.lower() == "bearer"):
            came = "another" if given else "none"
            raise Unauthenticated(
                f"loading and unloading needs the token of --repository_token_file as 'Authorization: Bearer TOKEN'; {came} came"
            )


OPEN = RepositoryAccess(mode="open")
"""For servers whose only callers are trusted: tests, and code that holds the plane itself."""
