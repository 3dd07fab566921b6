"""What gRPC costs per request, on each engine: one row of 30 FP32 through a model that does next to nothing (W1g).

Usage: python tests/benchmarks/grpc_floor.py [--seconds 3] [--engine native]
Needs h2load (Debian: nghttp2-client). Prints requests/s as h2load counts them and the server's CPU time (user + system) per
request; every answer must be a success.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
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
from serinus.server.grpc import start_grpc
from serinus.settings import ModelSettings, ServerSettings

PATH = "/inference.GRPCInferenceService/ModelInfer"
LOADS = ((1, 1), (1, 16), (16, 1), (16, 4), (64, 1))
"""Connections, and calls at a time on each."""


class Nothing(Model):
    """Answers the first column."""

    inputs = (TensorSpec("x", "FP32", (-1, 30)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"y": inputs["x"][:, :1]}


async def serve(engine: str) -> None:
    """Serve until standard input closes; prints the port first."""
    metrics = Metrics()
    plane = Plane(Registry(Nothing, metrics=metrics), metrics=metrics)
    await plane.start([ModelSettings(name="m")])
    settings = ServerSettings(host="127.0.0.1", grpc=engine)  # type: ignore[arg-type] # checked by argparse
    server = await start_grpc(plane, settings, metrics=metrics, port=0)
    print(server.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.close()
    await plane.close()


def measure(engine: str, seconds: int, body: Path) -> None:
    """Start a server, load it in each way in turn, and print a line for each."""
    command = [sys.executable, __file__, "--serve", engine]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}{PATH}"
        with grpc.insecure_channel(
            url.split("/")[2]
        ) as channel:  # h2load sees HTTP's status alone, so look once at gRPC's
            channel.unary_unary(PATH)(body.read_bytes()[5:], timeout=10)
        server = psutil.Process(process.pid)
        for connections, calls in LOADS:
            before = server.cpu_times()
            load = ["h2load", "-D", str(seconds), "-t1", f"-c{connections}", f"-m{calls}", "-d", str(body)]
            headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
            done = subprocess.run([*load, *headers, url], capture_output=True, text=True, check=True)
            after = server.cpu_times()
            counted = re.search(r"requests: (\d+) total.* (\d+) done, (\d+) succeeded", done.stdout)
            assert counted is not None, done.stdout
            answered, succeeded = int(counted[2]), int(counted[3])
            assert answered == succeeded > 0, done.stdout
            cpu_s = after.user + after.system - before.user - before.system
            rate, cost = succeeded / seconds, 1e6 * cpu_s / succeeded
            print(
                f"{engine:7} {connections:3} connections x {calls:2} calls: {rate:8.0f} requests/s {cost:6.1f} us CPU each"
            )
        process.stdin.close()


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--engine", choices=["grpcio", "native"], action="append")
    parser.add_argument("--serve", choices=["grpcio", "native"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        import uvloop

        uvloop.run(serve(arguments.serve))
        return
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed (Debian: apt-get install nghttp2-client)")
    row = Tensor("x", "FP32", (1, 30), np.zeros((1, 30), np.float32))
    message = encode_request(InferRequest("m", [row]), raw=True)
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "message"
        body.write_bytes(struct.pack("!BI", 0, len(message)) + message)
        for engine in arguments.engine or ["grpcio", "native"]:
            measure(engine, arguments.seconds, body)


if __name__ == "__main__":
    main()
