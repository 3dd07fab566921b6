"""A run's page says first how it stands, shows nothing as markup that came from outside, and follows a run in a real browser."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import NEEDS_CHROMIUM, dumped, screenshot
from canary_support import Rollout, Truth
from depth import DEEP
from serinus.canary.policy import load_policy
from serinus.canary.replay import Replay
from serinus.canary.rollout.run_events import Event
from serinus.canary.rollout.run_files import RunFiles
from serinus.canary.web.history import RunHistory
from serinus.canary.web.listener import Listener, parse_address
from serinus.canary.web.live_page import LivePage
from serinus.canary.web.page import render_document
from serinus.canary.web.windows import bucket_quantile, windows_of
from serinus.cli.operator import run as command
from serinus.errors import ConfigError

BAD, GOOD = Truth(errors=0.03, median_s=0.022), Truth()
RUN = "prod/recommender r-00001 > r-00002 @1000"


def events_of(truth: Truth, looks: int = 60, ending: str = "") -> list[dict[str, Any]]:
    """What a run over a simulated rollout has told."""
    rollout = Rollout(canary=truth, looks=looks).simulate(np.random.default_rng(3), RUN)
    begin = {
        "kind": "begin", "words": "", "run": RUN, "time": 1000.0, "stable": "r-00001", "canary": "r-00002",
        "percent": 0, "mode": "Knative", "notes": [], "quantile": 0.99,
    }  # fmt: skip
    found = [begin, {"kind": "move", "words": "canaryTrafficPercent: 10", "run": RUN, "time": 1001.0, "percent": 10}]
    lines = [json.dumps(look.as_json()).encode() for look in rollout]
    for look, decision, standing in Replay(load_policy(), "looks").standings(lines):
        verdict = {**decision.as_json(), "next_percent": decision.next_percent}
        found.append(
            {"kind": "look", "words": decision.decision, "run": RUN, "time": 1000.0 + look.seconds}
            | {"counts": look.as_json(), "verdict": verdict, "standing": standing.as_json()}
        )
    if ending:
        found.append({"kind": "end", "words": f"{ending} after all", "run": RUN, "time": 2000.0, "ending": ending})
    return found


def history_of(events: list[dict[str, Any]]) -> RunHistory:
    history = RunHistory()
    for event in events:
        history.take(event)
    return history


class Reader(HTMLParser):
    """Elements, attributes and text of a document; complains of what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "circle", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    return reader


@pytest.mark.parametrize(
    ("truth", "ending", "said"),
    [
        (BAD, "rolled back", "Rolled back: r-00001 has all traffic again."),
        (GOOD, "promoted", "Promoted: r-00002 has all traffic."),
        (GOOD, "undecided", "Undecided at 10 %: a person has to decide."),
        (GOOD, "changed", "Stopped: somebody else changed the service."),
        (GOOD, "verdict", "Nothing was changed."),
        (GOOD, "", "Going up from 10 %: nothing is against the next step."),
    ],
)
def test_the_first_words_say_how_the_run_stands(truth: Truth, ending: str, said: str):
    document = render_document([history_of(events_of(truth, ending=ending))])
    text = " ".join(read(document).text)
    assert said in text
    assert text.index(said) < text.index("Both versions")
    for part in ("Evidence against the canary", "Errors", "Latency", "Score distribution", "Traffic of the canary"):
        assert part in text


def test_a_run_without_a_look_says_what_it_waits_for():
    text = " ".join(read(render_document([history_of(events_of(GOOD)[:1])])).text)
    assert "Waiting for the first look" in text


def test_every_picture_is_told_in_words_and_every_number_is_in_a_table():
    reader = read(render_document([history_of(events_of(BAD))]))
    pictures = [attributes for tag, attributes in reader.tags if tag == "svg"]
    assert len(pictures) >= 6
    assert all(each.get("role") == "img" and len(each.get("aria-label") or "") > 10 for each in pictures)
    assert any(tag == "th" and each.get("scope") == "col" for tag, each in reader.tags)
    assert ("html", {"lang": "en"}) in reader.tags


def test_a_document_asks_for_nothing_beside_itself():
    document = render_document([history_of(events_of(BAD))])
    reader = read(document)
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link", "img", "iframe", "object", "base", "form")]
    assert not [each for _, each in reader.tags if {"src", "href", "style"} & each.keys()]
    assert "http://" not in document
    assert "https://" not in document


