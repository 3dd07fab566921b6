"""Rows of the machine around a server: a log that nobody reads, no descriptors, threads or room left, signals, many questions at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.faults import rows
from benchmarks.faults.file_faults import fill, small_disk
from benchmarks.faults.rows import Observed, ask, infer, row
from benchmarks.faults.servers import ILL, children, clock, server
from fault_models import ALLOCATES, HANGING, HANGS, WELL
from waiting import wait_until

__all__: list[str] = []

LINES, LINE_BYTES = 700, 2000
"""Of the access log: more than a pipe holds (64 KiB), and than is kept beyond it (`impatient_stream`, 1 MiB)."""
DESCRIPTORS = 120
SPARE_BYTES = 4 << 20
"""Half of what a thread's stack takes of the address space."""


def through(folder: Path, *script: str) -> str:
    """A Python that is started by a shell which first does something."""
    made = folder / "python.sh"
    made.write_text("\n".join(("#!/bin/bash", *script, f'exec {sys.executable} "$@"', "")))
    made.chmod(0o755)
    return str(made)


def _is_well(port: int) -> bool:
    """Whether the ill model answers again, and readiness says so."""
    return infer(port, ILL, WELL) == "200" and ask(port, "/v2/health/ready") == "200"


def _log_reader(folder: Path, after: str) -> str:
    """A Python whose standard error is read until it listens, and then not any more."""
    reads = f'while IFS= read -r line; do echo "$line"; case "$line" in *"REST on"*) {after};; esac; done'
    return through(folder, f"exec 2> >({reads})")


def _logged(folder: Path, python: str) -> Observed:
    flags = ("--access_log", "true")
    with server(folder, "IllInThread", *flags, python=python) as (served, observed, watch), watch.during():
        began, body = clock(), b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[%d]}]}' % WELL
        path = f"/v2/models/{ILL}/infer?long={'x' * LINE_BYTES}"
        with ThreadPoolExecutor(4) as pool:
            observed.client.update(pool.map(lambda _: ask(served.http_port, path, body), range(LINES)))
        watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
    return observed


@row(
    "log-stalled",
    f"nobody reads standard error any more (a full pipe); access log on, {LINES} requests of {LINE_BYTES} bytes",
    "200",
)
def _log_stalled(folder: Path) -> Observed:
    return _logged(folder, _log_reader(folder, "exec sleep 1000"))


@row(
    "log-closed",
    f"who read standard error has gone (EPIPE); access log on, {LINES} requests of {LINE_BYTES} bytes",
    "200",
)
def _log_closed(folder: Path) -> Observed:
    return _logged(folder, _log_reader(folder, "exit"))


@row(
    "descriptors",
    f"{2 * DESCRIPTORS} clients connect and say nothing, ulimit -n {DESCRIPTORS}; they go after 3 s",
    "200|refused|reset|no answer",
    neighbour_loses=True,
    stays_live=False,
    turns_unready=None,
)
def _descriptors(folder: Path) -> Observed:
    python = through(folder, f"ulimit -n {DESCRIPTORS}")
    with server(folder, "IllInThread", python=python) as (served, observed, watch), watch.during():
        clients: list[socket.socket] = []
        for _ in range(2 * DESCRIPTORS):
            with contextlib.suppress(OSError):
                clients.append(socket.create_connection(("127.0.0.1", served.http_port), timeout=2))
        end = clock() + 3
        while clock() < end:
            observed.client[infer(served.http_port, ILL, WELL, timeout_s=1)] += 1
        for client in clients:
            client.close()
        began = clock()
        watch.heal(lambda: infer(served.http_port, ILL, WELL, timeout_s=5) == "200", began)
    return observed


@row("shm-full", "/dev/shm is full when the server starts, a model in a process of its own", "200", needs="mount")
def _shm_full(folder: Path) -> Observed:
    python = through(
        folder,
        'if [ -z "$ALONE" ]; then export ALONE=1; exec unshare -m "$0" "$@"; fi',
        "mount -t tmpfs -o size=4k tmpfs /dev/shm",
        "head -c 8192 /dev/zero > /dev/shm/ballast 2>/dev/null",
    )
    with server(folder, "IllInProcess", python=python) as (served, observed, watch), watch.during():
        began = clock()
        observed.client[infer(served.http_port, ILL, WELL)] += 1
        watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
    return observed


