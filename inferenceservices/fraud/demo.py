"""`make demo`: the fraud InferenceService on this machine, end to end, on held-out transactions.

Runs both forms as `serinus up` runs them (fused: one process; split: transformer and predictor with gRPC between them),
behind the real Envoy; fills the feature store with the days before; streams the held-out day through the gateway over REST and
over gRPC; compares the decisions with what became of the transactions. Nothing is simulated: every figure is measured here,
in this run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import grpc
from fraud_features.sample import Sample, load_history, load_sample, raw_tensors
from serinus import InferRequest, InferResponse, Tensor
from serinus.protocol import proto_codec
from serinus.protocol.rest_codec import RestCodec

HERE = Path(__file__).resolve().parent
HOST = "fraud.default.localhost"
FORMS = ("fused", "split")
AT_ONCE = 8
TRIES = 30
"""On a machine with other work eight requests at once may be too much; one of them is served in any case."""
DETACHED = ("-d", "-q", "--no-watch", "--timeout", "1800")
"""`serinus up` returns when everything is ready, however slow the machine; a process that cannot start ends it long before."""
CODEC = RestCodec()
COLOURS = {"approve": "green", "review": "yellow", "decline": "red"}

Ask = Callable[[InferRequest], Awaitable[InferResponse]]


@dataclass
class Decision:
    """One answered transaction."""

    row: int
    score: float
    decision: str
    reasons: str
    seconds: float


@dataclass
class Outcome:
    """One pass over the held-out day."""

    form: str
    protocol: str
    decisions: list[Decision] = field(default_factory=list)
    seconds: float = 0.0

    def latency_ms(self, share: float) -> float:
        """Quantile of the seconds between request and answer."""
        return float(np.quantile([decision.seconds for decision in self.decisions], share)) * 1000

    @property
    def scores(self) -> np.ndarray:
        """float64 [rows], in the order of the transactions."""
        return np.array([decision.score for decision in sorted(self.decisions, key=lambda item: item.row)])


def make_request(part: Sample, *, with_labels: bool = False) -> InferRequest:
    """One V2 request: a named tensor for each column of the raw transactions."""
    tensors = raw_tensors(part, with_labels=with_labels)
    inputs = [Tensor(name, tensor.datatype, tuple(tensor.shape), tensor.data) for name, tensor in tensors.items()]
    return InferRequest("fraud", inputs)


class Rest:
    """Keep-alive HTTP/1.1 connections to the gateway. What is refused as too much at once (429) is sent again when the answer says."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: InferRequest) -> InferResponse:
        """Send one V2 JSON request."""
        body = b"".join(CODEC.encode_request(request, binary=False).chunks)
        status, content = await self.send("POST", "/v2/models/fraud/infer", body)
        if status != 200:
            raise RuntimeError(f"{status}: {content.decode()}")
        return CODEC.decode_response(content)

    async def send(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request, at most `TRIES` times while it is too much; returns status and body."""
        for tries_left in reversed(range(TRIES)):
            status, headers, content = await self._send(method, path, body)
            if status != 429 or not tries_left:
                break
            await asyncio.sleep(float(headers.get("retry-after", 1)))
        return status, content

    async def _send(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        if headers.get("transfer-encoding") == "chunked":
            content = b""
            while size := int((await reader.readline()).strip(), 16):
                content += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            content = await reader.readexactly(int(headers.get("content-length", 0)))
        self._idle.append((reader, writer))
        return int(lines[0].split()[1]), headers, content

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()


RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "1s",
                    "maxBackoff": "5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
)
"""gRPC's service config; 5 attempts are the most that gRPC takes. A server's push-back comes before the back-off."""


class Grpc:
    """One gRPC channel to the gateway. What is refused as too much at once (RESOURCE_EXHAUSTED) is sent again."""

    def __init__(self, port: int) -> None:
        options = [
            ("grpc.default_authority", HOST),
            ("grpc.max_send_message_length", -1),
            ("grpc.service_config", RETRIES),
        ]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)
        self._infer = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    async def ask(self, request: InferRequest) -> InferResponse:
        """Send one V2 request with raw contents."""
        return proto_codec.decode_response(await self._infer(proto_codec.encode_request(request), timeout=60))

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


@contextmanager
def services(console: Console, folder: Path) -> Iterator[dict[str, int]]:
    """`serinus up` every form at once; yields the port of each one's gateway; `serinus down` afterwards."""
    command = [sys.executable, "-m", "serinus.cli"]
    states = {form: str(folder / form) for form in FORMS}
    began = time.perf_counter()
    try:
        with console.status(" and ".join(f"serinus up inferenceservices/fraud/{form}" for form in FORMS)):
            started = {
                form: subprocess.Popen(
                    [*command, "up", str(HERE / form), "--state-dir", state, "--port", "0", *DETACHED],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for form, state in states.items()
            }
            said = {form: process.communicate()[0] for form, process in started.items()}
        for form, process in started.items():
            if process.returncode != 0:
                raise SystemExit(f"serinus up inferenceservices/fraud/{form} failed:\n{said[form]}")
        console.print(f"both forms are ready after {time.perf_counter() - began:.1f} s")
        ports = {}
        for form, state in states.items():
            asked = [*command, "status", "--state-dir", state, "-o", "json"]
            status = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
            ports[form] = int(status["gateway"]["port"])
            console.print(_processes(form, status))
        yield ports
    finally:
        ends = [
            subprocess.Popen(
                [*command, "down", "--state-dir", state], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            for state in states.values()
        ]
        for end in ends:
            end.wait()


def _processes(form: str, status: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for column in ("form", "component", "revision", "pid", "REST", "gRPC"):
        table.add_column(column)
    gateway = status["gateway"]
    table.add_row(form, "gateway (Envoy)", "", str(gateway["pid"]), str(gateway["port"]), str(gateway["port"]))
    for row in status["services"][0]["components"]:
        table.add_row("", *(str(row[key]) for key in ("component", "revision", "pid", "http_port", "grpc_port")))
    return table


async def fill(console: Console, ask: Ask, history: Sample) -> None:
    """Send the days before, with their labels, so that every window is full."""
    began = time.perf_counter()
    with Progress(
        SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("filling the feature store", total=len(history))
        for part in history.batches(1000):
            await ask(make_request(part, with_labels=True))
            bar.advance(task, len(part))
    took = time.perf_counter() - began
    console.print(
        f"feature store: {len(history):,} earlier transactions in {took:.1f} s ({len(history) / took:,.0f}/s, batches of 1000)"
    )


async def stream(console: Console, outcome: Outcome, ask: Ask, sample: Sample) -> None:
    """One request per transaction, `AT_ONCE` in flight, with a live table of decisions."""
    recent: deque[Decision] = deque(maxlen=10)
    rows = iter(range(len(sample)))
    began = time.perf_counter()

    async def work() -> None:
        for row in rows:
            request = make_request(sample.part(row, row + 1))
            start = time.perf_counter()
            answer = await ask(request)
            seconds = time.perf_counter() - start
            decision = _decision(row, answer, seconds)
            outcome.decisions.append(decision)
            if decision.decision != "approve" or row % 40 == 0:
                recent.append(decision)

    def view() -> Group:
        took = time.perf_counter() - began
        done = len(outcome.decisions)
        title = f"{outcome.form}, {outcome.protocol}: {done:,} of {len(sample):,} transactions, {done / max(took, 1e-9):,.0f}/s"
        return Group(Text(title, style="bold"), _decisions(recent, sample))

    with Live(view(), console=console, refresh_per_second=8, transient=True) as live:
        workers = [asyncio.ensure_future(work()) for _ in range(AT_ONCE)]
        while not all(worker.done() for worker in workers):
            await asyncio.wait(workers, timeout=0.12)
            live.update(view())
        for worker in workers:
            worker.result()
    outcome.seconds = time.perf_counter() - began


def _decision(row: int, answer: InferResponse, seconds: float) -> Decision:
    def first(name: str) -> Any:
        tensor = answer.output(name)
        if tensor is None:
            raise RuntimeError(f"the answer has no output {name!r}")
        return tensor.data.ravel()[0]

    return Decision(row, float(first("score")), first("decision").decode(), first("reasons").decode(), seconds)


def _decisions(decisions: Sequence[Decision], sample: Sample) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1))
    for column, side in (("transaction", "left"), ("customer", "left"), ("terminal", "left"), ("amount", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type] # rich's literal type
    for column in ("score", "decision", "reasons", "was"):
        table.add_column(column)
    columns = sample.columns
    for item in decisions:
        table.add_row(
            columns["transaction_id"][item.row].decode(),
            columns["customer_id"][item.row].decode(),
            columns["terminal_id"][item.row].decode(),
            f"{columns['amount'][item.row]:.2f}",
            f"{item.score:.4f}",
            Text(item.decision, style=COLOURS[item.decision]),
            item.reasons,
            Text("fraud", style="bold red") if sample.labels[item.row] else "",
        )
    return table


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as the mean of the precision at each fraud (ties share their best rank)."""
    order = np.argsort(-scores, kind="stable")
    hits = labels[order].astype(bool)
    distinct = np.r_[np.diff(scores[order]) != 0, True]
    found = np.cumsum(hits)[distinct]
    precision = found / (np.flatnonzero(distinct) + 1)
    return float(np.sum(np.diff(np.r_[0, found]) * precision) / hits.sum())


def verdict(outcome: Outcome, labels: np.ndarray) -> Group:
    """Confusion matrix and AUC-PR."""
    table = Table(title="decisions against outcomes", box=None, title_justify="left", header_style="dim")
    table.add_column("")
    for name in ("approve", "review", "decline"):
        table.add_column(name, justify="right", style=COLOURS[name])
    chosen = np.array([item.decision for item in sorted(outcome.decisions, key=lambda item: item.row)])
    for label, name in ((0, "genuine"), (1, "fraud")):
        table.add_row(
            name, *(f"{np.sum((chosen == word) & (labels == label)):,}" for word in ("approve", "review", "decline"))
        )
    caught = np.mean(chosen[labels == 1] != "approve")
    held = np.mean(chosen[labels == 0] != "approve")
    text = (
        f"AUC-PR {average_precision(labels, outcome.scores):.4f}; {caught:.1%} of frauds stopped or reviewed, "
        f"{held:.2%} of genuine ones held up"
    )
    return Group(table, Text(text, style="bold"))


def deciders(outcome: Outcome, labels: np.ndarray) -> Table:
    """Whatever held transactions up: the blend of both models (SCORE_...), the auto-encoder alone (ANOMALY), the rules."""
    table = Table(
        title="what spoke against a transaction", box=None, title_justify="left", header_style="dim", padding=(0, 2)
    )
    table.add_column("reasons")
    for column in ("decision", "transactions", "of them fraud"):
        table.add_column(column, justify="right")
    counts: dict[tuple[str, str], list[int]] = {}
    for item in outcome.decisions:
        if item.reasons:
            counts.setdefault((item.reasons, item.decision), [0, 0])[int(labels[item.row])] += 1
    for (reasons, decision), (genuine, fraud) in sorted(counts.items(), key=lambda entry: -sum(entry[1])):
        table.add_row(reasons, Text(decision, style=COLOURS[decision]), f"{genuine + fraud:,}", f"{fraud:,}")
    return table


async def members(console: Console, rest: Rest) -> None:
    """Show what the ensemble is made of, as its metadata tells it."""
    _, content = await rest.send("GET", "/v2/models/fraud")
    told = json.loads(json.loads(content)["properties"]["model"])["members"]
    table = Table(title="members of the ensemble", box=None, title_justify="left", header_style="dim", padding=(0, 2))
    for column in ("member", "file", "runs as"):
        table.add_column(column)
    xgb, anomaly = told["xgb"], told["anomaly"]
    table.add_row("XGBoost", xgb["model_file"], f"{xgb['engine']}, iterations {xgb['iterations']}")
    table.add_row(
        "PyTorch auto-encoder", anomaly["file"], f"TorchScript, {anomaly['device']}, {anomaly['threads']} thread"
    )
    console.print(table)


async def malformed(console: Console, rest: Rest, sample: Sample) -> None:
    """Show the answer to a transaction that cannot be."""
    bad = sample.part(0, 1)
    columns = {name: values.copy() for name, values in bad.columns.items()}
    columns["amount"][0] = -12.5
    columns["type"][0] = b"CASH"
    body = b"".join(CODEC.encode_request(make_request(Sample(columns, bad.labels)), binary=False).chunks)
    status, content = await rest.send("POST", "/v2/models/fraud/infer", body)
    console.print(f"a transaction of -12.50 by CASH is answered {status}:")
    console.print(f"  {json.loads(content)['error']}", style="yellow", markup=False, highlight=False)


METRICS = (
    "nv_inference_request_success",
    "nv_inference_exec_count",
    "serinus_request_seconds_count",
    "fraud_features_",
)


async def metrics(console: Console, rest: Rest) -> None:
    """Show the key lines of the metrics page."""
    _, content = await rest.send("GET", "/metrics")
    lines = [line for line in content.decode().splitlines() if line.startswith(METRICS)]
    console.print("GET /metrics, among others:")
    for line in lines[:12]:
        console.print(f"  {line}", style="dim", markup=False, highlight=False)


async def show(
    console: Console, form: str, port: int, history: Sample, sample: Sample, *, details: bool
) -> list[Outcome]:
    """Everything that one form shows."""
    rest, rpc = Rest(port), Grpc(port)
    try:
        if details:
            await members(console, rest)
        await fill(console, rpc.ask, history)
        outcomes = []
        for protocol, ask in (("REST", rest.ask), ("gRPC", rpc.ask)):
            outcome = Outcome(form, protocol)
            await stream(console, outcome, ask, sample)
            outcomes.append(outcome)
            console.print(
                f"{form}, {protocol}: {len(sample):,} transactions one by one, {AT_ONCE} in flight: "
                f"p50 {outcome.latency_ms(0.5):.2f} ms, p99 {outcome.latency_ms(0.99):.2f} ms"
            )
        if details:
            flagged = [item for item in outcomes[0].decisions if item.decision != "approve"]
            console.print(_decisions(flagged[:12], sample))
            console.print(verdict(outcomes[0], sample.labels))
            console.print(deciders(outcomes[0], sample.labels))
            await malformed(console, rest, sample)
            await metrics(console, rest)
        return outcomes
    finally:
        await rest.close()
        await rpc.close()


def summary(outcomes: Sequence[Outcome]) -> Table:
    """Latency and throughput of each form, the client's own time included."""
    table = Table(title="one transaction a request, client included", title_justify="left", header_style="dim")
    for column in ("form", "protocol"):
        table.add_column(column)
    for column in ("p50 ms", "p99 ms", "transactions/s"):
        table.add_column(column, justify="right")
    for outcome in outcomes:
        table.add_row(
            outcome.form,
            outcome.protocol,
            f"{outcome.latency_ms(0.5):.2f}",
            f"{outcome.latency_ms(0.99):.2f}",
            f"{len(outcome.decisions) / outcome.seconds:,.0f}",
        )
    return table


def main() -> int:
    """Run the demo; ends by itself and leaves no process behind."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "120")))
    history, sample = load_history(HERE / "data"), load_sample(HERE / "data")
    console.print(
        Panel.fit(
            f"fraud: raw transactions -> features -> XGBoost + PyTorch auto-encoder -> calibrated blend -> rules -> decision\n"
            f"{len(sample):,} held-out transactions with labels, {int(sample.labels.sum())} of them frauds; "
            f"{len(history):,} transactions of the days before",
            title="serinus",
            border_style="yellow",
        )
    )
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="serinus-demo-") as folder, services(console, Path(folder)) as ports:
        for form, port in ports.items():
            outcomes += asyncio.run(show(console, form, port, history, sample, details=form == "fused"))
    console.print(summary(outcomes))
    agree = True
    for form in FORMS:
        one, other = (outcome.scores for outcome in outcomes if outcome.form == form)
        agree = agree and np.array_equal(one, other)
        console.print(
            f"{form}: REST and gRPC answer {'the same scores, bit for bit' if np.array_equal(one, other) else 'DIFFERENTLY'}"
        )
    apart = int(np.sum(outcomes[0].scores != outcomes[2].scores))
    console.print(
        f"fused and split: {len(sample) - apart:,} of {len(sample):,} scores are the same, bit for bit"
        + (
            f"; {apart} had another transaction of the same customer or terminal in flight, and met it in the other order"
            if apart
            else ""
        )
    )
    console.print(
        "\nNext:\n"
        "  make up SERVICE=fraud                    # stays up; Ctrl-C ends it\n"
        f"  curl -s -H 'Host: {HOST}' -H 'Content-Type: application/json' \\\n"
        "       http://127.0.0.1:8080/v2/models/fraud/infer -d @inferenceservices/fraud/request.json"
    )
    return 0 if agree else 1


if __name__ == "__main__":
    # Ended by SIGTERM (make, a CI job), it takes its supervisor with it, as by Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