def poisoned(value: Any) -> Any:
    """Every text of an event, with markup in it."""
    if isinstance(value, dict):
        return {key: poisoned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return (
        f"""{value}"'><img src=x onerror=alert(1)>&amp;</section><script>alert(2)</script>"""
        if isinstance(value, str)
        else value
    )


def test_nothing_that_comes_from_outside_is_markup():
    clean, events = events_of(BAD, ending="undecided"), []
    for event in clean:
        poison = {
            key: value if key in ("kind", "counts", "ending") else poisoned(value) for key, value in event.items()
        }
        events.append(poison)
    events += [
        {"kind": kind, "words": poisoned("x"), "run": RUN, "time": 1.0} for kind in ("note", "problem", poisoned("k"))
    ]
    expected = read(render_document([history_of(clean)]))
    found = read(render_document([history_of(events)]))
    assert not {"img", "script"} & {tag for tag, _ in found.tags}
    assert {name for _, each in found.tags for name in each} == {name for _, each in expected.tags for name in each}
    assert "onerror=alert(1)" in " ".join(found.text)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"kind": "look", "time": 1.0},
        {"kind": "look", "time": 1.0, "verdict": 3, "counts": {}},
        {"kind": "look", "time": "noon", "verdict": {}, "counts": {}},
        {"kind": "begin", "time": 1.0, "percent": "many"},
        {"kind": "end", "time": 1.0},
        {"kind": "look", "time": 1.0, "verdict": {"decision": "hold"}, "counts": {"seconds": 1}, "standing": [1]},
    ],
    ids=str,
)
def test_an_event_that_makes_no_sense_is_left_out_and_said(event: dict[str, Any]):
    history = history_of([*events_of(GOOD, 5), event])
    assert history.unread == 1
    assert "1 recorded events made no sense" in render_document([history])


def test_a_long_run_is_thinned_and_keeps_its_counts_and_splits():
    history = RunHistory()
    for index in range(9000):
        arm = {"requests": index, "errors": 0}
        look = {"seconds": index, "percent": 10 if index < 4000 else 50, "stable": arm, "canary": arm}
        history.take({"kind": "look", "time": 1.0, "counts": look, "verdict": {"decision": "hold", "look": index + 1}})
    assert len(history.points) <= 2001
    assert history.points[-1].look.canary.requests == 8999
    assert history.looks == 9000
    assert [each.look.seconds for each in history.points if each.look.percent == 10][-1] == 3999
    windows = windows_of(history.points, 0.99)
    assert len(windows) <= 50
    assert windows[-1].share == 50


@pytest.mark.parametrize(
    ("counts", "p", "expected"),
    [
        ([10, 0, 0], 0.5, 0.5),
        ([0, 10, 0], 0.5, 1.5),
        ([5, 5, 0], 0.75, 1.5),
        ([0, 0, 4], 0.99, 2.0),
        ([0, 0, 0], 0.5, None),
    ],
)
def test_a_quantile_lies_in_its_bucket(counts: list[int], p: float, expected: float | None):
    assert bucket_quantile([0.0, 1.0, 2.0, 2.0], counts, p) == expected


# Over HTTP


@contextmanager
def served(folder: Path) -> Iterator[tuple[LivePage, Listener, RunFiles]]:
    files = RunFiles(folder, "m")
    page = LivePage(files)
    listener = Listener("127.0.0.1", 0, page.answer)
    listener.start()
    try:
        yield page, listener, files
    finally:
        listener.close()


def tell(page: LivePage, files: RunFiles, event: dict[str, Any]) -> None:
    """As the controller does: written first."""
    files.write_event(event)
    page.take(Event(event["kind"], event["words"], {k: v for k, v in event.items() if k not in ("kind", "words")}))


def ask(listener: Listener, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, Any]:
    port = int(listener.url.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_a_page_asks_for_what_has_changed_alone(tmp_path: Path):
    events = events_of(GOOD, 10, ending="promoted")
    with served(tmp_path) as (page, listener, files):
        for event in events[:-1]:
            tell(page, files, event)
        status, body, headers = ask(listener, "/")
        assert status == 200
        assert b"r-00002" in body
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        news = json.loads(ask(listener, "/live.json?seen=0")[1])
        assert "Both versions" in news["html"]
        assert json.loads(ask(listener, f"/live.json?seen={news['version']}")[1]) == {
            "version": news["version"],
            "ended": False,
        }
        tell(page, files, events[-1])
        last = json.loads(ask(listener, f"/live.json?seen={news['version']}")[1])
        assert last["ended"]
        assert "Promoted" in last["title"]
        page.wait_for_readers(5.0)  # at once: it has been read
        assert ask(listener, "/", "HEAD")[:2] == (200, b"")


def test_a_run_that_is_gone_on_with_shows_what_was_before(tmp_path: Path):
    events = events_of(GOOD, 10)
    with served(tmp_path) as (page, listener, files):
        for event in events:
            files.write_event(event)
        tell(page, files, {**events[0], "time": 3000.0})
        assert b"10 looks" in ask(listener, "/")[1]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("POST", "/", {"Content-Length": "0"}, 405),
        ("DELETE", "/", {}, 405),
        ("GET", "/", {"Host": "evil.example"}, 403),
        ("GET", "/", {"Host": "[::1"}, 403),
        ("GET", "/", {"Host": "localhost:8090"}, 200),
        ("GET", "/live.json", {"Origin": "http://evil.example"}, 403),
        ("POST", "/", {"Content-Length": "many"}, 411),
        ("POST", "/", {"Content-Length": "99999999999"}, 413),
        ("POST", "/", {"Content-Length": "9" * 5000}, 413),
        ("GET", "/?" + "a=b&" * 100, {}, 400),
        ("PUT", "/", {}, 501),
    ],
)
def test_what_is_no_page_is_refused(tmp_path: Path, method: str, path: str, headers: dict[str, str], status: int):
    with served(tmp_path) as (_, listener, _):
        assert ask(listener, path, method, **headers)[0] == status


