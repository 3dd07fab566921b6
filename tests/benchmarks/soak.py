"""A soak: REST and gRPC at 70 % load for as long as asked, with clients that vanish; the server's metrics against the clients' own counts, and its memory.

    PYTHONPATH=tests:tests/support python -m benchmarks.soak --minutes 30

Closed-loop clients measure the capacity first (5 s). Then an open loop of 70 % of it: kept connections of both protocols ask a model in a thread; one REST
client in twenty sends its request and closes at once. In the end the requests in `/metrics` are those that the clients sent, to the request: each answer that
somebody got is a success, and what vanished is there exactly once with some outcome. Memory is read each tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import grpc.aio
import psutil

from serve_support import Served, serving

__all__ = ["Counts", "main", "soak"]

SUPPORT = Path(__file__).resolve().parents[1] / "support"
MODEL = "m"
CONNECTIONS, CHANNELS = 8, 2
VANISHING = 20
"""One of so many REST requests is left by its client."""
LOAD = 0.7
MOST_REFUSED = 0.01
GROWTH_BYTES = 16 << 20
"""What allocators may take on after the first tenth."""
BODY = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[1]}]}'
REQUEST = (
    f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY
SAMPLE = re.compile(r"^serinus_requests_total\{(?P<labels>[^}]*)\} (?P<value>[0-9.e+]+)$", re.MULTILINE)


@dataclass
class Counts:
    """What the clients saw, and what the server says."""

    rate: float = 0.0
    capacity: float = 0.0
    """Requests a second that closed-loop clients had answered before it."""
    answered: Counter[str] = field(default_factory=Counter)
    """By protocol."""
    failed: Counter[str] = field(default_factory=Counter)
    """By what was answered."""
    refused: Counter[str] = field(default_factory=Counter)
    """By protocol, as overload (429, RESOURCE_EXHAUSTED): a machine that others use bears less than was measured before."""
    stale: int = 0
    """Kept connections that the server had closed as idle when they were used again; another one was."""
    vanished: int = 0
    late: float = 0.0
    """How far behind its timetable the load was in the end, seconds."""
    resident: list[int] = field(default_factory=list)
    """Bytes, at the end of each tenth."""
    told: Counter[str] = field(default_factory=Counter)
    """The server's requests, by outcome."""

    @property
    def problems(self) -> list[str]:
        """What does not hold."""
        found = [f"{count} x {what}" for what, count in self.failed.items()]
        answered, refused = self.answered.total(), self.refused.total()
        sent = answered + refused + self.vanished
        whole = self.told.total() == sent and refused <= self.told["rejected"] <= refused + self.vanished
        if not whole or not answered <= self.told["success"] <= answered + self.vanished:
            found.append(
                f"the server counted {dict(self.told)}; the clients sent {sent}, have {answered} answers and {refused} refusals"
            )
        if refused > MOST_REFUSED * sent:
            found.append(f"{refused} of {sent} requests were refused")
        if max(self.resident[1:]) - self.resident[0] > GROWTH_BYTES:
            found.append(f"memory grew: {[size >> 20 for size in self.resident]} MiB")
        return found


