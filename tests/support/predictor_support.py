"""A scripted predictor over HTTP, for clients of one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferResponse, Tensor

__all__ = ["Predictor", "doubled", "http"]


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
