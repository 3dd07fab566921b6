"""The small parts of the REST server by themselves: router, headers, codings, events."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serinus.errors import InvalidInput, NotFound
from serinus.server.http.exchange import Exchange, Headers, header_pairs
from serinus.server.rest.cloudevents import CloudEventSettings, read_event
from serinus.server.rest.content import compress, decompress
from serinus.server.rest.router import Router


def handler(exchange: Exchange, parameters: tuple[str, ...]) -> None:
    """Stand for any handler; routers only compare it."""


def router(*templates: str) -> Router:
    made = Router()
    for template in templates:
        made.add("GET", template, handler)
    return made


def test_literals_win_over_variables_and_long_suffixes_over_short_ones():
    made = router("/m/{a}", "/m/stats", "/m/{a}:predict", "/m/{a}:very:predict", "/m/{a}/{b}")
    cases = {
        b"/m/stats": ("/m/stats", ()),
        b"/m/x": ("/m/{a}", ("x",)),
        b"/m/x:predict": ("/m/{a}:predict", ("x",)),
        b"/m/x:very:predict": ("/m/{a}:very:predict", ("x",)),
        b"/m/x/y%2Fz": ("/m/{a}/{b}", ("x", "y/z")),
        b"/m/x/?q=/m/y": ("/m/{a}", ("x",)),
        b"http://h:1/m/x": ("/m/{a}", ("x",)),
    }
    for _ in range(2):  # the second time from the cache
        for target, (template, parameters) in cases.items():
            match = made.resolve(target)
            assert (match.template, match.parameters) == (template, parameters)
    for target in (b"/m", b"/m//", b"/m/x/y/z", b"/M/x", b"*", b"h:1"):
        with pytest.raises(NotFound, match="there are: "):
            made.resolve(target)


@pytest.mark.slow
def test_the_cache_of_paths_is_bounded():
    made = router("/m/{a}")
    for number in range(10_000):
        made.resolve(b"/m/%d" % number)
    made.resolve(b"/m/" + b"x" * 5000)
    assert len(made._cache) <= 4096
    assert all(len(target) <= 1024 for target in made._cache)


@given(st.binary(max_size=80))
def test_no_target_breaks_the_router(target):
    made = router("/v2/models/{model}", "/v1/models/{model}:predict")
    with contextlib.suppress(NotFound, InvalidInput):
        made.resolve(target)


def test_headers_are_a_mapping_of_lower_case_names_and_repeated_fields_are_joined():
    headers = Headers([(b"X-A", b"1"), (b"Host", b" h\t"), (b"x-a", b"2"), (b"X-L", b"\xe9")])
    assert dict(headers) == {"x-a": "1, 2", "host": "h", "x-l": "é"}
    assert (len(headers), "x-a" in headers, "X-A" in headers, headers.get("no")) == (3, True, False, None)
    assert headers.plain
    assert not Headers([(b"Content-Encoding", b"gzip")]).plain
    assert Headers([(b"Inference-Header-Content-Length", b"12")]).json_length == 12
    assert Headers([(b"Inference-Header-Content-Length", b"-1")]).json_length == -1
    assert len(Headers([])) == 0


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=20), max_size=5))
def test_no_response_header_can_split_an_answer(headers):
    """RFC 9110, 5.5 and 5.6.2."""
    for name, value in header_pairs(headers):
        assert re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name)
        assert not re.search(rb"[\r\n\0]", value)


def test_headers_of_framing_are_the_transports():
    assert header_pairs(
        {"Content-Length": "1", "Transfer-Encoding": "x", "connection": "y", "X": "a\r\nSet-Cookie: b"}
    ) == [(b"X", b"a  Set-Cookie: b")]


@given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from(["gzip", "deflate"]))
def test_what_is_compressed_is_decompressed(chunks, coding):
    body = b"".join(chunks)
    assert decompress(compress(chunks, coding), coding.encode(), len(body)) == body


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate"]))
def test_no_body_breaks_decompression(body, coding):
    with contextlib.suppress(InvalidInput):
        assert len(decompress(body, coding, 1000)) <= 1000


def test_kserves_variables_name_the_answering_event():
    settings = CloudEventSettings.from_environ({"CE_TYPE": "my.type", "CE_SOURCE": "me", "CE_MERGE": "True"})
    fields = [
        (b"ce-specversion", b"1.0"),
        (b"ce-id", b"1"),
        (b"ce-source", b"a%20b"),
        (b"ce-type", b"t"),
        (b"ce-team", b"x"),
    ]
    event = read_event(Headers(fields), b"{}", settings)
    assert event is not None
    assert event.attributes["source"] == "a b"
    content_type, body, pairs = event.wrap("m", b"{}", "application/json")
    got = dict(pairs)
    assert (content_type, body) == ("application/json", b"{}")
    assert (got[b"ce-type"], got[b"ce-source"], got[b"ce-team"]) == (b"my.type", b"me", b"x")
    assert got[b"ce-id"] != b"1"
    assert read_event(Headers([(b"content-type", b"application/json")]), b"{}", settings) is None
