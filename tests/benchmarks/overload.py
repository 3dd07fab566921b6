"""`python -m benchmarks.overload`: what a server gives under 1.5, 3 and 10 times the load that its model can take.

One server and one load generator on the same machine. The model's capacity is measured first (eight connections, each with one request at
a time), and all goodput is a part of it: so the figures of one run compare, whatever else the machine does. An open loop sends at a
steady rate, whatever comes back. Patient clients wait, and what comes after a second is no goodput; impatient ones close their
connection after a quarter of a second. `--limit 65536` measures a queue that holds all, `--limit 20` one of a fixed length.

The clients speak bytes over sockets, and what they and the server use of the cores is told beside each row.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from serinus.protocol import _open_inference_pb2 as pb

from .grpc_floor import make_certificate
from .measure import resident_bytes

__all__ = ["main"]

BODY = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})
REQUEST = (
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(BODY), BODY)
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS = 1, 4
PROBE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def call_headers(**more: str) -> bytes:
    """The head of a ModelInfer, its fields literal (RFC 7541, 6.2.2); underscores become hyphens."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/ModelInfer",
        ":authority": "a",
    }
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    fields |= {name.replace("_", "-"): value for name, value in more.items()}
    return b"".join(
        b"\0%c%b%c%b" % (len(name), name.encode(), len(value), value.encode()) for name, value in fields.items()
    )


def _message() -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1, 2])
    message = pb.ModelInferRequest(model_name="m", inputs=[tensor]).SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


MESSAGE = _message()
_CONNECTIONS = 512
"""Made before each stretch over TLS, as clients have them: made on the way, handshakes take this generator a core of its own."""
DEADLINE_S = {"patient": 1.0, "impatient": 0.25}
MODELS = ("Sleeping", "Computing", "SleepingRequests", "ComputingRequests")
_of_kserve = ("KServeSleeping", "KServeComputing", "KServeAsyncSleeping", "KServeAsyncComputing")
_of_mlserver = ("MLServerSleeping", "MLServerComputing", "MLServerAsyncSleeping")
OTHERS = ("Sleeping/thread", "Computing/process", "Pipeline", *_of_kserve)
"""What `--models all` adds to `MODELS`; those of MLServer want `--mlserver-python`."""
KINDS = (
    *((model, transport) for transport in ("rest", "native") for model in ("Computing", "ComputingRequests", *OTHERS)),
    *((model, "grpcio") for model in MODELS),
)
"""What `--kinds` measures, at 5 ms and 10x, in three seconds a row: some five minutes."""


