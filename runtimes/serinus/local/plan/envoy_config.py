"""The gateway's configuration as Envoy reads it. Pure: values in, JSON objects out.

Theory of operation. Envoy is started once with a bootstrap that names four kinds of files; everything else is in those
files, which Envoy watches (file-based xDS) and which are replaced by atomic rename, so that no change needs a restart:

- `cds.json`: two clusters for each revision, `<revision>/http` and `<revision>/grpc`;
- `eds/<revision>.<http|grpc>.json`: its processes. A crashed one is UNHEALTHY, a leaving one DRAINING: it finishes what it has;
- `lds.json`: the gateway's listener, and one on loopback for every predictor revision that a transformer calls;
- `rds.json`: which host goes to which revisions, with what weights.

A request is split once, at the gateway. Every transformer revision calls a listener that leads to one predictor revision.
REST and gRPC come in at one port (codec AUTO tells HTTP/2 by its preface); `content-type: application/grpc` goes to the
revision's gRPC port, all else to its HTTP port; where KServe's route leads only inference calls on, the others are
refused here. Paths are not rewritten. The answer carries the revision that the gateway chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .arm_choice import KEY, Affinity, Mirror, Pin, by_key, hash_filter, mirror_policies, pin_match

__all__ = [
    "REVISION_HEADER",
    "Arm",
    "Backend",
    "Endpoint",
    "Host",
    "InnerListener",
    "admin_path",
    "bootstrap",
    "cluster_file",
    "clusters",
    "discovery",
    "endpoints",
    "listeners",
    "routes",
]

REVISION_HEADER = "x-serinus-revision"
_TYPE = "type.googleapis.com/"
_EXTENSIONS = _TYPE + "envoy.extensions."

INFERENCE_PREFIX = "/inference.GRPCInferenceService/"
"""Paths that KServe's HTTPRoute leads to the gRPC port, where a Service has one beside REST: httproute_reconciler.go, createGRPCRouteMatches."""

UPSTREAM_IDLE_S = 30
"""Envoy closes an idle connection to a server before the server does (ours and KServe's keep one for 65 s), so that no
request meets a connection that is just being closed."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One process of a revision."""

    http_port: int
    grpc_port: int
    health: Literal["HEALTHY", "UNHEALTHY", "DRAINING", "UNKNOWN"]
    """As EDS has it. UNKNOWN, which Envoy takes for healthy as long as its own check passes: it does not answer, and there is none that does."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One revision of one component."""

    revision: str
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Arm:
    """A share of a host's traffic."""

    revision: str
    weight: int


@dataclass(frozen=True, slots=True)
class Host:
    """One virtual host: its names and where its requests go."""

    name: str
    domains: tuple[str, ...]
    arms: tuple[Arm, ...]
    """Empty: nothing is ready; requests get 503."""
    timeout_s: float
    pins: tuple[Pin, ...] = ()
    """Headers that lead to one revision."""
    affinity: Affinity | None = None
    """None: every request is split at random."""
    mirror: Mirror | None = None
    inference_alone: bool = False
    """Of gRPC calls, only those of the inference service get through, as with KServe's HTTPRoute."""


@dataclass(frozen=True, slots=True)
class InnerListener:
    """A loopback port that leads to one predictor revision."""

    port: int
    revision: str
    timeout_s: float


def cluster_file(revision: str, kind: str) -> str:
    """File name of a cluster's endpoints."""
    return f"{revision}.{kind}.json"


def discovery(version: int, resources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A DiscoveryResponse as a file holds it."""
    return {"version_info": str(version), "resources": list(resources)}


def _duration(seconds: float) -> str:
    return f"{seconds:.3f}s"


def _address(port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def admin_path(path: str, key: str) -> str:
    """A path of Envoy's admin interface, as who knows the key asks for it."""
    return f"{path}{'&' if '?' in path else '?'}key={key}"


def bootstrap(folder: Path, admin_port: int, admin_key: str) -> dict[str, Any]:
    """What Envoy is started with.

    Args:
        folder: holds `cds.json`, `lds.json`, `rds.json` and `eds/`.
        admin_port: loopback port of its admin interface, which asks nobody for anything: any page that a browser here has open, and any user of the
            machine, could end Envoy by a POST.
        admin_key: letters and digits, without which no path of it is answered.
    """

    def watched(name: str) -> dict[str, Any]:
        return {
            "resource_api_version": "V3",
            "path_config_source": {"path": str(folder / name), "watched_directory": {"path": str(folder)}},
        }

    return {
        "node": {"id": "serinus", "cluster": "serinus", "metadata": {"admin_key": admin_key}},
        "admin": {
            "address": _address(admin_port),
            "allow_paths": [{"safe_regex": {"regex": rf"/[a-z_]+\?(.*&)?key={admin_key}"}}],
        },
        "dynamic_resources": {"cds_config": watched("cds.json"), "lds_config": watched("lds.json")},
        # A laptop's gateway has no edge to protect; without a limit Envoy warns at each start.
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": _EXTENSIONS
                        + "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 50000,
                    },
                }
            ]
        },
    }


