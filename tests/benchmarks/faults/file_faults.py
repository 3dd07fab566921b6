"""Rows of storage, slow clients and clocks: full disks, corrupt files, a read that never ends, one byte a second, jumps of the clock."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.faults.rows import NEIGHBOUR, Observed, ask, infer, row
from benchmarks.faults.servers import ILL, clock, model_folder, server
from fault_models import WELL
from waiting import wait_until

__all__: list[str] = []

LOAD = f"/v2/repository/models/{ILL}/load"


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A small file system in memory that is full; needs the right to mount one."""
    made = folder / "disk"
    made.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(made)], check=True)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made)], check=True)


def fill(folder: Path) -> Path:
    """Fill it to the last byte; what is returned can be removed."""
    file = folder / "ballast"
    with file.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    return file


@row("cache-full", "SERINUS_CACHE_DIR is on a full disk", "200", needs="mount")
def _cache_full(folder: Path) -> Observed:
    with small_disk(folder) as disk:
        fill(disk)
        environment = {"SERINUS_CACHE_DIR": str(disk / "cache")}
        model = folder / "repository" / "trees"
        model.mkdir(parents=True)
        _train(model / "model.json")
        with server(folder, "IllInThread", environment=environment) as (served, observed, watch), watch.during():
            began = clock()
            body = b'{"inputs":[{"name":"input-0","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'
            observed.client[ask(served.http_port, "/v2/models/trees/infer", body)] += 1
            watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
            observed.note = f"tracebacks in the log: {served.log.read_text().count('Traceback')}"
    return observed


def _train(path: Path) -> None:
    """A small real booster, as XGBoost writes it."""
    import numpy as np
    import xgboost

    draw = np.random.default_rng(0)
    data = draw.normal(size=(60, 3)).astype(np.float32)
    matrix = xgboost.DMatrix(data, label=data[:, 0] > 0)
    xgboost.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, matrix, 3).save_model(path)


@row("log-full", "standard error goes to a full disk, access log on", "200", needs="mount")
def _log_full(folder: Path) -> Observed:
    with small_disk(folder) as disk:
        for name, class_name in ((NEIGHBOUR, "Steady"), (ILL, "IllInThread")):
            model_folder(disk, name, class_name)
        ballast: list[Path] = []
        with server(disk, "IllInThread", "--access_log", "true") as (served, observed, watch), watch.during():
            ballast.append(fill(disk))
            began = clock()
            for _ in range(50):
                observed.client[infer(served.http_port, ILL, WELL)] += 1
            watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
            ballast[0].unlink()
    return observed


@row("corrupt-load", "a load by request of a file that is corrupt", "400|500", turns_unready=None, heals=True)
def _corrupt_load(folder: Path) -> Observed:
    made = model_folder(folder, ILL, "Reads")
    (made / "factor.txt").write_text("3")
    with server(folder, "") as (served, observed, watch), watch.during():
        (made / "factor.txt").write_bytes(b"\xff\x00no number")
        began = clock()
        observed.client[ask(served.http_port, LOAD, b"{}")] += 1
        observed.note = f"the model that was loaded before answers {infer(served.http_port, ILL, 1)}"
        (made / "factor.txt").write_text("3")
        watch.heal(
            lambda: ask(served.http_port, LOAD, b"{}") == "200" and infer(served.http_port, ILL, 1) == "200", began
        )
    return observed


@row(
    "corrupt-start", "a model's file is corrupt when the server starts beside a good one", "503|404", turns_unready=None
)
def _corrupt_start(folder: Path) -> Observed:
    made = model_folder(folder, ILL, "Reads")
    (made / "factor.txt").write_bytes(b"\xff\x00no number")
    model_folder(folder, NEIGHBOUR, "Steady")
    from benchmarks.faults.rows import Watch
    from benchmarks.faults.servers import SUPPORT
    from serve_support import serving

    arguments = ("--model_repository", str(folder / "repository"), "--allow_implementation", "fault_models.*")
    with serving(folder, *arguments, environment={"PYTHONPATH": str(SUPPORT)}, timeout_s=90) as served:
        observed, port = Observed(), served.http_port
        wait_until(lambda: infer(port, NEIGHBOUR, 1) == "200")
        watch = Watch(observed, lambda: infer(port, NEIGHBOUR, 1), lambda probe: ask(port, f"/v2/health/{probe}"))
        with watch.during():
            began = clock()
            observed.client[infer(port, ILL, 1)] += 1
            (made / "factor.txt").write_text("3")
            watch.heal(lambda: ask(port, LOAD, b"{}") == "200" and infer(port, ILL, 1) == "200", began)
    return observed


