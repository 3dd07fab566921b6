"""What canaries are tested with: pages served over HTTP, a real Prometheus, real servers under a revision."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Pages", "free_port", "page_of", "pages", "prometheus", "requests_to", "wait_until"]


@dataclass
class Pages:
    """Answers by path: text, or a function of the query; status 404 where there is none."""

    port: int = 0
    answers: dict[str, str | Callable[[str], str]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    date: str | None = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextlib.contextmanager
def pages(**answers: str | Callable[[str], str]) -> Iterator[Pages]:
    """Serve pages, `a="..."` at `/a`, from a thread."""
    served = Pages(answers={f"/{name}": answer for name, answer in answers.items()})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            answer = served.answers.get(path)
            body = (answer(query) if callable(answer) else answer or "").encode()
            self.send_response_only(404 if answer is None else served.statuses.get(path, 200))
            if served.date is not None:
                self.send_header("Date", served.date)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def page_of(
    revision: str,
    *,
    started: float,
    model: str = "m",
    latency: Mapping[str, int] | None = None,
    score: Mapping[str, int] | None = None,
    transport: Mapping[str, int] | None = None,
    **outcomes: int,
) -> str:
    """Write a page of the metrics contract; buckets are cumulative, as on the wire."""
    own = f'model="{model}",version="1",revision="{revision}"'
    lines = [f'process_start_time_seconds{{revision="{revision}"}} {started}']
    lines += [
        f'serinus_requests_total{{{own},outcome="{outcome}"}} {outcomes.get(outcome, 0)}'
        for outcome in ("success", "rejected", "timeout", "cancelled", "invalid", "failed", "other")
    ]
    for bound, count in (latency or {}).items():
        lines.append(f'serinus_request_seconds_bucket{{{own},le="{bound}"}} {count}')
    for bound, count in (score or {}).items():
        lines.append(f'serinus_score_bucket{{{own},output="y",le="{bound}"}} {count}')
    for code, count in (transport or {}).items():
        lines.append(f'serinus_transport_errors_total{{transport="rest",code="{code}",revision="{revision}"}} {count}')
    return "\n".join(lines) + "\n"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(holds: Callable[[], Any], *, timeout_s: float = 30.0) -> Any:
    """Ask again and again until the answer is true; gives it."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def prometheus(folder: Path, jobs: Mapping[str, list[str]], *, port: int = 0) -> Iterator[str]:
    """Run a real Prometheus that scrapes `host:port`s of each job every half second, on a port (0: a free one); gives its URL."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise FileNotFoundError("no prometheus on the PATH (Debian: prometheus)")
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms"},
        "scrape_configs": [
            {"job_name": name, "static_configs": [{"targets": targets}]} for name, targets in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = port or free_port()
    words = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    words += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError((folder / "prometheus.log").read_text())
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_until(is_ready)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def requests_to(port: int, count: int, *, model: str = "row", columns: int = 3) -> None:
    """Send requests of one row, on one connection; `columns` other than the model's are refused."""
    body = {"inputs": [{"name": "x", "shape": [1, columns], "datatype": "FP32", "data": [0.1] * columns}]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        for _ in range(count):
            connection.request(
                "POST", f"/v2/models/{model}/infer", json.dumps(body), {"Content-Type": "application/json"}
            )
            connection.getresponse().read()
    finally:
        connection.close()
