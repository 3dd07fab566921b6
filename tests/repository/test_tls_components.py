"""`components/tls` and `mtls`: what they render is taken by the linter, and its probes get through to a server with the same arguments."""

from __future__ import annotations

import contextlib
import http.client
from pathlib import Path
from typing import Any

import pytest

from certificate_support import Authority
from kustomize_support import dump, overlay, render, runtimes
from prometheus_server import free_port
from serinus.manifests.documents import load_text
from serinus.manifests.linter import check_documents
from serinus.manifests.problems import Problems
from serve_support import serving
from waiting import wait_until

pytestmark = pytest.mark.slow

WHOLE = ("namespace", "network-policy", "../monitoring/pod-monitor", "revision")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.fixture(params=[("tls",), ("tls", "mtls")], ids="+".join)
def rendered(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """An overlay with the components, and whether clients need certificates."""
    return overlay(tmp_path, *WHOLE, *request.param), "mtls" in request.param


def test_probes_and_metrics_are_on_plain_ports_and_the_policy_and_the_monitor_know_them(rendered: tuple[Path, bool]):
    folder, mutual = rendered
    for runtime in runtimes(folder):
        spec = runtime["spec"]
        container = spec["containers"][0]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"https": 8080, "grpc": 8081, "health": 8082, "metrics": 8083}
        assert {container[probe]["httpGet"]["port"] for probe in PROBES} == {ports["health"]}
        assert all(container[probe]["httpGet"].get("scheme", "HTTP") == "HTTP" for probe in PROBES)
        assert spec["annotations"]["prometheus.io/port"] == str(ports["metrics"])
        assert ("--ssl_ca_certs=/etc/serinus/tls/ca.crt" in container["args"]) is mutual
        assert {"name": "tls", "secret": {"secretName": "serinus-tls"}} in spec["volumes"]
    documents = {document["kind"]: document for document in render(folder)}
    endpoints = documents["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert [endpoint["port"] for endpoint in endpoints] == ["http", "http1", "metrics"]
    assert endpoints[2]["relabelings"] == endpoints[0]["relabelings"]
    prometheus = documents["NetworkPolicy"]["spec"]["ingress"][2]
    assert {port["port"] for port in prometheus["ports"]} == {8080, 8090, 8083}


def test_the_linter_finds_nothing(rendered: tuple[Path, bool]):
    problems = Problems()
    check_documents(load_text(dump(render(rendered[0])), "overlay.yaml"), problems)
    assert problems.errors == ()


def test_the_probes_that_are_rendered_get_through_to_a_server_with_the_arguments_that_are(
    rendered: tuple[Path, bool], tmp_path: Path
):
    folder, mutual = rendered
    runtime = next(each for each in runtimes(folder) if each["metadata"]["name"] == "serinus-xgboost-server")
    container = runtime["spec"]["containers"][0]
    authority = Authority(tmp_path, "ours")
    issued = authority.issue("server")
    health, metrics = free_port(), free_port()
    here = {
        "/etc/serinus/tls/tls.crt": str(issued.certificate),
        "/etc/serinus/tls/tls.key": str(issued.key),
        "/etc/serinus/tls/ca.crt": str(authority.certificate),
        "8082": str(health),
        "8083": str(metrics),
    }
    given = [argument.split("=", 1) for argument in container["args"]]
    taken = {"--ssl_certfile", "--ssl_keyfile", "--ssl_ca_certs", "--health_port", "--metrics_port"}
    flags = [f"{name}={here[value]}" for name, value in given if name in taken]
    assert len(flags) == (5 if mutual else 4)
    (tmp_path / "doubler.py").write_text(MODEL)
    model = ("--class", f"{tmp_path / 'doubler.py'}:Doubler", "--model_name", "m")
    with serving(tmp_path, *flags, *model) as server:
        for probe in PROBES:
            wait_until(lambda probe=probe: kubelet(container[probe], health) == 200, limit_s=20)
        assert scraped(metrics).startswith(b"# HELP")
        with pytest.raises((http.client.HTTPException, OSError)):
            kubelet(container["readinessProbe"], server.http_port)  # as it was before: plain HTTP to TLS


MODEL = """
from serinus import Model, TensorSpec

class Doubler(Model):
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)

    def predict(self, inputs, call):
        return {"y": inputs["x"] * 2}
"""


def kubelet(probe: dict[str, Any], port: int) -> int:
    """Ask as a kubelet does: any status from 200 to 399 is well (pkg/probe/http)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(
        "GET", probe["httpGet"]["path"], headers={"User-Agent": "kube-probe/1.36", "Connection": "close"}
    )
    return connection.getresponse().status


def scraped(port: int) -> bytes:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
