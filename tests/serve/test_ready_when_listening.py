"""Ready means that REST and gRPC listen; and a stop under load loses no request that was taken."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from dataplane_support import Doubler
from serinus.server import lifecycle
from serinus.settings import ModelSettings, ServerSettings
from serve_support import Served, serving
from waiting import wait_until

SUPPORT = Path(__file__).resolve().parents[1] / "support"
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]})


async def test_a_server_is_not_ready_before_its_second_port_is_open(monkeypatch: pytest.MonkeyPatch):
    settings = ServerSettings(http_port=0, grpc_port=0)
    launch = lifecycle.Launch(server=settings, models=[ModelSettings(name="m")], factory=Doubler)
    plane = lifecycle._make_plane(launch)
    await plane.start(launch.models)
    opened: list[tuple[str, bool, bool]] = []

    def watched(name: str, start: Any) -> Any:
        async def begin(*arguments: Any, **named: Any) -> Any:
            server = await start(*arguments, **named)
            opened.append((name, plane.ready(), plane.model_ready("m")))
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.close()
            return server

        return begin

    monkeypatch.setattr(lifecycle, "start_rest", watched("rest", lifecycle.start_rest))
    monkeypatch.setattr(lifecycle, "start_grpc", watched("grpc", lifecycle.start_grpc))
    servers = await lifecycle._open(launch, plane, None, None, None)
    try:
        assert opened == [("grpc", False, False), ("rest", False, False)]
        assert plane.ready()
        assert plane.model_ready("m")
    finally:
        for server in servers.each():
            await server.close()
        await plane.close()


class Clients:
    """Ask without a pause, each on a connection of its own, until the server takes nothing new; note what went wrong before."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.answered = 0
        self.problems: list[str] = []
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=each) for each in (self._rest, self._rest, self._fresh, self._grpc)]
        for thread in self.threads:
            thread.start()

    def _count(self) -> None:
        with self._lock:
            self.answered += 1

    def _rest(self) -> None:
        """One connection, kept."""
        with contextlib.closing(self._connection()) as connection:
            try:
                while self._ask(connection):
                    pass
            except (OSError, http.client.HTTPException) as error:
                self.problems.append(f"REST {error!r}")

    def _ask(self, connection: http.client.HTTPConnection) -> bool:
        """Send a request; whether another may follow."""
        connection.request("POST", "/v2/models/m/infer", BODY, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            self._count()
        else:
            self.problems.append(f"REST {answer.status}")
        return answer.status == 200 and not answer.will_close

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._served.http_port, timeout=30)

    def _fresh(self) -> None:
        """A connection a request: one that is still in the kernel's queue when the port closes is reset, and was never taken."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                with contextlib.closing(self._connection()) as connection:
                    self._ask(connection)

    def _grpc(self) -> None:
        tensor = InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
        with InferenceServerClient(f"127.0.0.1:{self._served.grpc_port}") as client:
            while True:
                try:
                    client.infer("m", [tensor])
                except InferenceServerException as error:
                    if "UNAVAILABLE" not in str(error.status()):
                        self.problems.append(f"gRPC {error}")
                    return
                self._count()


@pytest.mark.slow  # it starts servers
@pytest.mark.parametrize("flags", [(), ("--drain_delay_s", "1"), ("--workers", "2")], ids=["stop", "delay", "workers"])
def test_a_stop_under_load_loses_no_request_that_was_taken(flags: tuple[str, ...], tmp_path: Path):
    environment = {"PYTHONPATH": str(SUPPORT), "STUCK_FOLDER": str(tmp_path)}
    words = ("--class", "stuck_models:Plain", "--model_name", "m", *flags)
    with serving(tmp_path, *words, environment=environment, timeout_s=90) as served:
        clients = Clients(served)
        wait_until(lambda: clients.answered > 200)
        served.process.send_signal(signal.SIGTERM)
        if "--drain_delay_s" in flags:
            wait_until(lambda: "stopping" in served.log.read_text())
            assert served.ask("GET", "/v2/health/ready")[0] == 503, "endpoints are told to forget it"
            assert served.ask("POST", "/v2/models/m/infer", json.loads(BODY))[0] == 200, "and it still answers"
        for thread in clients.threads:
            thread.join(30)
        assert clients.problems == []
        assert served.process.wait(30) == 0
