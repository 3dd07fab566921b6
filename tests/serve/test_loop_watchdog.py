"""An event loop that is held is noticed, and where; one that works is not."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from serinus import Model
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.server.loop_watchdog import LoopWatchdog
from serinus.server.rest.about import LIVENESS
from serinus.server.rest.rest_server import start_rest
from serinus.settings import ServerSettings
from waiting import until

pytestmark = pytest.mark.asyncio


async def test_a_loop_that_is_held_is_told_with_its_place_and_its_end(caplog: pytest.LogCaptureFixture):
    noticed = threading.Event()

    class Noted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            noticed.set()

    handler = Noted()
    logging.getLogger("serinus.loop").addHandler(handler)
    watchdog = LoopWatchdog(interval_s=0.01, patience_s=0.05)
    try:
        await asyncio.sleep(0)
        _hold(noticed)
        await until(lambda: len(caplog.records) >= 2)
    finally:
        watchdog.close()
        logging.getLogger("serinus.loop").removeHandler(handler)
    held, over = (record.getMessage() for record in caplog.records[:2])
    assert "_hold" in held
    assert "--execution" in held
    assert "goes on" in over


def _hold(noticed: threading.Event) -> None:
    assert noticed.wait(20)


async def test_a_watchdog_ends_with_its_loop_and_when_it_is_closed():
    watchdog = LoopWatchdog(interval_s=0.001, patience_s=20)
    watchdog.close()
    await until(lambda: not any(thread.name == "loop-watchdog" for thread in threading.enumerate()))


PROBE = b"GET %b HTTP/1.1\r\nHost: a\r\nUser-Agent: kube-probe/1.31\r\nConnection: close\r\n\r\n"


def _ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(("path", "body"), LIVENESS.items(), ids=[path.decode() for path in LIVENESS])
async def test_liveness_is_answered_while_the_loop_is_held_and_all_else_when_it_is_free(path: bytes, body: bytes):
    plane = Plane(Registry(Model))
    await plane.start([])
    server = await start_rest(plane, ServerSettings(host="127.0.0.1", http_port=0), metrics=plane.metrics)
    watchdog = LoopWatchdog(stand_in=server.stand_in())
    order: list[str] = []
    others = {
        "metadata": PROBE % b"/v2",
        "liveness by HEAD": (PROBE % path).replace(b"GET", b"HEAD"),
        "liveness with a body": (PROBE % path).replace(b"Connection", b"Content-Length: 2\r\nConnection") + b"{}",
    }
    let_others_come = threading.Event()

    def other(what: str) -> bytes:
        answer = _ask(server.port, others[what])
        order.append(what)
        return answer

    def half(what: str) -> bytes:
        """Send the head of a probe in two parts, the second when the loop is free: somebody waits for it all the time."""
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall((PROBE % path)[:9])
            assert let_others_come.wait(20)
            connection.sendall((PROBE % path)[9:])
            answer = connection.recv(65536)
        order.append(what)
        return answer

    live: list[bytes] = []
    try:
        with ThreadPoolExecutor(8) as pool:
            await asyncio.sleep(0)

            def hold() -> None:
                """Hold the loop until liveness was answered, several times, or nobody does."""
                waiting.extend([pool.submit(other, what) for what in others])
                waiting.append(pool.submit(half, "half"))
                silent = socket.create_connection(("127.0.0.1", server.port), timeout=20)
                live.extend(pool.submit(_ask, server.port, PROBE % path).result(20) for _ in range(3))
                silent.close()
                order.append("free")
                let_others_come.set()

            waiting: list[Future[bytes]] = []
            hold()
            answers = [await asyncio.wrap_future(future) for future in waiting]
    finally:
        watchdog.close()
        server.stop_accepting()
        await server.close()
        await plane.close()
    assert order[0] == "free"
    assert all(answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n" + body) for answer in live)
    assert all(answer.startswith(b"HTTP/1.1 ") for answer in answers)
    assert answers[0].startswith(b"HTTP/1.1 200")
    assert answers[0].endswith(b"}")
