"""Which messages begin as zlib's data, by the headers that zlib itself writes, and what is inflated of them."""

from __future__ import annotations

import gzip
import zlib

import pytest

from serinus.errors import InvalidInput, TooLarge
from serinus.server.grpc.deflate import DEFLATED, begins_deflated, inflate

TEXT = b"a text that is repeated, " * 40


def deflated(level: int = 6, bits: int = zlib.MAX_WBITS, words: bytes = b"") -> bytes:
    coder = zlib.compressobj(level, zlib.DEFLATED, bits, 8, zlib.Z_DEFAULT_STRATEGY, *((words,) if words else ()))
    return coder.compress(TEXT) + coder.flush()


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("level", range(10))
def test_every_header_of_zlib_is_known_and_none_with_a_dictionary(level: int, bits: int):
    assert begins_deflated(deflated(level, bits), 0)
    assert begins_deflated(b"before" + deflated(level, bits), 6)
    assert not begins_deflated(deflated(level, bits, b"a text"), 0)


@pytest.mark.parametrize(
    "data", [gzip.compress(TEXT), b"\x0a\x01", b"\x78\x02", b"\x79\x01", b"\x00\x00", b"\x77\x09", b"{}", b"\x12\x34"]
)
def test_what_is_none_is_not_taken_for_it(data: bytes):
    assert not begins_deflated(data, 0)


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_a_message_comes_out_as_it_was_up_to_the_limit(level: int):
    message = DEFLATED + deflated(level)[2:]
    assert inflate(message, len(TEXT)) == TEXT
    with pytest.raises(TooLarge):
        inflate(message, len(TEXT) - 1)


@pytest.mark.parametrize("damage", [DEFLATED, DEFLATED + b"\xff\xff", DEFLATED + deflated()[2:20]])
def test_what_is_damaged_is_refused(damage: bytes):
    with pytest.raises(InvalidInput):
        inflate(damage, 1000)
