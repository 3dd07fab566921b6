"""An HTTPRoute of one's own beside KServe's: testers by header, copies of requests, users who stay. Pure.

Theory of operation. In Standard mode KServe owns the HTTPRoute `NAME` and sets it back, so what it does not know is said by a route beside it, for
the same host. Gateways choose by the most specific match, and an exact path comes before every other kind (Gateway API, HTTPRouteMatch): KServe
matches `^/.*$`, this names the inference paths. Between rules of one route those with more headers come first, so a tester's comes before the split.

Of the Gateway API: `RequestMirror` with `percent` is in the standard channel since 1.3, `sessionPersistence` (GEP-1619) in the experimental one. The
latter is the gateway's own session, begun at random by the weights and kept whatever they become, so a user stays also while the canary grows; it is not a
hash of a key that the client has, and no gateway tells how many sessions there were: requests are what is counted in a cluster.

While such a route splits (`percent`) its weights are what holds, not `trafficPercent` of the InferenceService.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...errors import ConfigError

__all__ = ["RouteOptions", "make_route"]

_DNS: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_PORT: Final = 80
"""Of every Service that KServe makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOptions:
    """What the route should do."""

    name: str
    namespace: str
    host: str
    """Of the service at the gateway."""
    canary: str
    """Its name in `spec.canary`."""
    stable: str = ""
    """`spec.predictor.name`; empty: it has none."""
    model: str = ""
    """Name of the model in URLs; empty: the service's."""
    gateway: str = "kserve/kserve-ingress-gateway"
    """Namespace and name; KServe's default (`ingress.kserveIngressGateway`)."""
    shadow_percent: int = 0
    """Of the requests that the canary gets a copy of."""
    percent: int = 0
    """Of the requests that are the canary's."""
    affinity: str = ""
    """cookie=NAME or header=NAME of the gateway's session; empty: requests are split one by one."""


def make_route(options: RouteOptions) -> dict[str, Any]:
    """Make the HTTPRoute.

    Raises:
        ConfigError: an option is none of its form, or there is nothing to do.
    """
    _check(options)
    middle = f"-{options.stable}" if options.stable else ""
    stable, canary = f"{options.name}{middle}-predictor", f"{options.name}-{options.canary}-predictor"
    model = options.model or options.name
    paths = [f"/v2/models/{model}/infer", f"/v1/models/{model}:predict"]
    rules = [
        {
            "matches": [
                {"path": _exact(path), "headers": [{"name": "X-Serinus-Revision", "type": "Exact", "value": revision}]}
                for path in paths
            ],
            "backendRefs": [_backend(revision)],
        }
        for revision in (canary, stable)
    ]
    if options.shadow_percent or options.percent or options.affinity:
        rules.append(_split(options, paths, stable, canary))
    namespace, _, gateway = options.gateway.rpartition("/")
    parent: dict[str, Any] = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": f"{options.name}-serinus-canary", "namespace": options.namespace},
        "spec": {
            "parentRefs": [{**parent, "namespace": namespace} if namespace else parent],
            "hostnames": [options.host],
            "rules": rules,
        },
    }


def _split(options: RouteOptions, paths: list[str], stable: str, canary: str) -> dict[str, Any]:
    backends = [_backend(stable)]
    if options.percent:
        backends = [_backend(stable, 100 - options.percent), _backend(canary, options.percent)]
    rule: dict[str, Any] = {"matches": [{"path": _exact(path)} for path in paths], "backendRefs": backends}
    if options.shadow_percent:
        copy = {"backendRef": _backend(canary), "percent": options.shadow_percent}
        rule["filters"] = [{"type": "RequestMirror", "requestMirror": copy}]
    if options.affinity:
        kind, _, name = options.affinity.partition("=")
        rule["sessionPersistence"] = {"sessionName": name, "type": kind.capitalize()}
    return rule


def _exact(path: str) -> dict[str, str]:
    return {"type": "Exact", "value": path}


def _backend(service: str, weight: int | None = None) -> dict[str, Any]:
    found: Mapping[str, Any] = {"name": service, "port": _PORT}
    return {**found} if weight is None else {**found, "weight": weight}


def _check(options: RouteOptions) -> None:
    for what, text in (("--host", options.host), ("--canary", options.canary), ("NAME", options.name)):
        if not _DNS.fullmatch(text):
            raise ConfigError(f"{what} {text!r}: lower case letters, digits, - and . were expected")
    for what, value in (("--shadow", options.shadow_percent), ("--percent", options.percent)):
        if not 0 <= value <= 100:
            raise ConfigError(f"{what} {value}: a percentage was expected, 0 to 100")
    if options.shadow_percent and options.percent:
        raise ConfigError(
            "--shadow and --percent: choose one; a canary that has requests of its own would get copies of them too"
        )
    kind, _, name = options.affinity.partition("=")
    if options.affinity and (kind not in {"cookie", "header"} or not _TOKEN.fullmatch(name)):
        raise ConfigError(f"--affinity {options.affinity!r}: cookie=NAME or header=NAME was expected")
    if options.affinity and not options.percent:
        raise ConfigError(
            "--affinity keeps users on the version that they were given; say what the canary has: --percent"
        )
