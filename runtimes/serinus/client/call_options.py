"""How a client's calls differ from a transformer's to its predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..protocol.types import no_parameters
from .trust import Trust

__all__ = ["CallOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """The defaults are a transformer's."""

    peer: str = "the predictor"
    """What messages call the other side."""
    host_field: str = ""
    """`Host`, and gRPC's `:authority`, where it is not the address: behind a gateway it chooses the service. Empty: the address."""
    headers: Mapping[str, str] = field(default_factory=no_parameters)
    """Sent with every call, names in lower case."""
    trust: Trust = field(default_factory=Trust)
    for_itself: bool = False
    """Whether the caller is whoever asks, not somebody between: all headers of its requests go along, and a 404 is its own mistake."""
    binary: bool = True
    """Whether tensors travel raw over REST (Triton's binary extension) or as JSON, which every V2 server reads."""
