"""Bodies that are coded: what is undone, to which size, and which coding an answer has."""

from __future__ import annotations

import gzip
import zlib

import pytest

from rest_support import rest
from serinus.errors import InvalidInput, TooLarge, UnsupportedMedia
from serinus.server.rest.content import choose_coding, compress, decompress

BODY = b"canary " * 100
RAW_DEFLATE = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
RAW = RAW_DEFLATE.compress(BODY) + RAW_DEFLATE.flush()
CODED = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
}


@pytest.mark.parametrize("coding", CODED)
def test_a_coded_body_is_undone_and_its_size_is_bounded_to_the_byte(coding: str):
    assert decompress(CODED[coding], coding.encode(), len(BODY)) == BODY
    with pytest.raises(TooLarge, match=f"more than {len(BODY) - 1} bytes after {coding} decoding"):
        decompress(CODED[coding], coding.encode(), len(BODY) - 1)


def test_deflate_without_its_header_is_understood_and_a_body_that_is_not_coded_is_left_alone():
    assert decompress(RAW, b"deflate", 10_000) == BODY
    assert decompress(BODY, b"identity", 10_000) == BODY
    for coding in ("br", "zstd", "z" * 100):
        with pytest.raises(UnsupportedMedia, match=f"the content encoding '{coding[:64]}' is not offered"):
            decompress(BODY, coding.encode(), 10_000)


@pytest.mark.parametrize("members", [2, 1024])
def test_gzip_members_may_follow_one_another_and_count_together(members: int):
    one = gzip.compress(b"x")
    assert decompress(one * members, b"gzip", members) == b"x" * members
    with pytest.raises(TooLarge):
        decompress(one * members, b"gzip", members - 1)


def test_members_have_an_end():
    with pytest.raises(InvalidInput, match="the gzip body goes on after its end"):
        decompress(gzip.compress(b"x") * 1025, b"gzip", 10_000)


@pytest.mark.parametrize("body", [zlib.compress(BODY), RAW], ids=["zlib", "raw"])
def test_nothing_may_follow_deflate(body: bytes):
    with pytest.raises(InvalidInput, match="the deflate body goes on after its end"):
        decompress(body + b"x", b"deflate", 10_000)
    with pytest.raises(InvalidInput, match="the deflate body goes on after its end"):
        decompress(body + body, b"deflate", 10_000)


@pytest.mark.parametrize("coding", CODED)
def test_what_is_cut_short_or_is_not_what_it_says_is_refused(coding: str):
    with pytest.raises(InvalidInput, match=f"the {coding} body is cut short"):
        decompress(CODED[coding][:-1], coding.encode(), 10_000)
    with pytest.raises(InvalidInput, match=f"the body is not {coding}, though Content-Encoding says so"):
        decompress(b"\xff" * 20, coding.encode(), 10_000)


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_a_models_own_route_is_given_the_body_without_its_coding(http: str):
    async def handler(request):
        assert not request.headers.keys() & {"content-encoding"}
        return 200, {"Content-Type": "text/x"}, request.body

    async with rest("row", http=http, extra_routes=[("POST", "/own", handler)]) as server:
        for coding in CODED:
            answer = await server.ask("POST", "/own", CODED[coding], {"Content-Encoding": coding})
            assert (answer.status, answer.body) == (200, BODY)
        assert (await server.ask("POST", "/own", BODY)).body == BODY
        large = gzip.compress(b"x" * 1_000_000)  # is undone in a thread
        assert len((await server.ask("POST", "/own", large, {"Content-Encoding": "gzip"})).body) == 1_000_000
        for body, coding, status in ((BODY, "gzip", 400), (CODED["gzip"][:-1], "gzip", 400), (BODY, "br", 415)):
            assert (await server.ask("POST", "/own", body, {"Content-Encoding": coding})).status == status
    async with rest("row", http=http, extra_routes=[("POST", "/own", handler)], max_body_bytes=100) as server:
        assert (await server.ask("POST", "/own", CODED["gzip"], {"Content-Encoding": "gzip"})).status == 413


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (b"", None),
        (b"gzip", "gzip"),
        (b"GZip", "gzip"),
        (b"deflate", "deflate"),
        (b"gzip, deflate", None),
        (b"gzip, deflate, br", None),
        (b"gzip;q=0", None),
        (b"gzip;q=x", None),
        (b"gzip;q=0.5", "gzip"),
        (b"identity, gzip;q=0.5", None),
        (b"identity;q=0.5, gzip", "gzip"),
        (b"identity;q=0.5, gzip;q=0.5", "gzip"),
        (b"gzip, br;q=0", "gzip"),
        (b"br", None),
        (b"*", None),
        (b"identity;q=0", None),
        (b"identity;q=0, gzip;q=0.5, deflate", "deflate"),
        (b"identity;q=0, gzip, deflate;q=0.5", "gzip"),
        (b"*;q=0, gzip;q=0.1, deflate;q=0.2", "deflate"),
        (b"identity;q=0, *", "gzip"),
        (b"gzip;other=1", "gzip"),
    ],
)
def test_an_answer_is_coded_where_one_coding_is_named_or_the_plain_form_refused(accepted: bytes, coding: str | None):
    assert choose_coding(accepted) == coding


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_an_answer_is_coded_as_it_says(coding: str):
    coded = compress([b"can", memoryview(b"ary")], coding)
    assert (gzip.decompress(coded) if coding == "gzip" else zlib.decompress(coded)) == b"canary"
