"""How the cost grows: rows and payload, trees, concurrency, models in one process; serinus beside KServe."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np

from .measure import resident_bytes, wrk
from .peers import CACHE, PEERS, Peer, Running, install, start
from .work import FEATURES, Work, make_work

__all__ = ["measure"]

_AGAINST = ("serinus", "kserve")
_JSON = {"Content-Type": "application/json"}


def _peers() -> list[Peer]:
    return [peer for peer in PEERS if peer.name in _AGAINST]


def _point(running: Running, body: bytes, headers: dict[str, str], concurrency: int, seconds: float) -> Any:
    # Large requests of the point before may still be worked on, though their client has gone: wait for an answer first.
    first = urllib.request.Request(running.url(), data=body, headers=headers)
    with urllib.request.urlopen(first, timeout=120) as answer:
        answer.read()
    return wrk(running.url(), body, headers, pid=running.process.pid, connections=concurrency, seconds=seconds)


def _rows(work: Work, rows: int) -> Work:
    sample = np.resize(work.rows, (rows, FEATURES))
    return Work(work.model_file, sample, np.resize(work.expected, rows))


def _each(started: list[Running], xs: list[int], ask: Callable[[Running, int], float]) -> list[dict[str, Any]]:
    return [{"peer": running.peer.name, "x": x, "y": ask(running, x)} for x in xs for running in started]


def measure(seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure every curve.

    Returns:
        Name of the curve to its axes' names and points.
    """
    curves: dict[str, Any] = {}
    work = make_work(CACHE / "models")
    started = [start(peer, install(peer), work) for peer in _peers()]
    try:
        say("growth: rows")

        def by_rows(running: Running, rows: int) -> float:
            body = _rows(work, rows).json_body(rows)
            return _point(running, body, _JSON, 4, seconds).cpu_us

        def by_payload(running: Running, kib: int) -> float:
            rows = kib * 1024 // (FEATURES * 4)
            body, head = _rows(work, rows).binary_body(rows)
            headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(head)}
            return _point(running, body, headers, 2, seconds).cpu_us

        curves["Rows in a JSON request"] = {
            "x": "rows",
            "y": "server CPU us per request",
            "points": _each(started, [1, 4, 16, 64, 256, 1024, 4096], by_rows),
        }
        say("growth: payload")
        curves["Payload of a binary request"] = {
            "x": "KiB",
            "y": "server CPU us per request",
            "points": _each(started, [4, 64, 1024, 16 * 1024], by_payload),
        }
        say("growth: concurrency")
        one = work.json_body(1)
        curves["Connections"] = {
            "x": "connections",
            "y": "requests/s",
            "points": _each(started, [1, 4, 16, 64, 256], lambda r, n: _point(r, one, _JSON, n, seconds).rps),
        }
    finally:
        for running in started:
            running.stop()

    points = []
    for trees in (50, 200, 500, 2000):
        say(f"growth: {trees} trees")
        bigger = make_work(CACHE / "models", trees=trees)
        for peer in _peers():
            running = start(peer, install(peer), bigger)
            try:
                points.append({"peer": peer.name, "x": trees, "y": _point(running, one, _JSON, 16, seconds).cpu_us})
            finally:
                running.stop()
    curves["Trees"] = {"x": "trees of depth 6", "y": "server CPU us per one-row request", "points": points}
    curves["Models in one process"] = {"x": "models", "y": "MB", "points": _models(work, seconds, say)}
    return curves


def _models(work: Work, seconds: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Resident memory with 1..100 models in one serinus process, and that the last one answers rightly."""
    import shutil
    import sys
    from dataclasses import replace
    from pathlib import Path

    points = []
    for count in (1, 10, 100):
        say(f"growth: {count} models")
        repository = CACHE / "repository"
        shutil.rmtree(repository, ignore_errors=True)
        for index in range(count):
            folder = repository / f"model{index}"
            folder.mkdir(parents=True)
            shutil.copy(work.model_file, folder / "model.ubj")
            # The verdict of its comparison with xgboost, as an image bakes it.
            shutil.copy(f"{work.model_file}.verdict.json", folder / "model.ubj.verdict.json")

        def command(python: Path, _: Work, ports: Any, repository: Path = repository) -> list[str]:
            flags = ["--host", "127.0.0.1", "--http_port", str(ports["http"]), "--grpc_port", str(ports["grpc"])]
            return [
                str(python),
                "-m",
                "serinus.cli",
                "serve",
                "--model_repository",
                str(repository),
                "--nthread",
                "1",
                *flags,
            ]

        peer = replace(
            PEERS[0], name="serinus", command=command, path=f"/v2/models/model{count - 1}/infer", workloads=("W1",)
        )
        running = start(peer, Path(sys.executable), work)
        try:
            time.sleep(1)
            points.append({"peer": "serinus", "x": count, "y": resident_bytes(running.process.pid) / 1e6})
            listing = urllib.request.Request(
                f"http://127.0.0.1:{running.ports['http']}/v2/repository/index",
                data=b"{}",
                headers=_JSON,
                method="POST",
            )
            with urllib.request.urlopen(listing, timeout=10) as answer:
                ready = sum(entry["state"] == "READY" for entry in json.loads(answer.read()))
            if ready != count:
                raise RuntimeError(f"{ready} of {count} models are ready")
        finally:
            running.stop()
    return points
