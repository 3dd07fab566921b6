"""What the REST transport costs: requests/s and server CPU per request, beside a bare protocol that answers a fixed body.

    python tests/benchmarks/rest_floor.py [--seconds 3] [--rounds 3] [--connections 16] [--only bare,app,infer]

Servers, one process each, in turns within each round so that the machine's drift hits all alike:
  bare     an asyncio.Protocol on uvloop straight over httptools, answering fixed bytes: the floor of this design
  app      the thin transport with an application that answers a fixed body
  uvicorn  the same application behind uvicorn
  infer    the whole REST server with a model that doubles two numbers: codec, plane and metrics included
The load is `wrk` (Debian: wrk), one row of 30 FP32 as JSON. Columns: requests/s, CPU us per request (utime + stime of the server),
p50 and p99 as wrk saw them, the best of the rounds by CPU. "own" is what is spent beyond `bare`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import uvloop

from serinus import Model, ModelSettings, TensorSpec
from serinus.errors import SerinusError
from serinus.server.http.asgi import UvicornServer
from serinus.server.http.exchange import Exchange, HttpLimits
from serinus.server.http.thin import ThinServer
from serinus.settings import ServerSettings

BODY = (
    b'{"inputs":[{"name":"x","shape":[1,30],"datatype":"FP32","data":['
    + b",".join(b"%.7g" % value for value in np.random.default_rng(7).normal(size=30))
    + b"]}]}"
)
ANSWER = b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[0.123456]}]}'


class _Bare(asyncio.Protocol):
    """The floor: parse, and write fixed bytes for each request."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            len(ANSWER),
            ANSWER,
        )

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body = body

    def on_message_complete(self) -> None:
        self._transport.write(self._answer)


class _Fixed:
    def __call__(self, exchange: Exchange) -> None:
        exchange.respond(200, "application/json", [ANSWER])

    def error_body(self, error: SerinusError) -> bytes:
        return str(error).encode()


class _Sum(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 30)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)

    def predict(self, inputs: Any, call: Any) -> Any:
        return {"y": inputs["x"].sum(axis=1)}


async def _serve(kind: str, slow_us: int = 0) -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    keep: list[Any] = []
    if kind == "bare":
        keep.append(await asyncio.get_running_loop().create_server(_Bare, sock=sock))
    elif kind in ("app", "uvicorn"):
        server = (ThinServer if kind == "app" else UvicornServer)(_Fixed(), HttpLimits())
        await server.listen(sock=sock)
        keep.append(server)
    else:
        from serinus.dataplane.plane import Plane
        from serinus.dataplane.registry import Registry
        from serinus.dataplane.telemetry.metrics import Metrics
        from serinus.server.rest.rest_server import start_rest

        metrics = Metrics()
        plane = Plane(Registry(_Sum, metrics=metrics), metrics=metrics)
        await plane.start([ModelSettings(name="m")])
        keep.append(await start_rest(plane, ServerSettings(host="127.0.0.1", http_port=0), metrics=metrics, sock=sock))
    gc.collect()
    gc.freeze()
    print(sock.getsockname()[1], flush=True)
    if os.environ.get("PROFILE"):
        import cProfile

        profile = cProfile.Profile()
        profile.enable()
        await asyncio.sleep(float(os.environ["PROFILE"]))
        profile.disable()
        profile.dump_stats("/tmp/rest_floor.prof")
    await asyncio.Event().wait()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def _load(port: int, pid: int, seconds: int, connections: int, script: str) -> tuple[float, float, float, float]:
    before = _cpu_s(pid)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script]
    text = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/v2/models/m/infer"], check=True, capture_output=True, text=True
    ).stdout
    spent = _cpu_s(pid) - before
    if "Non-2xx" in text or "Socket errors" in text:
        sys.exit(f"the server answers with errors:\n{text}")
    requests = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index] # wrk always prints it
    percentiles = []
    for percent in ("50%", "99%"):
        value, unit = re.search(rf"{percent}\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr] # --latency
        percentiles.append(float(value) * _UNITS[unit])
    return requests / seconds, spent / requests * 1e6, percentiles[0], percentiles[1]


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", default="bare,app,uvicorn,infer")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.install()
        asyncio.run(_serve(options.serve))
        return
    kinds = options.only.split(",")
    servers: dict[str, tuple[subprocess.Popen[str], int]] = {}
    results: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in kinds}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        body = BODY.decode().replace('"', '\\"')
        script.write(f'wrk.method="POST"\nwrk.body="{body}"\nwrk.headers["Content-Type"]="application/json"\n')
        script.flush()
        try:
            for kind in kinds:
                process = subprocess.Popen(
                    [sys.executable, __file__, "--serve", kind], stdout=subprocess.PIPE, text=True
                )
                assert process.stdout is not None
                servers[kind] = (process, int(process.stdout.readline()))
            for _ in range(options.rounds):
                for kind, (process, port) in servers.items():
                    results[kind].append(_load(port, process.pid, options.seconds, options.connections, script.name))
        finally:
            for process, _ in servers.values():
                process.send_signal(signal.SIGKILL)
                process.wait()
    floor = min((row[1] for row in results.get("bare", [])), default=0.0)
    print(f"{'server':8} {'req/s':>8} {'CPU us':>7} {'own us':>7} {'p50 us':>7} {'p99 us':>7}")
    for kind, rows in results.items():
        rate, cpu, p50, p99 = min(rows, key=lambda row: row[1])
        print(f"{kind:8} {rate:8.0f} {cpu:7.1f} {cpu - floor:7.1f} {p50:7.0f} {p99:7.0f}")


if __name__ == "__main__":
    main()
