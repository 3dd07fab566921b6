"""A gRPC server with small models on a thread of its own, over TLS too, and HTTP/2 by hand for what no client library would send."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import socket
import ssl
import struct
import sys
import tempfile
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import grpc
from certificate_support import Authority
from serinus.dataplane.access.repository_access import OPEN, RepositoryAccess
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.model import Call, Model, RequestModel
from serinus.protocol.types import InferRequest, InferResponse, Tensor, TensorSpec
from serinus.server.certificates import Certificates, Loaded
from serinus.server.grpc import GrpcServer, start_grpc
from serinus.server.request_access import RequestAccess
from serinus.settings import ModelSettings, ServerSettings
from waiting import until

T = TypeVar("T")

ENGINES = ("grpcio", "native")
TLS = "native, TLS"
"""What `serving` takes as an engine too."""
INFER = "/inference.GRPCInferenceService/ModelInfer"
SERVERS = "servers under test"
"""The thread that all servers of a test process run on."""


class Sum(Model):
    """Adds up each row."""

    platform = "serinus_test"
    inputs = (TensorSpec("x", "FP32", (-1, 3)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)), TensorSpec("n", "INT64", (-1, 1)))

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        x = inputs["x"]
        with np.errstate(over="ignore"):  # any floats are sent, and a warning is an error here
            return {"y": x.sum(axis=1, keepdims=True), "n": np.full((len(x), 1), x.shape[1], np.int64)}


class Scalars(Model):
    """One number a row."""

    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"y": inputs["x"]}


class Echo(RequestModel):
    """Answers its inputs, and says in headers and parameters what reached it."""

    platform = "serinus_test"

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse(
            request.model_name,
            [Tensor(t.name, t.datatype, t.shape, t.data) for t in request.inputs],
            id=request.id,
            parameters={"saw": ",".join(sorted(request.headers)), "tenant": request.headers.get("tenant", "")},
            headers={"x-model": "echo", "Content-Type": "text/plain", "x-umlaut": "ü", "grpc-reserved": "no"},
        )


class Slow(RequestModel):
    """Answers when it is let go; counts who came and who was cancelled."""

    platform = "serinus_test"
    came = 0
    cancelled = 0
    go: asyncio.Event

    def load(self) -> None:
        self.go = asyncio.Event()
        SLOW[self.name] = self

    async def infer(self, request: InferRequest) -> InferResponse:
        self.came += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return InferResponse(request.model_name, list(request.inputs), id=request.id)


SLOW: dict[str, Slow] = {}
"""The slow models that were loaded last, by name."""


class Gate(Model):
    """Holds a thread, as a predict that takes long does, until it is let go."""

    platform = "serinus_test"
    execution = "thread"
    batchable = False

    def load(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        GATE[self.name] = self

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        self.entered.set()
        if not self.open.wait(20):
            raise RuntimeError("nobody opened the gate")
        return dict(inputs)


GATE: dict[str, Gate] = {}
"""The gates that were loaded last, by name."""


class Broken(Model):
    """Fails as no model should."""

    platform = "serinus_test"

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        raise ZeroDivisionError("secret detail of /opt/model.py")


class Big(RequestModel):
    """Answers as many bytes as the request's one number says."""

    platform = "serinus_test"

    async def infer(self, request: InferRequest) -> InferResponse:
        count = int(request.inputs[0].data.reshape(-1)[0])
        return InferResponse(request.model_name, [Tensor.of("y", np.zeros(count, np.uint8))])


MODELS = {
    "sum": Sum,
    "scalars": Scalars,
    "echo": Echo,
    "slow": Slow,
    "broken": Broken,
    "big": Big,
    "gate": Gate,
}


@functools.cache
def _authority() -> tuple[tempfile.TemporaryDirectory[str], Authority, dict[str, str]]:
    """The CA of all servers under test, and the settings of one that shows its certificate; the folder goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="serinus-ca-")
    authority = Authority(Path(folder.name), "ours")
    issued = authority.issue("server")
    return folder, authority, {"ssl_certfile": str(issued.certificate), "ssl_keyfile": str(issued.key)}


def authority() -> Authority:
    """The CA of the servers that `serving` starts over TLS."""
    return _authority()[1]


def loaded() -> Loaded:
    """What such a server has read: its certificate and key."""
    files = _authority()[2]
    return Certificates(Path(files["ssl_certfile"]), Path(files["ssl_keyfile"]), None).loaded


@functools.cache
def tls_context(*alpn: str) -> ssl.SSLContext:
    """What a client of such a server connects with; it offers h2 if nothing is named, and nothing for an empty name."""
    context = ssl.create_default_context(cafile=str(authority().certificate))
    names = [name for name in alpn or ("h2",) if name]
    if names:
        context.set_alpn_protocols(names)
    return context


def channel_to(address: str, roots: Path | None, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """A grpcio client's channel: over TLS, where a CA is named that is trusted."""
    if roots is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(roots.read_bytes()), options=options)


def settings_of(engine: str, **more: Any) -> ServerSettings:
    """What a server is started with: `engine` is one of ENGINES, or TLS."""
    if engine == TLS:
        engine, more = "native", _authority()[2] | more
    return ServerSettings(host="127.0.0.1", grpc=engine, **more)  # type: ignore[arg-type] # one of ENGINES


