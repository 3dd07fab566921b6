"""Deflate on the native front, which knows gzip alone and refuses a call that names another coding.

Theory of operation. The guard sees a connection's frames before the front does, and may change bytes but not their number, because
both sides count them (flow control, and the size of HPACK's table). So it hides the coding and leaves the inflating to `Service`:
  - The header "grpc-encoding: deflate" is renamed to one of the same length that means nothing to the front. Only the form in which
    grpc-core, the one widespread client with deflate, writes it is known: a literal without Huffman coding, once a connection,
    to which later calls point. From a client that writes it otherwise the call is UNIMPLEMENTED, as it was.
  - A message that is flagged as compressed and begins as zlib data (RFC 1950, 2.2) loses the flag, and its two bytes of zlib
    header become `DEFLATED`. These begin no protobuf message, so that `Service` cannot mistake one for the other. One whose first
    seven bytes are not in one frame, which takes a message before it on the same stream, is left to the front's INTERNAL.
"""

from __future__ import annotations

import zlib

from ...errors import InvalidInput, TooLarge

__all__ = ["DEFLATED", "HIDDEN", "HIDDEN_HEADER", "NAMED", "begins_deflated", "inflate"]

NAMED = b"\x0dgrpc-encoding\x07deflate"
"""The header as grpc-core writes it (RFC 7541, 5.2 and 6.2.1)."""
HIDDEN_HEADER = "serinus-codec"
HIDDEN = NAMED.replace(b"grpc-encoding", HIDDEN_HEADER.encode())
DEFLATED = b"\xff\xdf"
"""In place of zlib's header. 0xff would be a tag of wire type 7, which there is not."""


def begins_deflated(data: bytes, position: int) -> bool:
    """Whether zlib data without a preset dictionary begins here; gzip never does so."""
    first, second = data[position], data[position + 1]
    return first & 0x0F == zlib.DEFLATED and not (first << 8 | second) % 31 and not second & 0x20


def inflate(message: bytes, limit: int) -> bytes:
    """Undo the coding of a message that begins with `DEFLATED`.

    Raises:
        TooLarge: more than `limit` bytes come out; no more than that is inflated.
        InvalidInput: it is damaged.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(memoryview(message)[len(DEFLATED) :], limit + 1)
    except zlib.error:
        plain = b""
    if len(plain) > limit:
        raise TooLarge(f"the request message has more than {limit} bytes after deflate decoding; send fewer rows")
    if not inflater.eof or inflater.unused_data != zlib.adler32(plain).to_bytes(4, "big"):
        raise InvalidInput("the request message is damaged: its deflate coding cannot be undone")
    return plain
