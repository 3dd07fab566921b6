"""What a request that changes the server must be, beside permitted: not one that a web page of somebody else has a browser send.

A page anywhere may send a "simple" POST to 127.0.0.1 or into the owner's network (Fetch, 4.10 and "CORS-safelisted
request-header"): with a body that it calls text/plain, without asking first. It cannot leave out `Origin`, and it cannot call its body
application/json without a preflight, to which this server does not agree. A page whose name is made to lead to 127.0.0.1 after it has
been loaded (DNS rebinding) has an `Origin` like its `Host`; so a server that trusts because it listens on loopback wants a `Host` that
is this machine's.
"""

from __future__ import annotations

import re
from typing import Final

from ...dataplane.access.repository_access import RepositoryAccess
from ...errors import Forbidden, UnsupportedMedia
from ..http.exchange import Headers

__all__ = ["check_change"]

_LOOPBACK_HOST: Final = re.compile(
    r"(localhost|([a-z0-9-]+\.)+localhost|127(\.\d{1,3}){3}|\[::1\])\.?(:\d*)?", re.IGNORECASE
)
"""Names and addresses that are always this machine (RFC 6761, 6.3; RFC 1122, 3.2.1.3)."""


def check_change(headers: Headers, access: RepositoryAccess) -> None:
    """Judge a request that would change the server.

    Raises:
        Forbidden: it is switched off, comes from a page of another origin, or from a name that is not this machine's.
        Unauthenticated: a token is wanted.
        UnsupportedMedia: its body claims to be anything but JSON.
    """
    access.check(headers.get("authorization"))
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None and (not host or origin.partition("://")[2].lower() != host.lower()):
        raise Forbidden(f"a page of {origin[:100]!r} may not change this server; requests of other origins are refused")
    site = headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin"):
        raise Forbidden(f"a page of another site may not change this server (Sec-Fetch-Site is {site[:40]!r})")
    if access.mode == "loopback" and host and not _LOOPBACK_HOST.fullmatch(host):
        raise Forbidden(
            f"the header Host is {host[:100]!r}, and this server takes changes only as localhost or 127.0.0.1; "
            "for another name use --repository_token_file"
        )
    kind = headers.content_type.partition(b";")[0].strip().lower()
    if kind and kind != b"application/json":
        shown = kind[:64].decode("latin-1")
        raise UnsupportedMedia(
            f"the body is {shown!r}; a request that changes the server is application/json, or has no body"
        )
