"""Content codings: gzip and deflate bodies of requests, and of responses where the client asks for them.

Sources: RFC 9110, 8.4 (Content-Encoding) and 12.5.3 (Accept-Encoding); RFC 1950 to 1952; Triton's HTTP endpoint, whose clients send
`request_compression_algorithm` and ask with `response_compression_algorithm`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

from ...errors import InvalidInput, TooLarge, UnsupportedMedia
from ...protocol.raw import Buffer

__all__ = ["CODINGS", "choose_coding", "compress", "decompress", "refuses_plain"]

CODINGS: Final = ("gzip", "deflate")

_GZIP_BITS: Final = 16 + zlib.MAX_WBITS
_LEVEL: Final = 1
"""Tensors hardly shrink more at higher levels, which take three times as long; Triton uses zlib's default of 6."""


def decompress(body: bytes, content_encoding: bytes, limit: int) -> bytes:
    """Undo the content coding of a request body.

    Args:
        body: as received.
        content_encoding: the field's value; one coding at most, since a chain of codings is only ever an attack.
        limit: most bytes that may come out; nothing beyond is ever produced.

    Raises:
        UnsupportedMedia: another coding, or several.
        InvalidInput: the body is not in that coding, or is cut short, or goes on after its end.
        TooLarge: more than `limit` bytes come out.
    """
    coding = content_encoding.strip().lower().decode("latin-1")
    if coding in ("", "identity"):
        return body
    if coding in ("gzip", "x-gzip"):
        bits = _GZIP_BITS
    elif coding == "deflate":
        # RFC 9110, 8.4.1.2: deflate is the zlib format, but some senders leave out its header.
        zlib_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        bits = zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS
    else:
        raise UnsupportedMedia(
            f"the content encoding {coding[:64]!r} is not offered; expected one of gzip, deflate, identity"
        )
    parts: list[bytes] = []
    left = limit
    rest = body
    while True:
        decoder = zlib.decompressobj(bits)
        try:
            part = decoder.decompress(rest, left + 1)
        except zlib.error:
            raise InvalidInput(f"the body is not {coding}, though Content-Encoding says so") from None
        left -= len(part)
        if left < 0:
            raise TooLarge(
                f"the body has more than {limit} bytes after {coding} decoding; at most {limit} are taken (max_body_bytes)"
            )
        parts.append(part)
        if not decoder.eof:
            raise InvalidInput(f"the {coding} body is cut short")
        rest = decoder.unused_data
        if not rest:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        if bits != _GZIP_BITS or len(parts) >= 1024:  # gzip members may follow one another (RFC 1952, 2.2)
            raise InvalidInput(f"the {coding} body goes on after its end")


def choose_coding(accept_encoding: bytes) -> str | None:
    """Choose the coding of a response; None: none.

    Client libraries (requests, httpx, aiohttp) send a list of all that they can undo with every request; they did not ask
    for compression, which for tensors costs more than it saves on any network between two services. So a response is
    compressed only where `gzip` or `deflate` is the one coding that is named, as tritonclient names it, and the plain form is not
    preferred to it (`identity, gzip;q=0.5`), or where the client refuses the plain form (`identity;q=0`).
    """
    weights: dict[str, float] = {}
    for item in accept_encoding.decode("latin-1").lower().split(","):
        name, _, parameter = item.partition(";")
        key, _, value = parameter.partition("=")
        try:
            weights[name.strip()] = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            weights[name.strip()] = 0.0
    weights.pop("", None)
    everything = weights.get("*")
    plain = weights.get("identity", everything if everything is not None else 1.0)
    offered = [name for name in CODINGS if weights.get(name, everything or 0.0) > 0]
    if not offered:
        return None
    named = [name for name in weights if name not in ("identity", "*") and weights[name] > 0]
    if (named == offered[:1] and weights.get("identity", 0.0) <= weights[named[0]]) or plain == 0:
        return max(offered, key=lambda name: weights.get(name, everything or 0.0))
    return None


def refuses_plain(accept_encoding: bytes) -> bool:
    """Whether the client takes no answer without a content coding: `identity;q=0`, or `*;q=0` beside others (RFC 9110, 12.5.3)."""
    text = accept_encoding.decode("latin-1").lower().replace(" ", "")
    items = {name: weight for name, _, weight in (item.partition(";") for item in text.split(","))}
    weight = items.get("identity", items.get("*", ""))
    return weight.startswith("q=") and weight[2:].rstrip("0") in ("", "0", ".", "0.")


def compress(chunks: Sequence[Buffer], coding: str) -> bytes:
    """Encode a response body in `gzip` or `deflate` (the zlib format)."""
    encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_BITS if coding == "gzip" else zlib.MAX_WBITS)
    parts = [encoder.compress(chunk) for chunk in chunks]
    parts.append(encoder.flush())
    return b"".join(parts)
