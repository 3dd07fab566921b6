"""The access log over REST: who is written, what of, and that nothing is written where it is off."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from rest_support import X, rest

LINE = re.compile(r"rest (\S+ \S+) status (\d+) (\d+) bytes (\d+\.\d{3}) ms(?: model (\S+) version (\S+))?")


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
    monkeypatch.setattr("serinus.server.rest.app.time", Clock())
    async with rest("row", access_log=True) as server:
        await server.ask("POST", "/v2/models/row/infer", X)
    assert [milliseconds for _, _, _, milliseconds in written(caplog)] == [250.0]


async def test_a_line_names_the_model_and_the_version_that_answered(caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", access_log=True) as server:
        await server.ask("POST", "/v2/models/row/infer", X)
        await server.ask("GET", "/v2")
    lines = [record.getMessage() for record in caplog.records if record.name == "serinus.access"]
    assert lines[0].endswith(" ms model row version 2")
    assert lines[1].endswith(" ms")


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
