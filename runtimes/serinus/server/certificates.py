"""The certificate, key and client CAs that a server speaks TLS with, exchanged while it runs.

Theory of operation. The three files are read once, into memory, and held to one another there: OpenSSL is given the very bytes that were
read. What is good becomes a `Loaded`, which the transports are told of; new connections are made with it, and those that are open go on with
what they began with. A certificate that does not fit its key, is out of date or not yet valid, or CAs that are none, are refused as a
whole; at start that ends the process, but for a certificate out of date, which is served with a warning, since no other is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..model import Family
from ..settings import ServerSettings
from ..small_file import read_bytes

__all__ = ["Certificates", "Loaded", "validity"]

_log = logging.getLogger("serinus.keys")

_PEM: Final = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----\s.*?-----END (?:X509 |TRUSTED )?CERTIFICATE-----", re.DOTALL
)
_MOST_BYTES: Final = 4 << 20
"""Of each file: a bundle of all public CAs has 0.2 MB."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Files that fit one another, as they were when they were read."""

    chain: bytes
    """PEM: the server's certificate and those between it and its CA."""
    key: bytes = field(repr=False)
    client_ca: bytes | None
    """PEM: whose certificates clients must have; None: they need none."""
    expires: float
    """When the first certificate of the chain ends, seconds since 1970."""
    client_ca_expires: float | None

    def context(self, protocol: str = "http/1.1") -> ssl.SSLContext:
        """Make what a listener is given: TLS 1.2 at least (RFC 8996).

        Args:
            protocol: what is spoken inside, by its name in ALPN (RFC 7301); a client that offers others alone is not refused here.

        Raises:
            ssl.SSLError: the files do not fit one another.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols([protocol])
        with _as_file(self.chain) as chain, _as_file(self.key) as key:
            # OpenSSL would ask the terminal for the passphrase of a key that has one.
            context.load_cert_chain(chain, key, password=lambda: b"")
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self.client_ca.decode("ascii"))
        return context


class Certificates:
    """What the files hold now.

    Raises:
        ConfigError: they cannot be read, or do not fit one another.
    """

    def __init__(self, chain: Path, key: Path, client_ca: Path | None) -> None:
        self.files = (chain, key) if client_ca is None else (chain, key, client_ca)
        self._chain, self._key, self._client_ca = chain, key, client_ca
        self._listeners: list[Callable[[Loaded], None]] = []
        self._lock = threading.Lock()
        self.loaded = self._read()
        if problem := _out_of_date(self.loaded.chain, time.time()):
            _log.warning("--ssl_certfile %s: %s; clients will refuse it", chain, problem)

    @classmethod
    def of(cls, settings: ServerSettings) -> Certificates | None:
        """Read what the settings name; None where TLS is off.

        Raises:
            ConfigError: as the class does, or only one of the two files is named.
        """
        if not settings.ssl_certfile and not settings.ssl_keyfile:
            if settings.ssl_ca_certs:
                raise ConfigError(
                    "--ssl_ca_certs asks clients for certificates; that needs --ssl_certfile and --ssl_keyfile"
                )
            return None
        if not settings.ssl_certfile or not settings.ssl_keyfile:
            raise ConfigError("ssl_certfile and ssl_keyfile belong together; only one of them is set")
        client_ca = Path(settings.ssl_ca_certs) if settings.ssl_ca_certs else None
        return cls(Path(settings.ssl_certfile), Path(settings.ssl_keyfile), client_ca)

    def context(self, protocol: str = "http/1.1") -> ssl.SSLContext:
        """Make a context of what is loaded now, for a protocol by its name in ALPN."""
        return self.loaded.context(protocol)

    def on_change(self, tell: Callable[[Loaded], None]) -> None:
        """Have it told what is new, on the thread that calls `reload`."""
        self._listeners.append(tell)

    def reload(self) -> None:
        """Read the files again, and tell who is to know.

        Raises:
            ConfigError: they are not good; what was loaded stays.
        """
        with self._lock:
            loaded = self._read()
            if problem := _out_of_date(loaded.chain, time.time()):
                raise ConfigError(f"--ssl_certfile {self._chain}: {problem}")
            if loaded == self.loaded:
                return
            self.loaded = loaded
        _log.info("TLS certificate of %s: valid until %s", self._chain, _shown(loaded.expires))
        for tell in self._listeners:
            tell(loaded)

    def families(self) -> Iterator[Family]:
        """Tell when they end, for the page of metrics."""
        loaded = self.loaded
        samples = [({"certificate": "server"}, loaded.expires)]
        if loaded.client_ca_expires is not None:
            samples.append(({"certificate": "client_ca"}, loaded.client_ca_expires))
        yield Family(
            "serinus_tls_certificate_expiry_timestamp_seconds",
            "When the first certificate of the file ends, seconds since 1970.",
            "gauge",
            samples,
        )

    def _read(self) -> Loaded:
        chain = _bytes_of(self._chain, "ssl_certfile")
        key = _bytes_of(self._key, "ssl_keyfile")
        client_ca = None if self._client_ca is None else _bytes_of(self._client_ca, "ssl_ca_certs")
        ends = [until for _, until in _validities(chain, f"--ssl_certfile {self._chain}")]
        ca_ends = None
        if client_ca is not None:
            ca_ends = min(until for _, until in _validities(client_ca, f"--ssl_ca_certs {self._client_ca}"))
            client_ca = b"\n".join(_PEM.findall(client_ca)) + b"\n"  # beside them may be text in any encoding
        loaded = Loaded(chain, key, client_ca, min(ends), ca_ends)
        try:
            loaded.context()
        except (ssl.SSLError, ValueError, OSError) as error:
            raise ConfigError(
                f"ssl_certfile {self._chain}, ssl_keyfile {self._key}: cannot be read as a certificate and its key in PEM, "
                f"without a passphrase: {_reason(error)}"
            ) from None
        return loaded


def _bytes_of(file: Path, setting: str) -> bytes:
    try:
        return read_bytes(file, most_bytes=_MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"--{setting} {file}: cannot be read: {error.strerror}") from None


def _reason(error: Exception) -> str:
    """Say what OpenSSL said, and nothing of what it was given."""
    return str(getattr(error, "reason", None) or type(error).__name__).lower().replace("_", " ")


@contextlib.contextmanager
def _as_file(body: bytes) -> Iterator[str]:
    """Give bytes a name that OpenSSL can open; on Linux they stay in memory."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("serinus-tls", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(handle), "wb") as opened:
                opened.write(body)
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
        return
    with tempfile.NamedTemporaryFile() as opened:  # mode 0600
        opened.write(body)
        opened.flush()
        yield opened.name


