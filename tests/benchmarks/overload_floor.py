"""`python -m benchmarks.overload_floor`: what is left to a thread that computes in Python while the event loop does nothing but refuse.

Usage: PYTHONPATH=tests python -m benchmarks.overload_floor [--rate 1800] [--seconds 2] [--rounds 5]

The least that a refusal takes, for there is no model, no plane and no HTTP in it; so no server of these parts keeps more of a model under
so many refusals. Four servers, one process each, which all compute 5 ms after 5 ms in a thread, as `Computing` of the overload benchmark does:
  rest    a protocol that answers whatever it reads with the bytes of a 429: one read and one write for each
  grpc    the same with the frames of RESOURCE_EXHAUSTED
  native  relays, size filter and front of the native engine, over a service that fails every call: two reads and two writes
  python  the same with its relays on the event loop, as where there are no compiled kernels
  grpcio  grpcio's engine over the same service
Steps of the thread without refusals and with them, in turns, so that what the machine does beside hits both; the median of the rounds. The clients
are those of the overload benchmark, each connection with one request at a time, on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from .overload import Client, GrpcClient, Load, Outcome, frame
from .overload_models import compute

__all__ = ["main"]

KINDS = ("rest", "grpc", "native", "python", "grpcio")
PREDICT_S = 0.005
_BODY = b'{"error":"the model is overloaded; come back in 0.1 s or send to more replicas"}'
REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\ncontent-length: %d\r\n\r\n%b"
    % (len(_BODY), _BODY)
)


class _Refusing(asyncio.Protocol):
    """Answers every read with a refusal."""

    def __init__(self, *, is_grpc: bool) -> None:
        self._is_grpc = is_grpc
        self._stream = -1

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._is_grpc or data.startswith(b"GET "):
            self._transport.write(REFUSAL)
            return
        first = self._stream < 0
        while b"ModelInfer" in data:
            self._stream += 2
            status = b"".join(b"\0%c%b%c%b" % (len(n), n, len(v), v) for n, v in _STATUS.items())
            answer = frame(1, 5, self._stream, b"\x88" + status)
            self._transport.write(frame(4, 0, 0) + answer if first else answer)
            data = data.partition(b"ModelInfer")[2]


_STATUS = {b"content-type": b"application/grpc", b"grpc-status": b"8", b"grpc-message": _BODY[10:-2]}


class _Steps:
    """Counts 5 ms of computing, one after the other, in a thread."""

    def __init__(self) -> None:
        self.done = 0
        threading.Thread(target=self._compute, daemon=True).start()

    def _compute(self) -> None:
        while True:
            compute(PREDICT_S)
            self.done += 1


async def _engine_server(kind: str) -> int:
    from serinus.dataplane.plane import Plane
    from serinus.dataplane.registry import Registry
    from serinus.dataplane.telemetry.metrics import Metrics
    from serinus.server.grpc import native_engine
    from serinus.server.grpc.answers import Answer, Failure
    from serinus.server.grpc.grpcio_engine import GrpcioEngine
    from serinus.server.grpc.native_engine import NativeEngine
    from serinus.server.grpc.service import Service
    from serinus.settings import ServerSettings

    failure = Failure(8, _BODY[10:-2].decode(), (("retry-after", "1"),))

    class Refusing(Service):
        @property
        def is_refusing(self) -> bool:
            return True

        def infer(
            self,
            message: bytes,
            headers: Mapping[str, str],
            deadline: float | None,
            answer: Answer,
            *,
            stream: bool = False,
        ) -> None:
            answer.fail(failure)

    metrics = Metrics()
    plane = Plane(Registry(lambda chosen: None, metrics=metrics), metrics=metrics)  # type: ignore[arg-type, return-value] # it makes none
    settings = ServerSettings(host="127.0.0.1")
    service = Refusing(plane, settings, metrics=metrics)
    engine: NativeEngine | GrpcioEngine
    if kind == "python":
        native_engine.start_relays = lambda *_, **__: None
    if kind in ("native", "python"):
        engine = NativeEngine(service, settings)
        await engine.start("127.0.0.1", 0)
    else:
        engine = GrpcioEngine(service, settings)
        await engine.start("127.0.0.1:0")
    _kept.append(engine)
    return engine.port


_kept: list[Any] = []


async def _serve(kind: str) -> None:
    """Serve; at each line of standard input, write how many steps were made."""
    sys.setswitchinterval(0.0005)  # the server's own
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Refusing(is_grpc=kind == "grpc"), "127.0.0.1", 0)
    rest = server.sockets[0].getsockname()[1]
    print(rest, await _engine_server(kind) if kind in ("native", "python", "grpcio") else rest, flush=True)
    steps = _Steps()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(steps.done, flush=True)


async def _measure(kind: str, arguments: argparse.Namespace) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.overload_floor", "--serve", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    asking, answers = process.stdin, process.stdout
    assert asking is not None
    assert answers is not None

    def steps() -> int:
        asking.write("\n")
        asking.flush()
        return int(answers.readline())

    try:
        rest, port = map(int, answers.readline().split())
        load = Load(port, Client if kind == "rest" else GrpcClient, rest)
        parts, refused = [], []
        for _ in range(arguments.rounds):
            began, start = steps(), time.perf_counter()
            await asyncio.sleep(arguments.seconds)
            alone = (steps() - began) / (time.perf_counter() - start)
            began, start = steps(), time.perf_counter()
            outcome: Outcome = await load.open_loop(arguments.rate, arguments.seconds, None, process.pid)
            parts.append((steps() - began) / (time.perf_counter() - start) / alone)
            refused += outcome.refused
        refused.sort()
        cells = [kind, f"{arguments.rate:g}/s", f"{statistics.median(parts):.0%}"]
        cells += [" ".join(f"{part:.0%}" for part in parts)]
        cells += [" / ".join(f"{refused[int(part * len(refused))] * 1e3:.0f}" for part in (0.5, 0.99))]
        print(f"| {' | '.join(cells)} | {os.getloadavg()[0]:.0f} |", flush=True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    """Print one row of the table for each kind of server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1800.0, help="refusals a second")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        import uvloop

        uvloop.run(_serve(arguments.serve))
        return
    print(
        "| refused by | refusals | left to the thread | of each round | refused after p50 / p99 ms | load average |\n|---|---|---|---|---|---|"
    )
    for kind in arguments.only:
        asyncio.run(_measure(kind, arguments))


if __name__ == "__main__":
    main()
