"""Certificates for tests, made with openssl: authorities, servers, clients, and those that are out of date."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Authority", "Issued"]


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in PEM."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
            "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout", self.key, "-out", self.certificate,
        )  # fmt: skip
        (folder / "index.txt").touch()
        (folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca=own\n[own]\n"
            f"database={folder}/index.txt\nnew_certs_dir={folder}\nserial={folder}/serial\n"
            "rand_serial=yes\ndefault_md=sha256\npolicy=any\nunique_subject=no\n[any]\ncommonName=supplied\n"
            "[leaf]\nbasicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n"
            "extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )

    def issue(self, name: str, *, begins_in_days: float = -1, ends_in_days: float = 10) -> Issued:
        """Sign a certificate for localhost and 127.0.0.1, for servers and clients."""
        issued = Issued(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request = self.folder / f"{name}.csr"
        _openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", issued.key, "-out", request,
        )  # fmt: skip
        begins, ends = (
            time.strftime("%y%m%d%H%M%SZ", time.gmtime(time.time() + 86400 * days))
            for days in (begins_in_days, ends_in_days)
        )
        _openssl(
            "ca", "-batch", "-notext", "-config", self.folder / "ca.cnf", "-extensions", "leaf",
            "-cert", self.certificate, "-keyfile", self.key, "-startdate", begins, "-enddate", ends,
            "-in", request, "-out", issued.certificate,
        )  # fmt: skip
        return issued


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *words], timeout=30, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"openssl {words[0]}: {done.stderr}")