def clusters(folder: Path, backends: Sequence[Backend]) -> list[dict[str, Any]]:
    """Two clusters for each revision."""
    found = []
    for backend in backends:
        for kind in ("http", "grpc"):
            options: dict[str, Any] = {"http_protocol_options": {}}
            if kind == "grpc":
                options = {"http2_protocol_options": {"max_concurrent_streams": 1000}}
            found.append(
                {
                    "@type": _TYPE + "envoy.config.cluster.v3.Cluster",
                    "name": f"{backend.revision}/{kind}",
                    "type": "EDS",
                    # On loopback a process that is gone refuses at once. One whose queue of connections is full for a moment has the kernel
                    # try again after 1, 3 and 7 s: with 1 s here a busy machine would lose what only waits.
                    "connect_timeout": "10s",
                    "lb_policy": "LEAST_REQUEST",
                    "ignore_health_on_host_removal": True,
                    # With all processes down a request gets 503 at once instead of a dead socket.
                    "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
                    "circuit_breakers": {
                        "thresholds": [
                            dict.fromkeys(
                                ("max_connections", "max_pending_requests", "max_requests", "max_retries"), 100000
                            )
                        ]
                    },
                    "eds_cluster_config": {
                        "service_name": f"{backend.revision}/{kind}",
                        "eds_config": {
                            "resource_api_version": "V3",
                            "path_config_source": {
                                "path": str(folder / "eds" / cluster_file(backend.revision, kind)),
                                "watched_directory": {"path": str(folder / "eds")},
                            },
                        },
                    },
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": _EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": options,
                            "common_http_protocol_options": {"idle_timeout": _duration(UPSTREAM_IDLE_S)},
                        }
                    },
                    "health_checks": [
                        {
                            # With the threshold of 3: out after half a minute without an answer, as with a livenessProbe of
                            # Kubernetes' defaults. Sooner is the runner's matter, which knows whether there is another process.
                            "timeout": "10s",
                            "interval": "1s",
                            "no_traffic_interval": "1s",
                            "unhealthy_interval": "0.2s",  # one that comes back is waited for
                            "initial_jitter": "0.001s",
                            "unhealthy_threshold": 3,
                            "healthy_threshold": 1,
                            # HTTP/1.1 to the HTTP port, whatever the cluster speaks (see health_check_config below). Readiness was
                            # established by the runner: a server without the V2 path answers 404 and is alive.
                            "http_health_check": {
                                "path": "/v2/health/ready",
                                "codec_client_type": "HTTP1",
                                "expected_statuses": [{"start": 200, "end": 300}, {"start": 404, "end": 406}],
                            },
                        }
                    ],
                }
            )
    return found


def endpoints(backend: Backend, kind: str) -> list[dict[str, Any]]:
    """The processes of one cluster."""
    hosts = []
    for endpoint in backend.endpoints:
        port = endpoint.http_port if kind == "http" else endpoint.grpc_port
        hosts.append(
            {
                "health_status": endpoint.health,
                "endpoint": {
                    "address": _address(port),
                    "health_check_config": {"port_value": endpoint.http_port},
                },
            }
        )
    return [
        {
            "@type": _TYPE + "envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": f"{backend.revision}/{kind}",
            "endpoints": [{"lb_endpoints": hosts}],
        }
    ]


_ACCESS_LOG_FIELDS = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "host": "%REQ(:AUTHORITY)%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH)%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS(NUMBER)%",
    "flags": "%RESPONSE_FLAGS%",
    "revision": f"%RESP({REVISION_HEADER})%",
    "key": KEY,
    "duration_ms": "%DURATION%",
    "request_bytes": "%BYTES_RECEIVED%",
    "response_bytes": "%BYTES_SENT%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "upstream": "%UPSTREAM_HOST%",
}


def _manager(name: str, access_log: Path | None, route: Mapping[str, Any]) -> dict[str, Any]:
    """The HTTP connection manager of one listener."""
    manager: dict[str, Any] = {
        "@type": _EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "AUTO",
        "http2_protocol_options": {"max_concurrent_streams": 1000},
        # Clients say `Host: fraud.default.localhost:8080` when the port is in the URL.
        "strip_any_host_port": True,
        "preserve_external_request_id": True,
        "use_remote_address": True,
        # Inference may take as long as the route allows; there is no shorter limit in the way.
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "delayed_close_timeout": "1s",
        "http_filters": [
            *([hash_filter()] if access_log is not None else []),
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": _EXTENSIONS + "filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            },
        ],
        **route,
    }
    if access_log is not None:
        manager["access_log"] = [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": _EXTENSIONS + "access_loggers.file.v3.FileAccessLog",
                    "path": str(access_log),
                    "log_format": {"json_format": _ACCESS_LOG_FIELDS},
                },
            }
        ]
    return manager


