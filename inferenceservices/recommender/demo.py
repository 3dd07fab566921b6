"""`make demo SERVICE=recommender`: version 2 beside version 1 at 10 % of the traffic, counted from the answers.

Trains both models on MovieLens 100K where they are missing, brings version 1 up with `serinus up`, applies version 2 over it with
`canaryTrafficPercent: 10`, and asks for recommendations of real users through the gateway. Then it promotes the canary and rolls it
back by hand, and at last leaves both to `serinus canary run`: version 2 is promoted, and a version 3 that waits too long for a full batch
is rolled back. Nothing is simulated: every figure is counted or measured here, in this run.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

from recommender_features.catalogue import CATALOGUE_FILE, Catalogue
from serinus.local.run.control_socket import Client
from serinus.manifests.problems import Problems
from serinus.manifests.reading import read_documents

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = ROOT / ".cache" / "recommender"
RECORDS = ROOT / ".cache" / "recommender-canary"
HOST = "recommender.default.localhost"
REQUESTS = 2000
AT_ONCE = 8
TRIES = 30
"""On a machine with other work eight requests at once may be too much; one of them is served in any case."""
SHARE = 0.10
READY = ("--timeout", "1800")
"""`serinus up` waits until everything is ready; a process that cannot start ends it long before."""


@dataclass
class Count:
    """Answers of one pass, by what they say of themselves."""

    versions: Counter[str] = field(default_factory=Counter)
    revisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By the gateway's header and the body's model_version."""
    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    """Requests that were too much at once, and were asked again."""


class Rest:
    """Keep-alive HTTP/1.1 connections to the gateway. What is refused as too much at once (429) is asked again when the answer says."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.refused = 0
        """How often a request was asked again for it."""

    async def recommend(self, user: int | str, k: int = 10, host: str = HOST) -> tuple[dict[str, Any], str]:
        """Ask for one user; returns the answer and the revision that the gateway chose.

        Raises:
            RuntimeError: it was not answered 200, or 429 `TRIES` times.
        """
        request = {
            "inputs": [{"name": "user_id", "datatype": "BYTES", "shape": [1], "data": [str(user)]}],
            "parameters": {"k": k},
        }
        body = json.dumps(request).encode()
        for tries_left in reversed(range(TRIES)):
            line, headers, content = await self._send(host, body)
            if (status := int(line.split()[1])) != 429 or not tries_left:
                break
            self.refused += 1
            await asyncio.sleep(float(headers.get("retry-after", 1)))
        if status != 200:
            raise RuntimeError(f"{line}: {content.decode()}")
        return json.loads(content), headers.get("x-serinus-revision", "")

    async def _send(self, host: str, body: bytes) -> tuple[str, dict[str, str], bytes]:
        """Send a request; returns the status line, the headers and the body of its answer."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        head = (
            f"POST /v2/models/recommender/infer HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        self._idle.append((reader, writer))
        return lines[0], headers, content

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()


def train(console: Console) -> None:
    """Fetch the ratings and train, where a model is missing."""
    if all((MODELS / version / CATALOGUE_FILE).is_file() for version in ("v1", "v2")):
        console.print(f"models: {MODELS.relative_to(ROOT)}, from an earlier run")
        return
    command = [sys.executable, "-m", "recommender_features.training", "--output", str(MODELS), "--seed", "42"]
    began = time.perf_counter()
    words = ("--cache", str(ROOT / ".cache" / "movielens"))
    with (
        console.status("fetching MovieLens 100K") as status,
        subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
    ):
        said = []
        for line in process.stderr or ():
            said.append(line)
            status.update(line.strip())
    if process.returncode:
        raise SystemExit("training failed:\n" + "".join(said[-20:]))
    console.print(f"models: fetched the ratings and trained both in {time.perf_counter() - began:.0f} s")


