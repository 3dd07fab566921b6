"""`serinus top`: numbers of the time between two looks, from real servers' pages."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

import warm_start
from hosts_support import free_port
from representative import every
from rest_support import X1, X, rest, rest_in_thread
from serinus.cli.commands.top import Server, Watch, Watched
from serinus.cli.model_rates import ModelRates, ProcessState, compare, quantile, read_look, sparkline
from serinus.cli.operator import run
from serinus.dataplane.access.access_tokens import Tokens
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import InvalidInput
from serinus.server.loop_watchdog import LoopWatchdog
from serinus.server.request_access import RequestAccess
from top_support import happen
from waiting import until


def test_numbers_are_of_the_time_between_two_looks():
    metrics = Metrics("r2")
    happen(metrics, "m", "1", answered=1000, queue_s=9.0, compute_s=9.0)
    before = read_look(metrics.render().decode(), 100.0)
    happen(metrics, "m", "1", answered=90, failed=6, invalid=4, rows=3, queue_s=0.002, compute_s=0.006)
    metrics.observe_error("rest", 404)
    (rates,), process = compare(before, read_look(metrics.render().decode(), 102.0))
    assert (rates.model, rates.version, rates.revision) == ("m", "1", "r2")
    assert (rates.requests_per_s, rates.errors_per_s, rates.invalid_per_s) == (50.0, 3.0, 2.0)
    assert rates.error_share == pytest.approx(0.06)
    assert rates.queue_ms == pytest.approx(2.0)
    assert rates.compute_ms == pytest.approx(6.0)
    assert rates.batch_rows == pytest.approx(3.0)
    assert rates.p50_ms is not None
    assert rates.p99_ms is not None
    assert 5 <= rates.p50_ms <= rates.p99_ms <= 10, "8 ms lie in the bucket from 5 to 10 ms"
    assert process.refused_per_s == 0.5
    assert process.memory_bytes is not None
    assert process.memory_bytes > 1e6


def test_what_has_not_happened_has_no_number():
    metrics = Metrics()
    happen(metrics, "m", answered=5)
    look = read_look(metrics.render().decode(), 1.0)
    for before in (None, look):
        (rates,), _ = compare(before, read_look(metrics.render().decode(), 2.0))
        assert (rates.requests_per_s, rates.p50_ms, rates.queue_ms, rates.batch_rows) == (0.0, None, None, None)


def test_a_process_that_began_anew_counts_from_nothing():
    old, new = Metrics(), Metrics()
    happen(old, "m", answered=1000)
    happen(new, "m", answered=20)
    before, now = (read_look(each.render().decode(), at) for each, at in ((old, 1.0), (new, 2.0)))
    (rates,), _ = compare(before, now)
    assert rates.requests_per_s == 20
    assert rates.batch_rows == 1
    assert rates.p50_ms is not None


@pytest.mark.parametrize(
    ("share", "buckets", "expected"),
    [
        (0.5, {}, None),
        (0.5, {1.0: 0, float("inf"): 0}, None),
        (0.5, {1.0: 10, 2.0: 10, float("inf"): 10}, 0.5),
        (0.5, {1.0: 0, 2.0: 10, float("inf"): 10}, 1.5),
        (0.99, {1.0: 50, 2.0: 100, float("inf"): 100}, 1.98),
        (0.99, {1.0: 0, float("inf"): 10}, 1.0),
    ],
)
def test_a_quantile_is_that_of_Prometheus(share: float, buckets: dict[float, float], expected: float | None):
    assert quantile(share, buckets) == (None if expected is None else pytest.approx(expected))


def test_a_page_of_something_else_is_told():
    with pytest.raises(InvalidInput, match="no sample"):
        read_look("serinus_requests_total is what?", 1.0)


def test_a_trend_ends_at_its_largest_value():
    assert sparkline([0, 1, 2, 4, 8]) == " ▁▂▄█"
    assert sparkline([0, 0]) == "  "


@pytest.mark.slow
def test_the_page_of_a_running_server_is_shown_once_as_JSON(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with rest_in_thread("row", "broken", revision="r3") as server, httpx.Client() as client:
        url = f"http://127.0.0.1:{server.port}"

        def ask() -> None:
            for _ in range(3):
                client.post(f"{url}/v2/models/row/infer", json=X)
            client.post(f"{url}/v2/models/broken/infer", json=X1)

        ask()
        words = ["top", "--url", url, "-o", "json", "--interval", "2"]
        with (tmp_path / "told").open("w") as out:
            process = warm_start.start(words, env=os.environ, out=out)
        until_s = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until_s:
            ask()
            time.sleep(0.02)  # paced, so that the counts stay small
        assert process.wait(30) == 0
        told = json.loads((tmp_path / "told").read_text())
    (page,) = told["servers"]
    assert (told["interval_s"], page["server"], page["problem"]) == (2.0, f"127.0.0.1:{server.port}", None)
    row, broken = (
        next(one for one in page["models"] if (one["model"], one["version"]) == key)
        for key in (("row", "2"), ("broken", ""))
    )
    assert row["revision"] == "r3"
    assert row["requests_per_s"] > 0
    assert row["errors_per_s"] == 0
    assert row["p99_ms"] >= row["p50_ms"] > 0
    assert row["batch_rows"] == 1
    assert broken["errors_per_s"] == broken["requests_per_s"] > 0
    assert page["process"]["memory_bytes"] > 1e6


def test_without_a_terminal_a_table_is_printed_once(capsys: pytest.CaptureFixture[str]):
    with rest_in_thread("row") as server:
        assert run(["top", "--url", f"http://127.0.0.1:{server.port}", "--interval", "0.1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == (
        "SERVER MODEL REVISION TREND REQ/S ERR % INVALID/S P50 MS P99 MS QUEUE MS COMPUTE MS ROWS/BATCH IN FLIGHT CPU MEM MIB LOOP MS"
    )
    assert " row 1 " in rows[0]
    assert rows[1].split()[:2] == ["row", "2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--url", "ftp://localhost:8080"], "expected http://HOST:PORT"),
        (["fraud", "--url", "http://127.0.0.1:1"], "NAME and --url: give one of them"),
    ],
)
def test_what_is_asked_wrongly_is_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert run(["top", *words]) == 1
    assert said in capsys.readouterr().err


def test_without_a_local_service_it_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["top", "--state-dir", str(tmp_path)]) == 1
    assert "serinus up PATH" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_shown_and_is_a_failure(capsys: pytest.CaptureFixture[str]):
    assert run(["top", "--url", "http://127.0.0.1:1", "--interval", "0.1"]) == 1
    assert "127.0.0.1:1: " in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120, 200])
async def test_the_table_fits_its_terminal_and_leaves_out_the_least_wanted_first(width: int):
    async with rest("row", revision="fraud-predictor-00002") as server:
        loop = asyncio.get_running_loop()
        watch = Watch()
        servers = [Server("default/fraud", f"http://127.0.0.1:{server.port}/metrics")]
        await loop.run_in_executor(None, watch.look, servers)
        for _ in range(3):
            await server.ask("POST", "/v2/models/row/infer", X)
        seen = await loop.run_in_executor(None, watch.look, servers)
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(watch.render(seen, width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    shown = lines[0]
    assert all(title in shown for title in ("SERVER", "MODEL", "REQ/S", "P99 MS", "MEM MIB"))
    assert ("TREND" in shown, "QUEUE MS" in shown) == (width >= 170, width >= 110)
    assert len([line for line in lines[1:] if line.strip()]) >= 2, "both versions of the model"


async def test_the_lag_of_the_event_loop_is_on_the_page():
    metrics = Metrics("r1")
    watchdog = LoopWatchdog(interval_s=0.01)
    metrics.add_source(watchdog.families)

    def looked() -> Any:
        return sum(count for count in read_look(metrics.render().decode(), 1.0).loop_lag.values()) > 0

    try:
        await until(looked, limit_s=20)
        time.sleep(0.15)  # holds the loop: what is to be seen
        await until(lambda: _late(metrics) >= 0.1, limit_s=20)
    finally:
        watchdog.close()
    page = metrics.render().decode()
    assert "# TYPE serinus_event_loop_lag_seconds histogram" in page
    assert 'serinus_event_loop_lag_seconds_bucket{revision="r1",le="+Inf"}' in page.replace(
        'le="+Inf",revision="r1"', 'revision="r1",le="+Inf"'
    )


def _late(metrics: Metrics) -> float:
    """The largest lag that was counted, by its bucket."""
    return quantile(1.0, read_look(metrics.render().decode(), 1.0).loop_lag) or 0.0


def many(models: int) -> list[Watched]:
    """Servers with long names, one of them gone."""
    names = ["a-very-long-name-of-a-team-s-model-with-a-purpose", "m"]
    rates = [
        ModelRates(
            names[n % 2] + f"-{n}", "3", "fraud-predictor-00001", 12345.6, 0, 0, 7.6, 433.0, None, 0.0105, 1, 0, n != 1
        )
        for n in range(models)
    ]
    state = ProcessState(5e8, 1.2, 0.4, 0.0)
    return [
        Watched(Server("default/fraud-with-a-long-name predictor", "u"), "", rates, state),
        Watched(Server("127.0.0.1:9", "v"), "no connection"),
    ]


@pytest.mark.parametrize("width", [80, 100, 110, 130, 150, 160, 170, 240])
def test_a_model_is_one_line_however_long_its_name_and_narrow_the_screen(width: int):
    screen = io.StringIO()
    Console(file=screen, width=width).print(Watch().render(many(4), width))
    lines = screen.getvalue().splitlines()
    assert len(lines) == 1 + 1 + 4, "what is wrong, the titles, a line a model"
    assert lines[0] == "127.0.0.1:9: no connection", "where a short screen shows it"
    for number, line in enumerate(lines[2:]):
        assert len(line) <= width
        assert f"-{number} 3" in line, "a name's end tells it from its like"
        assert "12,345.6" in line
        assert "7.60" in line


def test_a_page_that_needs_a_token_is_read_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    access = RequestAccess(Tokens(["a-token-0123456789"]))
    (tmp_path / "token").write_text("a-token-0123456789\n")
    with rest_in_thread("row", request_access=access) as server:
        words = ["top", "--url", f"http://127.0.0.1:{server.port}", "-o", "json", "--interval", "0.1"]
        assert run(words) == 1
        assert "needs a token" in capsys.readouterr().out
        assert run([*words, "--token", str(tmp_path / "token")]) == 0
        assert json.loads(capsys.readouterr().out)["servers"][0]["models"]


@pytest.mark.parametrize(
    ("written", "page"), every(3, [("{}/m", "/m"), ("{}", "/metrics"), ("http://{}/", "/metrics")], names=2)
)
def test_an_address_is_taken_as_serinus_infer_takes_it(written: str, page: str, capsys: pytest.CaptureFixture[str]):
    address = f"127.0.0.1:{free_port()}"
    assert run(["top", "--url", written.format(address), "-o", "json"]) == 1
    (server,) = json.loads(capsys.readouterr().out)["servers"]
    assert server["url"] == f"http://{address}{page}"