class Client(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.told: asyncio.Future[int] | None = None
        self._head = b""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Read the status; answers are small enough for one read, or end in a later one."""
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
        if len(rest) >= length:
            self._head = b""
            if self.told is not None and not self.told.done():
                self.told.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        if self.told is not None and not self.told.done():
            self.told.set_result(0)

    async def ask(self, request: bytes, timeout_s: float | None) -> int:
        """Send, and give the status; 0: the connection is gone, or was closed after `timeout_s`."""
        self.told = told = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        timer = None if timeout_s is None else asyncio.get_running_loop().call_later(timeout_s, self.transport.close)
        try:
            return await told
        finally:
            if timer is not None:
                timer.cancel()


class GrpcClient(Client):
    """The same over HTTP/2, spoken by hand: a client library costs several times what the server does."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = -1
        self._answered = False
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        """Open the windows for good."""
        super().connection_made(transport)
        transport.write(
            PREFACE + frame(SETTINGS, 0, 0) + frame(WINDOW_UPDATE, 0, 0, (2**31 - 65536).to_bytes(4, "big"))
        )

    def data_received(self, data: bytes) -> None:
        """Look for the end of the stream: after a message it ended well, else with a status."""
        data = self._rest + data
        while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
            kind, flags, stream = data[3], data[4], int.from_bytes(data[5:9], "big")
            if kind == SETTINGS and not flags & 1:
                self.transport.write(frame(SETTINGS, 1, 0))
            elif kind == PING and not flags & 1:
                self.transport.write(frame(PING, 1, 0, data[9:17]))
            elif kind == DATA and size:
                self._answered = True
            is_end = kind == RST_STREAM or (flags & END_STREAM and kind in (DATA, HEADERS))
            if stream == self._stream and is_end and self.told is not None and not self.told.done():
                self.told.set_result(200 if self._answered else 429)
            data = data[9 + size :]
        self._rest = data

    async def ask(self, request: bytes, timeout_s: float | None) -> int:
        """Send; an impatient client says so, as gRPC's do."""
        self._stream += 2
        self._answered = False
        self.told = told = asyncio.get_running_loop().create_future()
        more = {} if timeout_s is None else {"grpc_timeout": f"{round(timeout_s * 1000)}m"}
        head = frame(HEADERS, END_HEADERS, self._stream, call_headers(**more))
        self.transport.write(head + frame(DATA, END_STREAM, self._stream, MESSAGE))
        return await told


@dataclass
class Outcome:
    """What came of one stretch of load."""

    sent: int = 0
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    failed: int = 0
    memory: int = 0


class Load:
    """Connections to one port."""

    def __init__(
        self, port: int, make: type[Client] = Client, probe_port: int = 0, trusted: Path | None = None
    ) -> None:
        self._tls = None if trusted is None else _context(trusted, "h2" if make is GrpcClient else "http/1.1")
        self._probe_tls = None if trusted is None else _context(trusted, "http/1.1")
        self._port = port
        self._make = make
        self._probe_port = probe_port or port
        self._idle: list[Client] = []

    async def ask(self, outcome: Outcome, patience_s: float | None) -> None:
        """Send one request on an idle connection, or on a new one."""
        start = time.perf_counter()
        client = await self._client()
        status = await client.ask(REQUEST, patience_s)
        elapsed = time.perf_counter() - start
        if status == 200:
            outcome.answered.append(elapsed)
        elif status in (429, 503, 504):
            outcome.refused.append(elapsed)
        else:
            outcome.failed += 1
        if status:
            self._idle.append(client)

    async def capacity(self, seconds: float) -> float:
        """Answers a second of eight connections that never rest."""
        outcome, end = Outcome(), time.perf_counter() + seconds

        async def one() -> None:
            while time.perf_counter() < end:
                await self.ask(outcome, None)

        await asyncio.gather(*(one() for _ in range(8)))
        return len(outcome.answered) / seconds

    async def open_loop(self, rate: float, seconds: float, patience_s: float | None, pid: int) -> Outcome:
        """Send at a steady rate."""
        outcome, tasks = Outcome(), set()
        start = time.perf_counter()
        probing = asyncio.ensure_future(self._probe(outcome))
        while (elapsed := time.perf_counter() - start) < seconds:
            while outcome.sent < rate * elapsed:
                outcome.sent += 1
                task = asyncio.ensure_future(self.ask(outcome, patience_s))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.001)
        outcome.memory = resident_bytes(pid)
        if tasks:
            await asyncio.wait(tasks, timeout=60)
        probing.cancel()
        return outcome

    async def _probe(self, outcome: Outcome) -> None:
        _, client = await asyncio.get_running_loop().create_connection(
            Client, "127.0.0.1", self._probe_port, ssl=self._probe_tls
        )
        while True:
            start = time.perf_counter()
            await client.ask(PROBE, None)
            outcome.probes.append(time.perf_counter() - start)
            await asyncio.sleep(0.1)

    async def _client(self) -> Client:
        while self._idle:
            client = self._idle.pop()
            if not client.transport.is_closing():
                return client
        return await self._connect()

    async def connect(self, count: int) -> None:
        """Make connections until so many are idle."""
        while len(self._idle) < count:
            self._idle.append(await self._connect())

    async def _connect(self) -> Client:
        _, client = await asyncio.get_running_loop().create_connection(
            self._make, "127.0.0.1", self._port, ssl=self._tls
        )
        return client


def _context(trusted: Path, protocol: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(trusted))
    context.set_alpn_protocols([protocol])
    return context


def _port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _start(
    arguments: argparse.Namespace, model: str, predict_s: float, folder: Path
) -> tuple[subprocess.Popen[bytes], Load]:
    """Serve a model; `Pipeline` is `Sleeping` behind a transformer, `NAME/thread` and `NAME/process` run there."""
    kind, _, execution = model.partition("/")
    transport = arguments.transport
    here = Path(__file__).parent
    port, other = _port(), _port()
    rest, grpc = (port, other) if transport == "rest" else (other, port)
    command = [
        sys.executable,
        "-m",
        "serinus.cli",
        "serve",
        "--http_port",
        str(rest),
        "--host",
        "127.0.0.1",
        "--log_level",
        "ERROR",
    ]
    command += ["--model_name", "m"]
    if kind in _of_kserve:
        command += ["--class", f"benchmarks.overload_hosted:{kind}"]
    elif kind.startswith("MLServer"):
        command[0] = str(Path(arguments.mlserver_python).absolute())
        command += ["--class", f"benchmarks.overload_hosted:{kind}"]
    else:
        name = "Sleeping" if kind == "Pipeline" else kind
        command += ["--class", f"benchmarks.overload_models:{name}"]
        if kind == "Pipeline":
            command += ["--transformer", "benchmarks.overload_hosted:Transformer"]
    if transport == "rest":
        command += ["--enable_grpc", "false"]
    else:
        command += ["--grpc_port", str(grpc), "--grpc", "grpcio" if transport == "grpcio" else "native"]
    if execution or arguments.execution != "auto":
        command += ["--execution", execution or arguments.execution]
    chain = folder / "chain.pem" if arguments.tls else None
    if chain is not None:
        make_certificate(folder)
        command += ["--ssl_certfile", str(chain), "--ssl_keyfile", str(folder / "key.pem")]
    command += [] if arguments.limit is None else ["--max_queue_rows", str(arguments.limit)]
    environment = {**os.environ, "OVERLOAD_PREDICT_S": str(predict_s), "PYTHONPATH": str(here.parent)}
    process = subprocess.Popen(command, env=environment, cwd=folder)
    return process, Load(port, GrpcClient if transport != "rest" else Client, rest, chain)