@row(
    "stalled-storage", "a load by request reads a file whose storage never answers (a FIFO)", "200", turns_unready=None
)
def _stalled(folder: Path) -> Observed:
    made = model_folder(folder, ILL, "Reads")
    (made / "factor.txt").write_text("3")
    with server(folder, "") as (served, observed, watch), ThreadPoolExecutor(1) as pool, watch.during():
        (made / "factor.txt").unlink()
        os.mkfifo(made / "factor.txt")
        loading = pool.submit(ask, served.http_port, LOAD, b"{}", timeout_s=60)
        began = clock()
        while clock() - began < 2:  # the storage stands still
            observed.client[infer(served.http_port, ILL, 1)] += 1
            time.sleep(0.05)  # a client that asks again
        with (made / "factor.txt").open("w") as storage:
            storage.write("4")
        began = clock()
        observed.note = f"the load then answers {loading.result()}"
        watch.heal(lambda: infer(served.http_port, ILL, 1) == "200", began)
    return observed


@row("slow-reader", "20 clients ask for 16 MiB each and read one byte a second", "200")
def _slow_reader(folder: Path) -> Observed:
    import psutil

    with server(folder, "Big") as (served, observed, watch), watch.during():
        before = psutil.Process(served.process.pid).memory_info().rss
        body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}],"parameters":{"binary_data_output":true}}'
        head = f"POST /v2/models/{ILL}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        began, readers = clock(), []
        for _ in range(20):
            readers.append(socket.create_connection(("127.0.0.1", served.http_port), timeout=20))
            readers[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            readers[-1].sendall(head + body)
        for _ in range(3):
            for reader in readers:
                reader.recv(1)
            time.sleep(1)  # what is tested
        grown = psutil.Process(served.process.pid).memory_info().rss - before
        observed.client[infer(served.http_port, ILL, 1)] += 1
        observed.note = f"{grown >> 20} MiB more while 20 answers of 16 MiB wait"
        for reader in readers:
            reader.close()
        watch.heal(lambda: infer(served.http_port, ILL, 1) == "200", began)
    return observed


@row("slow-sender", "200 clients send one byte a second, request_timeout_s 3", "408|reset")
def _slow_sender(folder: Path) -> Observed:
    with server(folder, "IllInThread", "--request_timeout_s", "3") as (served, observed, watch), watch.during():
        began = clock()
        senders = [socket.create_connection(("127.0.0.1", served.http_port), timeout=20) for _ in range(200)]
        text = f"POST /v2/models/{ILL}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n".encode()
        for sender in senders:
            sender.sendall(text)
        for _ in range(6):
            for sender in senders:
                with contextlib.suppress(OSError):
                    sender.sendall(b" ")
            time.sleep(1)  # what is tested
        for sender in senders:
            try:
                observed.client[sender.recv(64)[9:12].decode() or "reset"] += 1
            except OSError:
                observed.client["reset"] += 1
            sender.close()
        watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
    return observed


def faked_clock(folder: Path) -> tuple[dict[str, str], Path]:
    """Variables by which a process and all below it have a wall clock of their own, and the file that says how far it is off."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    moment = folder / "moment"
    moment.write_text("+0")
    variables = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(moment),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # Its workaround for old C libraries: with glibc 2.36 timed waits of threads return at once under it, and whoever waits spins.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }
    return variables, moment


def _clock(folder: Path, jump: str) -> Observed:
    """Let the wall clock of a server jump once while requests with deadlines go on."""
    environment, moment = faked_clock(folder)
    flags = ("--hang_timeout_s", "5", "--timeout_keep_alive_s", "5")
    with server(folder, "IllInProcess", *flags, environment=environment) as (served, observed, watch), watch.during():
        began = clock()
        moment.write_text(jump)
        body = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[0]}],"parameters":{"timeout":5000000}}'
        while clock() - began < 3:
            observed.client[ask(served.http_port, f"/v2/models/{ILL}/infer", body)] += 1
            time.sleep(0.02)  # a client that asks again
        observed.note = f"its clock says {_date(served.http_port)}"
        watch.heal(lambda: infer(served.http_port, ILL, WELL) == "200", began)
    return observed


def _date(port: int) -> str:
    """What the server takes for the present."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/v2/health/live")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.headers.get("Date", "nothing")


@row("clock-forward", "the wall clock jumps a day forward (libfaketime)", "200", needs="faketime")
def _clock_forward(folder: Path) -> Observed:
    return _clock(folder, "+1d")


@row("clock-back", "the wall clock jumps a day back (libfaketime)", "200", needs="faketime")
def _clock_back(folder: Path) -> Observed:
    return _clock(folder, "-1d")
