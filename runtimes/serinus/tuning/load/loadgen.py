"""An open-loop load generator for one HTTP endpoint: `python -m serinus.tuning.load.loadgen < job.json`.

Theory of operation. Requests have intended starts, drawn beforehand (`arrivals`). At its intended start a request takes an idle
keep-alive connection, else a new one, else (at `connections` of them) it waits in a queue here; its latency counts from the
intended start in every case, so a slow server cannot slow the load down and hide its own delay ("coordinated omission").
A request that fails, is refused or is not answered by `timeout_s` after the window has an infinite latency.

The generator runs in a process of its own and judges itself: `lag` is the time from the intended start to the moment that this
loop turned to the request. Where its 99th percentile is a material part of the measured one, the run says
more of the generator than of the server, and `kept_up` is false.

asyncio's epoll rounds timers up to 1 ms, which would be most of a 1 ms latency; select() takes microseconds, so the loop is
made on a SelectSelector, and `connections` stays below its 1024 descriptors.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import math
import selectors
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .arrivals import poisson_arrivals
from .latencies import LatencyHistogram

__all__ = ["Job", "LoadResult", "generate", "http_message", "main"]

_MOST_CONNECTIONS = 900
_LAG_FLOOR_S = 0.0005
_LAG_SHARE = 0.2
_MOST_SAID = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run."""

    host: str
    port: int
    messages: tuple[bytes, ...]
    """Whole HTTP requests, sent in turn."""
    rate_per_s: float
    duration_s: float
    warmup_s: float = 0.5
    """Load before the window that is not counted."""
    timeout_s: float = 5.0
    """Time after the window for answers that are still out."""
    connections: int = 256
    seed: int = 1
    quantiles: tuple[float, ...] = (0.5, 0.95, 0.99)

    def to_json(self) -> str:
        """The job as `main` reads it."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["messages"] = [base64.b64encode(message).decode() for message in self.messages]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read a job."""
        values = json.loads(text)
        values["messages"] = tuple(base64.b64decode(message) for message in values["messages"])
        values["quantiles"] = tuple(values["quantiles"])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a run measured."""

    rate_per_s: float
    """Intended."""
    sent: int
    answered: int
    """With a 2xx, in the window or up to `timeout_s` after it."""
    failures: dict[str, int]
    """By status, or by what happened to the connection; of the window, as `sent` and `answered` are."""
    said: dict[str, str]
    """What the first refusal of each status said: the beginning of its body, or the field `error` of that."""
    achieved_per_s: float
    """Answers of the window's requests that arrived within the window, per second."""
    quantiles_s: dict[float, float]
    mean_s: float
    elapsed_s: float
    """From the start of the load, the warm-up's too, to the window's end or the last answer after it: the server's time at work."""
    lag_p99_s: float
    kept_up: bool

    def to_json(self) -> str:
        """The result as `from_json` reads it."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["quantiles_s"] = [[key, value] for key, value in self.quantiles_s.items()]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> LoadResult:
        """Read a result."""
        values = json.loads(text)
        values["quantiles_s"] = dict(values["quantiles_s"])
        return cls(**values)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._needed = 0
        """Bytes of the answer, once its head is read."""
        self._status = 0
        self.index = -1
        """Of the request that is out; -1: idle."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, index: int, message: bytes) -> None:
        """Send a request on an idle connection."""
        self.index = index
        if self._transport is not None:
            self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._needed:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            self._status = int(head[9:12])
            at = head.find(b"\r\ncontent-length:")
            length = int(head[at + 17 : (head + b"\r\n").find(b"\r\n", at + 2)]) if at >= 0 else 0
            self._needed = end + 4 + length
        if len(self._buffer) >= self._needed:
            if not 200 <= self._status < 300:
                self._run.refused(self._status, self._buffer)
            self._buffer.clear()
            self._needed = 0
            index, self.index = self.index, -1
            self._run.answered(self, index, self._status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.lost(self)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()


class _Run:
    """The state of one run."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self._job, self._loop = job, loop
        self._times = poisson_arrivals(job.rate_per_s, job.warmup_s + job.duration_s, job.seed).tolist()
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening = 0
        self._waiting: deque[int] = deque()
        self._next = 0
        self._left = len(self._times)
        self._done = loop.create_future()
        self._latencies, self._lags = LatencyHistogram(), LatencyHistogram()
        self._failures: dict[str, int] = {}
        self._said: dict[str, str] = {}
        self._in_window = 0
        self._most = min(job.connections, _MOST_CONNECTIONS)
        self._start = 0.0
        self._over = False
        """The time for answers has passed; what is still out counts as unanswered."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> LoadResult:
        # Connections that a run is sure to need are made before it, as a client's pool has them.
        for _ in range(min(self._most, 8)):
            self._idle.append(await self._connect())
        self._start = self._loop.time() + 0.02
        self._loop.call_at(self._start + self._times[0], self._tick)
        window_s = self._job.warmup_s + self._job.duration_s
        await asyncio.wait([self._done], timeout=window_s + self._job.timeout_s)
        elapsed = self._loop.time() - self._start
        self._over = True
        for connection in tuple(self._open):
            connection.close()
        counted = sum(time_s >= self._job.warmup_s for time_s in self._times)
        unanswered = counted - self._latencies.count
        for _ in range(unanswered):
            self._latencies.add(math.inf)
        if unanswered:
            self._failures["no answer"] = unanswered
        quantiles = self._latencies.quantiles(self._job.quantiles)
        lag = self._lags.quantile(0.99)
        highest = max((value for value in quantiles.values() if value != math.inf), default=math.inf)
        return LoadResult(
            rate_per_s=self._job.rate_per_s,
            sent=counted,
            answered=self._latencies.count - self._latencies.failed,
            failures=self._failures,
            said=self._said,
            achieved_per_s=self._in_window / self._job.duration_s,
            quantiles_s=quantiles,
            mean_s=self._latencies.mean_s,
            elapsed_s=max(elapsed, window_s),
            lag_p99_s=lag,
            kept_up=bool(lag <= max(_LAG_FLOOR_S, _LAG_SHARE * highest)),
        )

    async def _connect(self) -> _Connection:
        _, connection = await self._loop.create_connection(lambda: _Connection(self), self._job.host, self._job.port)
        self._open.add(connection)
        return connection

    def _tick(self) -> None:
        """Send whatever is due, and come back when the next is."""
        now = self._loop.time() - self._start
        times = self._times
        while self._next < len(times) and times[self._next] <= now:
            index = self._next
            self._next += 1
            if times[index] >= self._job.warmup_s:
                self._lags.add(max(0.0, now - times[index]))
            self._send(index)
        if self._next < len(times):
            self._loop.call_at(self._start + times[self._next], self._tick)

    def _send(self, index: int) -> None:
        if self._idle:
            connection = self._idle.pop()
            connection.send(index, self._job.messages[index % len(self._job.messages)])
            return
        self._waiting.append(index)
        if len(self._open) + self._opening < self._most and self._opening < len(self._waiting):
            self._opening += 1
            task = self._loop.create_task(self._open_one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open_one(self) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            if self._waiting:
                self._fail(self._waiting.popleft(), f"connect: {error.strerror or error}")
            return
        finally:
            self._opening -= 1
        self._free(connection)

    def _free(self, connection: _Connection) -> None:
        if self._waiting:
            index = self._waiting.popleft()
            connection.send(index, self._job.messages[index % len(self._job.messages)])
        else:
            self._idle.append(connection)

    def answered(self, connection: _Connection, index: int, status: int) -> None:
        if index >= 0:
            now = self._loop.time() - self._start
            if 200 <= status < 300:
                self._count(index, now - self._times[index], now)
            else:
                self._fail(index, str(status))
        self._free(connection)

    def refused(self, status: int, answer: bytes | bytearray) -> None:
        if str(status) not in self._said:
            self._said[str(status)] = _told(bytes(answer).partition(b"\r\n\r\n")[2])

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.index >= 0 and not self._over:
            self._fail(connection.index, "connection lost")

    def _fail(self, index: int, reason: str) -> None:
        if self._times[index] >= self._job.warmup_s:
            self._failures[reason] = self._failures.get(reason, 0) + 1
        self._count(index, math.inf, math.inf)

    def _count(self, index: int, latency_s: float, now: float) -> None:
        if self._times[index] >= self._job.warmup_s:
            self._latencies.add(latency_s)
            if now <= self._job.warmup_s + self._job.duration_s:
                self._in_window += 1
        self._left -= 1
        if not self._left and not self._done.done():
            self._done.set_result(None)


def _told(body: bytes) -> str:
    """A refusal in a line: V2's field `error`, else the text itself, its first 300 characters."""
    text = body.decode(errors="replace")
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        text = document["error"]
    text = " ".join(text.split())
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]}..."


def generate(job: Job) -> LoadResult:
    """Run a job in this process.

    Raises:
        OSError: nothing listens there.
    """
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    gc.collect()
    gc.freeze()
    try:
        return loop.run_until_complete(_Run(job, loop).run())
    finally:
        loop.run_until_complete(_settle())
        loop.close()
        gc.unfreeze()


async def _settle() -> None:
    """Let aborted transports close their sockets."""
    for _ in range(3):
        await asyncio.sleep(0)


def http_message(host: str, path: str, body: Iterable[Any], headers: Sequence[tuple[str, str]]) -> bytes:
    """Build a whole POST.

    Args:
        host: value of `Host`.
        path: of the URL.
        body: chunks.
        headers: besides Host and Content-Length.
    """
    content = b"".join(bytes(chunk) for chunk in body)
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


def main() -> int:
    """Read a job from standard input, run it, and print the result."""
    job = Job.from_json(sys.stdin.read())
    started = time.process_time()
    try:
        result = generate(job)
    except OSError as error:
        print(f"serinus.tuning.load.loadgen: {job.host}:{job.port}: {error}", file=sys.stderr)
        return 1
    print(result.to_json())
    print(f"cpu {time.process_time() - started:.2f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
