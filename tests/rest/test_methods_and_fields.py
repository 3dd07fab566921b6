"""Methods, and the fields of a request's head that no API is about (RFC 9110, RFC 9112), over both transports.

The framing of requests is in `tests/http/test_transports.py`, codings are in `test_errors.py` and `test_content_coding.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest

from conformance_support import Case, Server, case, ids, json_tensor, server_here
from http_support import TRANSPORTS


@pytest.fixture(scope="module", params=TRANSPORTS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with server_here(http=request.param) as running:
        yield running


GOOD = {"inputs": [json_tensor("scores", "FP32", [1, 4], [1.0, 3.0, 0.5, 2.0])]}
TABLE: list[Case] = []


@case(TABLE, "request-id-is-echoed", "good practice")
def _(s: Server) -> None:
    for path in ("/v2", "/v2/models/nobody", "/nothing"):
        assert s.ask("GET", path, headers={"X-Request-Id": "r 1"}).headers["x-request-id"] == "r 1"
    assert s.ask("OPTIONS", "/v2", headers={"X-Request-Id": "r-2"}).headers["x-request-id"] == "r-2"
    assert s.ask("POST", "/v2/models/labels/infer", GOOD, {"X-Request-Id": "r-2"}).headers["x-request-id"] == "r-2"
    assert "x-request-id" not in s.ask("GET", "/v2").headers


for kind in (
    *("application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"', "text/plain", "*/*"),
    *(None, "application/x-www-form-urlencoded", "application/octet-stream", "application/vnd.a+json"),
):

    @case(TABLE, f"content-type-{kind}", "RFC 9110, 8.3: servers may examine the data; KServe answers 400")
    def _(s: Server, kind: str | None = kind) -> None:
        answer = s.ask("POST", "/v2/models/labels/infer", GOOD, {"Content-Type": kind})
        assert answer.status == 200, answer.body
        assert s.ask("POST", "/v2/models/labels/infer", b"{", {"Content-Type": kind}).status == 400


@case(TABLE, "another-charset-is-415", "RFC 8259, 8.1")
def _(s: Server) -> None:
    answer = s.ask("POST", "/v2/models/labels/infer", GOOD, {"Content-Type": "application/json; charset=latin-1"})
    assert answer.status == 415
    assert s.alive()


for path, allow in {
    "/v2": "GET, HEAD, OPTIONS",
    "/v2/models/labels": "GET, HEAD, OPTIONS",
    "/v2/models/labels/ready": "GET, HEAD, OPTIONS",
    "/v2/health/live": "GET, HEAD, OPTIONS",
    "/v2/models/labels/infer": "OPTIONS, POST",
    "/v2/repository/index": "OPTIONS, POST",
    "/v1/models/labels:predict": "OPTIONS, POST",
}.items():
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"):
        if method not in allow.split(", "):

            @case(TABLE, f"{method}-{path}-is-405", "RFC 9110, 15.5.6: with Allow")
            def _(s: Server, method: str = method, path: str = path, allow: str = allow) -> None:
                answer = s.ask(method, path, None if method == "HEAD" else {})
                assert (answer.status, answer.headers["allow"]) == (405, allow)
                assert method == "HEAD" or allow in answer.error
                assert s.alive()

    @case(TABLE, f"OPTIONS-{path}", "RFC 9110, 9.3.7")
    def _(s: Server, path: str = path, allow: str = allow) -> None:
        answer = s.ask("OPTIONS", path)
        assert (answer.status, answer.headers["allow"], answer.body) == (204, allow, b"")
        assert "content-length" not in answer.headers


@case(TABLE, "OPTIONS-of-the-server", "RFC 9110, 9.3.7")
def _(s: Server) -> None:
    assert s.ask("OPTIONS", "*").status == 204


@case(TABLE, "get-may-carry-a-body", "RFC 9110, 9.3.1")
def _(s: Server) -> None:
    assert s.ask("GET", "/v2", b"ignored").status == 200
    assert s.alive()


@case(TABLE, "chunked-requests", "RFC 9112, 7.1")
def _(s: Server) -> None:
    body = orjson.dumps(GOOD)
    head = b"POST /v2/models/labels/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    assert s.exchange(head + pieces + b"0\r\nTrailer: x\r\n\r\n").status == 200
    assert s.alive()


for name, lines, status in (
    ("a-long-target", b"GET /v2?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    ("a-huge-body", b"POST /v2/models/labels/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413),
):

    @case(TABLE, f"{name}-is-beyond-what-is-usual", "RFC 9110, 15.5.14, 15.5.15; the settings' defaults")
    def _(s: Server, lines: bytes = lines, status: int = status) -> None:
        s.hang_up()
        answer = s.exchange(lines)
        assert answer.status == status
        assert answer.error
        s.hang_up()


HOSTS = {
    "ipv6": "[::1]:8080",
    "name": "a-b_c.example:80",
    "none": "",
    "port": "h:",
    "envoys-cluster": "httproute/default/name/rule/0",
    "istios-cluster": "outbound|80||name.default.svc.cluster.local",
}
for name, host in HOSTS.items():

    @case(TABLE, f"host-{name}", "RFC 9110, 7.2; RFC 3986, 3.2.2")
    def _(s: Server, host: str = host) -> None:
        assert s.exchange(f"GET /v2 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 200


@ids(TABLE)
def test_what_http_says(server: Server, one: Case):
    one.run(server)