def _cpu_s(pid: int) -> float:
    """CPU that a process and those below it have used, seconds."""
    import psutil

    parent = psutil.Process(pid)
    times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def _at(values: list[float], part: float) -> str:
    return f"{sorted(values)[min(len(values) - 1, int(part * len(values)))] * 1e3:.0f}" if values else "-"


async def _measure(arguments: argparse.Namespace, model: str, transport: str, predict_ms: float) -> None:
    arguments = argparse.Namespace(**{**vars(arguments), "transport": transport})
    with tempfile.TemporaryDirectory() as folder:
        process, load = _start(arguments, model, predict_ms / 1e3, Path(folder))
        try:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    first = Outcome()
                    await load.ask(first, None)
                    if first.answered:
                        break
                await asyncio.sleep(0.1)
            capacity = await load.capacity(3)
            for clients in arguments.clients:
                deadline_s = DEADLINE_S[clients]
                for times in arguments.times:
                    patience_s = deadline_s if clients == "impatient" else None
                    if arguments.tls:
                        await load.connect(_CONNECTIONS)
                    began, used = time.process_time(), _cpu_s(process.pid)
                    out = await load.open_loop(times * capacity, arguments.seconds, patience_s, process.pid)
                    mine, its = time.process_time() - began, _cpu_s(process.pid) - used
                    good = sum(elapsed <= deadline_s for elapsed in out.answered) / arguments.seconds / capacity
                    start = time.perf_counter()
                    after = Outcome()
                    while time.perf_counter() - start < 3:  # recovered: five in a row within twice the time of one
                        await load.ask(after, None)
                        last = after.answered[-5:]
                        if len(last) == 5 and max(last) < 2 * predict_ms / 1e3 + 0.02:
                            break
                    recovery_s = time.perf_counter() - start
                    cells = [
                        f"{model} {predict_ms:g} ms, {arguments.transport}{', TLS' if arguments.tls else ''}",
                        clients,
                        f"{times:g}x",
                        f"{good:.0%}",
                        _at(out.answered, 0.5),
                        _at(out.answered, 0.99),
                        f"{_at(out.refused, 0.5)} / {_at(out.refused, 0.99)}",
                        _at(out.probes, 0.99),
                        f"{out.memory / 1e6:.0f}",
                        f"{recovery_s:.1f}",
                        f"{its / arguments.seconds:.2f} / {mine / arguments.seconds:.2f}",
                        f"{os.getloadavg()[0]:.0f}",
                    ]
                    print(f"| {' | '.join(cells)} |", flush=True)
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    """Print one row of the table for each load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help=f"or all, which adds {', '.join(OTHERS)}")
    parser.add_argument(
        "--transport",
        nargs="+",
        default=["rest"],
        choices=["rest", "native", "grpcio"],
        help="the last two are gRPC's",
    )
    parser.add_argument(
        "--kinds",
        action="store_true",
        help="5 ms and 10x of models that compute in Python, of those in threads and processes, pipelines and KServe's classes over REST and the "
        "native engine, and of the others over grpcio: some five minutes; with --mlserver-python MLServer's classes too",
    )
    parser.add_argument(
        "--mlserver-python",
        default="",
        help="of the environment that has MLServer (make .venv/.mlserver), for its rows",
    )
    parser.add_argument("--predict-ms", nargs="+", type=float, default=[5.0, 20.0])
    parser.add_argument("--times", nargs="+", type=float, default=[1.5, 3.0, 10.0])
    parser.add_argument("--clients", nargs="+", default=["patient", "impatient"], choices=list(DEADLINE_S))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--limit", type=int, default=None, help="max_queue_rows; the server's default where it is left out"
    )
    parser.add_argument("--execution", default="auto")
    parser.add_argument("--tls", action="store_true", help="all of it over TLS")
    arguments = parser.parse_args()
    if arguments.models == ["all"]:
        arguments.models = [*MODELS, *OTHERS, *(_of_mlserver if arguments.mlserver_python else ())]
    if arguments.kinds:
        arguments.times, arguments.predict_ms, arguments.seconds = [10.0], [5.0], 3.0
    hosted = [(model, transport) for model in _of_mlserver for transport in ("rest", "native")]
    kinds = [*KINDS, *(hosted if arguments.mlserver_python else ())]
    rows = kinds if arguments.kinds else [(model, each) for each in arguments.transport for model in arguments.models]
    print(
        f"limit {arguments.limit or 'default'}, load average before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores"
    )
    heads = [
        "model",
        "clients",
        "load",
        "goodput",
        "p50 ms",
        "p99 ms",
        "refused after p50 / p99 ms",
        "probe p99 ms",
        "MB",
    ]
    heads += ["recovery s", "cores: server / clients", "load average"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for model, transport in rows:
        for predict_ms in arguments.predict_ms:
            asyncio.run(_measure(arguments, model, transport, predict_ms))


if __name__ == "__main__":
    main()
