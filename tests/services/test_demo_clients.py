"""The demos' clients behave as clients of a busy machine should: what is too much at once is asked again, when the answer says."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import grpc
from serinus import InferRequest, InferResponse, Tensor
from serinus.protocol import proto_codec

ROOT = Path(__file__).resolve().parents[2]
OVERLOADED = b'{"error":"the model is overloaded"}'
ANSWER = json.dumps(
    {"model_name": "m", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
).encode()


def demo(service: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of `make demo SERVICE=...`."""
    name = f"{service}_demo"
    spec = importlib.util.spec_from_file_location(name, ROOT / "inferenceservices" / service / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def refusing(times: int, bodies: list[bytes]) -> AsyncIterator[int]:
    """A server that answers 429 so often, then 200; `bodies` gets every request's body. Gives its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            bodies.append(await reader.readexactly(length))
            line, content = (b"429 No", OVERLOADED) if len(bodies) <= times else (b"200 OK", ANSWER)
            writer.write(
                b"HTTP/1.1 %b\r\nRetry-After: 0\r\nContent-Length: %d\r\n\r\n" % (line, len(content)) + content
            )

    async def until_it_leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(until_it_leaves, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask_fraud(module: ModuleType, rest: Any) -> Any:
    return (await rest.ask(InferRequest("m", [Tensor.of("x", np.float32([1]))]))).outputs[0].data


async def ask_vision(module: ModuleType, rest: Any) -> Any:
    return (await module.ask_v2(rest, [b"a picture"])).outputs[0].data


async def ask_recommender(module: ModuleType, rest: Any) -> Any:
    return (await rest.recommend(1))[0]["outputs"][0]["data"]


EACH = pytest.mark.parametrize(
    ("service", "ask"),
    [("fraud", ask_fraud), ("vision", ask_vision), ("recommender", ask_recommender)],
    ids=["fraud", "vision", "recommender"],
)


@EACH
async def test_what_is_too_much_at_once_is_asked_again_with_the_same_body(
    service: str, ask: Callable[[ModuleType, Any], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
):
    module, bodies = demo(service, monkeypatch), list[bytes]()
    async with refusing(2, bodies) as port:
        rest = module.Rest(port)
        assert list(await ask(module, rest)) == [1.0]
        await rest.close()
    assert len(bodies) == 3
    assert len(set(bodies)) == 1
    assert bodies[0]


@EACH
async def test_a_service_that_refuses_without_end_ends_the_demo_with_its_words(
    service: str, ask: Callable[[ModuleType, Any], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
):
    module, bodies = demo(service, monkeypatch), list[bytes]()
    async with refusing(10**6, bodies) as port:
        rest = module.Rest(port)
        with pytest.raises(RuntimeError, match=r"429.*the model is overloaded"):
            await ask(module, rest)
        await rest.close()
    assert len(bodies) == module.TRIES


async def test_what_is_too_much_at_once_over_grpc_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    module, asked = demo("fraud", monkeypatch), list[bytes]()

    async def infer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        asked.append(request)
        if len(asked) < 3:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", (("grpc-retry-pushback-ms", "1"),))
        answer = InferResponse("m", [Tensor.of("y", np.float32([1]))])
        return proto_codec.encode_response(answer, InferRequest("m", []))

    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = module.Grpc(port)
    answer = await client.ask(InferRequest("m", [Tensor.of("x", np.float32([1]))]))
    await client.close()
    await server.stop(None)
    assert list(answer.outputs[0].data) == [1.0]
    assert len(asked) == 3
    assert len(set(asked)) == 1
