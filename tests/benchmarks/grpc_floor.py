"""What gRPC costs per request, on each engine: one row of 30 FP32 through a model that does next to nothing (W1g).

Usage: python tests/benchmarks/grpc_floor.py [--seconds 3] [--engine native] [--tls] [--python-relay]
Needs h2load (Debian: nghttp2-client). Prints requests/s as h2load counts them and the server's CPU time (user + system) per
request; every answer must be a success. The engines are loaded in turn, load by load, so that what else the machine does meets each; with
--tls each is measured over TLS (1.3, a certificate of P-256) and without. With --python-relay the native engine is measured a second
time, its connections on the event loop, as where there are no compiled kernels.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

import grpc
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.model import Call, Model
from serinus.protocol.proto_codec import encode_request
from serinus.protocol.types import InferRequest, Tensor, TensorSpec
from serinus.server.grpc import native_engine, start_grpc
from serinus.settings import ModelSettings, ServerSettings

PATH = "/inference.GRPCInferenceService/ModelInfer"
ENGINES = ("grpcio", "native")
PYTHON_RELAY = "python relay"
"""The native engine with its connections on the event loop."""
LOADS = ((1, 1), (1, 16), (16, 1), (16, 4), (64, 1))
"""Connections, and calls at a time on each."""


class Nothing(Model):
    """Answers the first column."""

    inputs = (TensorSpec("x", "FP32", (-1, 30)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"y": inputs["x"][:, :1]}


@dataclass(frozen=True)
class Measured:
    """A server that is loaded."""

    name: str
    process: subprocess.Popen[str]
    url: str


async def serve(engine: str, files: Mapping[str, str]) -> None:
    """Serve until standard input closes; prints the port first."""
    if engine == PYTHON_RELAY:
        engine = "native"
        native_engine.start_relays = lambda *_, **__: None
    metrics = Metrics()
    plane = Plane(Registry(Nothing, metrics=metrics), metrics=metrics)
    await plane.start([ModelSettings(name="m")])
    settings = ServerSettings(host="127.0.0.1", grpc=engine, **files)  # type: ignore[arg-type] # checked by argparse
    server = await start_grpc(plane, settings, metrics=metrics, port=0)
    print(server.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.close()
    await plane.close()


@contextlib.contextmanager
def serving(engine: str, folder: Path, *, tls: bool) -> Iterator[Measured]:
    """Start a server, and see that it answers: h2load sees HTTP's status alone."""
    command = [sys.executable, __file__, "--serve", engine]
    chain = folder / "chain.pem"
    if tls:
        command += ["--files", str(chain), str(folder / "key.pem")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = f"127.0.0.1:{int(process.stdout.readline())}"
        credentials = grpc.ssl_channel_credentials(chain.read_bytes()) if tls else None
        with grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address) as channel:
            channel.unary_unary(PATH)((folder / "message").read_bytes()[5:], timeout=10)
        yield Measured(f"{engine}, TLS" if tls else engine, process, f"http{'s' if tls else ''}://{address}{PATH}")
        process.stdin.close()


def measure(measured: Measured, seconds: int, connections: int, calls: int, body: Path) -> None:
    """Load a server in one way, and print a line."""
    server = psutil.Process(measured.process.pid)
    before = server.cpu_times()
    load = ["h2load", "-D", str(seconds), "-t1", f"-c{connections}", f"-m{calls}", "-d", str(body)]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    done = subprocess.run([*load, *headers, measured.url], capture_output=True, text=True, check=True)
    after = server.cpu_times()
    counted = re.search(r"requests: (\d+) total.* (\d+) done, (\d+) succeeded", done.stdout)
    assert counted is not None, done.stdout
    answered, succeeded = int(counted[2]), int(counted[3])
    assert answered == succeeded > 0, done.stdout
    cpu_s = after.user + after.system - before.user - before.system
    rate, cost = succeeded / seconds, 1e6 * cpu_s / succeeded
    print(
        f"{measured.name:12} {connections:3} connections x {calls:2} calls: {rate:8.0f} requests/s {cost:6.1f} us CPU each",
        flush=True,
    )


def make_certificate(folder: Path) -> None:
    """Make a certificate for this machine's loopback address, and its key."""
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    words = [*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    words += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "chain.pem")]
    subprocess.run(words, check=True, capture_output=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--tls", action="store_true", help="over TLS too")
    parser.add_argument("--python-relay", action="store_true", help="the native engine's relay in Python too")
    parser.add_argument("--serve", choices=[*ENGINES, PYTHON_RELAY], help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=2, default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        import uvloop

        uvloop.run(serve(arguments.serve, dict(zip(("ssl_certfile", "ssl_keyfile"), arguments.files, strict=False))))
        return
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed (Debian: apt-get install nghttp2-client)")
    row = Tensor("x", "FP32", (1, 30), np.zeros((1, 30), np.float32))
    message = encode_request(InferRequest("m", [row]), raw=True)
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        folder = Path(made)
        body = folder / "message"
        body.write_bytes(struct.pack("!BI", 0, len(message)) + message)
        if arguments.tls:
            make_certificate(folder)
        servers = [
            stack.enter_context(serving(engine, folder, tls=tls))
            for tls in ((False, True) if arguments.tls else (False,))
            for engine in arguments.engine or ENGINES
        ]
        if arguments.python_relay:
            servers.append(stack.enter_context(serving(PYTHON_RELAY, folder, tls=False)))
        print(f"load average before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        for connections, calls in LOADS:
            for measured in servers:
                measure(measured, arguments.seconds, connections, calls, body)


if __name__ == "__main__":
    main()
