"""JSON of megabytes is read off the event loop: a probe waits for none of it, and a client that leaves has begun nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest

from http_support import Raw
from representative import every
from rest_support import Rest, rest, wire
from serinus.dataplane.large_bodies import LARGE_BODY_BYTES
from serinus.protocol import json_codec, rest_codec
from waiting import until

pytestmark = pytest.mark.asyncio

ROWS = 40_000
ROW = [0.25] * 3
NESTED = [ROW] * ROWS
EVENT = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}
V2 = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [ROWS, 3], "data": NESTED}]}
FIELDS = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}

LARGE: dict[str, tuple[str, Any, dict[str, str]]] = {
    "V2": ("/v2/models/echo/infer", V2, {}),
    "V2 in an event": ("/v2/models/echo/infer", V2, FIELDS),
    "V2 streamed": ("/v2/models/echo/infer_stream", V2, {}),
    "V1": ("/v1/models/echo:predict", {"instances": NESTED}, {}),
    "V1 of a model that speaks it": ("/v1/models/speaker:predict", {"instances": NESTED}, {}),
    "an event": (
        "/v1/models/speaker:predict",
        {**EVENT, "data": {"instances": NESTED}},
        {"Content-Type": "application/cloudevents+json"},
    ),
    "index": ("/v2/repository/index", {"ready": True, "more": NESTED}, {}),
}


class Reading:
    """Where bodies are parsed: it waits until it is let on."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.on = threading.Event()

    def around(self, parse: Callable[..., Any]) -> Callable[..., Any]:
        def reading(body: Any, *arguments: Any, **options: Any) -> Any:
            if len(body) > LARGE_BODY_BYTES:
                self.threads.append(threading.current_thread())
                if threading.current_thread() is not threading.main_thread():
                    self.on.wait(20)
            return parse(body, *arguments, **options)

        return reading


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reading]:
    """Hold every parse of a large body off the loop until it is let on."""
    reading = Reading()
    monkeypatch.setattr(json_codec.orjson, "loads", reading.around(orjson.loads))
    plain = rest_codec.RestCodec.decode_request

    def decode_request(codec: rest_codec.RestCodec, body: Any, **options: Any) -> Any:
        return reading.around(lambda body: plain(codec, body, **options))(body)

    monkeypatch.setattr(rest_codec.RestCodec, "decode_request", decode_request)
    try:
        yield reading
    finally:
        reading.on.set()


async def begun(server: Rest, path: str, body: Any, fields: dict[str, str]) -> Raw:
    client = await Raw.open(server.port)
    await client.send(wire("POST", path, body, fields))
    return client


@pytest.mark.parametrize("case", every(3, LARGE), ids=str)
@pytest.mark.parametrize("http", every(2, ["thin", "uvicorn"]))
async def test_a_probe_is_answered_while_a_large_body_is_read(case: str, http: str, monkeypatch: pytest.MonkeyPatch):
    path, body, fields = LARGE[case]
    with held(monkeypatch) as reading:
        async with rest("echo", "speaker", http=http) as server:
            client = await begun(server, path, body, fields)
            await until(lambda: bool(reading.threads))
            live = await server.ask("GET", "/v2/health/live")
            assert (live.status, reading.on.is_set()) == (200, False)
            reading.on.set()
            assert (await client.answer()).status == 200
            await client.close()
        assert threading.main_thread() not in reading.threads


async def test_a_small_body_is_read_at_once(monkeypatch: pytest.MonkeyPatch):
    """A thread would cost it more than it takes."""
    with held(monkeypatch) as reading:
        async with rest("echo") as server:
            rows = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": ROW}]}
            assert (await server.ask("POST", "/v2/models/echo/infer", rows)).status == 200
        assert reading.threads == []


@pytest.mark.parametrize("case", ["V2", "V1", "V1 of a model that speaks it"], ids=str)
async def test_what_a_client_sent_that_left_meanwhile_is_not_predicted(case: str, monkeypatch: pytest.MonkeyPatch):
    path, body, fields = LARGE[case]
    with held(monkeypatch) as reading:
        async with rest("echo", "speaker") as server:
            client = await begun(server, path, body, fields)
            await until(lambda: bool(reading.threads))
            client.reset()
            await asyncio.sleep(0.05)  # the server's turn to see that it has gone
            reading.on.set()
            await asyncio.sleep(0.2)  # and to do nothing
            page = (await server.ask("GET", "/metrics")).body.decode()
        assert not [
            line
            for line in page.splitlines()
            if line.startswith("nv_inference_request_success") and not line.endswith(" 0")
        ]


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/v2/models/echo/infer", b'{"inputs":[' + b"[]," * 1_100_000 + b"[]]}", 413, "arrays"),
        ("/v1/models/echo:predict", b'{"instances":[' + b"[1]," * 1_100_000 + b"[1]]}", 413, "arrays"),
        ("/v1/models/speaker:predict", b'{"instances":[' + b"{}," * 600_000 + b"{}]}", 413, "objects"),
        ("/v1/models/echo:predict", b'{"instances":[' + b"1," * 4_300_000 + b"1]}", 413, "values"),
        ("/v2/repository/index", b'{"ready":[' + b"[]," * 1_100_000 + b"[]]}", 413, "arrays"),
        ("/v1/models/echo:predict", b'{"instances":[' + b"[1]," * 200_000 + b"[1,2]]}", 400, "shape"),
        ("/v2/models/echo/infer", b'{"inputs":' + b" " * 400_000 + b"}", 400, "not JSON"),
    ],
    ids=["V2", "V1", "objects", "values", "index", "ragged", "no JSON"],
)
async def test_a_large_body_that_is_refused_says_why(path: str, body: bytes, status: int, word: str):
    async with rest("echo", "speaker") as server:
        answer = await server.ask("POST", path, body)
    assert answer.status == status
    assert word in answer.body.decode()
