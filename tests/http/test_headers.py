"""Header fields, limits and refusals without a socket: what is found in a head, what is refused of it, what an answer may carry."""

from __future__ import annotations

from typing import Any

import httptools
import pytest

from serinus.server.http.exchange import (
    REASONS,
    BadRequest,
    Exchange,
    HeaderFieldsTooLarge,
    Headers,
    HttpLimits,
    UriTooLong,
    header_pairs,
    too_many_fields,
    unknown_coding,
    wrong_host,
)
from serinus.server.http.transport_refusals import (
    ExpectationFailed,
    VersionNotSupported,
    refuse_chunks,
    refuse_head,
    refuse_syntax,
)


def headers(*fields: tuple[str, str]) -> Headers:
    return Headers([(name.encode(), value.encode("latin-1")) for name, value in fields])


NOTHING: dict[str, Any] = {
    "content_length": None, "chunked": False, "transfer_coding": b"", "expect": None, "connection": False, "upgrade": False, "hosts": 0,
    "content_type": b"", "content_encoding": b"", "accept_encoding": b"", "json_length": None, "request_id": None, "cloud_event": False,
    "plain": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([], {}),
        ([("Other", "x"), ("Accept", "*/*")], {}),
        ([("Content-Length", " 12 ")], {"content_length": 12}),
        ([("Content-Length", "0")], {"content_length": 0}),
        ([("Content-Length", "x")], {}),
        ([("Content-Type", "application/json")], {"content_type": b"application/json"}),
        ([("Content-Type", "a/b; charset=x")], {"content_type": b"a/b; charset=x", "plain": False}),
        ([("content-type", "application/cloudevents+json")], {"content_type": b"application/cloudevents+json", "plain": False}),
        ([("Connection", "close")], {"connection": True}),
        ([("Upgrade", "h2c")], {"upgrade": True}),
        ([("Expect", " 100-Continue ")], {"expect": b"100-continue"}),
        ([("Transfer-Encoding", "chunked")], {"chunked": True}),
        ([("Transfer-Encoding", " Chunked ")], {"chunked": True}),
        ([("Transfer-Encoding", "GZIP, chunked")], {"chunked": True, "transfer_coding": b"gzip, chunked"}),
        ([("Transfer-Encoding", "gzip"), ("Transfer-Encoding", "chunked")], {"chunked": True, "transfer_coding": b"gzip,chunked"}),
        ([("Content-Encoding", "gzip")], {"content_encoding": b"gzip", "plain": False}),
        ([("Content-Encoding", "gzip"), ("Content-Encoding", "br")], {"content_encoding": b"gzip,br", "plain": False}),
        ([("Accept-Encoding", "gzip")], {"accept_encoding": b"gzip", "plain": False}),
        ([("Accept-Encoding", "gzip"), ("Accept-Encoding", "br")], {"accept_encoding": b"gzip,br", "plain": False}),
        ([("X-Request-Id", "7")], {"request_id": b"7", "plain": False}),
        ([("ce-specversion", "1.0")], {"cloud_event": True, "plain": False}),
        ([("Inference-Header-Content-Length", " 12 ")], {"json_length": 12}),
        ([("Inference-Header-Content-Length", "0")], {"json_length": 0}),
        ([("Inference-Header-Content-Length", "x")], {"json_length": -1}),
        ([("Inference-Header-Content-Length", "-1")], {"json_length": -1}),
        ([("Inference-Header-Content-Length", "1" * 19)], {"json_length": int("1" * 19)}),
        ([("Inference-Header-Content-Length", "1" * 20)], {"json_length": -1}),
        ([("Inference-Header-Content-Length", "5"), ("Inference-Header-Content-Length", "5")], {"json_length": 5}),
        ([("Inference-Header-Content-Length", "5"), ("Inference-Header-Content-Length", "6")], {"json_length": -1}),
        ([("Host", "a")], {"hosts": 1}),
        ([("Host", "a"), ("Host", "a")], {"hosts": 2}),
        ([("Host", "a b")], {"hosts": -1}),
        ([("Host", "a b"), ("Host", "a")], {"hosts": -1}),
        ([("Host", "a"), ("Host", "a b")], {"hosts": -1}),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_every_request_is_asked_for_is_found(fields: list[tuple[str, str]], found: dict[str, Any]):
    made = headers(*fields)
    assert {name: getattr(made, name) for name in NOTHING} == NOTHING | found


@pytest.mark.parametrize(
    "host",
    ["", "a", "a:80", "a.b-c_d~e", "127.0.0.1:8080", "[::1]", "[::1]:80", "[fe80::1%25en0]", "a:", " a ", "httproute/d/n/rule/0", "outbound|80||n", "a%20b"],
)  # fmt: skip
def test_a_host_is_a_name_or_an_address_with_a_port(host: str):
    assert headers(("Host", host)).hosts == 1
    assert wrong_host(headers(("Host", host))) is None


@pytest.mark.parametrize("host", ["a b", "a:b", "a:80:80", "[::1", "::1", "a@b", "a\\b", 'a"', "a<", "a?b", "a#b", "é"])
def test_what_is_no_host_is_refused(host: str):
    error = wrong_host(headers(("Host", host)))
    assert isinstance(error, BadRequest)
    assert str(error) == "an HTTP/1.1 request has exactly one Host header; this one has one that is no host"


def test_a_request_without_a_host_or_with_several_is_refused():
    assert str(wrong_host(headers())).endswith("this one has none")
    assert str(wrong_host(headers(("Host", "a"), ("Host", "b"), ("Host", "c")))).endswith("this one has 3")


def test_fields_are_looked_up_by_lower_case_and_repeated_ones_joined():
    made = headers(("A-B", " x "), ("a-b", "y"), ("C", "\xe9"))
    assert dict(made) == {"a-b": "x, y", "c": "\xe9"}
    assert (len(made), "a-b" in made, "A-B" in made, made.get("none", "d")) == (2, True, False, "d")
    assert repr(made) == "Headers({'a-b': 'x, y', 'c': '\xe9'})"
    assert len(headers()) == 0
    assert list(headers()) == []


def test_a_requests_id_is_told_again_without_what_could_end_its_line():
    assert headers().request_id_back() == []
    assert headers(("X-Request-Id", " 7 ")).request_id_back() == [(b"X-Request-Id", b"7")]
    assert headers(("X-Request-Id", "a\r\nb\x00c\td\x7f")).request_id_back() == [(b"X-Request-Id", b"a  b c\td ")]


@pytest.mark.parametrize(
    ("given", "pairs"),
    [
        ({"X-A": "b"}, [(b"X-A", b"b")]),
        ({"X-A": 5}, [(b"X-A", b"5")]),
        ({"X-A": "\u20ac\xe9"}, [(b"X-A", b"?\xe9")]),
        ({"a b": "x", "a:b": "x", "": "x", "é": "x", "a\r\nb": "x"}, []),
        ({"Content-Length": "1", "TRANSFER-ENCODING": "x", "connection": "x", "Upgrade": "x", "Date": "x", "Trailer": "x", "TE": "x"}, []),
        ({"Content-Type": "x", "Content-Encoding": "x", "Keep-Alive": "x", "Proxy-Connection": "x"}, []),
        ({"Content-Language": "en"}, [(b"Content-Language", b"en")]),
    ],
    ids=str,
)  # fmt: skip
def test_a_models_response_headers_are_fields_and_none_of_the_transports(given: dict[str, Any], pairs: Any):
    assert header_pairs(given) == pairs


# Limits


def test_the_limits_are_those_that_are_documented():
    limits = HttpLimits()
    assert (limits.body_bytes, limits.head_bytes, limits.header_fields) == (64 << 20, 64 << 10, 256)
    assert (limits.target_bytes, limits.pipeline) == (16 << 10, 64)
    assert (limits.request_timeout_s, limits.keep_alive_s) == (60, 65)
    assert REASONS[404] == b"Not Found"


@pytest.mark.parametrize(
    ("fields", "worth"),
    [
        ([("Content-Length", "200")], True),
        ([("Content-Length", str(2 * 100 + 65536))], True),
        ([("Content-Length", str(2 * 100 + 65537))], False),
        ([("Content-Length", "200"), ("Expect", "100-continue")], False),
        ([("Transfer-Encoding", "chunked")], False),
    ],
)
def test_a_refused_body_is_read_to_its_end_where_that_is_not_far(fields: list[tuple[str, str]], worth: bool):
    assert HttpLimits(body_bytes=100).are_worth_reading(headers(*fields)) is worth


def test_fields_are_bounded_in_number_and_in_bytes():
    limits = HttpLimits(header_fields=2, head_bytes=20)
    assert too_many_fields([(b"a", b"b")] * 2, limits) is None
    assert too_many_fields([(b"aaaaaaaa", b"bbbbbbbb")], limits) is None, "8 + 8 and 4 for the rest of its line"
    for raw in ([(b"a", b"b")] * 3, [(b"aaaaaaaa", b"bbbbbbbbb")], [(b"aaa", b"bbb"), (b"aaa", b"bbbb")]):
        error = too_many_fields(raw, limits)
        assert isinstance(error, HeaderFieldsTooLarge)
        assert str(error) == "the header section is too large; at most 20 bytes and 2 fields are taken"


@pytest.mark.parametrize(
    ("coding", "refused"),
    [("gzip, chunked", True), ("gzip,chunked", True), ("chunked", False), ("gzip", False), ("chunked, gzip", False), ("x" * 80 + ",chunked", True)],
)  # fmt: skip
def test_a_coding_below_the_chunks_is_refused_and_the_rest_is_the_parsers(coding: str, refused: bool):
    error = unknown_coding(headers(("Transfer-Encoding", coding)))
    assert (error is not None) is refused
    if error is not None:
        assert error.http_status == 501
        assert f"the transfer coding {coding[:64]!r} is not offered" in str(error)


# Refusals


def test_a_target_that_is_too_long_is_told_apart_from_a_head_that_is():
    limits = HttpLimits(target_bytes=10, head_bytes=50, header_fields=3)
    assert isinstance(refuse_head(b"/" * 10, limits), HeaderFieldsTooLarge)
    error = refuse_head(b"/" * 11, limits)
    assert isinstance(error, UriTooLong)
    assert str(error) == "the request target has 11 bytes or more; at most 10 are taken"
    assert "at most 50 bytes are taken without a body's" in str(refuse_chunks(limits))
    kinds = (BadRequest, UriTooLong, HeaderFieldsTooLarge, VersionNotSupported, ExpectationFailed)
    assert [kind.http_status for kind in kinds] == [400, 414, 431, 505, 417]


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501, "the method 'BREW' is not known"),
        (b"\r\nBREW / HTTP/1.1\r\n\r\n", 501, "the method 'BREW' is not known"),
        (b"B" * 80 + b" / HTTP/1.0\r\n\r\n", 501, f"the method '{'B' * 64}' is not known"),
        (b"BREW / HTTP/1.2\r\n\r\n", 400, "malformed HTTP request: "),
        (b"BREW /\r\n\r\n", 400, "malformed HTTP request: "),
        (b"GET / HTTP/1.9\r\n\r\n", 505, "only HTTP/1.1 and HTTP/1.0 are served; gRPC has a port of its own"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "only HTTP/1.1 and HTTP/1.0 are served"),
        (b"GET / HTTP/1.1\r\nA B: c\r\n\r\n", 400, "malformed HTTP request: "),
        (b"\x16\x03\x01", 400, "malformed HTTP request: "),
    ],
    ids=repr,
)
def test_what_the_parser_refuses_has_the_status_that_it_means(data: bytes, status: int, said: str):
    with pytest.raises(httptools.HttpParserError) as caught:
        httptools.HttpRequestParser(object()).feed_data(data)
    error = refuse_syntax(caught.value, data)
    assert error.http_status == status
    assert str(error).startswith(said)


# The exchange


class Stoppable:
    """Counts how often it was cancelled."""

    times = 0

    def cancel(self) -> None:
        self.times += 1


def test_a_client_that_leaves_cancels_the_work_once():
    exchange = Exchange(b"GET", b"/", headers(), b"")
    assert (exchange.gone, exchange.pending) == (False, None)
    exchange.leave()
    assert exchange.gone
    busy = Exchange(b"GET", b"/", headers(), b"")
    busy.pending = work = Stoppable()
    busy.leave()
    busy.leave()
    assert (busy.gone, busy.pending, work.times) == (True, None, 1)
