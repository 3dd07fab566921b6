"""Rows of the local runner's world: what stands still, a clock that jumps, the features' Redis, a terminal that nobody reads."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.file_faults import faked_clock
from benchmarks.faults.redis_service import FRAUD, redis_on
from benchmarks.faults.rows import NEIGHBOUR, Observed, Watch, ask, row
from benchmarks.faults.servers import clock, local
from local_support import Up, manifest, up

__all__: list[str] = []

HOST = "fraud.default.localhost"


def _port(running: Up) -> int:
    return int(running.gateway.rpartition(":")[2])


def _asked(running: Up, body: bytes = b"{}", *, timeout_s: float = 20.0) -> str:
    return ask(_port(running), "/v2/models/fraud/infer", body, host=HOST, timeout_s=timeout_s)


def _until_well(running: Up, observed: Observed, watch: Watch, began: float, body: bytes = b"{}") -> None:
    """Ask again and again until it has been ill and is well."""
    ill = False
    while clock() - began < 60:
        answer = _asked(running, body, timeout_s=3)
        observed.client[answer] += 1
        ill = ill or answer != "200"
        if answer == "200" and (ill or clock() - began > 5):
            break
        time.sleep(0.05)  # a client that asks again
    watch.heal(lambda: _asked(running, body) == "200", began)


@row(
    "stop-envoy",
    "SIGSTOP of Envoy under `serinus up`",
    "200|refused|reset|no answer|503",
    neighbour_loses=True,
    stays_live=False,
    turns_unready=None,
)
def _stop_envoy(folder: Path) -> Observed:
    with local(folder) as (running, observed, watch), watch.during():
        began = clock()
        os.kill(running.status()["gateway"]["pid"], signal.SIGSTOP)
        _until_well(running, observed, watch, began)
    return observed


@row(
    "stop-up",
    "SIGSTOP of the supervisor of `serinus up` for 5 s, a predictor killed with -9 meanwhile",
    "200|502|503|504",
    turns_unready=None,
)
def _stop_up(folder: Path) -> Observed:
    with local(folder) as (running, observed, watch), watch.during():
        began, pid = clock(), running.row["pid"]
        running.process.send_signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        while clock() - began < 5:
            observed.client[_asked(running)] += 1
            time.sleep(0.05)  # a client that asks again
        running.process.send_signal(signal.SIGCONT)
        watch.heal(lambda: _asked(running) == "200", began)
    return observed


@row(
    "terminal-stalled",
    "nobody reads what `serinus up` prints (a terminal after Ctrl-S), a predictor killed with -9",
    "200|502|503|504",
    turns_unready=None,
)
def _terminal_stalled(folder: Path) -> Observed:
    python = ("bash", "-c", 'exec "$@" > >(exec sleep 1000) 2>&1', "up", sys.executable)
    with local(folder, python=python, chatty=True) as (running, observed, watch), watch.during():
        time.sleep(2)  # the services say more than the pipe and what is kept beyond it hold
        began = clock()
        os.kill(running.row["pid"], signal.SIGKILL)
        _until_well(running, observed, watch, began)
    return observed


def _clock(folder: Path, jump: str) -> Observed:
    environment, moment = faked_clock(folder)
    with local(folder, environment=environment) as (running, observed, watch), watch.during():
        began = clock()
        moment.write_text(jump)
        while clock() - began < 5:
            observed.client[_asked(running)] += 1
            time.sleep(0.1)  # a client that asks again
        pid = running.row["pid"]
        os.kill(pid, signal.SIGKILL)
        began = clock()
        watch.heal(lambda: _asked(running) == "200" and running.row["pid"] not in {None, pid}, began)
        running.cli("restart", "fraud")
        observed.client[_asked(running)] += 1
        observed.note = "well after: a predictor that is killed after the jump; a rolling restart loses nothing"
    return observed


@row(
    "clock-up-forward",
    "the wall clock of `serinus up` and all below it jumps a day forward",
    "200",
    needs="faketime",
    turns_unready=None,
)
def _clock_forward(folder: Path) -> Observed:
    return _clock(folder, "+1d")


@row(
    "clock-up-back",
    "the wall clock of `serinus up` and all below it jumps a day back",
    "200",
    needs="faketime",
    turns_unready=None,
)
def _clock_back(folder: Path) -> Observed:
    return _clock(folder, "-1d")


def _fraud_manifest(redis_port: int) -> str:
    """The fused fraud service on this machine, its features in that Redis."""
    words = (
        "--class=ensemble_server",
        "--transformer=fraud_features",
        "--model_name=fraud",
        f"--model_dir={FRAUD / 'model'}",
    )
    text = manifest(*words)
    server = text[text.index("command: [") : text.index("\n", text.index("command: ["))]
    command = ", ".join(
        map(json.dumps, ("python", "-m", "serinus.cli", "serve", "--http_port=8080", "--grpc_port=8081"))
    )
    return text.replace(server, f"command: [{command}]").replace(
        "env: [", f"env: [{{name: FEATURE_STORE_URL, value: 'redis://127.0.0.1:{redis_port}/0'}}, ", 1
    )


@contextmanager
def _fraud(folder: Path, redis_port: int) -> Iterator[tuple[Up, Observed, Watch]]:
    (folder / "isvc.yaml").write_text(_fraud_manifest(redis_port))
    (folder / "neighbour.yaml").write_text(manifest(name=NEIGHBOUR))
    with up(folder, "isvc.yaml", "neighbour.yaml", ready=False) as running:
        running.wait(
            lambda status: all(service["ready"] for service in status["services"]) and len(status["services"]) == 2,
            "ready",
            120,
        )
        observed, port = Observed(), _port(running)
        other = f"{NEIGHBOUR}.default.localhost"
        watch = Watch(
            observed,
            lambda: ask(port, f"/v2/models/{NEIGHBOUR}/infer", b"{}", host=other, timeout_s=5),
            lambda probe: ask(port, f"/v2/health/{probe}", host=HOST, timeout_s=5),
        )
        yield running, observed, watch


BODY = (FRAUD / "request.json").read_bytes()


@row(
    "kill-redis-up",
    "kill -9 of the Redis of the fraud service under `serinus up`, and a new one on its port after 2 s",
    "503|500|504|502",
    turns_unready=None,
    needs="redis-server",
)
def _kill_redis(folder: Path) -> Observed:
    with redis_on(folder) as (redis, port), _fraud(folder, port) as (running, observed, watch):
        assert _asked(running, BODY) == "200"
        with watch.during():
            began = clock()
            redis.kill()
            redis.wait()
            for _ in range(4):
                observed.client[_asked(running, BODY)] += 1
                time.sleep(0.5)  # a client that asks again while it is away
            with redis_on(folder, port):
                watch.heal(lambda: _asked(running, BODY) == "200", began)
    return observed


@row(
    "stop-redis-up",
    "SIGSTOP of the Redis of the fraud service under `serinus up` for 4 s",
    "503|504|200",
    turns_unready=None,
    needs="redis-server",
)
def _stop_redis(folder: Path) -> Observed:
    with redis_on(folder) as (redis, port), _fraud(folder, port) as (running, observed, watch):
        assert _asked(running, BODY) == "200"
        with watch.during():
            began = clock()
            redis.send_signal(signal.SIGSTOP)
            while clock() - began < 4:
                observed.client[_asked(running, BODY)] += 1
                time.sleep(0.05)  # a client that asks again
            redis.send_signal(signal.SIGCONT)
            watch.heal(lambda: _asked(running, BODY) == "200", began)
    return observed