class _Clients:
    def __init__(self, served: Served, counts: Counts) -> None:
        self._port = served.http_port
        self._counts = counts
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(f"127.0.0.1:{served.grpc_port}", options) for _ in range(CHANNELS)]
        self._calls = [channel.unary_unary("/inference.GRPCInferenceService/ModelInfer") for channel in self._channels]
        self._message = _message()

    async def rest(self) -> None:
        kept = bool(self._idle)
        reader, writer = self._idle.pop() if kept else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(REQUEST)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            writer.close()
            if not kept or getattr(error, "partial", b""):
                raise
            self._counts.stale += 1  # closed as idle, unread: as any client, on another one (RFC 9112, 9.3.1)
            await self.rest()
            return
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        self._idle.append((reader, writer))
        status = head[9:12].decode()
        if status == "200":
            self._counts.answered["rest"] += 1
        elif status == "429":
            self._counts.refused["rest"] += 1
        else:
            self._counts.failed[f"REST {status}"] += 1

    async def vanish(self) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(REQUEST)
        await writer.drain()
        writer.close()
        self._counts.vanished += 1

    async def rpc(self, number: int) -> None:
        await self._calls[number % CHANNELS](self._message, timeout=30)
        self._counts.answered["grpc"] += 1

    async def one(self, number: int) -> None:
        try:
            if number % 2:
                await self.rpc(number // 2)
            elif number % (2 * VANISHING) == 0:
                await self.vanish()
            else:
                await self.rest()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._counts.refused["grpc"] += 1
                return
            self._counts.failed[f"gRPC {error.code().name}"] += 1
        except Exception as error:
            self._counts.failed[f"{type(error).__name__}: {error}"] += 1

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        for channel in self._channels:
            await channel.close()


def _message() -> bytes:
    from serinus.protocol import proto_codec
    from serinus.protocol.rest_codec import RestCodec

    return proto_codec.encode_request(RestCodec().decode_request(BODY, model_name=MODEL))


def told(served: Served) -> Counter[str]:
    """The requests that the server has counted, by outcome."""
    found: Counter[str] = Counter()
    for sample in SAMPLE.finditer(served.ask("GET", "/metrics")[1]):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))
        if labels.get("model") == MODEL:
            found[labels["outcome"]] += int(float(sample["value"]))
    return found


async def _capacity(clients: _Clients, seconds: float) -> float:
    done, end = 0, time.perf_counter() + seconds

    async def ask(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await (clients.rpc(number) if number % 2 else clients.rest())
            done += 1

    await asyncio.gather(*(ask(number) for number in range(CONNECTIONS)))
    return done / seconds


async def _load(served: Served, counts: Counts, seconds: float, *, measure_s: float, most_rate: float) -> None:
    clients = _Clients(served, counts)
    process = psutil.Process(served.process.pid)
    counts.capacity = await _capacity(clients, measure_s)
    counts.rate = min(LOAD * counts.capacity, most_rate)
    tasks: set[asyncio.Task[Any]] = set()
    began, number = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        if elapsed > seconds * (len(counts.resident) + 1) / 10:
            counts.resident.append(process.memory_info().rss)
        if (wait := began + number / counts.rate - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        elif number % 64 == 0:
            await asyncio.sleep(0)  # late: those under way come first
        task = asyncio.create_task(clients.one(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    counts.late = time.perf_counter() - began - number / counts.rate
    await asyncio.gather(*tasks)
    counts.resident.append(process.memory_info().rss)
    await clients.close()


def soak(folder: Path, seconds: float, *, measure_s: float = 5.0, most_rate: float = float("inf")) -> Counts:
    """Run it.

    Args:
        folder: for the server's log.
        seconds: how long the load goes on.
        measure_s: how long the capacity is measured before.
        most_rate: requests a second that are not passed, where the machine is shared.
    """
    counts = Counts()
    flags = ("--class", "fault_models:Steady", "--model_name", MODEL, "--execution", "thread", "--warmup", "true")
    with serving(folder, *flags, environment={"PYTHONPATH": str(SUPPORT)}, fresh=True) as served:
        before = told(served)
        asyncio.run(_load(served, counts, seconds, measure_s=measure_s, most_rate=most_rate))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            counts.told = told(served) - before
            if counts.told.total() >= counts.answered.total() + counts.refused.total() + counts.vanished:
                break
            time.sleep(0.1)  # what vanished may still be under way
    return counts


def main() -> int:
    """Run it and print the counts of both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=float("inf"), help="most requests a second, on a shared machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serinus-soak-") as folder:
        counts = soak(Path(folder), options.minutes * 60, most_rate=options.rate)
    print(
        f"{options.minutes:g} minutes at {counts.rate:.0f} requests/s ({counts.rate / counts.capacity:.0%} of the capacity, "
        f"{counts.capacity:.0f}/s): {dict(counts.answered)} answered, "
        f"{dict(counts.refused) or 'none'} refused, {counts.vanished} vanished, {dict(counts.failed) or 'none'} failed, "
        f"{counts.stale} connections were stale; the server counted {dict(counts.told)}; "
        f"resident {[size >> 20 for size in counts.resident]} MiB; {counts.late:.1f} s late in the end"
    )
    for problem in counts.problems:
        print(f"  {problem}")
    return 1 if counts.problems else 0


if __name__ == "__main__":
    sys.exit(main())
