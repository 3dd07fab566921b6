"""`--health_port`: plain health beside mutual TLS and tokens, as a kubelet asks it, and nothing else there."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from pathlib import Path

import pytest

from certificate_support import Authority
from prometheus_server import free_port
from serinus.server.port_checks import port_problems
from serinus.settings import ServerSettings
from serve_support import Served, serving
from waiting import wait_until

pytestmark = pytest.mark.slow

MODEL = """
from serinus import Model, TensorSpec

class Doubler(Model):
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)
    execution = "inline"

    def predict(self, inputs, call):
        return {"y": inputs["x"] * 2}
"""
HEALTHY = ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v1/models/m")
OTHER = ("/v2", "/v2/models/m", "/metrics", "/docs", "/openapi.json", "/v2/models/m/stats", "/v2/repository/index")


def asked(port: int, path: str, method: str = "GET", body: str | None = None) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A server that asks clients for certificates and tokens."""
    authority = Authority(tmp_path, "ours")
    issued = authority.issue("server")
    (tmp_path / "doubler.py").write_text(MODEL)
    (tmp_path / "tokens").write_text("a-token-of-sixteen-characters\n")
    words = ["--class", f"{tmp_path / 'doubler.py'}:Doubler", "--model_name", "m"]
    words += ["--ssl_certfile", str(issued.certificate), "--ssl_keyfile", str(issued.key)]
    return [*words, "--ssl_ca_certs", str(authority.certificate), "--token_file", str(tmp_path / "tokens")]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_kubelet_without_certificate_and_token_asks_health_and_gets_nothing_else(
    workers: str, flags: list[str], tmp_path: Path
):
    port = free_port()
    with serving(tmp_path, *flags, "--workers", workers, "--health_port", str(port)) as server:
        wait_until(lambda: answers(port), limit_s=30)
        assert {path: asked(port, path) for path in HEALTHY} == dict.fromkeys(HEALTHY, 200)
        assert {path: asked(port, path) for path in OTHER} == dict.fromkeys(OTHER, 404)
        body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]})
        assert asked(port, "/v2/models/m/infer", "POST", body) == 404
        assert asked(port, "/v2/models/another/ready") == 404
        # As without the port: a probe by httpGet on the REST port does not get through mutual TLS.
        assert not probe_over_tls(server)


def answers(port: int) -> bool:
    try:
        return asked(port, "/") == 200
    except OSError:
        return False


def probe_over_tls(server: Served) -> bool:
    """What a kubelet does with `scheme: HTTPS`: it does not look at the certificate, and has none of its own."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", server.http_port), 10) as plain,
            context.wrap_socket(plain) as encrypted,
        ):
            encrypted.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
            return encrypted.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:  # an SSLError is one: alert, certificate required
        return False


def test_readiness_goes_off_there_while_the_server_drains_and_liveness_stays(flags: list[str], tmp_path: Path):
    port = free_port()
    with serving(tmp_path, *flags, "--health_port", str(port), "--drain_delay_s", "3") as server:
        assert asked(port, "/v2/health/ready") == 200
        server.process.terminate()
        wait_until(lambda: asked(port, "/v2/health/ready") == 503, limit_s=2.5)
        assert asked(port, "/v2/health/live") == 200


def test_connections_that_ask_nothing_there_take_no_descriptors_from_others(flags: list[str], tmp_path: Path):
    port = free_port()
    with serving(tmp_path, *flags, "--health_port", str(port)) as server, contextlib.ExitStack() as open_ones:
        for _ in range(700):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port), 10)).sendall(b"GET / HT")
        assert asked(port, "/v2/health/ready") == 200
        descriptors = Path(f"/proc/{server.process.pid}/fd")
        wait_until(lambda: len(list(descriptors.iterdir())) < 400)


def test_the_line_at_start_names_it_and_one_port_for_two_things_is_refused(flags: list[str], tmp_path: Path):
    with serving(tmp_path, *flags, "--health_port", "0") as server:
        assert ", health on 127.0.0.1:" in server.log.read_text()
    for other in ("http_port", "grpc_port", "metrics_port"):
        settings = ServerSettings(**{"health_port": 9999, other: 9999})
        (problem,) = port_problems(settings)
        assert "health_port" in problem
        assert f"--{other}" in problem
