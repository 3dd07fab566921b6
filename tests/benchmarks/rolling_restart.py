"""Rolling restarts of the local fraud service under an open-loop load of REST and gRPC clients with keep-alive connections.

    PYTHONPATH=tests python -m benchmarks.rolling_restart --restarts 20 --rate 500 --form fused

Runs `serinus up inferenceservices/fraud/FORM`, sends RATE requests a second through the gateway, each at its own time whether or not earlier ones are
answered (half REST over kept connections, half gRPC over a few channels), and runs `serinus restart fraud` again and again. Every request that is not
answered with 200 / OK counts as failed, and its error is shown. Latency is counted from the intended start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

import grpc
from serinus.local.run.control_socket import Client

__all__ = ["Outcome", "main", "run_restarts", "running_service"]

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "inferenceservices" / "fraud"
HOST = "fraud.default.localhost"
CHANNELS = 4
TIMEOUT_S = 30.0


@dataclass
class Outcome:
    """What became of every request."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"REST": [], "gRPC": []})
    """From the intended start to the answer, by protocol."""
    failures: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    """REST connections that were opened."""
    restarts: int = 0
    pids: set[int] = field(default_factory=set)
    """Every process of the service that was seen."""
    took_s: float = 0.0

    @property
    def answered(self) -> int:
        """Requests that were answered well."""
        return sum(map(len, self.seconds.values()))

    def quantile_ms(self, share: float) -> float:
        """Quantile of all latencies."""
        whole = sorted(second for seconds in self.seconds.values() for second in seconds)
        return whole[min(len(whole) - 1, int(len(whole) * share))] * 1000


@contextlib.contextmanager
def running_service(form: str) -> Iterator[tuple[int, Path]]:
    """`serinus up` the fraud service; yields the gateway's port and the state folder."""
    with tempfile.TemporaryDirectory(prefix="serinus-rolling-") as folder:
        state = Path(folder) / "state"
        cli("up", str(SERVICE / form), "--state-dir", str(state), "--port", "0", "-d", "-q", "--no-watch")
        try:
            yield Client(state).ask("status")["gateway"]["port"], state
        finally:
            cli("down", "--state-dir", str(state))


def cli(*words: str) -> None:
    """Run a command of serinus."""
    done = subprocess.run([sys.executable, "-m", "serinus.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"serinus {' '.join(words)}: {done.stdout}{done.stderr}")


class _Load:
    """Requests on a fixed timetable."""

    def __init__(self, port: int, body: bytes, message: bytes, outcome: Outcome) -> None:
        self._port = port
        self._request = (
            f"POST /v2/models/fraud/infer HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._message = message
        self._outcome = outcome
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        options = [("grpc.default_authority", HOST), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        self._channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(CHANNELS)]
        self._calls = [channel.unary_unary("/inference.GRPCInferenceService/ModelInfer") for channel in self._channels]

    async def run(self, rate: float, end: asyncio.Event) -> None:
        """Send until `end` is set, then wait for what is under way."""
        began, number = time.perf_counter(), 0
        tasks: set[asyncio.Task[None]] = set()
        while not end.is_set():
            due = began + number / rate
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._send(number, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.gather(*tasks)
        for _, writer in self._idle:
            writer.close()
        for channel in self._channels:
            await channel.close()

    async def _send(self, number: int, due: float) -> None:
        protocol = "gRPC" if number % 2 else "REST"
        try:
            if protocol == "gRPC":
                await self._calls[number // 2 % CHANNELS](self._message, timeout=TIMEOUT_S)
            else:
                await asyncio.wait_for(self._ask(), TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._outcome.failures[_kind(f"gRPC {error.code().name}: {error.details()}")] += 1
        except Exception as error:
            self._outcome.failures[_kind(f"REST {type(error).__name__}: {error}")] += 1
        else:
            self._outcome.seconds[protocol].append(time.perf_counter() - due)

    async def _ask(self) -> None:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            self._outcome.connections += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:"))
        content = await reader.readexactly(length)
        if "\nconnection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        if not head.startswith("http/1.1 200"):
            raise RuntimeError(f"{head.splitlines()[0]}: {content[:200]!r}")


def _kind(told: str) -> str:
    """An error without its numbers: a refusal says how many wait, each time another."""
    return re.sub(r"(?<![\w/])\d+(\.\d+)?(?= (?:rows|s\b))", "N", told)


async def run_restarts(port: int, state: Path, *, restarts: int, rate: float, body: bytes, message: bytes) -> Outcome:
    """Restart so often under load.

    Args:
        port: the gateway's.
        state: the supervisor's folder.
        restarts: how often.
        rate: requests a second.
        body: V2 JSON of one request.
        message: the same as a ModelInferRequest.
    """
    outcome, end, client = Outcome(), asyncio.Event(), Client(state)

    async def note_processes() -> None:
        rows = (await asyncio.to_thread(client.ask, "status"))["services"][0]["components"]
        outcome.pids |= {row["pid"] for row in rows}

    await note_processes()
    load = asyncio.create_task(_Load(port, body, message, outcome).run(rate, end))
    began = time.perf_counter()
    try:
        await asyncio.sleep(1.0)  # some requests before, between and after
        for _ in range(restarts):
            # What `serinus restart` asks; the command's own start would take from the cores that are shared here.
            await asyncio.to_thread(client.ask, "restart", name="fraud", timeout_s=600.0)
            outcome.restarts += 1
            await note_processes()
        await asyncio.sleep(1.0)
    finally:
        end.set()
        await load
    outcome.took_s = time.perf_counter() - began
    return outcome


def requests() -> tuple[bytes, bytes]:
    """The service's own request in both protocols."""
    from serinus.protocol import proto_codec
    from serinus.protocol.rest_codec import RestCodec

    body = (SERVICE / "request.json").read_bytes()
    request = RestCodec().decode_request(body, model_name="fraud")
    return body, proto_codec.encode_request(request)


def main() -> int:
    """Run it and print what became of the requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--form", choices=("fused", "split"), default="fused")
    options = parser.parse_args()
    body, message = requests()
    with running_service(options.form) as (port, state):
        outcome = asyncio.run(
            run_restarts(port, state, restarts=options.restarts, rate=options.rate, body=body, message=message)
        )
    sent = outcome.answered + sum(outcome.failures.values())
    print(
        f"{options.form}: {outcome.restarts} restarts in {outcome.took_s:.0f} s; {sent} requests at {sent / outcome.took_s:.0f}/s "
        f"({len(outcome.seconds['REST'])} REST over {outcome.connections} connections, {len(outcome.seconds['gRPC'])} gRPC over "
        f"{CHANNELS} channels answered); failed: {sum(outcome.failures.values())}; "
        f"p50 {outcome.quantile_ms(0.5):.1f} ms, p99 {outcome.quantile_ms(0.99):.0f} ms, longest {outcome.quantile_ms(1.0):.0f} ms"
    )
    for what, count in outcome.failures.most_common():
        print(f"  {count} x {what}")
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
