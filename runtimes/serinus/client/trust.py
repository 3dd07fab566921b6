"""Whom a client trusts over TLS, and what it shows of itself."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

__all__ = ["Trust"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Files in PEM; where no authorities are named, those of the environment, as `kserve.Model` reads them, or the system's."""

    authorities: Path | None = None
    """Certificates of the authorities to trust, a file, or for REST a folder too."""
    certificate: Path | None = None
    """Shown to a server that asks for one (mTLS), with its chain."""
    key: Path | None = None
    """The certificate's private key; None: it is in the certificate's file."""

    def tls_context(self) -> ssl.SSLContext:
        """Make the context of REST's connections.

        Raises:
            ConfigError: a file cannot be read or is none.
        """
        name, bundle = self._bundle()
        if not bundle or name == "SSL_CERT_FILE":  # which ssl reads itself, beside the system's folder
            context = ssl.create_default_context()
        else:
            try:
                is_folder = Path(bundle).is_dir()
                context = ssl.create_default_context(
                    capath=bundle if is_folder else None, cafile=None if is_folder else bundle
                )
            except OSError as error:  # ssl's own errors are among them
                raise ConfigError(f"{name} {bundle!r} cannot be read: {error}") from error
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except OSError as error:
                raise ConfigError(
                    f"the client certificate {str(self.certificate)!r} and its key {str(self.key or self.certificate)!r} "
                    f"cannot be used: {error.strerror or error}; both are PEM, and the key belongs to the certificate"
                ) from error
        return context

    def grpc_files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Read what gRPC's channels trust, which is what REST trusts; gRPC alone knows only its own variable and bundle.

        Returns:
            Authorities (None: gRPC's own), the client's private key and its certificate chain (None: it shows none).

        Raises:
            ConfigError: a file cannot be read.
        """
        name, bundle = self._bundle()
        roots = None
        own_variable = self.authorities is None and os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
        if bundle and not own_variable and not Path(bundle).is_dir():
            roots = _read(name, Path(bundle))
        if self.certificate is None:
            return roots, None, None
        return (
            roots,
            _read("the client's key", self.key or self.certificate),
            _read("the client certificate", self.certificate),
        )

    def _bundle(self) -> tuple[str, str]:
        """Find the authorities to trust and what names them: KServe's controller sets the first variable."""
        if self.authorities is not None:
            return "the authorities' file", str(self.authorities)
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            if os.environ.get(name):
                return name, os.environ[name]
        return "", ""


def _read(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from error
