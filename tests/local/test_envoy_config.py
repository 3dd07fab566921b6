"""The gateway's configuration: every value that a request's way, its deadline or its answer hangs on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from serinus.local.plan import envoy_config as envoy
from serinus.local.plan.envoy_config import Arm, Backend, Endpoint, Host, InnerListener

FOLDER = Path("/state/gateway")
BACKEND = Backend("fraud-00001", (Endpoint(20001, 20002, "HEALTHY"), Endpoint(20011, 20012, "DRAINING")))
KINDS = ("http", "grpc")


def test_a_revision_is_two_clusters_named_after_it_and_read_from_two_files():
    found = envoy.clusters(FOLDER, [BACKEND, Backend("other-00002", ())])
    assert [cluster["name"] for cluster in found] == [
        "fraud-00001/http", "fraud-00001/grpc", "other-00002/http", "other-00002/grpc",
    ]  # fmt: skip
    for cluster in found[:2]:
        eds = cluster["eds_cluster_config"]
        kind = cluster["name"].split("/")[1]
        assert eds["service_name"] == cluster["name"]
        source = eds["eds_config"]["path_config_source"]
        assert source["path"] == str(FOLDER / "eds" / envoy.cluster_file("fraud-00001", kind))
        assert source["watched_directory"]["path"] == str(FOLDER / "eds")
        assert cluster["type"] == "EDS"
        assert cluster["connect_timeout"] == "10s"


@pytest.mark.parametrize("kind", KINDS)
def test_a_cluster_speaks_the_protocol_of_its_ports(kind):
    (cluster,) = [each for each in envoy.clusters(FOLDER, [BACKEND]) if each["name"].endswith(kind)]
    (options,) = cluster["typed_extension_protocol_options"].values()
    other = "http_protocol_options" if kind == "grpc" else "http2_protocol_options"
    assert f"{'http2' if kind == 'grpc' else 'http'}_protocol_options" in options["explicit_http_config"]
    assert other not in options["explicit_http_config"]


def test_an_idle_connection_to_a_server_is_closed_before_the_server_closes_it():
    for cluster in envoy.clusters(FOLDER, [BACKEND]):
        (options,) = cluster["typed_extension_protocol_options"].values()
        assert options["common_http_protocol_options"]["idle_timeout"] == "30.000s"
    assert envoy.UPSTREAM_IDLE_S < 65, "keep_alive_s of ours and of KServe's servers"


def test_nothing_is_sent_to_a_server_that_is_down_and_no_breaker_is_in_the_way():
    for cluster in envoy.clusters(FOLDER, [BACKEND]):
        assert cluster["common_lb_config"] == {"healthy_panic_threshold": {"value": 0}}
        assert cluster["ignore_health_on_host_removal"] is True
        assert cluster["lb_policy"] == "LEAST_REQUEST"
        (limits,) = cluster["circuit_breakers"]["thresholds"]
        assert set(limits) == {"max_connections", "max_pending_requests", "max_requests", "max_retries"}
        assert set(limits.values()) == {100000}


def test_health_is_asked_of_the_http_port_each_second_and_a_server_without_that_path_is_alive():
    for cluster in envoy.clusters(FOLDER, [BACKEND]):
        (check,) = cluster["health_checks"]
        assert (check["interval"], check["no_traffic_interval"], check["timeout"]) == ("1s", "1s", "10s")
        assert (check["unhealthy_threshold"], check["healthy_threshold"]) == (3, 1)
        http = check["http_health_check"]
        assert (http["path"], http["codec_client_type"]) == ("/v2/health/ready", "HTTP1")
        accepted = [range(one["start"], one["end"]) for one in http["expected_statuses"]]
        good = {status for status in range(100, 600) if any(status in one for one in accepted)}
        assert good == {*range(200, 300), 404, 405}
    for kind in KINDS:
        (assignment,) = envoy.endpoints(BACKEND, kind)
        checked = [
            host["endpoint"]["health_check_config"]["port_value"] for host in assignment["endpoints"][0]["lb_endpoints"]
        ]
        assert checked == [20001, 20011], "whatever the cluster speaks"


@pytest.mark.parametrize(("kind", "ports"), [("http", [20001, 20011]), ("grpc", [20002, 20012])])
def test_endpoints_are_the_ports_of_their_kind_on_loopback_with_their_health(kind, ports):
    (assignment,) = envoy.endpoints(BACKEND, kind)
    hosts = assignment["endpoints"][0]["lb_endpoints"]
    addresses = [host["endpoint"]["address"]["socket_address"] for host in hosts]
    assert assignment["cluster_name"] == f"fraud-00001/{kind}"
    assert [address["port_value"] for address in addresses] == ports
    assert {address["address"] for address in addresses} == {"127.0.0.1"}
    assert [host["health_status"] for host in hosts] == ["HEALTHY", "DRAINING"]


def table(*hosts: Host) -> dict:
    (found,) = envoy.routes(hosts)
    return found


def test_a_hosts_traffic_is_split_by_weight_grpc_to_grpc_clusters_and_all_else_to_http():
    host = Host("service:default/fraud", ("fraud.x", "fraud.y"), (Arm("a-00001", 90), Arm("a-00002", 10)), 7.5)
    virtual = table(host)["virtual_hosts"][0]
    assert (virtual["name"], virtual["domains"]) == ("service:default/fraud", ["fraud.x", "fraud.y"])
    grpc, http = virtual["routes"]
    assert grpc["match"]["headers"] == [{"name": "content-type", "string_match": {"prefix": "application/grpc"}}]
    assert http["match"] == {"prefix": "/"}
    assert grpc["match"]["prefix"] == "/"
    for kind, route in (("grpc", grpc), ("http", http)):
        split = route["route"]["weighted_clusters"]["clusters"]
        assert [(one["name"], one["weight"]) for one in split] == [(f"a-00001/{kind}", 90), (f"a-00002/{kind}", 10)]
        for one, revision in zip(split, ("a-00001", "a-00002"), strict=True):
            (header,) = one["response_headers_to_add"]
            assert header["header"] == {"key": "x-serinus-revision", "value": revision}
            assert header["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD", "a server cannot say that it is another"


def test_other_grpc_calls_are_refused_first_where_kserves_route_leads_none_of_them_on():
    host = Host("service:default/fraud", ("fraud.x",), (Arm("a", 100),), 1.0, inference_alone=True)
    held, grpc, http = table(host)["virtual_hosts"][0]["routes"]
    assert held["match"]["headers"] == [
        {"name": "content-type", "string_match": {"prefix": "application/grpc"}},
        {"name": ":path", "string_match": {"prefix": "/inference.GRPCInferenceService/"}, "invert_match": True},
    ]
    assert held["direct_response"]["status"] == 404
    assert (grpc["match"]["prefix"], http["match"]) == ("/", {"prefix": "/"})


@pytest.mark.parametrize(("timeout_s", "text"), [(60.0, "60.000s"), (0.25, "0.250s"), (7.5, "7.500s")])
def test_a_request_has_the_components_time_and_a_clients_deadline_only_shortens_it(timeout_s, text):
    virtual = table(Host("service:a", ("a",), (Arm("r", 100),), timeout_s))["virtual_hosts"][0]
    for route in virtual["routes"]:
        assert route["route"]["timeout"] == text
        duration = route["route"]["max_stream_duration"]
        assert duration == {"max_stream_duration": "0s", "grpc_timeout_header_max": text}


def test_a_request_is_sent_again_only_where_no_server_has_seen_it():
    virtual = table(Host("service:a", ("a",), (Arm("r", 100),), 1.0))["virtual_hosts"][0]
    for route in virtual["routes"]:
        policy = route["route"]["retry_policy"]
        assert (policy["retry_on"], policy["num_retries"]) == ("connect-failure", 2)


def test_an_unknown_host_is_404_and_names_services_only():
    found = table(
        Host("service:a", ("a.x",), (Arm("r", 1),), 1.0),
        Host("predictor:a", ("a-predictor.x",), (Arm("r", 1),), 1.0),
        Host("service:b", (), (), 1.0),
    )
    unknown = found["virtual_hosts"][-1]
    (route,) = unknown["routes"]
    assert unknown["domains"] == ["*"]
    assert route["direct_response"]["status"] == 404
    message = json.loads(route["direct_response"]["body"]["inline_string"])["error"]
    assert message.endswith("set the Host header to one of: a.x")
    (header,) = route["response_headers_to_add"]
    assert header["header"] == {"key": "content-type", "value": "application/json"}
    assert found["name"] == "gateway"
    assert found["validate_clusters"] is False
    nobody = table()["virtual_hosts"][0]["routes"][0]["direct_response"]["body"]["inline_string"]
    assert json.loads(nobody)["error"].endswith("one of: none")


def test_a_refusal_is_json_whatever_the_hosts_name_holds():
    (_, unknown) = table(Host("service:a", ('a"\\b',), (), 1.0))["virtual_hosts"]
    assert json.loads(unknown["routes"][0]["direct_response"]["body"]["inline_string"])


def test_an_inner_listener_leads_to_its_predictor_alone_on_loopback():
    inner = [InnerListener(20100, "fraud-predictor-00001", 12.0)]
    outer, own = envoy.listeners(FOLDER, host="0.0.0.0", port=8080, access_log=FOLDER / "log", inner=inner)
    assert outer["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8080}
    assert own["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 20100}
    assert (outer["name"], own["name"]) == ("gateway", "inner-fraud-predictor-00001")
    managers = [one["filter_chains"][0]["filters"][0]["typed_config"] for one in (outer, own)]
    assert managers[0]["rds"]["route_config_name"] == "gateway"
    assert managers[0]["access_log"][0]["typed_config"]["path"] == str(FOLDER / "log")
    assert "access_log" not in managers[1], "a request is written once, at the gateway"
    (virtual,) = managers[1]["route_config"]["virtual_hosts"]
    assert virtual["domains"] == ["*"]
    for route in virtual["routes"]:
        (only,) = route["route"]["weighted_clusters"]["clusters"]
        assert only["name"].startswith("fraud-predictor-00001/")
        assert only["weight"] == 100
        assert route["route"]["timeout"] == "12.000s"
    for listener, manager in zip((outer, own), managers, strict=True):
        assert listener["enable_reuse_port"] is False, "another gateway must not share the port unnoticed"
        assert manager["codec_type"] == "AUTO"
        assert (manager["stream_idle_timeout"], manager["request_timeout"]) == ("0s", "0s")
        assert manager["strip_any_host_port"] is True
        assert manager["preserve_external_request_id"] is True


def test_the_bootstrap_names_the_watched_files_and_its_admin_port_on_loopback():
    found = envoy.bootstrap(FOLDER, 20200, "secret1")
    assert found["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 20200}
    ((allowed,),) = (found["admin"]["allow_paths"],)
    for path in ("/ready", "/clusters?format=json", "/config_dump?resource=dynamic_route_configs"):
        assert re.fullmatch(allowed["safe_regex"]["regex"], envoy.admin_path(path, "secret1"))
        for wrong in (
            path,
            envoy.admin_path(path, "secret2"),
            envoy.admin_path(path, "secret1") + "0",
            path + "?xkey=secret1",
        ):
            assert not re.fullmatch(allowed["safe_regex"]["regex"], wrong), wrong
    for key, name in (("cds_config", "cds.json"), ("lds_config", "lds.json")):
        source = found["dynamic_resources"][key]["path_config_source"]
        assert source == {"path": str(FOLDER / name), "watched_directory": {"path": str(FOLDER)}}
    assert envoy.discovery(7, [{"a": 1}]) == {"version_info": "7", "resources": [{"a": 1}]}
