"""X-Request-Id: echoed, or made where a log or a trace needs one; the ids of an error in the log and in the answer."""

from __future__ import annotations

import io
import json
import logging
import re
import uuid
from typing import Any

import pytest

from rest_support import X1, X, rest
from serinus.cli.serving.log_lines import JsonLines, TextLines

HTTP = pytest.mark.parametrize("http", ["thin", "uvicorn"])


@HTTP
async def test_an_id_is_made_where_there_is_an_access_log_and_only_there(http: str):
    async with rest("row", http=http, access_log=True) as server:
        answers = [await server.ask("POST", "/v2/models/row/infer", X), await server.ask("GET", "/nowhere")]
    made = [answer.headers["x-request-id"] for answer in answers]
    assert len({uuid.UUID(each) for each in made}) == 2
    async with rest("row", http=http) as server:
        answer = await server.ask("POST", "/v2/models/row/infer", X)
    assert "x-request-id" not in answer.headers
    assert "traceparent" not in answer.headers


@HTTP
@pytest.mark.parametrize("access_log", [False, True], ids=["plain", "logged"])
async def test_the_clients_id_comes_back(http: str, access_log: bool):
    async with rest("row", "broken", http=http, access_log=access_log) as server:
        for path, body in (("row/infer", X), ("broken/infer", X1), ("nobody/infer", X)):
            answer = await server.ask("POST", f"/v2/models/{path}", body, {"X-Request-Id": "mine"})
            assert answer.headers["x-request-id"] == "mine"


def lines_of(caplog: Any, kind: logging.Formatter, level: int = logging.ERROR) -> list[str]:
    return [kind.format(record) for record in caplog.records if record.levelno >= level]


@HTTP
@pytest.mark.parametrize("access_log", [False, True], ids=["plain", "logged"])
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v2/models/broken/infer", X1), ("/v1/models/broken:predict", {"instances": [[1.5]]})],
    ids=["v2", "v1"],
)
async def test_the_body_of_a_500_has_the_id_of_the_error_in_the_log(
    http: str, access_log: bool, path: str, body: Any, caplog: Any
):
    async with rest("broken", http=http, access_log=access_log) as server:
        answer = await server.ask("POST", path, body)
    told = json.loads(answer.body)
    assert answer.status == 500
    assert uuid.UUID(told["request_id"])
    (line,) = lines_of(caplog, JsonLines())
    assert json.loads(line)["request_id"] == told["request_id"]
    (text,) = lines_of(caplog, TextLines())
    assert f" request_id {told['request_id']}\n" in text, "in the first line, before the traceback"
    if access_log:
        assert answer.headers["x-request-id"] == told["request_id"]


async def test_the_clients_id_and_trace_are_those_of_the_error(caplog: Any):
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"X-Request-Id": "mine", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    async with rest("broken") as server:
        answer = await server.ask("POST", "/v2/models/broken/infer", X1, headers)
    told = json.loads(answer.body)
    assert (told["request_id"], told["trace_id"]) == ("mine", trace)
    (line,) = lines_of(caplog, JsonLines())
    assert (json.loads(line)["request_id"], json.loads(line)["trace_id"]) == ("mine", trace)


async def test_a_failure_that_is_only_counted_has_no_id_of_its_own(caplog: Any):
    async with rest("broken") as server:
        bodies = [json.loads((await server.ask("POST", "/v2/models/broken/infer", X1)).body) for _ in range(3)]
    assert ["request_id" in body for body in bodies] == [True, False, False], "the log has one line of these"
    async with rest("broken", access_log=True) as server:
        bodies = [json.loads((await server.ask("POST", "/v2/models/broken/infer", X1)).body) for _ in range(3)]
    assert len({body["request_id"] for body in bodies}) == 3, "the access log has a line of each"


async def test_a_clients_fault_tells_no_ids():
    async with rest("row", access_log=True) as server:
        answer = await server.ask("POST", "/v2/models/row/infer", X1)
    assert list(json.loads(answer.body)) == ["error"]


async def test_an_id_that_would_move_a_cursor_is_escaped_and_cut_in_the_log(caplog: Any):
    caplog.set_level(logging.INFO, "serinus.access")
    async with rest("row", access_log=True) as server:
        await server.ask("POST", "/v2/models/row/infer", X, {"X-Request-Id": "\x9b31m" + "a" * 5000})
    stream = io.StringIO()
    for formatter in (TextLines(), JsonLines()):
        for record in caplog.records:
            stream.write(formatter.format(record) + "\n")
    text = stream.getvalue()
    assert "\x9b" not in text
    assert max(map(len, re.findall("a+", text))) < 200
