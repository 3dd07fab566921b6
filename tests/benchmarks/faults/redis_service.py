"""The fraud pipeline with its features in a Redis of its own, for the row that kills it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.rows import Observed, Watch, ask
from serve_support import Served, serving
from waiting import wait_until

__all__ = ["redis_on", "serving_fraud"]

FRAUD = Path(__file__).resolve().parents[3] / "inferenceservices" / "fraud"


@contextlib.contextmanager
def redis_on(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A redis-server without persistence on a port, a free one where it is 0."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    words = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder))
    binary = shutil.which("redis-server")
    assert binary is not None
    process = subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port))
        yield process, port
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def serving_fraud(folder: Path, port: int) -> Iterator[tuple[Served, Observed, Watch, Callable[[], str]]]:
    """The fused service as one process; the model behind its transformer is the neighbour, which needs no Redis."""
    flags = ("--class", "ensemble_server", "--transformer", "fraud_features", "--model_name", "fraud")
    flags += ("--model_dir", str(FRAUD / "model"), "--expose_predictor", "true")
    url = f"redis://127.0.0.1:{port}/0"
    body = (FRAUD / "request.json").read_bytes()
    with serving(folder, *flags, environment={"FEATURE_STORE_URL": url}, timeout_s=110) as served:
        observed = Observed()
        http_port = served.http_port
        watch = Watch(
            observed,
            lambda: ask(http_port, "/v2/models/fraud-predictor/ready", timeout_s=5),
            lambda probe: ask(http_port, f"/v2/health/{probe}", timeout_s=5),
        )
        yield served, observed, watch, lambda: ask(http_port, "/v2/models/fraud/infer", body)