def _validities(body: bytes, where: str) -> list[tuple[float, float]]:
    """Read when each certificate of a PEM file begins and ends.

    Raises:
        ConfigError: there is none, or one of them is damaged.
    """
    found = _PEM.findall(body)
    if not found:
        raise ConfigError(f"{where}: holds no certificate in PEM ('-----BEGIN CERTIFICATE-----')")
    try:
        return [validity(ssl.PEM_cert_to_DER_cert(text.decode("ascii"))) for text in found]
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{where}: a certificate in it is damaged: {error}") from None


def _out_of_date(chain: bytes, now: float) -> str | None:
    """Say what is wrong with the server's own certificate's time; None: nothing."""
    begins, ends = _validities(chain, "the certificate")[0]
    if now > ends:
        return f"the certificate expired on {_shown(ends)}"
    return f"the certificate is not valid before {_shown(begins)}" if now < begins else None


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def validity(der: bytes) -> tuple[float, float]:
    """Read when a certificate begins and ends (RFC 5280, 4.1: TBSCertificate is version, serial, algorithm, issuer, validity ...).

    Args:
        der: the certificate.

    Raises:
        ValueError: it is none.
    """
    fields, end = _content(der, 0, 0x30)  # Certificate
    fields, end = _content(der, fields, 0x30)  # TBSCertificate
    if der[fields] == 0xA0:  # version, which is left out where it is 1
        fields = _content(der, fields, 0xA0)[1]
    for tag in (0x02, 0x30, 0x30):  # serialNumber, signature, issuer
        fields = _content(der, fields, tag)[1]
    first, end = _content(der, fields, 0x30)
    begins, second = _time(der, first)
    ends, last = _time(der, second)
    if last != end:
        raise ValueError("its validity is not two times")
    return begins, ends


def _content(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """Give where an element's content begins and ends (X.690, 8.1)."""
    if at + 1 >= len(der) or der[at] != tag:
        raise ValueError(f"no element {tag:#04x} at byte {at}")
    length, at = der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or at + count > len(der):
            raise ValueError(f"no length at byte {at}")
        length, at = int.from_bytes(der[at : at + count], "big"), at + count
    if at + length > len(der):
        raise ValueError("it is cut off")
    return at, at + length


def _time(der: bytes, at: int) -> tuple[float, int]:
    """Read a UTCTime or GeneralizedTime, which are in UTC and with seconds (RFC 5280, 4.1.2.5)."""
    tag = der[at] if at < len(der) else 0
    begin, end = _content(der, at, 0x17 if tag == 0x17 else 0x18)
    text = der[begin:end].decode("ascii")
    if tag == 0x17:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp(), end