@row(
    "tmp-full",
    "TMPDIR is on a full disk, a model in a process of its own is killed there",
    "500",
    needs="mount",
    turns_unready=None,
)
def _tmp_full(folder: Path) -> Observed:
    with small_disk(folder) as disk:
        fill(disk)
        environment = {"TMPDIR": str(disk)}
        with server(folder, "IllInProcess", environment=environment) as (served, observed, watch), watch.during():
            with ThreadPoolExecutor(1) as pool:
                hanging = pool.submit(infer, served.http_port, ILL, HANGS)
                wait_until(lambda: HANGING in served.log.read_text())
                began = clock()
                for child in children(served):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGKILL)
                observed.client[hanging.result()] += 1
            watch.heal(lambda: _is_well(served.http_port), began)
    return observed


@row("no-memory", "predict wants more memory than there is, in a thread", "500")
def _no_memory(folder: Path) -> Observed:
    with server(folder, "IllInThread") as (served, observed, watch), watch.during():
        began = clock()
        observed.client[infer(served.http_port, ILL, ALLOCATES)] += 1
        watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
    return observed


@row("stop-process", "SIGSTOP of the model's process, hang_timeout_s 1", "504", turns_unready=True)
def _stop_process(folder: Path) -> Observed:
    flags = ("--hang_timeout_s", "1")
    with server(folder, "IllInProcess", *flags) as (served, observed, watch), watch.during():
        began = clock()
        for child in children(served):
            os.kill(child.pid, signal.SIGSTOP)
        observed.client[infer(served.http_port, ILL, WELL)] += 1
        watch.heal(lambda: _is_well(served.http_port), began)
    return observed


@row("signals", "SIGPIPE, SIGHUP, SIGWINCH, SIGCHLD and SIGCONT again and again", "200")
def _signals(folder: Path) -> Observed:
    with server(folder, "IllInThread") as (served, observed, watch), watch.during():
        began = clock()
        for _ in range(20):
            for number in (signal.SIGPIPE, signal.SIGHUP, signal.SIGWINCH, signal.SIGCHLD, signal.SIGCONT):
                os.kill(served.process.pid, number)
            observed.client[infer(served.http_port, ILL, WELL)] += 1
        watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
    return observed


@row("scrapes", "100 scrapes of /metrics at once, three times", "200")
def _scrapes(folder: Path) -> Observed:
    with server(folder, "IllInThread") as (served, observed, watch), watch.during(), ThreadPoolExecutor(100) as pool:
        began = clock()
        observed.client.update(pool.map(lambda _: ask(served.http_port, "/metrics"), range(300)))
        watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
    return observed


@row(
    "loads",
    "100 loads and unloads of the same model at once, beside one that is asked",
    "200|404|409|429|503",
    turns_unready=None,
)
def _loads(folder: Path) -> Observed:
    def change(number: int) -> str:
        verb = "unload" if number % 3 == 0 else "load"
        return ask(served.http_port, f"/v2/repository/models/{ILL}/{verb}", b"{}", timeout_s=60)

    with server(folder, "SlowToLoad") as (served, observed, watch), watch.during(), ThreadPoolExecutor(100) as pool:
        began = clock()
        observed.client.update(pool.map(change, range(100)))
        watch.heal(lambda: change(1) == "200" and infer(served.http_port, ILL, WELL) == "200", began)
    return observed


@row(
    "threads",
    "no room for the stack of one more thread for 3 s (RLIMIT_AS), 40 clients at once",
    "200|429|500|503|504|reset|refused|no answer",
    neighbour_loses=True,
    stays_live=False,
    turns_unready=None,
)
def _threads(folder: Path) -> Observed:
    with (
        server(folder, "IllInThread", "--instances", "8") as (served, observed, watch),
        watch.during(),
        ThreadPoolExecutor(40) as pool,
    ):
        with _no_more_threads(served.process.pid):
            end = clock() + 3
            while clock() < end:
                observed.client.update(pool.map(lambda _: infer(served.http_port, ILL, WELL, timeout_s=5), range(40)))
                time.sleep(rows.PAUSE_S)  # clients that ask again
        began = clock()
        watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
    return observed


@row(
    "threads-process",
    "no room for one more thread for 3 s (RLIMIT_AS), and the model's process is killed with -9",
    "500|503|no answer",
    turns_unready=None,
)
def _threads_process(folder: Path) -> Observed:
    with server(folder, "IllInProcess") as (served, observed, watch), watch.during():
        with _no_more_threads(served.process.pid):
            for child in children(served):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
            end = clock() + 3
            while clock() < end:
                observed.client[infer(served.http_port, ILL, WELL, timeout_s=1)] += 1
                time.sleep(0.05)  # a client that asks again
        began = clock()
        watch.heal(lambda: _is_well(served.http_port), began)
    return observed


@contextlib.contextmanager
def _no_more_threads(pid: int) -> Iterator[None]:
    """Leave a process no address space for the stack of another thread."""
    import psutil

    process = psutil.Process(pid)
    before = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + SPARE_BYTES, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_AS, before)
