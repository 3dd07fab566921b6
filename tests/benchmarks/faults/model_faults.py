"""Rows of models that fail: each fault in a thread and in a process of the model's own, and what its neighbour notices."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from benchmarks.faults.rows import Observed, ask, infer, row
from benchmarks.faults.servers import ILL, children, clock, server, workers
from fault_models import (
    EXITS,
    HANGING,
    HANGS,
    LEAK_BYTES,
    LEAKS,
    NAN,
    NO_OUTPUT,
    RAISES,
    SEGMENTATION,
    WELL,
    WRONG_SHAPE,
)
from waiting import wait_until

__all__: list[str] = []

GUARD_MIB = 700
LEAKS_TO_IT = GUARD_MIB // (LEAK_BYTES >> 20) + 2
"""What passes the limit by itself, whichever of two workers has most of it."""


def _asked(folder: Path, class_name: str, value: float, *flags: str) -> Observed:
    """Ask the ill model for one fault, and then whether it is well again."""
    with server(folder, class_name, *flags) as (served, observed, watch), watch.during():
        began = clock()
        observed.client[infer(served.http_port, ILL, value)] += 1
        watch.heal(lambda: _is_well(served.http_port), began)
    return observed


def _is_well(port: int) -> bool:
    """Whether the ill model answers again, and readiness says so."""
    return infer(port, ILL, WELL, timeout_s=5) == "200" and ask(port, "/v2/health/ready") == "200"


@row("raises-thread", "predict raises, in a thread", "500")
def _raises_thread(folder: Path) -> Observed:
    return _asked(folder, "IllInThread", RAISES)


@row("raises-process", "predict raises, in the model's process", "500")
def _raises_process(folder: Path) -> Observed:
    return _asked(folder, "IllInProcess", RAISES)


@row("hangs-thread", "predict hangs for 4 s in a thread, hang_timeout_s 1", "504", turns_unready=True)
def _hangs_thread(folder: Path) -> Observed:
    return _asked(folder, "IllInThread", HANGS, "--hang_timeout_s", "1")


@row("hangs-process", "predict hangs in the model's process, hang_timeout_s 1", "504", turns_unready=None)
def _hangs_process(folder: Path) -> Observed:
    return _asked(folder, "IllInProcess", HANGS, "--hang_timeout_s", "1")


@row("nan-thread", "predict answers NaN", "200")
def _nan(folder: Path) -> Observed:
    return _asked(folder, "IllInThread", NAN)


@row("shape-thread", "predict answers a wrong shape, in a thread", "500")
def _shape_thread(folder: Path) -> Observed:
    return _asked(folder, "IllInThread", WRONG_SHAPE)


@row("shape-process", "predict answers a wrong shape, in the model's process", "500")
def _shape_process(folder: Path) -> Observed:
    return _asked(folder, "IllInProcess", WRONG_SHAPE)


@row("output-missing", "predict leaves its output out", "500")
def _no_output(folder: Path) -> Observed:
    return _asked(folder, "IllInThread", NO_OUTPUT)


@row("exits-process", "predict calls os._exit in the model's process", "500", turns_unready=None)
def _exits_process(folder: Path) -> Observed:
    return _asked(folder, "IllInProcess", EXITS)


@row("crashes-process", "predict dies of SIGSEGV in the model's process", "500", turns_unready=None)
def _crashes_process(folder: Path) -> Observed:
    return _asked(folder, "IllInProcess", SEGMENTATION)


@row("killed-process", "the model's process is killed with -9 while it predicts", "500", turns_unready=None)
def _killed_process(folder: Path) -> Observed:
    from concurrent.futures import ThreadPoolExecutor

    with (
        server(folder, "IllInProcess") as (served, observed, watch),
        ThreadPoolExecutor(1) as pool,
        watch.during(),
    ):
        before = [child.pid for child in children(served)]
        hanging = pool.submit(infer, served.http_port, ILL, HANGS)
        wait_until(lambda: HANGING in served.log.read_text())
        began = clock()
        for pid in before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        observed.client[hanging.result()] += 1
        watch.heal(lambda: _is_well(served.http_port), began)
    return observed


@row(
    "exits-worker",
    "predict calls os._exit in one of two workers",
    "reset",
    neighbour_loses=True,
    ends_a_probe=True,
    turns_unready=None,
)
def _exits_worker(folder: Path) -> Observed:
    with server(folder, "IllInThread", "--workers", "2") as (served, observed, watch), watch.during():
        wait_until(lambda: len(workers(served)) == 2)
        began, before = clock(), {worker.pid for worker in workers(served)}
        observed.client[infer(served.http_port, ILL, EXITS)] += 1
        watch.heal(lambda: _replaced(served, before, 1), began)
    return observed


def _replaced(served: object, before: set[int], count: int) -> bool:
    now = {worker.pid for worker in workers(served)}  # type: ignore[arg-type] # Served
    text = served.log.read_text()  # type: ignore[attr-defined] # Served
    return len(now) == 2 and len(now - before) >= count and text.count(" listens") >= 2 + count


@row(
    "leaks",
    f"predict keeps 32 MiB each time, two workers, memory limit {GUARD_MIB} MiB",
    "200|503|reset",
    neighbour_loses=True,
    turns_unready=None,
)
def _leaks(folder: Path) -> Observed:
    flags = ("--workers", "2", "--memory_limit_bytes", str(GUARD_MIB << 20))
    with server(folder, "IllInThread", *flags) as (served, observed, watch), watch.during():
        wait_until(lambda: len(workers(served)) == 2)
        before = {worker.pid for worker in workers(served)}
        for _ in range(LEAKS_TO_IT):
            observed.client[infer(served.http_port, ILL, LEAKS)] += 1
        wait_until(lambda: "memory_limit_bytes" in served.log.read_text())
        began = clock()
        watch.heal(lambda: _replaced(served, before, 1), began)
    return observed
