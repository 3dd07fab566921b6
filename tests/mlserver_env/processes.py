"""Servers in processes of their own: ours, and stock MLServer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx

HERE = Path(__file__).parent
CLIENT = httpx.Client(timeout=30)
"""Of all tests: each client makes a TLS context, which takes 25 ms of CPU, from a server that starts too."""
RUNTIME = "serinus.hosts.mlserver_host.SerinusRuntime"
COUNTDOWN: dict[str, Any] = {"implementation": RUNTIME, "parameters": {"extra": {"class": "ours:Countdown"}}}
OURS: dict[str, dict[str, Any]] = {
    "m": {"implementation": "models.Speaking", "parameters": {"version": "v3"}},
    "theirs": {"implementation": "models.SumModel"},
    "ours": {"implementation": "ours.Doubler"},
    "shown": {"implementation": "models.Shown"},
    "countdown": COUNTDOWN,
}
"""Classes of MLServer's and models of serinus's own, by the names under which `serinus serve` has them here."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def process(command: list[str], folder: Path, ready: str) -> Iterator[None]:
    """Run a server until the block ends; enters when `ready` answers 200."""
    program = str(Path(sys.executable).parent / command[0])
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{folder}"}
    # A file: a pipe that nobody reads would hold a server that says much.
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [program, *command[1:]], stdout=said, stderr=subprocess.STDOUT, cwd=folder, env=environment
        ) as server,
    ):
        try:
            for _ in range(600):
                assert server.poll() is None, f"the server ended: {_read(said)[-3000:]}"
                with contextlib.suppress(httpx.HTTPError):
                    if CLIENT.get(ready).status_code == 200:
                        break
                time.sleep(0.1)  # another process starts: its port is all there is to wait on
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def _read(said: IO[bytes]) -> str:
    said.seek(0)
    return said.read().decode()


class Address(NamedTuple):
    """Where a server listens."""

    url: str
    grpc: str


@contextlib.contextmanager
def serving_folder(server: str, folder: Path, *flags: str, **settings: Any) -> Iterator[Address]:
    """Serve the models of a folder under `serinus` or `mlserver`; `settings` are MLServer's, which both read."""
    http, grpc = free_port(), free_port()
    url = f"http://127.0.0.1:{http}"
    settings |= {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "parallel_workers": 0}
    settings |= {"metrics_port": free_port()} if server == "mlserver" else {}
    (folder / "settings.json").write_text(json.dumps(settings))
    # `mlserver start` takes its classes from model-settings.json; here the operator opts in to that.
    ours = ["serinus", "serve", str(folder), "--allow_implementation", "*", *flags]
    command = ours if server == "serinus" else ["mlserver", "start", str(folder)]
    with process(command, folder, f"{url}/v2/health/ready"):
        yield Address(url, f"127.0.0.1:{grpc}")


def wait_until_loaded(address: Address, *models: str) -> None:
    """Wait for each model of a server that takes requests before its models are there, as stock MLServer does."""
    end = time.monotonic() + 100
    for model in models:
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):  # it answers nobody while it imports a framework
                if CLIENT.get(f"{address.url}/v2/models/{model}/ready").status_code == 200:
                    break
            time.sleep(0.1)  # another process loads it
        else:
            raise AssertionError(f"{model} was not loaded in time")
