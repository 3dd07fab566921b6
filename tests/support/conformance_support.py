"""A server with many models, as a real `serinus serve` process or in this one, and clients of it that show every byte."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

import grpc
from deferred import Deferred
from grpc_support import SERVERS, run_on_server_loop
from http_support import hurry
from serinus.dataplane.access.repository_access import OPEN
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.hosts import build_model
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.grpc import start_grpc
from serinus.server.rest.rest_server import start_rest
from serinus.settings import ModelSettings, ServerSettings
from serve_support import Served, serving
from waiting import wait_until

xgboost = Deferred("xgboost")

__all__ = [
    "Answer",
    "Case",
    "Reply",
    "Server",
    "call",
    "case",
    "check_config",
    "check_metadata",
    "check_no_rows",
    "ids",
    "infer_message",
    "json_tensor",
    "server_here",
    "server_process",
]

MODELS = ("Identity", "Typed", "Simple", "Labels", "Slow", "Texts", "Broken", "Asked")


@dataclass
class Answer:
    """What REST answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an error; the body is nothing but that."""
        document = self.json
        assert document.keys() <= {"error", "request_id", "trace_id"}, document
        assert self.status == 500 or list(document) == ["error"], (
            document
        )  # the ids that the log has are of our own faults
        assert isinstance(document["error"], str)
        assert document["error"]
        return document["error"]


@dataclass
class Reply:
    """What gRPC answered."""

    code: str
    details: str
    message: Any
    initial: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One expectation of a document."""

    id: str
    source: str
    run: Callable[[Server], None]
    slow: bool = False


def case(
    table: list[Case], name: str, source: str, *, slow: bool = False
) -> Callable[[Callable[[Server], None]], Callable[[Server], None]]:
    """Add a function to a table; a slow one is left out of the quick run."""

    def add(function: Callable[[Server], None]) -> Callable[[Server], None]:
        table.append(Case(name, source, function, slow))
        return function

    return add


def ids(table: list[Case]) -> Any:
    """Parametrize a test by a table."""
    import pytest

    names = [one.id for one in table]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    cases = [pytest.param(one, marks=pytest.mark.slow if one.slow else ()) for one in table]
    return pytest.mark.parametrize("one", cases, ids=names)


@dataclass(frozen=True)
class Doors:
    """The ports of a server in this process, and how many connections REST has open."""

    http_port: int
    grpc_port: int
    connections: Callable[[], int]


