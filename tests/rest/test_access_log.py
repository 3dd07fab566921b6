"""The access log over REST: who is written, what of, and that nothing is written where it is off."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

import numpy as np
import pytest

from http_support import Raw
from rest_support import X1, X, request_of, rest, wire
from serinus.cli.serving.log_lines import JsonLines

TIMES = r" rows (\d+) queue \d+\.\d{3} ms batch (\d+) compute \d+\.\d{3} ms"
LINE = re.compile(
    r"rest (\S+ \S+) status (\d+) (\d+) bytes (\d+\.\d{3}) ms(?: model (\S+) version (\S+))?"
    rf"(?:{TIMES})? request_id ([0-9a-f-]{{36}})"
)


def written(caplog: Any) -> list[tuple[str, int, int, float]]:
    """Give request, status, bytes and milliseconds of each line."""
    lines = [record.getMessage() for record in caplog.records if record.name == "serinus.access"]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    return [(each[1], int(each[2]), int(each[3]), float(each[4])) for each in found if each]


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_each_request_has_a_line_with_its_status_and_size(http: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", http=http, access_log=True) as server:
        whole = await server.ask("POST", "/v2/models/row/infer?a=b", X)
        refused = await server.ask("GET", "/v2/models/nobody")
        await server.ask("HEAD", "/v2")
    lines = written(caplog)
    assert [(request, status) for request, status, _, _ in lines] == [
        ("POST /v2/models/row/infer?a=b", 200),
        ("GET /v2/models/nobody", 404),
        ("HEAD /v2", 200),
    ]
    assert [length for _, _, length, _ in lines[:2]] == [len(whole.body), len(refused.body)]


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_a_path_that_is_not_there_has_a_line_and_an_answer(http: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", http=http, access_log=True) as server:
        assert (await server.ask("GET", "/nowhere")).status == 404
    assert [(request, status) for request, status, _, _ in written(caplog)] == [("GET /nowhere", 404)]


class Clock:
    """Stands in for `time`: a quarter of a second passes between two looks."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 0.25
        return self.now


async def test_the_time_of_a_line_is_from_the_request_to_its_answer(caplog: Any, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.INFO, "serinus.access")
    clock = Clock()
    monkeypatch.setattr("serinus.server.request_observer.time", clock)
    monkeypatch.setattr("serinus.dataplane.telemetry.request_records.time", clock)
    async with rest("row", access_log=True) as server:
        await server.ask("POST", "/v2/models/row/infer", X)
    assert [milliseconds for _, _, _, milliseconds in written(caplog)] == [250.0]