class Running:
    """A server, its loop, and a way onto that loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: GrpcServer,
        plane: Plane,
        metrics: Metrics,
        *,
        is_tls: bool = False,
    ) -> None:
        self.is_tls = is_tls
        self.loop = loop
        self.server = server
        self.plane = plane
        self.metrics = metrics

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def channel(self, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """A grpcio client's channel to it."""
        return channel_to(self.address, authority().certificate if self.is_tls else None, options)

    def wire(self, *, timeout_s: float = 10) -> Wire:
        """A raw HTTP/2 connection to it."""
        return Wire(self.port, timeout_s=timeout_s, tls=tls_context() if self.is_tls else None)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 30) -> T:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def until(self, claim: Any) -> None:
        """Wait until a claim holds on the server's loop."""
        self.run(until(claim, limit_s=25))


async def started(
    engine: str,
    names: tuple[str, ...] = tuple(MODELS),
    access: RepositoryAccess = OPEN,
    request_access: RequestAccess | None = None,
    **settings: Any,
) -> tuple[GrpcServer, Plane, Metrics]:
    """Start a plane with the test models, and a server, on the running loop.

    Args:
        engine: one of ENGINES, or TLS.
        names: of the models.
        access: who may load and unload them.
        request_access: which calls need a token.
        settings: the server's others.
    """
    metrics = Metrics()
    registry = Registry(lambda chosen: MODELS[chosen.name](chosen), metrics=metrics)
    plane = Plane(registry, metrics=metrics, access=access)
    await plane.start([ModelSettings(name=name, warmup=name not in {"broken", "gate"}) for name in names])
    server = await start_grpc(
        plane, settings_of(engine, **settings), metrics=metrics, port=0, request_access=request_access
    )
    return server, plane, metrics


@contextlib.contextmanager
def serving(engine: str, **settings: Any) -> Iterator[Running]:
    """A server on a thread of its own, so that blocking clients may call it."""
    server, plane, metrics = run_on_server_loop(started(engine, **settings))
    try:
        yield Running(_server_loop(), server, plane, metrics, is_tls=engine == TLS)
    finally:
        run_on_server_loop(server.close())
        run_on_server_loop(plane.close())


def run_on_server_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop of the servers under test, from a test's own thread."""
    return asyncio.run_coroutine_threadsafe(work, _server_loop()).result(30)


@functools.cache
def _server_loop() -> asyncio.AbstractEventLoop:
    """The one loop of all servers under test: grpc.aio does not stand several in a process."""
    import uvloop

    loop = uvloop.new_event_loop()
    threading.Thread(target=loop.run_forever, name=SERVERS, daemon=True).start()
    return loop


# HTTP/2 by hand (RFC 9113), headers as literals without indexing (RFC 7541, 6.2.2)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED = 1, 4, 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """One header field."""

    def text(value: bytes) -> bytes:
        if len(value) < 127:
            return bytes((len(value),)) + value
        rest, out = len(value) - 127, bytearray((127,))
        while rest >= 128:
            out.append(rest % 128 + 128)
            rest //= 128
        return bytes((*out, rest)) + value

    return b"\x00" + text(name.encode()) + text(value.encode())


def call_headers(path: str = INFER, **more: str) -> bytes:
    """The header block of a gRPC call; underscores in names become hyphens."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    fields |= {name.replace("_", "-"): value for name, value in more.items()}
    return b"".join(literal(name, value) for name, value in fields.items())


def message(payload: bytes, *, compressed: int = 0, claim: int | None = None) -> bytes:
    """One length-prefixed message; `claim` lies about its length."""
    return struct.pack("!BI", compressed, len(payload) if claim is None else claim) + payload


class Wire:
    """One raw HTTP/2 connection."""

    def __init__(self, port: int, *, timeout_s: float = 10, tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.send(PREFACE + frame(SETTINGS, 0, 0))
        self._buffer = b""
        self.closed = False

    def __enter__(self) -> Wire:  # noqa: PYI034 # Self needs Python 3.11
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send, whatever the server thinks of it; False: it has hung up, or stopped reading."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, TimeoutError, ssl.SSLError):
            return False
        return True

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(type, flags, stream, payload) of each frame until the server closes."""
        while True:
            while len(self._buffer) >= 9:
                length = int.from_bytes(self._buffer[:3], "big")
                if len(self._buffer) < 9 + length:
                    break
                head, payload, self._buffer = self._buffer[:9], self._buffer[9 : 9 + length], self._buffer[9 + length :]
                yield head[3], head[4], int.from_bytes(head[5:9], "big"), payload
            try:
                data = self.socket.recv(65536)
            except (ConnectionError, ssl.SSLError):
                data = b""
            if not data:
                self.closed = True
                return
            self._buffer += data

    def ended(self, stream: int) -> bool:
        """Read until the server ends this stream (True) or the connection (False)."""
        for kind, flags, number, _ in self.frames():
            if number == stream and (kind == RST_STREAM or (flags & END_STREAM and kind in {DATA, HEADERS})):
                return True
        return False


def main() -> None:
    """Serve until standard input closes, and print the port, and the CA over TLS: `python grpc_support.py ENGINE`.

    Each line of standard input is answered with the memory that is resident once what is free has gone back to the system, in bytes.
    """
    import psutil
    import uvloop

    def resident() -> int:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return psutil.Process().memory_info().rss

    async def serve() -> None:
        server, plane, _ = await started(sys.argv[1])
        print(server.port, authority().certificate if sys.argv[1] == TLS else "-", flush=True)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(resident(), flush=True)
        await server.close()
        await plane.close()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
