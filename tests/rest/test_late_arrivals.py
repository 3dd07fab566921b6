"""Requests that waited in the kernel while the event loop was late: who is refused, and who is not."""

from __future__ import annotations

import asyncio
import socket
import time

import numpy as np
import pytest

from http_support import Answer, Raw
from rest_support import Rest, request_of, rest, wire
from serinus.dataplane.batching.adaptive_limit import INTERVAL_S, STANDING_S
from serinus.errors import Overloaded
from serinus.server.http.late_arrivals import FEW, LATE_S, LateArrivals
from serinus.server.http.late_arrivals import OLD_S as OLDEST_S

ROW = request_of(x=np.zeros((1, 3), np.float32))
OLD_S = OLDEST_S + 0.05


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def judged(waits: list[tuple[float, float]]) -> list[bool]:
    """Whether each request, read after so many seconds and having waited so long, is refused."""
    clock = Clock()
    arrivals, refused = LateArrivals(clock), []
    for after_s, waited_s in waits:
        clock.now += after_s
        try:
            arrivals.check(waited_s)
        except Overloaded:
            refused.append(True)
        else:
            refused.append(False)
    return refused


LONG = INTERVAL_S + 0.01
QUEUE = [(0.0, OLD_S)] * FEW


@pytest.mark.parametrize(
    ("waits", "refused"),
    [
        ([(0, OLD_S)] * 100, [False] * 100),
        ([*QUEUE, (LONG, OLD_S), (0, OLD_S)], [*[False] * FEW, True, True]),
        ([*QUEUE, (LONG, STANDING_S / 2), (0, OLD_S)], [False] * (FEW + 2)),
        ([*QUEUE, (LONG, (STANDING_S + OLDEST_S) / 2), (0, OLD_S)], [*[False] * FEW, False, True]),
        ([(1, STANDING_S / 2)] * 3, [False] * 3),
        ([(OLD_S, OLD_S)] * FEW, [False] * FEW),
        ([(OLD_S, OLD_S)] * FEW + [(OLD_S, STANDING_S / 2)] + [(OLD_S, OLD_S)] * FEW, [False] * (2 * FEW + 1)),
    ],
    ids=[
        "a pause, read at once",
        "waits that stand",
        "a young one between",
        "neither young nor old",
        "all young",
        "one client, request after request",
        "one client, in two bad seconds",
    ],
)
def test_only_old_requests_of_a_standing_wait_are_refused(waits: list[tuple[float, float]], refused: list[bool]):
    assert judged(waits) == refused


def test_nobody_is_asked_while_the_loop_is_in_time_and_what_stood_is_forgotten():
    clock = Clock()
    arrivals = LateArrivals(clock)
    arrivals.note(LATE_S * 2)
    assert arrivals.is_late
    for _ in range(FEW):
        arrivals.check(OLD_S)
    arrivals.note(LATE_S / 2)
    assert not arrivals.is_late
    clock.now += LONG
    arrivals.check(OLD_S)


async def read_late(server: Rest, *requests: bytes) -> list[Answer]:
    """Answers to requests of clients that had sent them `OLD_S` before the loop could read."""
    clients = []
    for request in requests:
        sock = socket.create_connection(("127.0.0.1", server.port), 10)
        sock.sendall(request)
        clients.append(sock)
    time.sleep(OLD_S)  # this is the server's loop, which is late
    answers = []
    for sock in clients:
        sock.setblocking(False)
        client = Raw(*await asyncio.open_connection(sock=sock))
        answers.append(await client.answer())
        await client.close()
    return answers


V1 = {"instances": [[0.0, 0.0, 0.0]]}


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_over_sockets_old_inference_is_429_before_it_is_decoded_and_all_else_is_answered(http: str):
    async with rest("row", http=http) as server:
        server.server.arrivals.note(1.0)
        server.server.arrivals._since, server.server.arrivals._stood = time.monotonic() - 1, FEW
        asked = [
            wire("POST", "/v2/models/row/infer", b"no JSON"),
            wire("POST", "/v1/models/row:predict", V1),
            wire("POST", "/v2/models/row/infer", ROW),
            wire("GET", "/v2/health/live"),
            wire("GET", "/v2/health/ready"),
            wire("GET", "/v2/models/row/ready"),
            wire("GET", "/metrics"),
            wire("POST", "/v2/repository/index", {}),
            wire("POST", "/v2/repository/models/row/load", {}),
            wire("PUT", "/v2/models/row/infer", ROW),
        ]
        answers = await read_late(server, *asked)
        assert [answer.status for answer in answers] == [429, 429, 429, 200, 200, 200, 200, 200, 200, 405]
        assert all(answer.headers["retry-after"] == "1" for answer in answers[:3])
        assert "before it could be read" in answers[0].json["error"]
        assert server.server.arrivals.refused == 3
        young = await server.ask("POST", "/v2/models/row/infer", ROW)
        assert young.status == 200
        assert [answer.status for answer in await read_late(server, asked[2], asked[2])] == [200, 200], (
            "a pause refuses nobody"
        )


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_a_model_with_priorities_judges_its_requests_itself(http: str):
    async with rest("row", http=http) as server:
        for servable in server.plane.registry.servables():
            servable.has_priorities = True
        server.server.arrivals.note(1.0)
        server.server.arrivals._since, server.server.arrivals._stood = time.monotonic() - 1, FEW
        answers = await read_late(server, wire("POST", "/v2/models/row/infer", ROW))
        assert answers[0].status == 200
