"""What runs for an InferenceService, as values: a service's tracks, their components, the components' containers.

Theory of operation. A service is tracks: the stable one, and one for each entry of `spec.canary`. A track is a chain, a
predictor and perhaps a transformer before it. A `ComponentPlan` is a pod template; its digest is its identity: the same digest is
the same revision, whatever track it is on, so that promoting a canary by renaming starts nothing anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...manifests.containers import Hook, Probe
from ...manifests.documents import Source
from ...manifests.inference_service import StorageUri
from .arm_choice import Affinity
from .image_commands import Command

__all__ = [
    "DOMAINS",
    "ENTRY_FIRST",
    "GRACE_S",
    "ComponentPlan",
    "ContainerPlan",
    "PlanOptions",
    "ServicePlan",
    "Track",
    "service_hosts",
]

DOMAINS = ("{{.Name}}.{{.Namespace}}.localhost", "{{.Name}}-{{.Namespace}}.example.com")
"""Hosts of a service. The first is ours (every resolver leads *.localhost to this machine); the second KServe's default."""

GRACE_S = 30.0
"""terminationGracePeriodSeconds where none is written (core/v1 PodSpec)."""

ENTRY_FIRST = ("router", "transformer", "predictor")
"""Kinds of components in the order in which a request meets them; the order in which they end."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the user of this machine decides, not the manifest."""

    images: Mapping[str, Sequence[str]] = field(default_factory=dict)
    domains: tuple[str, ...] = DOMAINS
    max_replicas: int = 1
    """minReplicas above it is lowered: a laptop is no cluster."""
    storage_config: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Entries of a file that stands for the Secret storage-config: JSON texts by key."""
    propagate: tuple[str, ...] = ()
    """Regular expressions of headers that routers of InferenceGraphs pass on, beside those of the manifests' inferenceservice-config."""
    collector: str = ""
    """Where spans of services with `spec.tracing` go, in the place of its `exporterEndpoint`; empty: there."""
    mounts: Mapping[str, str] = field(default_factory=dict)
    """Local folders by URI prefix. Another folder for a model is another template: its processes are made anew."""


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """One process of a pod, before it has ports."""

    name: str
    command: Command
    words: tuple[str, ...]
    """The command's words and the args, `$(VAR)` not yet replaced."""
    env: Mapping[str, str] = field(repr=False)
    """Values of Secrets are among them."""
    working_dir: str
    http_port: int
    grpc_port: int
    """The ports that the manifest gives it in its pod."""
    model_name: str
    readiness: Probe | None
    liveness: Probe | None
    port_names: Mapping[str, int]
    startup: Probe | None = None
    pre_stop: Hook | None = None


@dataclass(frozen=True, slots=True)
class ComponentPlan:
    """A pod template: predictor or transformer, or the router of an InferenceGraph."""

    kind: Literal["predictor", "transformer", "router"]
    service: str
    """`namespace/name`."""
    deployment: str
    """As KServe names it: `fraud-predictor`, `fraud-v2-predictor`."""
    namespace: str
    containers: tuple[ContainerPlan, ...]
    entry: int
    """Which container requests go to: the collocated transformer, else kserve-container."""
    storage: tuple[StorageUri, ...]
    timeout_s: float
    replicas: int
    knative: bool
    digest: str
    source: Source
    grace_s: float = GRACE_S
    """terminationGracePeriodSeconds: preStop and all that follows SIGTERM have this long before SIGKILL."""
    mounts: tuple[tuple[str, str], ...] = ()
    """Those of the options that stand for its storage: URI prefix and local folder."""

    @property
    def model_name(self) -> str:
        """Name of the model in URLs."""
        return self.containers[self.entry].model_name


@dataclass(frozen=True, slots=True)
class Track:
    """A chain that can get traffic: the stable one (empty name), or a canary of Standard mode."""

    name: str
    percent: int
    """Share of a canary track. The stable track takes what is left."""
    predictor: ComponentPlan
    transformer: ComponentPlan | None

    @property
    def entry(self) -> ComponentPlan:
        """The component that the gateway sends requests to."""
        return self.transformer or self.predictor


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """Everything that runs for one InferenceService, or for one InferenceGraph: a service whose only component is a router."""

    key: str
    name: str
    namespace: str
    stable: Track
    canaries: tuple[Track, ...]
    canary_percent: int | None
    """Share of the newest stable revision (Knative mode); None: all of it."""
    domains: tuple[str, ...]
    stopped: bool
    """Annotation serving.kserve.io/stop."""
    standard: bool = False
    """Whether it is in Standard mode, whose gateway KServe tells by HTTPRoutes."""
    affinity: Affinity | None = None
    """Annotation serinus.dev/affinity; None: every request is split at random."""
    canary_policy: str = ""
    """Annotation serinus.dev/canary-policy: what `serinus canary run` judges by; empty: its default."""

    @property
    def is_graph(self) -> bool:
        """Whether it is an InferenceGraph."""
        return self.stable.predictor.kind == "router"


def service_hosts(name: str, namespace: str, domains: Sequence[str]) -> tuple[str, ...]:
    """Hosts of a service or component, in the order of the templates (KServe: `domainTemplate`)."""
    found = []
    for template in domains:
        host = re.sub(r"\{\{\s*\.Name\s*\}\}", name, template)
        found.append(re.sub(r"\{\{\s*\.Namespace\s*\}\}", namespace, host).lower())
    return tuple(found)
