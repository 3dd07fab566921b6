"""The access log over REST: who is written, what of, and that nothing is written where it is off."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from rest_support import X1, X, rest

LINE = re.compile(r"rest (\S+ \S+) status (\d+) (\d+) bytes (\d+\.\d{3}) ms")


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


async def test_the_time_of_a_line_is_that_of_the_request_and_not_of_the_machine(caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("gate", access_log=True) as server:
        server.model("gate").open.set()
        await server.ask("POST", "/v2/models/gate/infer", X1)
    ((_, _, _, milliseconds),) = written(caplog)
    assert 0 < milliseconds < 60_000


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
