"""The load generator against real sockets."""

from __future__ import annotations

import http.server
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serinus.errors import ConfigError
from serinus.tuning.load.loadgen import Job, LoadResult, generate, http_message
from serinus.tuning.load.server_under_test import run_job

pytestmark = pytest.mark.slow  # each test starts a server and a load

MESSAGE = http_message("127.0.0.1", "/x", [b"[1]"], [("Content-Type", "application/json")])


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        """The generator may hang up."""


@contextmanager
def answering(*, status: int = 200, stall_at: int = -1, stall_s: float = 0.0) -> Iterator[int]:
    seen = [0]
    gate = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with gate:  # one at a time: a stall holds up all that come meanwhile
                seen[0] += 1
                if seen[0] == stall_at:
                    time.sleep(stall_s)  # the stall is what is measured
            body = b"{}"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def job(port: int, **changes: object) -> Job:
    values = {"host": "127.0.0.1", "port": port, "messages": (MESSAGE,), "rate_per_s": 100.0, "duration_s": 1.0}
    return Job(**{**values, "warmup_s": 0.1, "timeout_s": 2.0, **changes})  # type: ignore[arg-type]


def test_every_request_is_answered_and_counted() -> None:
    with answering() as port:
        result = generate(job(port, duration_s=0.5))
    assert result.sent == result.answered > 30
    assert not result.failures
    assert 0 < result.quantiles_s[0.5] <= result.quantiles_s[0.99] < math.inf


def test_a_stall_counts_against_all_requests_that_were_due_meanwhile() -> None:
    # One stall of 0.3 s in 0.6 s at 100/s: a closed loop would see one slow request, here about half of them waited.
    with answering(stall_at=20, stall_s=0.3) as port:
        result = generate(job(port, duration_s=0.6, quantiles=(0.7, 0.99)))
    assert result.quantiles_s[0.99] > 0.24
    assert result.quantiles_s[0.7] > 0.03


def test_the_server_works_as_long_as_the_load_lasts_or_until_its_last_answer() -> None:
    # What a server's CPU time is divided by: the start of the generator's process is no part of it, the answers after the window are.
    with answering() as port:
        assert run_job(job(port, duration_s=0.4)).elapsed_s == pytest.approx(0.5, abs=0.1)
    with answering(stall_at=2, stall_s=0.8) as port:
        assert generate(job(port, duration_s=0.4)).elapsed_s > 0.7


def test_error_answers_are_failures_and_their_latency_is_infinite() -> None:
    with answering(status=503) as port:
        result = generate(job(port, duration_s=0.3))
    assert result.answered == 0
    assert result.failures["503"] >= result.sent
    assert result.quantiles_s[0.5] == math.inf


def test_requests_without_an_answer_are_named() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(512)
        result = generate(job(deaf.getsockname()[1], duration_s=0.3, timeout_s=0.2))
    assert result.answered == 0
    assert result.quantiles_s[0.99] == math.inf
    assert result.failures == {"no answer": pytest.approx(result.sent, abs=20)}  # those of the warm-up, too


def test_a_job_and_a_result_survive_their_way_between_processes() -> None:
    with answering() as port:
        asked = job(port, duration_s=0.3)
        assert Job.from_json(asked.to_json()) == asked
        result = run_job(asked)
    assert LoadResult.from_json(result.to_json()) == result
    assert result.answered == result.sent


def test_a_port_where_nothing_listens_is_an_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            run_job(job(port))