class Server:
    """Both doors of a running server."""

    def __init__(self, served: Served | Doors) -> None:
        self._served = served
        self.http_port = served.http_port
        self.grpc_port = served.grpc_port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}")
        self._socket: socket.socket | None = None
        self._buffer = b""

    @property
    def is_process(self) -> bool:
        """Whether it is a process of its own."""
        return isinstance(self._served, Served)

    @property
    def served(self) -> Served:
        """The process; for a server that is one."""
        assert isinstance(self._served, Served)
        return self._served

    def until_no_connection_is_open(self) -> None:
        """Hang up, and wait until a server in this process has forgotten every connection of REST."""
        served = self._served
        assert isinstance(served, Doors)
        self.hang_up()
        wait_until(lambda: not served.connections())

    def close(self) -> None:
        self.channel.close()
        self.hang_up()

    def hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer = b""

    # REST

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str | None] | None = None) -> Answer:
        """Send one request on the kept connection; a body that is not bytes becomes JSON, a header of None is left out."""
        data = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        fields: dict[str, str | None] = {"Host": "localhost"}
        if body is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        fields |= headers or {}
        head = [
            f"{method} {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in fields.items() if value is not None),
        ]
        return self.exchange("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + data, head_only=method == "HEAD")

    def exchange(self, data: bytes, *, head_only: bool = False) -> Answer:
        """Send bytes and read one answer, on the kept connection, or on a new one if the server has closed that."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self.http_port), timeout=20)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(data)
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status = int(lines[0].split(" ")[1])
        if status == 100:
            return Answer(100, fields, b"")
        length = 0 if head_only else int(fields.get("content-length", "0"))
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        if fields.get("connection", "").lower() == "close":
            self.hang_up()
        return Answer(status, fields, body)

    def _more(self) -> None:
        assert self._socket is not None
        data = self._socket.recv(1 << 16)
        if not data:
            self.hang_up()
            raise ConnectionError("the server closed the connection")
        self._buffer += data

    def infer(
        self, model: str, *inputs: dict[str, Any], headers: Mapping[str, str] | None = None, **more: Any
    ) -> Answer:
        """POST an inference request in JSON."""
        return self.ask("POST", f"/v2/models/{model}/infer", {"inputs": list(inputs), **more}, headers)

    def refused(
        self, status: int, model: str, *inputs: dict[str, Any], says: tuple[str, ...] = (), **more: Any
    ) -> None:
        """Expect a client error whose message has these words, and the connection alive after it."""
        answer = self.infer(model, *inputs, **more)
        assert answer.status == status, (answer.status, answer.body)
        for word in says:
            assert word in answer.error, answer.error
        assert answer.headers["content-type"] == "application/json"
        assert self.alive()

    def alive(self) -> bool:
        """The kept connection was not closed, and still answers."""
        return self._socket is not None and self.ask("GET", "/v2/health/live").status == 200

    # gRPC

    def rpc(
        self,
        method: str,
        request: Any = b"",
        *,
        service: str = "inference.GRPCInferenceService",
        timeout: float = 20,
        metadata: tuple[tuple[str, str], ...] = (),
        compression: Any = None,
    ) -> Reply:
        """Call a method; the answer's message is of the response type that the service's description names."""
        sent = request if isinstance(request, bytes) else request.SerializeToString()
        stub = self.channel.unary_unary(f"/{service}/{method}")
        try:
            answer, done = stub.with_call(sent, timeout=timeout, metadata=metadata, compression=compression)
        except grpc.RpcError as error:
            return Reply(error.code().name, error.details() or "", None)  # type: ignore[attr-defined] # a call too
        kind = _response_of(service, method)
        initial = {str(item[0]): str(item[1]) for item in done.initial_metadata() or ()}
        return Reply("OK", "", answer if kind is None else kind.FromString(answer), initial)

    def grpc_infer(self, model: str, *inputs: dict[str, Any], raw: bool = False, **more: Any) -> Reply:
        """ModelInfer of a request given as for REST."""
        return self.rpc("ModelInfer", infer_message(model, inputs, raw=raw, **more))

    def grpc_refused(self, code: str, reply: Reply, *says: str) -> None:
        """Expect a status whose message has these words."""
        assert reply.code == code, reply
        for word in says:
            assert word in reply.details, reply.details
        assert "Traceback" not in reply.details


def call(channel: grpc.Channel, method: str, message: bytes) -> bytes:
    """One raw call."""
    return channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(message, timeout=20)


_RESPONSES = {
    "RepositoryModelLoad": "RepositoryModelLoadResponse",
    "RepositoryModelUnload": "RepositoryModelUnloadResponse",
}


@functools.cache
def _response_of(service: str, method: str) -> Any:
    if service == "grpc.health.v1.Health":
        from grpc_health.v1 import health_pb2

        return health_pb2.HealthCheckResponse
    return getattr(pb, _RESPONSES.get(method, f"{method}Response"), None)


CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
WIRE = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}


def json_tensor(name: str, datatype: str, shape: list[int], data: Any, **parameters: Any) -> dict[str, Any]:
    """An input of a JSON request."""
    tensor = {"name": name, "shape": shape, "datatype": datatype, "data": data}
    return {**tensor, "parameters": parameters} if parameters else tensor


def raw_bytes(datatype: str, values: list[Any]) -> bytes:
    """The little-endian form of flat values."""
    if datatype == "BYTES":
        texts = [value.encode() if isinstance(value, str) else value for value in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    if datatype == "BF16":
        return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.array(values, WIRE[datatype]).tobytes()


def infer_message(
    model: str,
    inputs: Any,
    *,
    raw: bool = False,
    version: str = "",
    id: str = "",
    outputs: Any = (),
    parameters: Any = None,
) -> Any:
    """Make a ModelInferRequest of what REST would be sent; `data` is flat."""
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    _fill(message.parameters, parameters or {})
    for tensor in inputs:
        entry = message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        _fill(entry.parameters, tensor.get("parameters", {}))
        data = np.array(tensor["data"], object).reshape(-1).tolist() if tensor["data"] else []
        if raw:
            message.raw_input_contents.append(raw_bytes(tensor["datatype"], data))
        elif data:
            field = CONTENTS[tensor["datatype"]]
            getattr(entry.contents, field).extend(
                [value.encode() if isinstance(value, str) else value for value in data]
            )
    for output in outputs:
        entry = message.outputs.add(name=output["name"])
        _fill(entry.parameters, output.get("parameters", {}))
    return message


def _fill(target: Any, parameters: Mapping[str, Any]) -> None:
    for key, value in parameters.items():
        if isinstance(value, bool):
            target[key].bool_param = value
        elif isinstance(value, int):
            target[key].int64_param = value
        elif isinstance(value, float):
            target[key].double_param = value
        else:
            target[key].string_param = value


def values_of(response: Any, index: int = 0) -> list[Any]:
    """An output's values, however they travelled."""
    output = response.outputs[index]
    if response.raw_output_contents:
        data = response.raw_output_contents[index]
        if output.datatype == "BYTES":
            found, at = [], 0
            while at < len(data):
                size = int.from_bytes(data[at : at + 4], "little")
                found.append(data[at + 4 : at + 4 + size])
                at += 4 + size
            return found
        if output.datatype == "BF16":
            return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").tolist()
        return np.frombuffer(data, WIRE[output.datatype]).tolist()
    return list(getattr(output.contents, CONTENTS[output.datatype]))


def check_metadata(s: Server, model: str, tensor: Mapping[str, Any]) -> None:
    """A framework's model promises the outputs that it gives, the optional ones too, and gRPC says what REST says."""
    document = s.ask("GET", f"/v2/models/{model}").json
    assert document["name"] == model
    assert document["platform"].count("_") >= 1
    assert all(isinstance(text, str) for text in document["properties"].values())
    for spec in (*document["inputs"], *document["outputs"]):
        assert set(spec) == {"name", "datatype", "shape"}
        assert all(isinstance(size, int) and size >= -1 for size in spec["shape"])
    promised = [spec["name"] for spec in document["outputs"]]
    assert [output["name"] for output in s.infer(model, tensor).json["outputs"]] == promised
    for spec in orjson.loads(document["properties"].get("optional_outputs", "[]")):
        answer = s.infer(model, tensor, outputs=[{"name": spec["name"]}]).json
        assert [output["name"] for output in answer["outputs"]] == [spec["name"]]
    message = s.rpc("ModelMetadata", pb.ModelMetadataRequest(name=model)).message
    for mine, theirs in ((message.inputs, document["inputs"]), (message.outputs, document["outputs"])):
        assert [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in mine] == theirs
    assert (message.platform, set(message.properties)) == (document["platform"], set(document["properties"]))


def check_no_rows(s: Server, model: str, tensor: Mapping[str, Any]) -> None:
    """No rows are answered with no rows."""
    answer = s.infer(model, {**tensor, "shape": [0, *tensor["shape"][1:]], "data": []})
    assert answer.status == 200, answer.body
    assert answer.json["outputs"][0]["shape"][0] == 0
    assert answer.json["outputs"][0]["data"] == []


def check_config(s: Server, model: str) -> None:
    """The configuration over gRPC is the one over REST."""
    config = s.rpc("ModelConfig", pb.ModelConfigRequest(name=model)).message.config
    document = s.ask("GET", f"/v2/models/{model}/config").json
    assert (config.name, config.max_batch_size) == (model, document["max_batch_size"])
    for mine, theirs in ((config.input, document["input"]), (config.output, document["output"])):
        assert [(t.name, list(t.dims)) for t in mine] == [(t["name"], t["dims"]) for t in theirs]


@contextlib.contextmanager
def server_process(folder: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Serve every model of conformance_models, an XGBoost model, three versions of one, and names that are hard to write."""
    repository = folder / "models"
    rows = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3}, xgboost.DMatrix(rows, rows[:, 0] > 0), 5)

    def write(name: str, implementation: str, place: str = "", **settings: Any) -> Path:
        at = repository / (place or name)
        at.mkdir(parents=True)
        document = {"name": name, "implementation": implementation, **settings}
        (at / "model-settings.json").write_text(json.dumps(document))
        return at

    for name in MODELS:
        write(name.lower(), f"conformance_models.{name}")
    booster.save_model(write("xgb", "xgboost_server") / "model.ubj")
    for version in VERSIONS:
        write("versioned", "conformance_models.Labels", f"versioned-{version}", parameters={"version": version})
    write(ODD_NAME, "conformance_models.Labels", "odd")
    write("spare", "conformance_models.Labels")
    write("churn", "conformance_models.Labels")
    # With a record of the trees' verification beside them the server imports no xgboost: its image may have none, and it takes 1.5 s of CPU.
    build_model(ModelSettings(name="xgb", implementation="xgboost_server", model_dir=repository / "xgb")).load()
    path = str(Path(__file__).parent)
    flags = ("--repository_control", "on", "--allow_implementation", "conformance_models.*", *flags)
    with serving(folder, str(repository), *flags, environment={"PYTHONPATH": path, **(environment or {})}) as served:
        server = Server(served)
        try:
            yield server
        finally:
            server.close()


ODD_NAME = "modèle no. 1/a"
VERSIONS = ("1", "2", "10")


@contextlib.contextmanager
def server_here(*, http: str = "thin", engine: str = "native") -> Iterator[Server]:
    """Serve the same models, but for XGBoost's, in this process: what they run is seen by whoever measures or changes our code.

    Raises:
        AssertionError: at the end: something but the model that is broken was worth a warning in the log.
    """
    hurry(http)
    metrics = Metrics()
    plane = Plane(Registry(build_model, metrics=metrics), metrics=metrics, access=OPEN)
    settings = ServerSettings(host="127.0.0.1", http_port=0, http=http, grpc=engine)  # type: ignore[arg-type] # names of each
    labels = [(name, "Labels", "") for name in (ODD_NAME, "spare", "churn")]
    labels += [("versioned", "Labels", version) for version in VERSIONS]
    models = [
        ModelSettings(name=name, version=version, implementation=f"conformance_models.{kind}")
        for name, kind, version in [*((kind.lower(), kind, "") for kind in MODELS), *labels]
    ]

    async def start() -> Any:
        await plane.start(models)
        rest = await start_rest(plane, settings, metrics=metrics)
        return rest, await start_grpc(plane, settings, metrics=metrics, port=0)

    async def stop() -> None:
        await rest.close()
        await over_grpc.close()
        await plane.close()

    with _warnings() as left:
        rest, over_grpc = run_on_server_loop(start())
        server = Server(Doors(rest.port, over_grpc.port, lambda: rest._server.connection_count))
        try:
            yield server
        finally:
            server.close()
            run_on_server_loop(stop())
    assert [words for words in left if not words.startswith("model 'broken' failed")] == []


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what servers on the one loop log that is a warning or worse."""
    left: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.threadName == SERVERS:
                left.append(record.getMessage())

    collector = Collector(logging.WARNING)
    logging.getLogger("serinus").addHandler(collector)
    try:
        yield left
    finally:
        logging.getLogger("serinus").removeHandler(collector)
