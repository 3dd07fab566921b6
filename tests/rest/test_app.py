"""What the application does beside its routes: errors that the transport found are counted, and who is asked for a token and how."""

from __future__ import annotations

import pytest

from http_support import TRANSPORTS, Raw
from rest_support import rest
from serinus.dataplane.access.access_tokens import Tokens
from serinus.server.request_access import RequestAccess

TOKEN = "token-0123456789-token"
ASKED = RequestAccess(Tokens([TOKEN]))
HTML = {"Accept": "text/html,application/xhtml+xml"}
QUESTION, JSON = "text/html; charset=utf-8", "application/json"


@pytest.mark.parametrize("http", TRANSPORTS)
async def test_an_error_that_the_transport_finds_is_counted(http: str):
    async with rest("row", http=http) as server:
        for request in (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", b"no request\r\n\r\n"):
            client = await Raw.open(server.port)
            await client.send(request)
            assert (await client.answer()).status == 400
            await client.close()
        page = (await server.ask("GET", "/metrics")).body.decode()
    assert 'serinus_transport_errors_total{transport="rest",code="400"} 2\n' in page


# The method and the path, what else is sent, and the content type of the refusal.
QUESTIONS: dict[str, tuple[str, str, dict[str, str], str]] = {
    "a browser": ("GET", "/docs", HTML, QUESTION),
    "a browser with a query": ("GET", "/docs?model=row", HTML, QUESTION),
    "a program": ("GET", "/docs", {}, JSON),
    "a browser elsewhere": ("GET", "/v2", HTML, JSON),
    "a browser at a path that is not there": ("GET", "/doc", HTML, JSON),
    "a browser that posts": ("POST", "/docs", HTML, JSON),
}


@pytest.mark.parametrize("case", QUESTIONS)
async def test_only_a_browser_that_wants_the_page_is_asked_in_html(case: str):
    method, path, fields, content_type = QUESTIONS[case]
    async with rest("row", request_access=ASKED, enable_docs_url=True) as server:
        answer = await server.ask(method, path, headers=fields)
        assert (answer.status, answer.headers["content-type"]) == (401, content_type)
        assert answer.headers["www-authenticate"] == 'Bearer realm="serinus"'
        with_token = await server.ask("GET", "/docs", headers={**HTML, "Authorization": f"Bearer {TOKEN}"})
        assert with_token.status == 200


async def test_where_there_is_no_page_a_browser_is_refused_in_json():
    async with rest("row", request_access=ASKED, enable_docs_url=False) as server:
        answer = await server.ask("GET", "/docs", headers=HTML)
        assert (answer.status, answer.headers["content-type"]) == (401, JSON)
