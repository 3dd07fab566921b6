"""Mutated requests to a server, few in this process or many to one of its own: no 5xx, no crash, no growth, good answers all along.

`SERINUS_FUZZ` is the number of the many, in all: unless set 15 000, which take some seconds, and 200 000 with DEEP=1 (depth.py).
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from conformance_support import Server, json_tensor, server_here, server_process, values_of
from depth import draws

__all__ = ["MANY_OR_FEW", "PAIR", "SCORES", "TEXT", "Watch", "fuzzed", "mutate", "tenths"]

MANY = int(os.environ.get("SERINUS_FUZZ") or draws(200_000, 15_000))
FEW = draws(5000, 5000, 1500)
"""What takes about a second in all, and mutates every seed in each way, in the quick run fewer times."""
MANY_OR_FEW = pytest.mark.parametrize(
    "many",
    [
        pytest.param(False, id="few"),
        pytest.param(True, id="many", marks=(pytest.mark.slow, pytest.mark.timeout(3600))),
    ],
)
GROWTH_BYTES = (48 if MANY >= 200_000 else 3) << 20
"""What allocators and caches may take on from the first tenth of the requests to the last: less of fewer requests, so that as small a leak shows."""

SCORES = json_tensor("scores", "FP32", [2, 4], [1.0, 3.5, 0.5, 2.0, -1.0, 0.0, 1e-3, 7.0])
TEXT = json_tensor("text", "BYTES", [2, 1], ["a", "ü"])
PAIR = [json_tensor(f"INPUT{i}", "INT32", [1, 4], [1, 2, 3, 4]) for i in (0, 1)]
BYTES = b"\r\n\0 :,{}[]\"'0123456789-+.eE%/?\xff;=\x80\x7fnultrfas"
WORDS = (
    *(b"null", b"-1", b"1e999", b"9999999999999999999", b"[[", b"]]"),
    *(b'""', b"true", b"{}", b"FP64", b"BYTES", b"\\u0000"),
)


@contextlib.contextmanager
def fuzzed(many: bool, folder: Path) -> Iterator[Watch]:
    """Serve in this process, or for many requests in a process of its own, whose memory and log are looked at in the end."""
    with server_process(folder) if many else server_here() as server:
        watch = Watch(server)
        yield watch
        watch.finish()


def tenths(share: int, many: bool) -> int:
    """Return how many requests are so many tenths of all."""
    return (MANY if many else FEW) * share // 10


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


class Watch:
    """Asks a good question after each thousand, and measures the process where there is one."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.process = psutil.Process(server.served.process.pid) if server.is_process else None
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
        if self.process is not None and self.asked == max(1, total // 10):
            self.early = self.process.memory_info().rss

    def finish(self) -> None:
        assert self.asked
        assert len(self.outcomes) > 1, "all came through, or nothing did"
        if self.process is None:
            return
        late = self.process.memory_info().rss
        print(f"{self.asked} requests, {dict(self.outcomes)}, RSS {self.early >> 20} -> {late >> 20} MiB")
        assert late - self.early < GROWTH_BYTES
        assert self.server.served.process.poll() is None
        assert "Traceback" not in self.server.served.log.read_text()