def offline(console: Console) -> None:
    """Show what the training measured."""
    figures = json.loads((MODELS / "metrics.json").read_text(encoding="utf-8"))
    table = Table(
        title=f"offline, on the last liked film of {figures['measured_users']} users (95 % interval)",
        title_justify="left",
        header_style="dim",
    )
    for column in ("", "recall@10", "NDCG@10"):
        table.add_column(column)
    names = {"popularity": "popularity", "v1": "v1: matrix factorisation", "v2": "v2: two towers"}
    for key, name in {**names, "v2_minus_v1": "v2 - v1, paired"}.items():
        cells = [figures[key][metric] for metric in ("recall_at_10", "ndcg_at_10")]
        texts = [f"{c['mean']:.3f} ({c['interval_95'][0]:.3f} to {c['interval_95'][1]:.3f})" for c in cells]
        table.add_row(name, *texts)
    console.print(table)


def cli(*words: str) -> str:
    """Run a `serinus` command; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "serinus.cli", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"serinus {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def service(console: Console, state: str) -> Iterator[int]:
    """Version 1, then version 2 over it; yields the gateway's port, and ends everything afterwards."""
    try:
        for step, words in (("v1", ("--port", "0", "-d", "-q", "--no-watch")), ("canary", ())):
            path = f"inferenceservices/recommender/knative/{step}"
            began = time.perf_counter()
            with console.status(f"serinus up {path}"):
                cli("up", str(ROOT / path), "--state-dir", state, *READY, *words)
            console.print(f"serinus up {path}: ready after {time.perf_counter() - began:.1f} s")
        yield int(status(state)["gateway"]["port"])
    finally:
        subprocess.run(
            [sys.executable, "-m", "serinus.cli", "down", "--state-dir", state], capture_output=True, check=False
        )


def status(state: str) -> dict[str, Any]:
    """What `serinus status` knows."""
    return json.loads(cli("status", "--state-dir", state, "-o", "json"))


def traffic(console: Console, state: str) -> None:
    """Show who gets what."""
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for column in ("revision", "tag", "traffic"):
        table.add_column(column)
    for row in status(state)["services"][0]["traffic"]:
        table.add_row(row["revision"], row["tag"], f"{row['percent']} %")
    console.print(table)


