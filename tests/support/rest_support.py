"""A REST server with small real models, and a client that shows every byte of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from http_support import Answer, Raw, hurry
from serinus import Call, InferRequest, InferResponse, Model, ModelSettings, RequestModel, Tensor, TensorSpec
from serinus.dataplane.access.repository_access import OPEN, RepositoryAccess
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import InvalidInput, NotFound
from serinus.hosts import build_model
from serinus.server.request_access import RequestAccess
from serinus.server.rest.rest_server import RestServer, start_rest
from serinus.settings import BatchSettings, ServerSettings

NUMERIC = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
)


class AddSub(Model):
    """Triton's `simple`: two inputs, their sum and difference."""

    platform = "test_addsub"
    inputs = (TensorSpec("INPUT0", "INT32", (-1, 16)), TensorSpec("INPUT1", "INT32", (-1, 16)))
    outputs = (TensorSpec("OUTPUT0", "INT32", (-1, 16)), TensorSpec("OUTPUT1", "INT32", (-1, 16)))

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"OUTPUT0": inputs["INPUT0"] + inputs["INPUT1"], "OUTPUT1": inputs["INPUT0"] - inputs["INPUT1"]}


class Echo(RequestModel):
    """Gives every input back under its own name; one model for all datatypes. Repeats the header x-say as a response header."""

    platform = "test_echo"

    async def infer(self, request: InferRequest) -> InferResponse:
        wanted = {output.name for output in request.outputs or ()}
        outputs = [tensor for tensor in request.inputs if not wanted or tensor.name in wanted]
        plain = [Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in outputs]
        headers = {"X-Said": request.headers["x-say"]} if "x-say" in request.headers else {}
        return InferResponse(
            request.model_name, plain, self.version, id=request.id, parameters={"a": 1}, headers=headers
        )


class Row(Model):
    """One FP32 matrix to one number a row, with labels for its two scores."""

    platform = "test_row"
    inputs = (TensorSpec("x", "FP32", (-1, 3)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2), labels=("low", "high")),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        total = inputs["x"].sum(axis=1, keepdims=True)
        return {"y": np.concatenate([1 - total, total], axis=1)}


class Numbers(Model):
    """Scalars for rows: one number in, one number and one text out."""

    platform = "test_numbers"
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)), TensorSpec("t", "BYTES", (-1,)))

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"y": 2 * inputs["x"], "t": np.array([str(int(value)).encode() for value in inputs["x"]], object)}


class One(Numbers):
    """One number in and out, without rows."""

    batchable = False
    inputs = (TensorSpec("x", "FP32", ()),)
    outputs = (TensorSpec("y", "FP32", ()),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"y": 2 * inputs["x"]}


class Gate(Model):
    """Waits in a thread until it is let through."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    execution = "thread"
    batchable = False

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.open = threading.Event()
        self.entered = threading.Event()

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        self.entered.set()
        if not self.open.wait(20):
            raise RuntimeError("nobody opened the gate")
        return {"y": inputs["x"]}


class Broken(Model):
    """Raises what nobody foresaw, with a secret in it."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        raise ZeroDivisionError("secret of the model")


