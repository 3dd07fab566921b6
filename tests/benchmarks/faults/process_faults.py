"""Rows of processes that are killed: server, worker, supervisor, Envoy, Redis, predictor, transformer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.faults.rows import Observed, ask, infer, row
from benchmarks.faults.servers import ILL, clock, local, server, workers
from fault_models import HANGING, HANGS, WELL
from local_support import Up
from waiting import wait_until

__all__: list[str] = []

HOST = "fraud.default.localhost"


@row(
    "kill-server",
    "kill -9 of the server (nobody starts it again)",
    "reset",
    neighbour_loses=True,
    stays_live=False,
    turns_unready=True,
    heals=False,
)
def _kill_server(folder: Path) -> Observed:
    with server(folder, "IllInThread") as (served, observed, watch), ThreadPoolExecutor(1) as pool, watch.during():
        hanging = pool.submit(infer, served.http_port, ILL, HANGS)
        wait_until(lambda: HANGING in served.log.read_text())
        os.kill(served.process.pid, signal.SIGKILL)
        observed.client[hanging.result()] += 1
        wait_until(lambda: infer(served.http_port, ILL, WELL) == "refused")
    return observed


@row(
    "kill-worker",
    "kill -9 of one of two workers",
    "reset|200",
    neighbour_loses=True,
    ends_a_probe=True,
    turns_unready=None,
)
def _kill_worker(folder: Path) -> Observed:
    with (
        server(folder, "IllInThread", "--workers", "2") as (served, observed, watch),
        ThreadPoolExecutor(4) as pool,
        watch.during(),
    ):
        wait_until(lambda: len(workers(served)) == 2)
        before = {worker.pid for worker in workers(served)}
        hanging = [pool.submit(infer, served.http_port, ILL, HANGS) for _ in range(4)]
        time.sleep(0.5)  # they are in their predicts, which take 4 s
        began = clock()
        os.kill(min(before), signal.SIGKILL)
        watch.heal(lambda: _is_whole(served, before), began)
        for one in hanging:
            observed.client[one.result()] += 1
    return observed


def _is_whole(served: object, before: set[int]) -> bool:
    now = {worker.pid for worker in workers(served)}  # type: ignore[arg-type] # Served
    return len(now) == 2 and now != before and served.log.read_text().count(" listens") >= 3  # type: ignore[attr-defined] # Served


@row(
    "stop-worker",
    "SIGSTOP of one of two workers, worker_timeout_s 3",
    "200|reset|no answer",
    neighbour_loses=True,
    stays_live=False,
    turns_unready=None,
)
def _stop_worker(folder: Path) -> Observed:
    flags = ("--workers", "2", "--worker_timeout_s", "3")
    with server(folder, "IllInThread", *flags) as (served, observed, watch), watch.during():
        wait_until(lambda: len(workers(served)) == 2)
        before = {worker.pid for worker in workers(served)}
        began = clock()
        os.kill(min(before), signal.SIGSTOP)
        for _ in range(4):
            observed.client[infer(served.http_port, ILL, WELL, timeout_s=5)] += 1
        watch.heal(lambda: _is_whole(served, before), began)
    return observed


@row(
    "kill-group",
    "kill -9 of the supervisor of two workers (nobody starts it again)",
    "reset|200|refused",
    neighbour_loses=True,
    stays_live=False,
    turns_unready=True,
    heals=False,
)
def _kill_group(folder: Path) -> Observed:
    with server(folder, "IllInThread", "--workers", "2") as (served, observed, watch), watch.during():
        wait_until(lambda: len(workers(served)) == 2)
        left = workers(served)
        os.kill(served.process.pid, signal.SIGKILL)
        observed.client[infer(served.http_port, ILL, WELL)] += 1
        began = clock()
        wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in left))
        observed.note = f"the workers end by themselves after {clock() - began:.1f} s"
        wait_until(lambda: infer(served.http_port, ILL, WELL) == "refused")
    return observed


def _killed(folder: Path, pid: Callable[[Up], int], *, transformer: bool = False) -> Observed:
    """Kill one process of `serinus up`, and ask the service until it answers again."""
    with local(folder, transformer=transformer) as (running, observed, watch), watch.during():
        port = int(running.gateway.rpartition(":")[2])
        began = clock()
        victim = pid(running)
        os.kill(victim, signal.SIGKILL)
        gone = False
        while clock() - began < 60:
            answer = ask(port, "/v2/models/fraud/infer", b"{}", host=HOST)
            observed.client[answer] += 1
            gone = gone or answer != "200"
            if answer == "200" and (gone or clock() - began > 3):
                break
            time.sleep(0.05)  # a client that asks again
        watch.heal(lambda: ask(port, "/v2/models/fraud/infer", b"{}", host=HOST) == "200", began)
    return observed


def _pid(component: str) -> Callable[[Up], int]:
    def find(running: Up) -> int:
        rows = running.status()["services"]
        return next(
            one["pid"]
            for service in rows
            if service["name"].endswith("fraud")
            for one in service["components"]
            if component in str(one.get("component", one))
        )

    return find


@row("kill-predictor", "kill -9 of a predictor under `serinus up`", "200|502|503|504", turns_unready=None)
def _kill_predictor(folder: Path) -> Observed:
    return _killed(folder, _pid("predictor"))


@row("kill-transformer", "kill -9 of a transformer under `serinus up`", "200|502|503|504", turns_unready=None)
def _kill_transformer(folder: Path) -> Observed:
    return _killed(folder, _pid("transformer"), transformer=True)


@row(
    "kill-envoy",
    "kill -9 of Envoy under `serinus up`",
    "200|refused|reset|503",
    neighbour_loses=True,
    stays_live=False,
    turns_unready=None,
)
def _kill_envoy(folder: Path) -> Observed:
    return _killed(folder, lambda running: running.status()["gateway"]["pid"])


@row(
    "kill-up",
    "kill -9 of the supervisor of `serinus up` (the next `up` begins anew)",
    "refused|reset|200|503",
    neighbour_loses=True,
    stays_live=False,
    turns_unready=True,
    heals=False,
)
def _kill_up(folder: Path) -> Observed:
    with local(folder) as (running, observed, watch), watch.during():
        port = int(running.gateway.rpartition(":")[2])
        began = clock()
        running.process.kill()
        running.process.wait(20)
        observed.client[ask(port, "/v2/models/fraud/infer", b"{}", host=HOST)] += 1
        wait_until(lambda: ask(port, "/v2/models/fraud/infer", b"{}", host=HOST) == "refused")
        observed.note = f"all that it had started is gone after {clock() - began:.1f} s"
    return observed


@row(
    "kill-redis",
    "kill -9 of the fraud features' Redis, and a new one on its port after 2 s",
    "503|500|504|502",
    turns_unready=None,
    needs="redis-server",
)
def _kill_redis(folder: Path) -> Observed:
    from benchmarks.faults.redis_service import redis_on, serving_fraud

    with redis_on(folder) as (redis, port), serving_fraud(folder, port) as (served, observed, watch, ask_fraud):
        assert ask_fraud() == "200", served.log.read_text()
        with watch.during():
            began = clock()
            redis.kill()
            redis.wait()
            for _ in range(4):
                observed.client[ask_fraud()] += 1
                time.sleep(0.5)  # a client that asks again while it is away
            with redis_on(folder, port):
                watch.heal(lambda: ask_fraud() == "200", began)
    return observed