async def send(console: Console, port: int, users: list[int], total: int, what: str) -> Count:
    """Ask for `total` recommendations of real users, `AT_ONCE` in flight."""
    rest, count = Rest(port), Count()
    numbers = iter(range(total))
    with Progress(
        SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task(what, total=total)

        async def work() -> None:
            for number in numbers:
                start = time.perf_counter()
                answer, revision = await rest.recommend(users[number % len(users)])
                count.seconds.append(time.perf_counter() - start)
                count.versions[answer["model_version"]] += 1
                count.revisions[revision, answer["model_version"]] += 1
                bar.advance(task)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    await rest.close()
    count.refused = rest.refused
    return count


def interval(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return middle - half, middle + half


def counted(console: Console, count: Count) -> bool:
    """Show the split; tells whether header and body agree and the interval holds the share asked for."""
    table = Table(title="counted from the answers", title_justify="left", header_style="dim")
    for column in ("x-serinus-revision (gateway)", "model_version (body)"):
        table.add_column(column)
    for column in ("answers", "share"):
        table.add_column(column, justify="right")
    total = sum(count.versions.values())
    for (revision, version), hits in sorted(count.revisions.items()):
        table.add_row(revision, version, f"{hits:,}", f"{hits / total:.2%}")
    console.print(table)
    low, high = interval(count.versions["v2"], total)
    inside = low <= SHARE <= high
    console.print(
        f"v2 got {count.versions['v2'] / total:.2%} of {total:,} (95 % interval {low:.2%} to {high:.2%}, "
        f"which {'holds' if inside else 'does NOT hold'} {SHARE:.0%}; one run in twenty misses by chance)"
    )
    seconds = sorted(count.seconds)
    middle, late = (seconds[int(len(seconds) * share)] * 1000 for share in (0.5, 0.99))
    console.print(f"one user a request, {AT_ONCE} in flight, client included: p50 {middle:.1f} ms, p99 {late:.1f} ms")
    if count.refused:
        console.print(
            f"{count.refused:,} requests were too much at once (429), and were asked again when the answer said"
        )
    pairs_agree = len(count.revisions) == len(count.versions)
    # Four standard deviations: once in 16 000 runs by chance.
    return pairs_agree and abs(count.versions["v2"] / total - SHARE) <= 4 * math.sqrt(SHARE * (1 - SHARE) / total)


async def beside(console: Console, port: int, users: list[int | str]) -> None:
    """Show what both versions recommend, asked by their tags."""
    rest = Rest(port)
    table = Table(title="the same users, by tag: prev is v1, latest is v2", title_justify="left", show_lines=True)
    for column in ("user", "source"):
        table.add_column(column)
    for column in ("v1", "v2"):
        table.add_column(column, ratio=1)
    for user in users:
        cells, source = [], ""
        for tag in ("prev", "latest"):
            answer, _ = await rest.recommend(user, 5, f"{tag}-{HOST}")
            outputs = {output["name"]: output["data"] for output in answer["outputs"]}
            source = outputs["source"][0]
            cells.append("\n".join(title or str(item) for title, item in zip(outputs["title"], outputs["item_id"])))  # noqa: B905 # one row
        table.add_row(str(user), source, *cells)
    await rest.close()
    console.print(table)


def wait_ready(client: Client) -> None:
    """Wait until what was asked for is ready and routed, however slow the machine; a process that cannot start ends the demo."""
    while True:
        (service,) = client.ask("status")["services"]
        if service["ready"]:
            return
        if service["problem"]:
            raise SystemExit(f"recommender: {service['problem']}")
        for row in service["components"]:
            if row["crash_loop"]:
                last = "\n".join(f"  {line}" for line in row["last_lines"])
                raise SystemExit(f"{row['revision']}: crash loop, {row['last_exit']}; its last lines:\n{last}")
        time.sleep(0.2)


async def steer(console: Console, port: int, state: str, users: list[int]) -> bool:
    """Promote, then roll back; tells whether all answers were of the right version."""
    client, right = Client(Path(state)), True
    for percent, word, wanted in ((100, "promoted", "v2"), (0, "rolled back", "v1")):
        await asyncio.to_thread(client.ask, "traffic", name="recommender", percent=percent, wait_s=1.0)
        await asyncio.to_thread(wait_ready, client)
        count = await send(console, port, users, 200, word)
        console.print(
            f"canaryTrafficPercent {percent}: {word}; of 200 answers {count.versions[wanted]} are of {wanted}",
            style="green" if count.versions[wanted] == 200 else "red",
        )
        right = right and count.versions[wanted] == 200
    return right


def write_version_3(folder: Path) -> Path:
    """Write version 3: version 2's model, and a server that waits 0.15 s for more rows, which on a quiet service never come."""
    documents = [document.value for document in read_documents([HERE / "knative" / "v1"], Problems())]
    service = next(document for document in documents if document["kind"] == "InferenceService")
    service["metadata"]["annotations"]["serinus.dev/local-storage-uri"] = f"gs://serinus-models/recommender={MODELS}"
    predictor = service["spec"]["predictor"]
    predictor["canaryTrafficPercent"] = 0
    model = predictor["model"]
    model["storageUri"] = "gs://serinus-models/recommender/v2"
    model["args"] = [*model.get("args", []), "--batchable=true", "--max_delay_s=0.15"]
    path = folder / "version-3.yaml"
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return path


async def judged(
    console: Console, port: int, state: str, users: list[int], what: str, *, policy: str, wanted: str
) -> bool:
    """Let `serinus canary run` decide while users ask; tells whether it ended as wanted and no request failed."""
    words = ("canary", "run", "recommender", "--state-dir", state, "--records", str(RECORDS), "--interval", "1")
    options = ("--policy", str(HERE / policy), "-o", "lines")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serinus.cli", *words, *options, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    rest, answers, failed, ended = Rest(port), Counter[str](), Counter[str](), asyncio.Event()

    async def ask(first: int) -> None:
        user = first
        while not ended.is_set():
            try:
                _, revision = await rest.recommend(users[user % len(users)])
                answers[revision] += 1
            except RuntimeError as error:
                failed[str(error)] += 1
            user += AT_ONCE

    asking = [asyncio.create_task(ask(number)) for number in range(AT_ONCE)]
    began = time.perf_counter()
    try:
        with console.status(f"serinus canary run: {what}"):
            await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
    seconds = time.perf_counter() - began
    ended.set()
    await asyncio.gather(*asking)
    await rest.close()
    report = await asyncio.to_thread(cli, "canary", "report", "recommender", "--records", str(RECORDS))
    path = RECORDS / f"{what.partition(',')[0].replace(' ', '-')}.json"
    path.write_text(report, encoding="utf-8")
    found = json.loads(report)
    right = found["ending"] == wanted and not failed
    console.print(f"\n{what}: {found['words']}, {seconds:.0f} s", style="green" if right else "red")
    for reason in (found["decision"] or {}).get("reasons", [])[:4]:
        console.print(f"  {reason}", markup=False)
    shown = ", ".join(f"{revision} {count:,}" for revision, count in sorted(answers.items()))
    again = f"; too much at once (429), and asked again: {rest.refused:,}" if rest.refused else ""
    console.print(f"  answers: {shown}; failed: {sum(failed.values())}{again}")
    for said, times in failed.most_common(3):
        console.print(f"    {times:,} times: {said}", style="red", markup=False)
    console.print(f"  report: {path.relative_to(ROOT)}")
    if found["ending"] != wanted:
        console.print(
            f"  it was to be {wanted}. Nothing is simulated: other work on this machine slows versions too; try again when it has less",
            style="red",
        )
    return right


def judge_both(console: Console, port: int, state: str, users: list[int]) -> bool:
    """A good version and a bad one, each left to the judge."""
    right = asyncio.run(
        judged(console, port, state, users, "version 2, two towers", policy="demo-errors.yaml", wanted="promoted")
    )
    with console.status("serinus up version-3.yaml"):
        cli("up", str(write_version_3(Path(state))), "--state-dir", state, *READY)
    wrong = "version 3, which waits for a full batch"
    return (
        asyncio.run(judged(console, port, state, users, wrong, policy="demo-latency.yaml", wanted="rolled back"))
        and right
    )


def main() -> int:
    """Run the demo; ends by itself and leaves no process behind."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "120")))
    console.print(
        Panel.fit(
            "recommender: user id -> features and candidates -> PyTorch -> films with titles\n"
            "version 1 (matrix factorisation) serves; version 2 (two towers) gets 10 % of the traffic",
            title="serinus",
            border_style="yellow",
        )
    )
    train(console)
    offline(console)
    users = Catalogue.load(MODELS / "v1").user_ids.tolist()
    with tempfile.TemporaryDirectory(prefix="serinus-demo-") as state, service(console, state) as port:
        traffic(console, state)
        right = counted(console, asyncio.run(send(console, port, users, REQUESTS, "asking for recommendations")))
        asyncio.run(beside(console, port, [*users[195:198], "nobody"]))
        right = asyncio.run(steer(console, port, state, users)) and right
        right = judge_both(console, port, state, users) and right
    console.print(
        "\nNext:\n"
        f"  serinus canary report recommender --records {RECORDS.relative_to(ROOT)}    # the last run, as JSON\n"
        "  serinus up inferenceservices/recommender/standard    # the same with spec.canary; Ctrl-C ends it\n"
        f"  curl -s -H 'Host: {HOST}' -H 'Content-Type: application/json' \\\n"
        "       http://127.0.0.1:8080/v2/models/recommender/infer -d @inferenceservices/recommender/request.json",
        markup=False,
    )
    return 0 if right else 1


if __name__ == "__main__":
    # Ended by SIGTERM (make, a CI job), it takes its supervisor with it, as by Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