async def test_a_line_names_the_model_and_the_version_that_answered(caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", access_log=True) as server:
        await server.ask("POST", "/v2/models/row/infer", X)
        await server.ask("GET", "/v2")
    lines = [record.getMessage() for record in caplog.records if record.name == "serinus.access"]
    assert " ms model row version 2 rows 1 queue " in lines[0]
    assert "model" not in lines[1]
    assert "rows" not in lines[1]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"a status 200 model evil trace_id f00", "'a status 200 model evil trace_id f00'"),
        (b"a\x9b31mb", r"'a\x9b31mb'"),
        (b"a\x85b", r"'a\x85b'"),
        (b"a\xe2\x80\xa8b", r"'a\xe2\x80\xa8b'"),
        (b"'a'", "\"'a'\""),
        (b"a/b=c", "a/b=c"),
    ],
    ids=["fields", "a terminal's sequence", "a line's end (C1)", "a line's end (UTF-8)", "quotes", "nothing strange"],
)
async def test_a_request_id_looks_like_no_other_field_and_steers_no_terminal(sent: bytes, told: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", access_log=True) as server:
        client = await Raw.open(server.port)
        await client.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Request-Id: " + sent + b"\r\n\r\n")
        assert (await client.answer()).status == 200
        await client.close()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "serinus.access"]
    assert line.endswith(f" ms request_id {told}")


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_nothing_is_written_where_it_is_off(http: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", http=http) as server:
        assert (await server.ask("POST", "/v2/models/row/infer", X)).status == 200
    assert written(caplog) == []


async def test_what_is_no_request_is_written_with_its_status_and_no_time(caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", access_log=True) as server:
        await server.ask("GET", "/v2/models/\xe9")
    lines = [record.getMessage() for record in caplog.records if record.name == "serinus.access"]
    assert [line.split(" status ")[1].split(" ")[0] for line in lines] == ["400"]
    assert lines[0].endswith(" 0.000 ms")


def fields_of(caplog: Any, logger: str = "serinus.access") -> list[dict[str, Any]]:
    """Give the JSON lines of a log."""
    lines = JsonLines()
    return [json.loads(lines.format(record)) for record in caplog.records if record.name == logger]


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/row/infer", X),
        ("/v2/models/row/versions/2/infer", X),
        ("/v2/models/row/infer_stream", X),
        ("/v2/models/row/generate", {"x": [0.1, 0.2, 0.3]}),
        ("/v1/models/row:predict", {"instances": [[0.1, 0.2, 0.3]]}),
    ],
    ids=["v2", "version", "stream", "generate", "v1"],
)
async def test_the_JSON_form_has_a_field_for_each_thing_that_is_known(http: str, path: str, body: Any, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", http=http, access_log=True, revision="r7") as server:
        answer = await server.ask("POST", path, body, {"X-Request-Id": "mine", "traceparent": TRACEPARENT})
        for _ in range(200):  # of an answer in pieces the line comes after its end
            if fields_of(caplog):
                break
            await asyncio.sleep(0.01)
    assert answer.status == 200
    (fields,) = fields_of(caplog)
    times = [fields.pop(name) for name in ("queue_ms", "compute_ms", "total_ms")]
    assert all(isinstance(each, float) for each in times)
    assert times[0] + times[1] <= times[2]
    assert fields.pop("bytes") > 0
    assert fields.pop("time") > 0
    assert fields == {
        "level": "INFO",
        "logger": "serinus.access",
        "message": f"rest POST {path}",
        "transport": "rest",
        "request": f"POST {path}",
        "status": 200,
        "request_id": "mine",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "model": "row",
        "version": "2",
        "revision": "r7",
        "rows": 1,
        "batch": 1,
    }


async def test_batch_is_the_rows_of_the_batch_that_it_was_predicted_in(caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", access_log=True) as server:
        client = await Raw.open(server.port)
        two = request_of(x=np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], dtype=np.float32))
        await client.send(wire("POST", "/v2/models/row/infer", X) + wire("POST", "/v2/models/row/infer", two))
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        await client.close()
    assert [(each["rows"], each["batch"]) for each in fields_of(caplog)] == [(1, 3), (2, 3)]


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_a_path_that_leads_nowhere_is_answered_and_has_its_line(http: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", http=http, access_log=True) as server:
        assert (await server.ask("GET", "/nowhere")).status == 404
    assert [(each["request"], each["status"]) for each in fields_of(caplog)] == [("GET /nowhere", 404)]


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_a_client_that_left_has_a_line_with_499(http: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("gate", http=http, access_log=True) as server:
        client = await Raw.open(server.port)
        await client.send(wire("POST", "/v2/models/gate/infer", X1))
        await asyncio.get_running_loop().run_in_executor(None, server.model("gate").entered.wait, 20)
        await client.close()
        for _ in range(500):
            if fields_of(caplog):
                break
            await asyncio.sleep(0.01)
        server.model("gate").open.set()
    assert [(each["status"], each["model"], each["rows"]) for each in fields_of(caplog)] == [(499, "gate", 1)]


async def test_a_refused_request_has_a_line_without_a_batch(caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", access_log=True) as server:
        await server.ask("POST", "/v2/models/row/infer", X1)
    (fields,) = fields_of(caplog)
    assert fields["status"] == 400
    assert "batch" not in fields
    assert "compute_ms" not in fields


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_a_request_that_takes_as_long_as_the_limit_is_written_with_where_its_time_went(http: str, caplog: Any):
    caplog.set_level(logging.INFO, "serinus")
    async with rest("gate", http=http, slow_request_s=0.05) as server:
        loop = asyncio.get_running_loop()
        asked = asyncio.ensure_future(server.ask("POST", "/v2/models/gate/infer", X1, {"X-Request-Id": "slow-one"}))
        await loop.run_in_executor(None, server.model("gate").entered.wait, 20)
        await asyncio.sleep(0.06)  # what makes it slow
        server.model("gate").open.set()
        assert (await asked).status == 200
        assert (await server.ask("GET", "/v2")).status == 200
    (fields,) = fields_of(caplog, "serinus.slow")
    parts = ("before_queue", "queue", "compute_input", "compute", "compute_output", "answer")
    assert sum(fields[f"{part}_ms"] for part in parts) == pytest.approx(fields["total_ms"], abs=0.1)
    assert fields["compute_ms"] >= 50
    assert (fields["level"], fields["slower_than_s"], fields["request_id"]) == ("WARNING", 0.05, "slow-one")
    assert fields["batch_requests"] == 1
    (text,) = [record.getMessage() for record in caplog.records if record.name == "serinus.slow"]
    assert text.startswith("slower than 0.05 s: rest POST /v2/models/gate/infer status 200 ")
    assert all(f"{part} " in text for part in parts)
    assert fields_of(caplog) == [], "the access log is another thing"
