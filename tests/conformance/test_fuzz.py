"""Mutated requests to a real `serinus serve`, over REST and gRPC: no 5xx, no crash, no growth, good requests answered all along.

`SERINUS_FUZZ` is the number of requests in all: 200 000 unless set, which take about half a minute.
"""

from __future__ import annotations

import os
import random
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import psutil
import pytest

from conformance_support import Server, infer_message, json_tensor, raw_bytes, server_process, values_of
from serinus.protocol import _open_inference_pb2 as pb

COUNT = int(os.environ.get("SERINUS_FUZZ", "200000"))
GROWTH_BYTES = 48 << 20
"""What allocators and caches may take on from the first tenth of the requests to the last."""
WINDOW = 32

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SCORES = json_tensor("scores", "FP32", [2, 4], [1.0, 3.5, 0.5, 2.0, -1.0, 0.0, 1e-3, 7.0])
TEXT = json_tensor("text", "BYTES", [2, 1], ["a", "ü"])
PAIR = [json_tensor(f"INPUT{i}", "INT32", [1, 4], [1, 2, 3, 4]) for i in (0, 1)]
BYTES = b"\r\n\0 :,{}[]\"'0123456789-+.eE%/?\xff;=\x80\x7fnultrfas"
WORDS = (
    *(b"null", b"-1", b"1e999", b"9999999999999999999", b"[[", b"]]"),
    *(b'""', b"true", b"{}", b"FP64", b"BYTES", b"\\u0000"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_process(tmp_path_factory.mktemp("fuzz")) as running:
        yield running


def mutate(data: bytes, chance: random.Random, words: tuple[bytes, ...] = WORDS) -> bytes:
    """Change, drop, repeat or insert a few bytes anywhere."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(out) + 1)
        kind = chance.randrange(6)
        if kind == 0 and at < len(out):
            out[at] = chance.choice(BYTES)
        elif kind == 1:
            out.insert(at, chance.choice(BYTES))
        elif kind == 2:
            del out[at : at + chance.randrange(1, 8)]
        elif kind == 3:
            out[at:at] = out[at : at + chance.randrange(1, 40)]
        elif kind == 4 and words:
            out[at:at] = chance.choice(words)
        elif at < len(out):
            out[at] ^= 1 << chance.randrange(8)
    return bytes(out)


def rest_seeds() -> list[tuple[str, str, bytes, dict[str, str]]]:
    """Method, path, body and further headers of good requests."""
    tensor = {key: value for key, value in SCORES.items() if key != "data"}
    head = orjson.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 32}}]})
    full = {
        "id": "1",
        "parameters": {"timeout": 60_000_000, "priority": 1, "binary_data_output": True, "own": 2.5},
        "inputs": [SCORES],
        "outputs": [{"name": "classes", "parameters": {"classification": 2, "binary_data": False}}],
    }
    binary = {"Inference-Header-Content-Length": str(len(head))}
    return [
        ("POST", "/v2/models/labels/infer", orjson.dumps({"inputs": [SCORES]}), {}),
        ("POST", "/v2/models/labels/infer", orjson.dumps(full), {}),
        ("POST", "/v2/models/versioned/versions/2/infer", orjson.dumps({"inputs": [SCORES]}), {}),
        ("POST", "/v2/models/labels/infer", head + raw_bytes("FP32", SCORES["data"]), binary),
        ("POST", "/v2/models/labels/infer", raw_bytes("FP32", [1, 2, 3, 4]), {"Inference-Header-Content-Length": "0"}),
        ("POST", "/v2/models/texts/infer", orjson.dumps({"inputs": [TEXT]}), {}),
        ("POST", "/v2/models/simple/infer", orjson.dumps({"inputs": PAIR, "outputs": [{"name": "OUTPUT1"}]}), {}),
        ("POST", "/v2/models/identity/infer", orjson.dumps({"inputs": [SCORES, TEXT, *PAIR]}), {}),
        ("POST", "/v2/models/asked/infer", orjson.dumps({"inputs": [SCORES], "parameters": {"a": True}}), {}),
        ("POST", "/v2/models/xgb/infer", orjson.dumps({"inputs": [{**SCORES, "name": "input-0"}]}), {}),
        ("POST", "/v1/models/labels:predict", orjson.dumps({"instances": [[1, 2, 3, 4.5]]}), {}),
        ("POST", "/v1/models/simple:predict", orjson.dumps({"inputs": {"INPUT0": [[1] * 4], "INPUT1": [[2] * 4]}}), {}),
        ("POST", "/v2/repository/index", orjson.dumps({"ready": True}), {}),
    ]


def framed(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Watch:
    """Asks a good question after each thousand, and measures the process."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.process = psutil.Process(server.served.process.pid)
        self.asked = 0
        self.outcomes: Counter[Any] = Counter()
        self.early = 0

    def count(self, outcome: Any, total: int) -> None:
        self.asked += 1
        self.outcomes[outcome] += 1
        if self.asked % 1000 == 0 or self.asked == total:
            answer = self.server.infer("labels", SCORES, id="good")
            assert (answer.status, answer.json["id"]) == (200, "good")
            assert answer.json["outputs"][0]["data"] == SCORES["data"]
            reply = self.server.grpc_infer("labels", SCORES, raw=True)
            assert values_of(reply.message) == pytest.approx(SCORES["data"])
        if self.asked == max(1, total // 10):
            self.early = self.process.memory_info().rss

    def finish(self, what: str) -> None:
        late = self.process.memory_info().rss
        print(f"{what}: {self.asked} requests, {dict(self.outcomes)}, RSS {self.early >> 20} -> {late >> 20} MiB")
        assert late - self.early < GROWTH_BYTES
        assert self.server.served.process.poll() is None
        assert "Traceback" not in self.server.served.log.read_text()


def test_mutated_bodies_over_rest(server: Server):
    chance, seeds, total, watch = random.Random(11), rest_seeds(), COUNT * 6 // 10, Watch(server)
    while watch.asked < total:
        method, path, body, headers = chance.choice(seeds)
        changed = mutate(body, chance)
        if headers and chance.random() < 0.3:
            length = chance.choice((0, 1, len(changed), len(changed) + 1, 2**40))
            headers = {"Inference-Header-Content-Length": str(length)}
        answer = server.exchange(framed(method, path, changed, headers))
        # A mutated `timeout` may have passed before the answer was there.
        assert answer.status < 500 or answer.status == 504, (path, changed, answer)
        if answer.status >= 400:
            assert answer.error, (path, changed, answer)
        watch.count(answer.status, total)
    watch.finish("REST bodies")


def test_mutated_heads_over_rest(server: Server):
    chance, seeds, total, watch = random.Random(12), rest_seeds(), COUNT // 10, Watch(server)
    while watch.asked < total:
        sent = mutate(framed(*chance.choice(seeds)), chance, ())
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            got = b""
            try:
                while piece := client.recv(1 << 16):
                    got += piece
            except ConnectionError:
                pass
        status = int(got[9:12]) if got.startswith(b"HTTP/1.1 ") else 0
        # 501 and 505 are what an unknown method or version is; nothing at all where the request never ended.
        assert status < 500 or status in (501, 504, 505), (sent, got)
        watch.count(status, total)
    watch.finish("REST heads")


def test_mutated_messages_over_grpc(server: Server):
    chance, total, watch = random.Random(13), COUNT * 3 // 10, Watch(server)
    wanted = [{"name": "classes", "parameters": {"classification": 2}}]
    more: dict[str, Any] = {"outputs": wanted, "parameters": {"timeout": 60_000_000, "priority": 1}}
    messages = [
        *(infer_message("labels", [SCORES], raw=raw) for raw in (True, False)),
        infer_message("labels", [SCORES], id="1", **more),
        infer_message("versioned", [SCORES], version="2"),
        *(infer_message("texts", [TEXT], raw=raw) for raw in (True, False)),
        *(infer_message("simple", PAIR, raw=raw, outputs=[{"name": "OUTPUT0"}]) for raw in (True, False)),
        *(infer_message("identity", [SCORES, TEXT, *PAIR], raw=raw) for raw in (True, False)),
        infer_message("asked", [SCORES], parameters={"a": True, "b": 1.5}),
    ]
    seeds = [
        *(("ModelInfer", message.SerializeToString()) for message in messages),
        ("ModelReady", pb.ModelReadyRequest(name="labels").SerializeToString()),
        ("ModelMetadata", pb.ModelMetadataRequest(name="versioned", version="2").SerializeToString()),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="labels").SerializeToString()),
        ("RepositoryIndex", pb.RepositoryIndexRequest(ready=True).SerializeToString()),
    ]
    stubs = {method: server.channel.unary_unary(f"/inference.GRPCInferenceService/{method}") for method, _ in seeds}
    fine = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    while watch.asked < total:
        calls = []
        for _ in range(min(WINDOW, total - watch.asked)):
            method, message = chance.choice(seeds)
            changed = mutate(message, chance)
            calls.append((method, changed, stubs[method].future(changed, timeout=60)))
        for method, changed, call in calls:
            code = call.code().name
            assert code in fine, (method, changed, code, call.details())
            assert code == "OK" or call.details()
            watch.count(code, total)
    watch.finish("gRPC messages")