def _listener(name: str, host: str, port: int, manager: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": _TYPE + "envoy.config.listener.v3.Listener",
        "name": name,
        "address": _address(port, host),
        # Without it another gateway could share the port unnoticed (SO_REUSEPORT), each getting half of the connections.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def listeners(
    folder: Path, *, host: str, port: int, access_log: Path | None, inner: Sequence[InnerListener]
) -> list[dict[str, Any]]:
    """The gateway's listener and the inner ones."""
    rds = {
        "rds": {
            "route_config_name": "gateway",
            "config_source": {
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": str(folder / "rds.json"),
                    "watched_directory": {"path": str(folder)},
                },
            },
        }
    }
    found = [_listener("gateway", host, port, _manager("gateway", access_log, rds))]
    for each in inner:
        table = {
            "route_config": {
                "name": f"inner-{each.revision}",
                "virtual_hosts": [
                    {
                        "name": each.revision,
                        "domains": ["*"],
                        "routes": _component_routes((Arm(each.revision, 100),), each.timeout_s),
                    }
                ],
            }
        }
        name = f"inner-{each.revision}"
        found.append(_listener(name, "127.0.0.1", each.port, _manager(name, None, table)))
    return found


def _component_routes(arms: Sequence[Arm], timeout_s: float) -> list[dict[str, Any]]:
    """Routes of one component: gRPC by its content type, then all else."""
    found = []
    for kind in ("grpc", "http"):
        match: dict[str, Any] = {"prefix": "/"}
        if kind == "grpc":
            match["headers"] = [{"name": "content-type", "string_match": {"prefix": "application/grpc"}}]
        weighted = [
            {
                "name": f"{arm.revision}/{kind}",
                "weight": arm.weight,
                "response_headers_to_add": [
                    {
                        "header": {"key": REVISION_HEADER, "value": arm.revision},
                        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                    }
                ],
            }
            for arm in arms
        ]
        found.append(
            {
                "match": match,
                "route": {
                    "weighted_clusters": {"clusters": weighted},
                    "timeout": _duration(timeout_s),
                    # A deadline of the client's own shortens it; none lengthens it.
                    "max_stream_duration": {
                        "max_stream_duration": "0s",
                        "grpc_timeout_header_max": _duration(timeout_s),
                    },
                    "retry_policy": {
                        # Only where the server cannot have seen the request: inference is not known to be idempotent.
                        "retry_on": "connect-failure",
                        "num_retries": 2,
                        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.250s"},
                    },
                },
            }
        )
    return found


def _host_routes(host: Host, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Routes of a virtual host: what is refused, a tester's, then the split."""
    found = [_held_back(host)] if host.inference_alone else []
    for pin in host.pins:
        for route in _component_routes((Arm(pin.revision, 100),), host.timeout_s):
            headers = [*route["match"].get("headers", ()), pin_match(pin)]
            found.append({**route, "match": {**route["match"], "headers": headers}})
    for kind, route in zip(("grpc", "http"), _component_routes(arms, host.timeout_s), strict=True):
        if host.mirror is not None:
            route["route"]["request_mirror_policies"] = mirror_policies(host.mirror, kind)
        found.append(by_key(route, host.affinity) if host.affinity is not None else route)
    return found


def _held_back(host: Host) -> dict[str, Any]:
    """Refuse gRPC calls that KServe's route leads to the REST port, where no server takes them; Envoy makes a gRPC status of it."""
    name = host.domains[0] if host.domains else host.name
    (refused,) = _refusal(
        404,
        f"{name}: KServe's HTTPRoute leads {INFERENCE_PREFIX}* alone to the gRPC port; health and reflection are asked at the pod's own port "
        "(serinus status shows it)",
    )
    header = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    others = {"name": ":path", "string_match": {"prefix": INFERENCE_PREFIX}, "invert_match": True}
    return {**refused, "match": {"prefix": "/", "headers": [header, others]}}


def _refusal(status: int, message: str) -> list[dict[str, Any]]:
    body = '{"error": "' + message.replace("\\", "").replace('"', "'") + '"}'
    return [
        {
            "match": {"prefix": "/"},
            "direct_response": {"status": status, "body": {"inline_string": body}},
            "response_headers_to_add": [
                {
                    "header": {"key": "content-type", "value": "application/json"},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
            ],
        }
    ]


def routes(hosts: Sequence[Host]) -> list[dict[str, Any]]:
    """The gateway's table: one virtual host for each service, component and tag; anything else is 404 and says what there is."""
    virtual = []
    for host in hosts:
        # Envoy refuses a table with an unused weight only where the sum is 0; arms without weight are left out.
        arms = [arm for arm in host.arms if arm.weight > 0]
        name = host.domains[0] if host.domains else host.name
        virtual.append(
            {
                "name": host.name,
                "domains": list(host.domains),
                "routes": _host_routes(host, arms)
                if arms
                else _refusal(503, f"{name}: no revision is ready yet; serinus status tells why"),
            }
        )
    known = ", ".join(host.domains[0] for host in hosts if host.domains and host.name.startswith("service:")) or "none"
    virtual.append(
        {
            "name": "unknown",
            "domains": ["*"],
            "routes": _refusal(404, f"no InferenceService has this host; set the Host header to one of: {known}"),
        }
    )
    return [
        {
            "@type": _TYPE + "envoy.config.route.v3.RouteConfiguration",
            "name": "gateway",
            "virtual_hosts": virtual,
            # Routes come after their clusters; a table is never refused for one that is late.
            "validate_clusters": False,
        }
    ]
