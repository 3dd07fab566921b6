"""`make bench`: measure serinus beside its peers, in one run.

All servers are up at once and take turns: each slice of load goes to one server, every round visits all of them, and slices in
which something else used the machine are dropped. So all servers see the same machine, and ratios within a run hold where
absolute figures drift. Compare within one run only.

`--parts` measures some sections alone. With `--merge FILE`, the figures of an earlier run (its file under results/), the
sections that this run does not measure are taken from there, each with its own command and date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from serinus.native.trees.walker import kernels

from . import engine, engine_equality, growth, pipeline, report, vision
from .measure import Slice, h2load, resident_bytes, summarise, wrk
from .peers import CACHE, PEERS, Peer, Running, install, request, start
from .work import Work, make_work

PARTS = report.PARTS
RESULTS = Path(__file__).resolve().parent / "results"
WORKLOADS = {
    "W1": "one row of 30 FP32, REST JSON",
    "W1b": "one row, REST binary extension",
    "W1g": "one row, gRPC raw",
    "W2": "64 rows, REST JSON",
    "W2b": "64 rows, REST binary extension",
    "W2g": "64 rows, gRPC raw",
}


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _load(running: Running, work: Work, workload: str, concurrency: int, seconds: float) -> Slice:
    kind, body, headers = request(running, work, workload)
    pid = running.process.pid
    if kind == "grpc":
        url = f"http://127.0.0.1:{running.ports['grpc']}/inference.GRPCInferenceService/ModelInfer"
        return h2load(url, body, pid=pid, streams=concurrency, seconds=seconds)
    return wrk(running.url(), body, headers, pid=pid, connections=concurrency, seconds=seconds)


def _start_all(peers: list[Peer], work: Work) -> list[Running]:
    """Install, start and check each peer; one that does not install or run here is left out and named."""
    started = []
    for peer in peers:
        try:
            _say(f"{peer.name}: installing")
            python = install(peer)
            running = start(peer, python, work)
        except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
            _say(f"{peer.name}: LEFT OUT: {str(error)[-400:]}")
            continue
        checked = "its answer is fixed" if peer.is_floor else "its answers equal the Booster's"
        _say(f"{peer.name}: ready in {running.ready_s:.2f} s, {checked}")
        started.append(running)
    return started


def _idle(peers: list[Peer], work: Work, rounds: int) -> dict[str, dict[str, float]]:
    """Start each alone: seconds to the first right answer, and resident memory two seconds after it."""
    figures: dict[str, dict[str, float]] = {}
    for peer in peers:
        seconds, memory = [], []
        for _ in range(rounds):
            running = start(peer, install(peer), work)
            try:
                time.sleep(2)  # let what happens just after start (imports in workers, collections) happen
                seconds.append(running.ready_s)
                memory.append(resident_bytes(running.process.pid) / 1e6)
            finally:
                running.stop()
        figures[peer.name] = {"ready_s": statistics.median(seconds), "memory_mb": statistics.median(memory)}
        _say(f"{peer.name}: ready {figures[peer.name]['ready_s']:.2f} s, {figures[peer.name]['memory_mb']:.0f} MB idle")
    return figures


def _servers(started: list[Running], work: Work, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    plan = [(workload, concurrency) for workload in options.workloads for concurrency in options.concurrency]
    for workload, concurrency in plan:
        entrants = [running for running in started if workload in running.peer.workloads]
        slices: dict[str, list[Slice]] = {running.peer.name: [] for running in entrants}
        for running in entrants:
            _load(running, work, workload, concurrency, 0.5)  # warm up
        for _ in range(options.rounds):
            for running in entrants:
                slices[running.peer.name].append(_load(running, work, workload, concurrency, options.seconds))
        for running in entrants:
            figures = summarise(slices[running.peer.name])
            rows.append({"workload": workload, "concurrency": concurrency, "peer": running.peer.name, **figures})
            mark = "  disturbed" if figures["disturbed"] else ""
            _say(
                f"{workload:>4} x{concurrency:<3} {running.peer.name:<14} {figures['rps']:>9.0f}/s  "
                f"p50 {figures['p50_us']:>8.0f} us  p99 {figures['p99_us']:>8.0f} us  "
                f"CPU {figures['cpu_us']:>7.1f} us/request{mark}"
            )
    return rows


def _engine() -> dict[str, Any]:
    """The forest beside the Booster without a server: time of a call, and ten million answers."""
    speed: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for trees in (50, 200, 1000):
            _say(f"engine: {trees} trees")
            cells = engine.measure(trees, (1, 16, 64, 1024), Path(folder), 0.25)
            speed += [cell for cell in cells if not cell["missing"]]
    equality = engine_equality.measure(10_000_000, lambda text: _say(f"engine: {text}"))
    return {"lanes": int(kernels().quick.serinus_forest_lanes()), "speed": speed, "equality": equality}


def _machine() -> dict[str, Any]:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen parts."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    command = " ".join(["make bench", f'ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else ""]).strip()
    results: dict[str, Any] = {
        "when": when,
        "machine": _machine(),
        "runs": {part: {"when": when, "command": command} for part in PARTS if part in options.parts},
    }
    if {"servers", "idle"} & set(options.parts):
        chosen = [peer for peer in PEERS if peer.name in options.peers]
        results["peers"] = {peer.name: peer.what for peer in chosen}
        results["workloads"] = {name: WORKLOADS[name] for name in options.workloads}
        work = make_work(CACHE / "models")
        started = _start_all(chosen, work)
        try:
            if "servers" in options.parts:
                results["servers"] = _servers(started, work, options)
        finally:
            for running in started:
                running.stop()
        if "idle" in options.parts:
            results["idle"] = _idle([running.peer for running in started], work, 3)
    if "pipeline" in options.parts:
        results["pipeline"] = pipeline.measure(options.seconds, options.rounds, _say)
    if "vision" in options.parts:
        # A slice of ResNet-50's is a few dozen calls: it takes more of them to tell a few per cent.
        results["vision"] = vision.measure(8 * options.seconds, _say)
    if "engine" in options.parts:
        results["engine"] = _engine()
    if "growth" in options.parts:
        results["growth"] = growth.measure(options.seconds, _say)
    return results


def main() -> int:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    words = lambda text: text.split(",")  # noqa: E731 # a type for argparse
    parser.add_argument("--peers", type=words, default=[peer.name for peer in PEERS], help="comma-separated names")
    parser.add_argument("--workloads", type=words, default=list(WORKLOADS), help="comma-separated names")
    parser.add_argument("--concurrency", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one slice")
    parser.add_argument("--rounds", type=int, default=5, help="slices for each server and workload")
    parser.add_argument("--parts", type=words, default=[*PARTS], help=f"what is measured; default: {','.join(PARTS)}")
    parser.add_argument(
        "--merge", type=Path, help="results/*.json of an earlier run, for the parts that this one leaves out"
    )
    parser.add_argument("--publish", action="store_true", help="write RESULTS.md and its plots beside this program")
    options = parser.parse_args()

    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"--parts: {unknown[0]!r} is none of {', '.join(PARTS)}")
    if options.merge and not options.merge.is_file():
        parser.error(f"--merge: there is no file {options.merge}; runs leave theirs in {RESULTS}")
    earlier = json.loads(options.merge.read_text()) if options.merge else {}
    results = _measure(options)
    file = RESULTS / f"{results['when'].replace(':', '')}.json"
    if earlier:
        results = report.merged(earlier, results)
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=1))
    print(report.write(results, RESULTS, publish=options.publish))
    _say(f"figures: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
