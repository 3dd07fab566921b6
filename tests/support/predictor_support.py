"""A scripted predictor over HTTP, for clients of one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import numpy as np

import grpc
from serinus.client.predictor_client import PredictorClient
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol import proto_codec
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, InferResponse, Tensor
from serinus.settings import PredictorSettings

__all__ = ["Predictor", "Servicer", "client", "doubled", "http", "question"]


class Predictor:
    """A scripted HTTP predictor: records requests, answers what it is told to, in order; the last answer stays."""

    def __init__(self, *answers: Callable[[Predictor], bytes | None]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.connections = 0
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Predictor]:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self._connected(reader, writer)
        except asyncio.CancelledError:
            pass  # asyncio's streams log a cancelled handler as an error
        finally:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                headers: dict[str, str] = {}
                line = (await reader.readuntil(b"\r\n")).decode().split()
                while (field := await reader.readuntil(b"\r\n")) != b"\r\n":
                    name, _, value = field.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((line[0], line[1], headers, body))
                answer = (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(self)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()


def http(status: int, body: bytes = b"{}", **headers: str) -> Callable[[Predictor], bytes]:
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{fields}\r\n"
    return lambda _: head.encode() + body


def doubled(predictor: Predictor) -> bytes:
    """Answer a V2 request with its first input doubled, raw."""
    codec = RestCodec()
    _, _, headers, body = predictor.requests[-1]
    length = headers.get("inference-header-content-length")
    request = codec.decode_request(body, model_name="m", json_length=int(length) if length else None)
    tensor = request.inputs[0]
    answer = codec.encode_response(InferResponse("m", [Tensor.of("y", tensor.data * 2)], id=request.id), request)
    fields = {"inference_header_content_length": str(answer.json_length)} if answer.json_length else {}
    return http(200, answer.to_bytes(), **fields)(predictor)


def client(port: int, **settings: Any) -> PredictorClient:
    """Of a predictor on this machine."""
    return PredictorClient(PredictorSettings(host=f"127.0.0.1:{port}", **{"protocol": "v2", **settings}))


def question(**fields: Any) -> InferRequest:
    """One row of two numbers."""
    return InferRequest("m", [Tensor.of("x", np.array([[1.5, 2.5]], np.float32))], **fields)


class Servicer(grpc.GenericRpcHandler):
    """A gRPC predictor on raw bytes."""

    def __init__(
        self,
        name: str,
        status: grpc.StatusCode | None = None,
        pushback: str | None = None,
        version: str = "",
        retry_after: str | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.status = status
        self.trailing = [("grpc-retry-pushback-ms", pushback)] if pushback else []
        self.trailing += [("retry-after", retry_after)] if retry_after else []
        self.calls: list[tuple[dict[str, str], float | None]] = []

    def service(self, details: Any) -> Any:
        if details.method.endswith("ModelInfer"):
            return grpc.unary_unary_rpc_method_handler(self.infer)
        return grpc.unary_unary_rpc_method_handler(self.ready)

    async def ready(self, message: bytes, context: Any) -> bytes:
        return pb.ServerReadyResponse(ready=True).SerializeToString()

    async def infer(self, message: bytes, context: Any) -> bytes:
        self.calls.append((dict(context.invocation_metadata()), context.time_remaining()))
        if self.status is not None:
            status, self.status = self.status, None
            if self.trailing:
                context.set_trailing_metadata(tuple(self.trailing))
            await context.abort(status, "because")
        request = proto_codec.decode_request(message)
        output = Tensor.of("y", request.inputs[0].data * 2)
        answer = InferResponse(self.name, [output], self.version, id=request.id)
        return proto_codec.encode_response(answer, request)

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0, *, tls: tuple[bytes, bytes] | None = None) -> AsyncIterator[int]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((self,))
        address = f"127.0.0.1:{port}"
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, grpc.ssl_server_credentials((tls,)))
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)
