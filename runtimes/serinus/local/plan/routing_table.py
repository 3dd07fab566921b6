"""Which host leads to which revision: everything that the gateway should know, from what services ask for and what has become ready. Pure.

A service has one virtual host for itself, one for each component, and one for each tag (`latest-`, `prev-`, a canary's name), as Knative
and KServe's HTTPRoutes have. A host that several services claim is the first one's.
An InferenceGraph has the one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .arm_choice import PIN_HEADERS, Mirror, Pin, in_order
from .deployment_plan import ComponentPlan, ServicePlan, Track, service_hosts
from .envoy_config import Arm, Backend, Host, InnerListener
from .rollout import Share

__all__ = ["GatewayTable", "JoinedRevision", "RoutedService", "gateway_table"]

_NO_PART_TIMEOUT_S = 60.0
"""Of a host without a component: httproute_reconciler.go 49."""


@dataclass(frozen=True, slots=True)
class GatewayTable:
    """All that the gateway should know."""

    backends: tuple[Backend, ...] = ()
    hosts: tuple[Host, ...] = ()
    inner: tuple[InnerListener, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutedService:
    """A service and its traffic now."""

    plan: ServicePlan
    chains: tuple[tuple[Share, Track], ...]
    """Every share, with the chain that it goes to."""
    mirror: tuple[Track, int] | None = None
    """A chain that gets a copy of so many percent of the requests; its answers are dropped."""


@dataclass(frozen=True, slots=True)
class JoinedRevision:
    """A revision that has been ready once, so that the gateway knows it."""

    backend: Backend
    digest: str
    timeout_s: float
    inner_port: int | None
    """Loopback port of the gateway that leads here; of predictors that a transformer calls."""
    leaving: bool
    """Nobody refers to it any more: it keeps its processes at the gateway while it drains, and gets nothing new."""


def gateway_table(services: Sequence[RoutedService], revisions: Sequence[JoinedRevision]) -> GatewayTable:
    """Make the table.

    Args:
        services: in the order in which they were applied.
        revisions: all that have joined.
    """
    names = {revision.digest: revision.backend.revision for revision in revisions if not revision.leaving}
    hosts: list[Host] = []
    taken: set[str] = set()
    for service in services:
        for host in _hosts(service, names):
            domains = tuple(domain for domain in host.domains if domain not in taken)
            taken.update(domains)
            if domains:
                hosts.append(replace(host, domains=domains))
    inner = tuple(
        InnerListener(revision.inner_port, revision.backend.revision, revision.timeout_s)
        for revision in revisions
        if revision.inner_port is not None
    )
    return GatewayTable(tuple(revision.backend for revision in revisions), tuple(hosts), inner)


def _speaks_both(component: ComponentPlan) -> bool:
    """Whether KServe finds a port for gRPC beside one for REST, by their names (isGrpcPortByName)."""
    ports = component.containers[component.entry].port_names
    kinds = {any(word in name.lower() for word in ("grpc", "h2c")) for name in ports}
    return kinds == {True, False}


def _hosts(service: RoutedService, names: Mapping[str, str]) -> Iterator[Host]:
    """Virtual hosts of a service: itself, its components, its tags."""
    plan, chains = service.plan, service.chains

    canaries = {track.name for track in plan.canaries}
    stable_tag = next(
        (share.tag for share, _ in chains if share.tag not in canaries and share.tag != "latest"), "latest"
    )
    stable = next((share.revision for share, _ in chains if share.tag == stable_tag), "")
    tags = [share.tag for share, _ in chains]
    affinity = plan.affinity and replace(plan.affinity, salt=f"{plan.key} {stable}")

    def host(
        name: str, label: str, parts: Sequence[tuple[ComponentPlan, int]], copied: ComponentPlan | None = None
    ) -> Host:
        weights: dict[str, int] = {}
        pins: list[Pin] = []
        middle = ""
        for (component, percent), tag in zip(parts, tags if len(parts) != 1 else [""], strict=True):
            revision = names.get(component.digest)
            if revision is not None:
                weights[revision] = weights.get(revision, 0) + percent
                middle = revision if tag == stable_tag else middle
                pins += [Pin(*each, revision) for each in zip(PIN_HEADERS, (revision, tag), strict=True) if tag]
        timeout_s = max((component.timeout_s for component, _ in parts), default=_NO_PART_TIMEOUT_S)
        inside = (f"{label}.{plan.namespace}", f"{label}.{plan.namespace}.svc.cluster.local")
        domains = (*service_hosts(label, plan.namespace, plan.domains), *inside)
        # As they were, where nobody's key says where a request falls.
        order = in_order(list(weights), middle) if affinity and len(weights) > 1 else list(weights)
        copy = names.get(copied.digest) if copied is not None else None
        return Host(
            name,
            domains,
            tuple(Arm(revision, weights[revision]) for revision in order),
            timeout_s,
            pins=tuple(pins) if len(weights) > 1 else (),
            affinity=affinity if len(parts) > 1 else None,
            mirror=Mirror(copy, service.mirror[1]) if copy is not None and service.mirror is not None else None,
            inference_alone=plan.standard and all(_speaks_both(component) for component, _ in parts),
        )

    entry = [(track.entry, share.percent) for share, track in chains]
    copied = service.mirror[0].entry if service.mirror is not None else None
    yield host(f"service:{plan.key}", plan.name, entry or [(plan.stable.entry, 0)], copied)
    if plan.is_graph:  # one component, no tags
        return
    predictors = [(track.predictor, share.percent) for share, track in chains]
    yield host(f"predictor:{plan.key}", f"{plan.name}-predictor", predictors)
    if plan.stable.transformer is not None:
        yield host(f"transformer:{plan.key}", f"{plan.name}-transformer", entry)
    for share, track in chains:
        for label, component in (
            (f"{share.tag}-{plan.name}", track.entry),
            (f"{share.tag}-{plan.name}-predictor", track.predictor),
            (track.predictor.deployment, track.predictor),
        ):
            yield host(f"{share.tag}:{label}", label, [(component, 100)])
