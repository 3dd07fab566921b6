"""What the thin transport refuses by itself, before the application is asked: each with its status and its words."""

from __future__ import annotations

import re
from typing import Final

import httptools

from ...errors import NotSupported, SerinusError
from .exchange import BadRequest, HeaderFieldsTooLarge, HttpLimits, UriTooLong, head_too_large

__all__ = ["ExpectationFailed", "VersionNotSupported", "refuse_chunks", "refuse_head", "refuse_syntax"]

_REQUEST_LINE: Final = re.compile(rb"(?:\r\n)*[!#$%&'*+\-.^_`|~0-9A-Za-z]+ \S+ HTTP/1\.[01]\r\n")


class VersionNotSupported(SerinusError):
    """HTTP/0.9, HTTP/1.2 or HTTP/2 without negotiation (RFC 9110, 15.6.6)."""

    http_status = 505
    reason = "invalid"


class ExpectationFailed(SerinusError):
    """An Expect other than 100-continue (RFC 9110, 15.5.18)."""

    http_status = 417
    reason = "invalid"


def refuse_head(url: bytes, limits: HttpLimits) -> SerinusError:
    """A head that is larger than the limits: 414 where the target alone is, else 431."""
    if len(url) > limits.target_bytes:
        return UriTooLong(f"the request target has {len(url)} bytes or more; at most {limits.target_bytes} are taken")
    return head_too_large(limits)


def refuse_chunks(limits: HttpLimits) -> SerinusError:
    """RFC 9112, 7.1.1: a recipient ought to limit chunk extensions; llhttp also gathers a trailer field that goes on."""
    return HeaderFieldsTooLarge(
        f"chunk extensions and trailer fields are too large; at most {limits.head_bytes} bytes are taken without a body's"
    )


def refuse_syntax(error: httptools.HttpParserError, data: bytes) -> SerinusError:
    """Say what llhttp found, with the status that it means."""
    text = str(error)
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _REQUEST_LINE.match(data):
        method = data.split()[0]
        if not _is_method(method):  # else the request that it found is one of those after this one
            return NotSupported(f"the method {method.decode('ascii', 'replace')[:64]!r} is not known")
    if "HTTP version" in text or "PRI/Upgrade" in text:
        return VersionNotSupported("only HTTP/1.1 and HTTP/1.0 are served; gRPC has a port of its own")
    return BadRequest(f"malformed HTTP request: {text}")


def _is_method(method: bytes) -> bool:
    """Whether llhttp knows it; it has no list to be asked for."""
    try:
        httptools.HttpRequestParser(object()).feed_data(method + b" ")
    except httptools.HttpParserError:
        return False
    return True
