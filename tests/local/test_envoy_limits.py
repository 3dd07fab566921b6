"""The gateway's limits and marks, each with what would go wrong without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serinus.local.plan import envoy_config as envoy
from serinus.local.plan.envoy_config import Arm, Backend, Endpoint, Host, InnerListener

FOLDER = Path("/state/gateway")


def at(value: Any, *path: str | int) -> Any:
    for key in path:
        value = next(iter(value.values())) if key == "*" else value[key]
    return value


CLUSTERS = envoy.clusters(FOLDER, [Backend("a-00001", (Endpoint(1, 2, "HEALTHY"),))])
LISTENERS = envoy.listeners(
    FOLDER, host="127.0.0.1", port=8080, access_log=FOLDER / "log", inner=[InnerListener(9, "a-00001", 5.0)]
)
BOOTSTRAP = envoy.bootstrap(FOLDER, 20200, "key")
(TABLE,) = envoy.routes([Host("service:a", ("a.x",), (Arm("a-00001", 100),), 5.0)])
OPTIONS = "typed_extension_protocol_options"
MANAGER = ("filter_chains", 0, "filters", 0, "typed_config")
MONITOR = ("overload_manager", "resource_monitors", 0)


@pytest.mark.parametrize(
    ("where", "path", "expected"),
    [
        (CLUSTERS[1], (OPTIONS, "*", "explicit_http_config", "http2_protocol_options", "max_concurrent_streams"), 1000),
        (BOOTSTRAP, (*MONITOR, "typed_config", "max_active_downstream_connections"), 50_000),
        (BOOTSTRAP, (*MONITOR, "name"), "envoy.resource_monitors.global_downstream_max_connections"),
        (BOOTSTRAP, ("node", "id"), "serinus"),
        (BOOTSTRAP, ("node", "cluster"), "serinus"),
        (TABLE, ("virtual_hosts", 0, "routes", 0, "route", "retry_policy", "retry_back_off"),
            {"base_interval": "0.025s", "max_interval": "0.250s"}),
        *((listener, ("per_connection_buffer_limit_bytes",), 1_048_576) for listener in LISTENERS),
        *((listener, (*MANAGER, "http2_protocol_options"), {"max_concurrent_streams": 1000}) for listener in LISTENERS),
        *((listener, (*MANAGER, "use_remote_address"), True) for listener in LISTENERS),
        *((listener, (*MANAGER, "delayed_close_timeout"), "1s") for listener in LISTENERS),
        *((listener, (*MANAGER, "http_filters", -1, "typed_config", "suppress_envoy_headers"), True) for listener in LISTENERS),
        (LISTENERS[0], (*MANAGER, "rds", "config_source", "path_config_source"),
            {"path": "/state/gateway/rds.json", "watched_directory": {"path": "/state/gateway"}}),
    ],
)  # fmt: skip
def test_a_limit_is_what_the_gateway_was_measured_with(where: Any, path: tuple[str | int, ...], expected: Any):
    assert at(where, *path) == expected


TYPES = {
    "cluster.v3.Cluster": CLUSTERS[0],
    "listener.v3.Listener": LISTENERS[0],
    "route.v3.RouteConfiguration": TABLE,
    "endpoint.v3.ClusterLoadAssignment": envoy.endpoints(Backend("a", ()), "http")[0],
    "http_connection_manager.v3.HttpConnectionManager": at(LISTENERS[0], *MANAGER),
    "router.v3.Router": at(LISTENERS[0], *MANAGER, "http_filters", -1, "typed_config"),
    "file.v3.FileAccessLog": at(LISTENERS[0], *MANAGER, "access_log", 0, "typed_config"),
    "http.v3.HttpProtocolOptions": at(CLUSTERS[0], OPTIONS, "*"),
    "downstream_connections.v3.DownstreamConnectionsConfig": at(BOOTSTRAP, *MONITOR, "typed_config"),
}


@pytest.mark.parametrize("name", TYPES)
def test_every_typed_object_names_its_type_as_envoy_does(name: str):
    kind = TYPES[name]["@type"]
    assert kind.startswith(("type.googleapis.com/envoy.config.", "type.googleapis.com/envoy.extensions."))
    assert kind.endswith(name)


def test_the_access_log_says_who_answered_and_how_long_it_took():
    fields = at(LISTENERS[0], *MANAGER, "access_log", 0, "typed_config", "log_format", "json_format")
    assert fields["revision"] == "%RESP(x-serinus-revision)%"
    assert fields["status"] == "%RESPONSE_CODE%"
    assert fields["duration_ms"] == "%DURATION%"
    without = envoy.listeners(FOLDER, host="127.0.0.1", port=1, access_log=None, inner=[])
    assert "access_log" not in at(without[0], *MANAGER)


def test_a_service_without_a_host_is_named_by_its_key_and_arms_of_no_weight_are_no_arms():
    (table,) = envoy.routes([
        Host("service:a", (), (Arm("a-00001", 0),), 5.0),
        Host("service:b", ("b.x",), (Arm("b-00001", 1), Arm("b-00002", 0)), 5.0),
    ])  # fmt: skip
    refused, split, _ = table["virtual_hosts"]
    assert "service:a: no revision is ready" in at(refused, "routes", 0, "direct_response", "body", "inline_string")
    arms = at(split, "routes", 0, "route", "weighted_clusters", "clusters")
    assert [arm["name"] for arm in arms] == ["b-00001/grpc"], "a weight of 1 counts"
