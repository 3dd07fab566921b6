"""What the machine allows a server: descriptors, addresses, names of hosts, time zones."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

import grpc
import warm_start
from certificate_support import Authority
from grpc_support import INFER, PREFACE, SETTINGS, frame
from serve_support import serving
from waiting import wait_until

pytestmark = pytest.mark.slow  # each starts a process

SUPPORT = Path(__file__).resolve().parents[1] / "support"
STEADY = ("--class", "fault_models:Steady", "--model_name", "m")
ENVIRONMENT = {"PYTHONPATH": str(SUPPORT)}
BODY = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}
CALL = pb.ModelInferRequest(
    model_name="m",
    inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 1])],
    raw_input_contents=[np.float32(1).tobytes()],
).SerializeToString()
HAS_IPV6 = (
    Path("/proc/net/if_inet6").is_file()
    and "00000000000000000000000000000001" in Path("/proc/net/if_inet6").read_text()
)


def _python(folder: Path, *script: str) -> str:
    made = folder / "python.sh"
    made.write_text("\n".join(("#!/bin/bash", *script, f'exec {sys.executable} "$@"', "")))
    made.chmod(0o755)
    return str(made)


def test_a_soft_limit_of_descriptors_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    python = _python(tmp_path, "ulimit -S -n 100")
    with (
        serving(tmp_path, *STEADY, environment=ENVIRONMENT, python=python) as served,
        contextlib.ExitStack() as clients,
    ):
        for _ in range(200):
            clients.enter_context(socket.create_connection(("127.0.0.1", served.http_port), timeout=10))
        status, _ = served.ask("POST", "/v2/models/m/infer", BODY)
        assert status == 200


def test_where_descriptors_run_out_who_says_nothing_makes_room_and_nobody_is_reset(tmp_path: Path) -> None:
    python = _python(tmp_path, "ulimit -n 120")
    with (
        serving(tmp_path, *STEADY, environment=ENVIRONMENT, python=python) as served,
        contextlib.ExitStack() as clients,
    ):
        for _ in range(240):
            clients.enter_context(socket.create_connection(("127.0.0.1", served.http_port), timeout=10))
        for _ in range(3):
            assert served.ask("GET", "/v2/health/live")[0] == 200
            assert served.ask("POST", "/v2/models/m/infer", BODY)[0] == 200


@pytest.mark.parametrize("said", ["nothing", "a preface"])
def test_where_descriptors_run_out_who_calls_nothing_over_grpc_makes_room_for_both_transports(
    said: str, tmp_path: Path
) -> None:
    python = _python(tmp_path, "ulimit -n 120")
    with (
        serving(tmp_path, *STEADY, environment=ENVIRONMENT, python=python) as served,
        contextlib.ExitStack() as clients,
    ):
        for _ in range(240):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", served.grpc_port), timeout=10))
            if said != "nothing":
                client.sendall(PREFACE + frame(SETTINGS, 0, 0))
        with contextlib.ExitStack() as callers:
            for _ in range(3):
                assert served.ask("GET", "/v2/health/live")[0] == 200
                assert served.ask("POST", "/v2/models/m/infer", BODY)[0] == 200
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = callers.enter_context(grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}", options=options))
                answer = channel.unary_unary(INFER)(CALL, timeout=10, wait_for_ready=True)
                assert pb.ModelInferResponse.FromString(answer).raw_output_contents[0] == np.float32(2).tobytes()


@pytest.mark.parametrize("said", ["nothing", "a hello", "a preface", "no ALPN"])
def test_where_descriptors_run_out_who_calls_nothing_over_tls_makes_room_for_both_transports(
    said: str, tmp_path: Path, authority: Authority
) -> None:
    python = _python(tmp_path, "ulimit -n 120")
    issued = authority.issue("server")
    flags = ("--ssl_certfile", str(issued.certificate), "--ssl_keyfile", str(issued.key))
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if said != "no ALPN":
        context.set_alpn_protocols(["h2"])
    https = ssl.create_default_context(cafile=str(authority.certificate))
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    with (
        serving(tmp_path, *STEADY, *flags, environment=ENVIRONMENT, python=python) as served,
        contextlib.ExitStack() as clients,
    ):
        silent = []
        for _ in range(80):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", served.grpc_port), timeout=10))
            silent.append(client)
            if said == "a hello":
                client.sendall(bytes.fromhex("1603010200010001fc0303"))
            elif said != "nothing":
                client = clients.enter_context(context.wrap_socket(client, server_hostname="127.0.0.1"))
                with contextlib.suppress(OSError):  # without h2 it is closed, and stays
                    client.sendall(PREFACE + frame(SETTINGS, 0, 0))
        if said in ("nothing", "a hello"):
            for client in silent[:45]:  # the others are accepted, or nearly all, and take nobody's place any more
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(100) == b""
        with contextlib.ExitStack() as callers:
            for _ in range(3):
                connection = http.client.HTTPSConnection("127.0.0.1", served.http_port, timeout=10, context=https)
                callers.callback(connection.close)
                connection.request("GET", "/v2/health/live")
                assert connection.getresponse().status == 200
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = grpc.secure_channel(f"127.0.0.1:{served.grpc_port}", credentials, options=options)
                answer = callers.enter_context(channel).unary_unary(INFER)(CALL, timeout=10, wait_for_ready=True)
                assert pb.ModelInferResponse.FromString(answer).raw_output_contents[0] == np.float32(2).tobytes()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


def test_where_descriptors_run_out_a_grpc_connection_without_an_open_call_goes_before_one_that_has_one(
    tmp_path: Path,
) -> None:
    python = _python(tmp_path, "ulimit -n 120")
    with (
        serving(tmp_path, *STEADY, environment=ENVIRONMENT, python=python) as served,
        contextlib.ExitStack() as callers,
    ):

        def connect() -> grpc.Channel:
            options = [("grpc.use_local_subchannel_pool", 1)]
            return callers.enter_context(grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}", options=options))

        watching = connect().unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60, wait_for_ready=True)
        assert next(watching)
        for _ in range(60):  # some thirty are all that the descriptors are enough for
            assert connect().unary_unary(INFER)(CALL, timeout=10, wait_for_ready=True)
        assert watching.is_active(), "it was silent for longest, and is the only one that waits for something"


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no ::1")
def test_a_server_listens_on_ipv6_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["serve", *STEADY, "--host", "::1", "--http_port", "0", "--grpc_port", "0"]
    with log.open("w") as output:
        process = warm_start.start(words, env={**os.environ, **ENVIRONMENT}, out=output)
    try:
        wait_until(lambda: "REST on [::1]:" in log.read_text(), limit_s=60)
        port = int(log.read_text().split("REST on [::1]:")[1].split(",")[0])
        grpc_port = int(log.read_text().split("gRPC on [::1]:")[1].split(" ")[0])
        for each in (port, grpc_port):
            socket.create_connection(("::1", each), timeout=10).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", each), timeout=10)
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours_ends_the_start_in_words(tmp_path: Path, host: str) -> None:
    words = ["serve", *STEADY, "--host", host, "--http_port", "0", "--grpc_port", "0"]
    done = warm_start.run(words, env={**os.environ, **ENVIRONMENT})
    assert done.returncode != 0
    assert host in done.stderr
    assert "Traceback" not in done.stderr


def test_a_time_zone_changes_the_log_and_nothing_else(tmp_path: Path) -> None:
    with serving(tmp_path, *STEADY, environment={**ENVIRONMENT, "TZ": "No/Where"}) as served:
        assert served.ask("POST", "/v2/models/m/infer", BODY)[0] == 200
