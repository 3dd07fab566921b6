"""Requests that were sent before the signal, and not read since a predict held the event loop, are answered."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import signal
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from certificate_support import Authority
from serve_support import Served, serving
from waiting import wait_until

pytestmark = pytest.mark.slow  # each test starts servers

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SOON_S = 30
CLIENTS = 8


@contextlib.contextmanager
def holding(tmp_path: Path, *flags: str) -> Iterator[Served]:
    """A server of a model that a positive number has hold the event loop."""
    environment = {"PYTHONPATH": str(SUPPORT), "STUCK_FOLDER": str(tmp_path)}
    arguments = ("--class", "stuck_models:HoldsLoop", "--model_name", "m", "--warmup", "false", *flags)
    with serving(tmp_path, *arguments, environment=environment) as served:
        yield served


Connect = Callable[[Served], http.client.HTTPConnection]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes connections to a server's REST port, closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(served: Served) -> http.client.HTTPConnection:
            connection = http.client.HTTPConnection("127.0.0.1", served.http_port, timeout=SOON_S)
            stack.callback(connection.close)
            connection.connect()
            return connection

        yield make


def send(connection: http.client.HTTPConnection, number: float) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [number]}]}
    connection.request("POST", "/v2/models/m/infer", json.dumps(body), {"Content-Type": "application/json"})


def receive(connection: http.client.HTTPConnection) -> list[float]:
    with connection.getresponse() as answer:
        content = answer.read()
    assert answer.status == 200, content
    return json.loads(content)["outputs"][0]["data"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("http_", ["thin", "uvicorn"])
def test_requests_on_connections_that_nobody_has_accepted(http_: str, workers: str, connect: Connect, tmp_path: Path):
    with holding(tmp_path, "--http", http_, "--workers", workers) as served:
        hold = connect(served)
        send(hold, 1)
        wait_until((tmp_path / "begun").exists)
        connections = [connect(served) for _ in range(CLIENTS)]
        for index, connection in enumerate(connections):
            send(connection, -index)
        served.process.send_signal(signal.SIGTERM)
        assert [receive(connection) for connection in connections] == [[-index] for index in range(CLIENTS)]
        assert receive(hold) == [1]
        assert served.process.wait(SOON_S) == 0


@pytest.mark.parametrize("http_", ["thin", "uvicorn"])
def test_requests_on_connections_that_were_idle(http_: str, connect: Connect, tmp_path: Path):
    with holding(tmp_path, "--http", http_) as served:
        connections = [connect(served) for _ in range(CLIENTS)]
        for connection in connections:
            send(connection, -1)
            receive(connection)
        first, second, *others = connections
        send(first, 1)
        wait_until((tmp_path / "begun").exists)
        (tmp_path / "begun").unlink()
        send(second, 2)  # holds the loop again, past the half second that idle connections have
        for index, connection in enumerate(others):
            send(connection, -index)
        served.process.send_signal(signal.SIGTERM)
        assert [receive(connection) for connection in others] == [[-index] for index in range(len(others))]
        assert (receive(first), receive(second)) == ([1], [2])
        assert served.process.wait(SOON_S) == 0


def test_a_request_that_comes_while_a_predict_holds_the_loop_during_the_drain(connect: Connect, tmp_path: Path):
    """Sent after the signal, on a connection whose half second is over by the time that anybody looks."""
    with holding(tmp_path) as served:
        first, second = connect(served), connect(served)
        send(second, -1)
        receive(second)
        send(first, 1)
        wait_until((tmp_path / "begun").exists)
        served.process.send_signal(signal.SIGTERM)
        send(second, -2)
        assert receive(first) == [1]
        assert receive(second) == [-2]
        assert served.process.wait(SOON_S) == 0


@pytest.mark.parametrize(
    ("engine", "tls"), [("native", False), ("native", True), ("grpcio", False)], ids=["native", "native, TLS", "grpcio"]
)
def test_grpc_calls_that_were_sent(engine: str, tls: bool, connect: Connect, tmp_path: Path):
    flags, trusted, context = ["--grpc", engine], {}, None
    if tls:
        authority = Authority(tmp_path / "authority", "ours")
        issued = authority.issue("server")
        flags += ["--ssl_certfile", str(issued.certificate), "--ssl_keyfile", str(issued.key)]
        trusted = {"ssl": True, "root_certificates": str(authority.certificate)}
        context = ssl.create_default_context(cafile=str(authority.certificate))
    with holding(tmp_path, *flags) as served, contextlib.ExitStack() as stack:
        address = f"127.0.0.1:{served.grpc_port}"
        clients = [stack.enter_context(InferenceServerClient(address, **trusted)) for _ in range(CLIENTS)]
        assert all(client.is_server_live() for client in clients)
        if context is None:
            hold = connect(served)
        else:
            hold = http.client.HTTPSConnection("127.0.0.1", served.http_port, timeout=SOON_S, context=context)
            stack.callback(hold.close)
        send(hold, 1)
        wait_until((tmp_path / "begun").exists)
        outcomes: dict[int, Any] = {}
        for index, client in enumerate(clients):
            tensor = InferInput("x", [1, 1], "FP32")
            tensor.set_data_from_numpy(np.full((1, 1), -index, np.float32))
            client.async_infer("m", [tensor], functools.partial(keep, outcomes, index))
        served.process.send_signal(signal.SIGTERM)
        assert receive(hold) == [1]
        wait_until(lambda: len(outcomes) == CLIENTS)
        assert outcomes == {index: [-index] for index in range(CLIENTS)}
        assert served.process.wait(SOON_S) == 0


def keep(outcomes: dict[int, Any], index: int, result: Any, error: Any) -> None:
    """Note what a call got: its data, or its error."""
    outcomes[index] = error or result.as_numpy("y").ravel().tolist()
