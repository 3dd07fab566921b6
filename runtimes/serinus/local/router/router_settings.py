"""What a router is started with, as one JSON text. Pure; the plan writes it, the process reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import ConfigError
from ...manifests.graphs.inference_graph import GraphNode, GraphStep, RouterTimeouts

__all__ = ["GATEWAY_VARIABLE", "SETTINGS_VARIABLE", "RouterSettings"]

SETTINGS_VARIABLE = "SERINUS_ROUTER_SETTINGS"
GATEWAY_VARIABLE = "SERINUS_ROUTER_GATEWAY"
"""Address of the gateway, `127.0.0.1:8080`: only the runner knows it."""

_CLUSTER = (".svc.cluster.local", ".svc")


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """One graph and how its router calls."""

    graph: str
    """`namespace/name`, for logs and metrics."""
    nodes: Mapping[str, GraphNode]
    """Every `service` has its `url` by now."""
    timeouts: RouterTimeouts = field(default_factory=RouterTimeouts)
    propagate: tuple[str, ...] = ()
    """Regular expressions of headers that go on to every step."""
    gateway_hosts: frozenset[str] = frozenset()
    """Hosts that the gateway answers, beside those of the cluster's DNS."""

    def is_inside(self, host: str) -> bool:
        """Whether a host is one of the cluster: its requests go to the gateway."""
        return host in self.gateway_hosts or host.endswith(_CLUSTER)

    def encode(self) -> str:
        """Write as JSON."""
        value = {
            "graph": self.graph,
            "nodes": {name: asdict(node) for name, node in self.nodes.items()},
            "timeouts": asdict(self.timeouts),
            "propagate": self.propagate,
            "gateway_hosts": sorted(self.gateway_hosts),
        }
        return json.dumps(value, separators=(",", ":"))

    @staticmethod
    def decode(text: str) -> RouterSettings:
        """Read what `encode` wrote.

        Raises:
            ConfigError: it is something else.
        """
        try:
            value = json.loads(text)
            return RouterSettings(
                graph=value["graph"],
                nodes={name: GraphNode(node["kind"], _steps(node["steps"])) for name, node in value["nodes"].items()},
                timeouts=RouterTimeouts(**value["timeouts"]),
                propagate=tuple(value["propagate"]),
                gateway_hosts=frozenset(value["gateway_hosts"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{SETTINGS_VARIABLE} is not what serinus up writes into it ({error}); start graphs with serinus up"
            ) from None


def _steps(values: Sequence[Mapping[str, Any]]) -> tuple[GraphStep, ...]:
    return tuple(GraphStep(**value) for value in values)