def test_clients_that_say_nothing_do_not_keep_others_out_for_ever_and_leave_no_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with served(tmp_path) as (_, listener, _):
        port = int(listener.url.rstrip("/").rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(20)]
        assert ask(listener, "/healthz")[0] == 200
        for each in silent:
            each.sendall(b"GET / HTTP/1.1\r\n\x00")
            each.close()
        assert ask(listener, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8090", ("127.0.0.1", 8090)),
        ("0.0.0.0:8090", ("0.0.0.0", 8090)),
        ("[::1]:0", ("::1", 0)),
        *((bad, None) for bad in ("", ":8090", "host", "host:", "70000", "-1", "a:b:c", "１")),
    ],
)
def test_an_address_is_a_port_or_a_host_and_a_port(text: str, expected: tuple[str, int] | None):
    if expected is None:
        with pytest.raises(ConfigError, match="HOST:PORT"):
            parse_address(text, "--web")
    else:
        assert parse_address(text, "--web") == expected


def test_a_port_that_is_taken_is_said(tmp_path: Path):
    with served(tmp_path) as (page, listener, _):
        port = int(listener.url.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match="cannot be listened on"):
            Listener("127.0.0.1", port, page.answer)


# By the commands


def test_recorded_looks_become_a_page_of_all_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    looks = tmp_path / "looks.jsonl"
    rollouts = [
        Rollout(canary=truth, looks=60).simulate(np.random.default_rng(3), run)
        for truth, run in ((BAD, "bad"), (GOOD, "good"))
    ]
    looks.write_text("".join(json.dumps(look.as_json()) + "\n" for rollout in rollouts for look in rollout))
    assert command(["canary", "replay", str(looks), "--html", str(tmp_path / "page.html")]) == 0
    reader = read((tmp_path / "page.html").read_text())
    text = " ".join(reader.text)
    assert "it would roll back" in text
    assert sum(tag == "section" for tag, _ in reader.tags) == 2
    assert command(["canary", "replay", str(looks), "--html", str(tmp_path / "no" / "page.html")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text("\n")
    assert command(["canary", "replay", str(tmp_path / "empty.jsonl"), "--html", str(tmp_path / "e.html")]) == 1
    many = [
        json.dumps({"run": str(index), "seconds": 1, "stable": {"requests": 1}, "canary": {"requests": 1}})
        for index in range(60)
    ]
    looks.write_text("\n".join(many))
    assert command(["canary", "replay", str(looks), "--html", str(tmp_path / "many.html")]) == 1
    assert "more than 50 runs" in capsys.readouterr().err


def test_a_recorded_run_becomes_a_page(tmp_path: Path):
    files = RunFiles(tmp_path / "canary", "recommender")
    for event in events_of(BAD, ending="rolled back"):
        files.write_event(event)
    page = tmp_path / "report.html"
    assert command(["canary", "report", "recommender", "--state-dir", str(tmp_path), "--html", str(page)]) == 0
    assert "Rolled back: r-00001 has all traffic again." in " ".join(read(page.read_text()).text)


# In a browser


@NEEDS_CHROMIUM
@pytest.mark.slow
def test_a_browser_follows_a_run_to_its_end(tmp_path: Path):
    events = events_of(BAD, ending="rolled back")
    with served(tmp_path) as (page, listener, files):
        for event in events[:10]:
            tell(page, files, event)
        answer = page.answer

        def later(request: Any) -> Any:
            """The run ends once the page has been read, so what a browser shows of it its script has asked for."""
            given = answer(request)
            if request.path == "/":
                for event in events[10:]:
                    tell(page, files, event)
            return given

        listener._server.answer = later  # the page's own answers, between which the run goes on
        document = dumped(tmp_path, listener.url, wait_s=8.0)
        assert "Rolled back: r-00001 has all traffic again." in document
        assert "<title>Rolled back" in document
        page.wait_for_readers(1.0)


@NEEDS_CHROMIUM
@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "dark"), (1280, "light"), *([(390, "light"), (1280, "dark")] if DEEP else [])]
)
def test_a_browser_draws_a_report_narrow_and_wide_light_and_dark(tmp_path: Path, width: int, scheme: str):
    path = tmp_path / "report.html"
    path.write_text(render_document([history_of(events_of(BAD, ending="rolled back"))]))
    found = screenshot(tmp_path, path.as_uri(), width=width, scheme=scheme)
    assert found[:2] == (width, 2400)
    assert found[2] > 40_000  # an empty page of that size has some 10 kB
