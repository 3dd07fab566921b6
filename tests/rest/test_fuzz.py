"""Mutated REST requests: bodies on one connection, and whole requests, each on a connection of its own."""

from __future__ import annotations

import gc
import socket
from pathlib import Path

import orjson
import pytest

from conformance_support import raw_bytes
from fuzz_support import MANY_OR_FEW, PAIR, SCORES, TEXT, fuzzed, mutate, tenths
from seeded import seeded
from serinus.server.http.connection import Connection


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


def statuses(answers: bytes) -> list[int]:
    """Cut what came on a connection into answers; an answer that is cut short counts by its status."""
    found = []
    while answers:
        head, _, answers = answers.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), head
        found.append(int(head[9:12]))
        lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        answers = answers[int(lengths[0]) if lengths else 0 :]
    return found


@MANY_OR_FEW
def test_mutated_bodies(many: bool, tmp_path: Path):
    chance, seeds, total = seeded(11), rest_seeds(), tenths(6, many)
    with fuzzed(many, tmp_path) as watch:
        while watch.asked < total:
            method, path, body, headers = chance.choice(seeds)
            changed = mutate(body, chance)
            if headers and chance.random() < 0.3:
                length = chance.choice((0, 1, len(changed), len(changed) + 1, 2**40))
                headers = {"Inference-Header-Content-Length": str(length)}
            answer = watch.server.exchange(framed(method, path, changed, headers))
            # A mutated `timeout` may have passed before the answer was there.
            assert answer.status < 500 or answer.status == 504, (path, changed, answer)
            if answer.status >= 400:
                assert answer.error, (path, changed, answer)
            watch.count(answer.status, total)


# The collection below may also find what tests of other modules left behind; that is not this test's to judge.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@MANY_OR_FEW
def test_mutated_heads(many: bool, tmp_path: Path):
    chance, seeds, total = seeded(12), rest_seeds(), tenths(1, many)
    with fuzzed(many, tmp_path) as watch:
        while watch.asked < total:
            sent = mutate(framed(*chance.choice(seeds)), chance, ())
            with socket.create_connection(("127.0.0.1", watch.server.http_port), timeout=20) as client:
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                got = b""
                try:
                    while piece := client.recv(1 << 16):
                        got += piece
                except ConnectionError:
                    pass
            answered = statuses(got)
            # 501 and 505 are what an unknown method or version is; nothing at all where the request never ended.
            assert all(status < 500 or status in (501, 504, 505) for status in answered), (sent, got)
            watch.count(answered[0] if answered else 0, total)
        if not many:
            watch.server.until_no_connection_is_open()
    del watch
    if not many:
        gc.collect()
        # Not isinstance: it asks each object for its __class__, and some of PyTorch answer with a warning.
        kept = [one for one in gc.get_objects() if issubclass(type(one), Connection)]
        assert len(kept) < 10, "connections are not kept"  # the last ones may still be in a frame of the loop
