"""Load generators (wrk, h2load), CPU time of process trees, and what the rest of the machine did meanwhile."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

__all__ = ["Slice", "cpu_seconds", "h2load", "resident_bytes", "summarise", "wrk"]

_SCRIPT = """\
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
wrk.method = "POST"
{headers}
"""

_NUMBERED = """\
local before, after = wrk.body:match("^(.-){token}(.*)$")
local number = 0
function request()
  number = number + 1
  return wrk.format(nil, nil, nil, before .. "{prefix}" .. number .. after)
end
"""


@dataclass(frozen=True)
class Slice:
    """One measured stretch of load on one server."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    server_cpu_s: float
    errors: int
    foreign_cores: float
    """Cores used by anything but the server and the load generator: above 0.15 the slice is disturbed."""

    @property
    def rps(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of the server's process tree per request."""
        return self.server_cpu_s / max(self.requests, 1) * 1e6


def cpu_seconds(pid: int) -> float:
    """utime + stime of a process and of its living and reaped children, seconds."""
    total = 0.0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        pass
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of a process tree; shared pages count once a process."""
    root = psutil.Process(pid)
    return sum(process.memory_info().rss for process in [root, *root.children(recursive=True)])


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(getattr(times, name) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _run(command: list[str], pids: Sequence[int], seconds: float) -> tuple[str, float, float, float]:
    """Run a load generator; returns its output, wall seconds, the server's CPU seconds and the foreign cores."""
    cpu_before, busy_before, own_before = sum(map(cpu_seconds, pids)), _busy_seconds(), psutil.Process().cpu_times()
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    wall = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-500:] or done.stdout[-500:]}")
    server = sum(map(cpu_seconds, pids)) - cpu_before
    own_after = psutil.Process().cpu_times()
    loader = (own_after.children_user + own_after.children_system) - (
        own_before.children_user + own_before.children_system
    )
    foreign = (_busy_seconds() - busy_before - server - loader) / wall
    return done.stdout, wall, server, foreign


_UNIT_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


def _microseconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if match is None:
        raise ValueError(f"no duration: {text!r}")
    return float(match[1]) * _UNIT_US[match[2]]


def wrk(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    pid: int | Sequence[int],
    connections: int,
    seconds: float,
    token: str = "",
    prefix: str = "",
) -> Slice:
    """Closed loop over HTTP/1.1 keep-alive.

    Args:
        url: where to.
        body: of every request.
        headers: of every request.
        pid: of the server, or of the processes that make it up.
        connections: kept alive, one request in flight on each.
        seconds: of load.
        token: where it stands in the body, `prefix` and the request's number are put.
        prefix: see `token`.

    Raises:
        RuntimeError: wrk is missing or failed.
    """
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is missing (Debian: apt-get install wrk)")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "body"
        file.write_bytes(body)
        script = Path(folder) / "post.lua"
        lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
        # No response function: it would slow wrk down, and wrk counts wrong statuses itself ("Non-2xx").
        numbered = _NUMBERED.format(token=token, prefix=prefix) if token else ""
        script.write_text(_SCRIPT.format(body=file, headers=lines) + numbered)
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            "30s",
            "--latency",
            "-s",
            str(script),
            url,
        ]
        output, _, server, foreign = _run(command, [pid] if isinstance(pid, int) else pid, seconds)
    requests, took = re.search(r"(\d+) requests in ([\d.]+(?:us|ms|s|m))", output).groups()  # type: ignore[union-attr]
    p50 = re.search(r"^ +50% +(\S+)", output, re.MULTILINE)[1]  # type: ignore[index]
    p99 = re.search(r"^ +99% +(\S+)", output, re.MULTILINE)[1]  # type: ignore[index]
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    errors = (int(bad[1]) if bad else 0) + (sum(map(int, sockets.groups())) if sockets else 0)
    return Slice(
        int(requests), _microseconds(took) / 1e6, _microseconds(p50), _microseconds(p99), server, errors, foreign
    )


def h2load(url: str, frame: bytes, *, pid: int, streams: int, seconds: float) -> Slice:
    """Closed loop of gRPC calls over HTTP/2: up to four connections share the streams.

    Raises:
        RuntimeError: h2load is missing or failed.
    """
    if shutil.which("h2load") is None:
        raise RuntimeError("h2load is missing (Debian: apt-get install nghttp2-client)")
    connections = min(4, streams)
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "body", Path(folder) / "log"
        file.write_bytes(frame)
        command = [
            "h2load",
            "-t1",
            f"-c{connections}",
            f"-m{max(1, streams // connections)}",
            "-D",
            str(max(1, round(seconds))),
        ]
        command += [
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            "-d",
            str(file),
            "--log-file",
            str(log),
            url,
        ]
        output, wall, server, foreign = _run(command, [pid], seconds)
        latencies = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines() if line)
    done = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", output)
    if done is None or not latencies:
        raise RuntimeError(f"h2load measured nothing: {output[-500:]}")
    return Slice(
        int(done[2]),
        min(wall, max(1, round(seconds))),
        float(latencies[len(latencies) // 2]),
        float(latencies[int(len(latencies) * 0.99)]),
        server,
        int(done[1]) - int(done[2]),
        foreign,
    )


def summarise(slices: list[Slice], *, disturbed_cores: float = 0.15) -> dict[str, float | int | bool]:
    """Median of the undisturbed slices; of all, and marked, where none was quiet."""
    quiet = [part for part in slices if part.foreign_cores <= disturbed_cores]
    used = quiet or slices
    return {
        "rps": statistics.median(part.rps for part in used),
        "p50_us": statistics.median(part.p50_us for part in used),
        "p99_us": statistics.median(part.p99_us for part in used),
        "cpu_us": statistics.median(part.cpu_us for part in used),
        "errors": sum(part.errors for part in slices),
        "slices": len(used),
        "disturbed": not quiet,
        "foreign_cores": round(statistics.median(asdict(part)["foreign_cores"] for part in used), 3),
    }