class Speaker(RequestModel):
    """Speaks V1 itself, explains itself, and brings a route."""

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse(request.model_name, [Tensor.of("y", np.array([1], dtype=np.int64))])

    async def predict_v1(self, payload: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        if "instances" not in payload and "anything" not in payload:
            raise InvalidInput("'anything' was expected")
        return {"predictions": np.arange(3), "said": payload.get("anything", headers.get("x-say"))}

    async def explain_v1(self, payload: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        return {"explanations": [payload]}


MODELS: dict[str, type[Model]] = {
    "simple": AddSub,
    "echo": Echo,
    "row": Row,
    "numbers": Numbers,
    "one": One,
    "gate": Gate,
    "broken": Broken,
    "speaker": Speaker,
    "late": Row,
}


def make(settings: ModelSettings) -> Model:
    kind = MODELS.get(settings.implementation)
    return build_model(settings) if kind is None else kind(settings)


def settings_of(name: str) -> list[ModelSettings]:
    if name not in MODELS:
        raise NotFound(f"model '{name}' is not in the repository")
    versions = ("1", "2") if name == "row" else ("",)
    batch = BatchSettings(max_queue_rows=2) if name == "gate" else BatchSettings()
    return [
        ModelSettings(name=name, version=version, implementation=name, batch=batch, warmup=False)
        for version in versions
    ]


@dataclass
class Rest:
    """A running server and a client of it."""

    plane: Plane
    server: RestServer
    metrics: Metrics

    @property
    def port(self) -> int:
        return self.server.port

    def model(self, name: str) -> Any:
        return self.plane.registry.find(name).model

    async def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request on a connection of its own; a body that is not bytes becomes JSON."""
        client = await Raw.open(self.port)
        try:
            return await self.ask_on(client, method, path, body, headers)
        finally:
            await client.close()

    async def ask_on(
        self, client: Raw, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        await client.send(wire(method, path, body, headers))
        return await client.answer(head_only=method == "HEAD")


def wire(method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
    data = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
    fields = {"Host": "localhost", **(headers or {})}
    if body is not None:
        fields.setdefault("Content-Type", "application/json")
        fields["Content-Length"] = str(len(data))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data


@contextlib.asynccontextmanager
async def rest(
    *models: str,
    http: str = "thin",
    extra_routes: Iterable[Any] = (),
    discover: bool | Callable[[str], list[ModelSettings]] = True,
    own: Sequence[ModelSettings] = (),
    access: RepositoryAccess = OPEN,
    request_access: RequestAccess | None = None,
    **settings: Any,
) -> AsyncIterator[Rest]:
    """Serve the named models, and a test's own as `serinus serve` makes them; `discover` is what is found where one is loaded again."""
    hurry(http)
    metrics = Metrics(str(settings.get("revision", "")))
    registry = Registry(
        make,
        discover=(settings_of if discover else None) if isinstance(discover, bool) else discover,
        index=lambda: list(MODELS),
        metrics=metrics,
    )
    plane = Plane(registry, metrics=metrics, access=access)
    server_settings = ServerSettings(host="127.0.0.1", **{"http_port": 0, "http": http, **settings})  # type: ignore[arg-type]
    await plane.start([*(one for name in models for one in settings_of(name)), *own])
    server = await start_rest(
        plane, server_settings, metrics=metrics, extra_routes=extra_routes, request_access=request_access
    )
    try:
        yield Rest(plane, server, metrics)
    finally:
        for served in registry.servables():
            if isinstance(served.model, Gate):
                served.model.open.set()
        await server.close()
        await plane.close()


@contextlib.contextmanager
def rest_in_thread(*models: str, **settings: Any) -> Iterator[Rest]:
    """Serve from a thread of its own, for clients that block."""
    started: list[Any] = []
    ready = threading.Event()

    async def serve() -> None:
        stop = asyncio.Event()
        async with rest(*models, **settings) as running:
            started.extend((running, asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    if not ready.wait(60):
        raise RuntimeError("the server did not start")
    try:
        yield started[0]
    finally:
        started[1].call_soon_threadsafe(started[2].set)
        thread.join(20)


def request_of(**inputs: np.ndarray) -> dict[str, Any]:
    """A V2 request in JSON."""
    return {"inputs": [tensor_json(name, Tensor.of(name, array)) for name, array in inputs.items()]}


def tensor_json(name: str, tensor: Tensor) -> dict[str, Any]:
    return {"name": name, "shape": list(tensor.shape), "datatype": tensor.datatype, "data": tensor.data.tolist()}


X = request_of(x=np.array([[0.1, 0.2, 0.3]], dtype=np.float32))
"""A good request to `row`."""
X1 = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.5]}]}
"""A good request to `gate` and `broken`."""
