"""By which names a page may be asked for: those that nobody else can have a browser come by.

Theory of operation. Whoever owns a DNS name can serve a page by it and then have it lead to an address here (DNS rebinding); to a browser both are one
origin, so the page reads all answers, and its `Origin` is its `Host`. The name in `Host` is what gives it away: it is the attacker's. An address cannot
be made to lead elsewhere, nor can names that no registry sells: `localhost`, names of one word, those of a cluster's Services (`.svc`,
`.svc.cluster.local`), `.local` and `.internal`. All other names are the operator's to allow. A server on loopback has fewer: only this machine can reach
it, by names for that.

Source: as Ollama's (CVE-2024-28224), Vite's `server.allowedHosts` (CVE-2025-24010) and Jupyter's `local_hostnames` have it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from ...errors import ConfigError

__all__ = ["HostNames"]

_NOT_FOR_SALE: Final = (".localhost", ".svc", ".svc.cluster.local", ".local", ".internal")
"""RFC 6761, 6.3; RFC 6762, 3; ICANN's reservation of .internal; Kubernetes' names of Services."""

_PLAIN: Final = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class HostNames:
    """The names of one listener.

    Args:
        address: that it listens on.
        allowed: further names, without a port; `.example.org` allows all below it.

    Raises:
        ConfigError: one of them is no name.
    """

    def __init__(self, address: str, allowed: Iterable[str] = ()) -> None:
        self._is_loopback = _is_loopback(address)
        self._allowed = tuple(map(_checked, allowed))

    def refusal(self, host: str) -> str:
        """Say why a request with this field `Host` is refused; empty: it is not.

        Args:
            host: the field; empty: there is none, as no browser has it.
        """
        if not host and not self._is_loopback:
            return ""
        name = _name_in(host)
        if name and (self._is_own(name) or self._is_allowed(name)):
            return ""
        if self._is_loopback:
            return (
                f"Host {host[:100]!r} is no name of this machine's loopback address; localhost or 127.0.0.1 was expected, or a name that "
                "--allow-host allows"
            )
        return f"Host {host[:100]!r} may be anybody's name; an address was expected, or a name that --allow-host allows"

    def _is_own(self, name: str) -> bool:
        if self._is_loopback:
            return _is_loopback(name)
        return _is_address(name) or "." not in name or name.endswith(_NOT_FOR_SALE)

    def _is_allowed(self, name: str) -> bool:
        return any(name == each or (each.startswith(".") and name.endswith(each)) for each in self._allowed)


def _name_in(host: str) -> str:
    """Give the name of a field `Host`, in lower case; empty: it is none."""
    if any(character in host for character in "@/?#\\ "):
        return ""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _checked(name: str) -> str:
    plain = name.strip().lower().removesuffix(".")
    if _PLAIN.fullmatch(plain) is None:
        raise ConfigError(
            f"--allow-host {name[:100]!r}: a name was expected, such as judge.example.org, or .example.org for all below it; "
            "no address, port or scheme"
        )
    return plain


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
