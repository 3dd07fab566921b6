"""Certificates, without a server: when they begin and end, what is told of them, and what an exchange of files does."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import ssl
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from certificate_support import Authority
from serinus.errors import ConfigError
from serinus.server import certificates
from serinus.server.certificates import Certificates, Loaded, validity
from serinus.settings import ServerSettings

# DER, written by hand (X.690; RFC 5280, 4.1)


def element(tag: int, body: bytes, length_bytes: int | None = None) -> bytes:
    """Encode; with a number of bytes of the length's long form, or the short form."""
    if length_bytes is None:
        length_bytes = 0 if len(body) < 0x80 else 1 if len(body) < 0x100 else 2
    length = bytes([len(body)]) if not length_bytes else bytes([0x80 | length_bytes])
    return bytes([tag]) + length + (len(body).to_bytes(length_bytes, "big") if length_bytes else b"") + body


def utc(text: str) -> bytes:
    return element(0x17, text.encode())


def general(text: str) -> bytes:
    return element(0x18, text.encode())


BEGINS, ENDS = utc("200101000000Z"), utc("300101000000Z")


def certificate(
    times: bytes = BEGINS + ENDS,
    *,
    version: bytes = element(0xA0, b"\2\1\2"),
    length_bytes: int | None = None,
    behind: bytes = b"",
) -> bytes:
    serial, algorithm, issuer = element(0x02, b"\1"), element(0x30, b""), element(0x30, b"x" * 200)
    told = element(0x30, times, length_bytes) + behind
    body = element(0x30, version + serial + algorithm + issuer + told + element(0x30, b"subject"))
    return element(0x30, body + element(0x30, b"") + element(0x03, b"\0signature"))


def seconds(*parts: int) -> float:
    return datetime(*parts, tzinfo=timezone.utc).timestamp()  # type: ignore[misc] # year, month, day, hour ...


TIMES = {
    "the last year of two digits": (utc("491231235959Z"), seconds(2049, 12, 31, 23, 59, 59)),
    "the first year of two digits": (utc("500101000000Z"), seconds(1950, 1, 1)),
    "the last year of the century before": (utc("991231235959Z"), seconds(1999, 12, 31, 23, 59, 59)),
    "the first year of this one": (utc("000101000000Z"), seconds(2000, 1, 1)),
    "four digits": (general("20500101000000Z"), seconds(2050, 1, 1)),
    "four digits of long ago": (general("19490102030405Z"), seconds(1949, 1, 2, 3, 4, 5)),
    "no end": (general("99991231235959Z"), seconds(9999, 12, 31, 23, 59, 59)),
}


@pytest.mark.parametrize("case", TIMES)
def test_a_time_has_its_century(case: str):
    written, expected = TIMES[case]
    assert validity(certificate(BEGINS + written)) == (seconds(2020, 1, 1), expected)
    assert validity(certificate(written + ENDS)) == (expected, seconds(2030, 1, 1))


@pytest.mark.parametrize("version", [b"", element(0xA0, b"\2\1\2")], ids=["version 1", "version 3"])
@pytest.mark.parametrize("length_bytes", [None, 1, 2, 3, 4])
def test_lengths_have_up_to_four_bytes_and_the_version_may_be_left_out(version: bytes, length_bytes: int | None):
    der = certificate(version=version, length_bytes=length_bytes)
    assert validity(der) == (seconds(2020, 1, 1), seconds(2030, 1, 1))
    assert validity(der + b"what follows it") == (seconds(2020, 1, 1), seconds(2030, 1, 1))


DAMAGED = {
    "five bytes of length": (certificate(length_bytes=5), "no length at byte"),
    "no length": (b"\x30\x80" + b"\0" * 20, "no length at byte 2"),
    "a length that is cut off": (b"\x30\x82\x01", "no length at byte 2"),
    "a tag alone": (b"\x30", "no element 0x30 at byte 0"),
    "nothing": (b"", "no element 0x30 at byte 0"),
    "another tag": (b"\x31\x00", "no element 0x30 at byte 0"),
    "content that is cut off": (b"\x30\x03ab", "it is cut off"),
    "three times": (certificate(BEGINS + ENDS + ENDS), "not two times"),
    "a time behind it": (certificate(BEGINS, behind=ENDS), "not two times"),
    "one time": (certificate(BEGINS), "no element 0x18"),
    "no time": (certificate(b""), "no element 0x18"),
    "no such day": (certificate(BEGINS + utc("300231000000Z")), "does not match format|day is out of range"),
    "a zone": (certificate(BEGINS + utc("300101000000+0100")), "does not match format"),
    "another kind": (certificate(BEGINS + element(0x16, b"300101000000Z")), "no element 0x18"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_certificate_is_refused(case: str):
    der, said = DAMAGED[case]
    with pytest.raises(ValueError, match=said):
        validity(der)


def pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (seconds(2019, 12, 31, 23, 59, 59), "the certificate is not valid before 2020-01-01 00:00:00 UTC"),
        (seconds(2020, 1, 1), None),
        (seconds(2025, 1, 1), None),
        (seconds(2030, 1, 1), None),
        (seconds(2030, 1, 1) + 1, "the certificate expired on 2030-01-01 00:00:00 UTC"),
    ],
)
def test_the_first_certificate_is_in_date_from_its_beginning_to_its_end(now: float, said: str | None):
    ca = certificate(utc("100101000000Z") + utc("110101000000Z"))
    assert certificates._out_of_date(pem(certificate()) + pem(ca), now) == said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "f.pem: holds no certificate in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "f.pem: holds no certificate in PEM"),
        (pem(certificate()) + pem(certificate()[:50]), "f.pem: a certificate in it is damaged: it is cut off"),
        (pem(b"\x30"), "f.pem: a certificate in it is damaged: no element 0x30 at byte 0"),
    ],
)
def test_each_certificate_of_a_file_is_to_be_one(body: bytes, said: str):
    with pytest.raises(ConfigError) as refused:
        certificates._validities(body, "f.pem")
    assert str(refused.value).startswith(said)


def test_all_certificates_of_a_file_are_read_whatever_stands_between_them():
    later = certificate(BEGINS + utc("310101000000Z"))
    body = b"Gr\xfc\xdfe\n" + pem(later) + b"# \xff\n" + pem(certificate())
    assert [ends for _, ends in certificates._validities(body, "f.pem")] == [seconds(2031, 1, 1), seconds(2030, 1, 1)]


# Files


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


NUMBER = itertools.count()


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> tuple[Path, Path, Path]:
    chain, key, client_ca = tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"
    put(authority, chain, key)
    client_ca.write_bytes(authority.certificate.read_bytes())
    return chain, key, client_ca


def put(authority: Authority, chain: Path, key: Path, **times: float) -> float:
    """Write a new certificate and its key; when it ends."""
    issued = authority.issue(f"server-{next(NUMBER)}", **times)
    chain.write_bytes(issued.certificate.read_bytes() + authority.certificate.read_bytes())
    key.write_bytes(issued.key.read_bytes())
    return validity(ssl.PEM_cert_to_DER_cert(issued.certificate.read_text()))[1]


def expiries(held: Certificates) -> dict[str, float]:
    (family,) = held.families()
    assert (family.name, family.kind) == ("serinus_tls_certificate_expiry_timestamp_seconds", "gauge")
    return {labels["certificate"]: value for labels, value in family.samples}


def test_an_exchange_is_told_to_all_and_what_is_the_same_to_nobody(
    files: tuple[Path, Path, Path], authority: Authority, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    chain, key, _ = files
    held = Certificates(chain, key, None)
    before, told = held.loaded, []
    held.on_change(lambda loaded: told.append(("first", loaded)))
    held.on_change(lambda loaded: told.append(("second", loaded)))
    held.reload()
    assert (told, held.loaded is before, caplog.records) == ([], True, [])
    ends = put(authority, chain, key, ends_in_days=5)
    held.reload()
    assert told == [("first", held.loaded), ("second", held.loaded)]
    assert held.loaded != before
    assert expiries(held) == {"server": ends}
    (line,) = caplog.messages
    day = datetime.fromtimestamp(ends, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    assert line == f"TLS certificate of {chain}: valid until {day}"


def test_a_certificate_out_of_date_is_served_at_the_start_with_a_warning_and_not_exchanged_for_a_good_one(
    files: tuple[Path, Path, Path], authority: Authority, caplog: pytest.LogCaptureFixture
):
    chain, key, _ = files
    held, told = Certificates(chain, key, None), []
    held.on_change(told.append)
    assert caplog.records == []
    before = held.loaded
    for times, said in (({"begins_in_days": -9, "ends_in_days": -1}, "expired on"), ({"begins_in_days": 1}, "before")):
        put(authority, chain, key, **times)
        with pytest.raises(ConfigError, match=f"--ssl_certfile {chain}: the certificate .*{said}"):
            held.reload()
        assert (held.loaded, told, caplog.records) == (before, [], [])
        late = Certificates(chain, key, None)
        assert late.context().get_ca_certs() == []
        (line,) = caplog.messages
        assert line.startswith(f"--ssl_certfile {chain}: the certificate")
        assert line.endswith("; clients will refuse it")
        caplog.clear()


def test_clients_need_a_certificate_where_their_authorities_are_named(files: tuple[Path, Path, Path]):
    chain, key, client_ca = files
    without = Certificates(chain, key, None)
    assert (without.files, without.context().verify_mode) == ((chain, key), ssl.CERT_NONE)
    assert (without.loaded.client_ca, without.loaded.client_ca_expires) == (None, None)
    client_ca.write_bytes(b"Zertifikate f\xfcr alle\n" + client_ca.read_bytes() + b"\xff")
    held = Certificates(chain, key, client_ca)
    assert (held.files, held.context().verify_mode) == ((chain, key, client_ca), ssl.CERT_REQUIRED)
    assert len(held.context().get_ca_certs()) == 1
    found = expiries(held)
    assert found.keys() == {"server", "client_ca"}
    assert found["client_ca"] > found["server"], "the authority's own is for longer"


def test_of_several_certificates_the_one_that_ends_first_counts(
    files: tuple[Path, Path, Path], authority: Authority, tmp_path: Path
):
    chain, key, client_ca = files
    soon = authority.issue(f"soon-{next(NUMBER)}", ends_in_days=2).certificate
    ends = validity(ssl.PEM_cert_to_DER_cert(soon.read_text()))[1]
    for file in (chain, client_ca):
        file.write_bytes(file.read_bytes() + soon.read_bytes())
    assert expiries(Certificates(chain, key, client_ca)) == {"server": ends, "client_ca": ends}


def test_what_is_shown_speaks_tls_of_1_2_and_more_without_compression_and_renegotiation(
    files: tuple[Path, Path, Path],
):
    context = Certificates(files[0], files[1], None).context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_a_key_is_not_shown_with_what_is_loaded(files: tuple[Path, Path, Path]):
    loaded = Certificates(files[0], files[1], None).loaded
    assert isinstance(loaded, Loaded)
    assert "PRIVATE" not in repr(loaded)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [(Path.unlink, "No such file or directory"), (lambda file: (file.unlink(), file.mkdir()), "")],
    ids=["missing", "a folder"],
)
def test_a_file_that_cannot_be_read_is_told_by_its_flag(
    index: int, spoil: Callable[[Path], Any], said: str, files: tuple[Path, Path, Path]
):
    spoil(files[index])
    flag = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")[index]
    with pytest.raises(ConfigError, match=f"^--{flag} {files[index]}: cannot be read: .*{said}"):
        Certificates(*files)


def test_a_key_of_another_is_refused_and_an_exchange_for_it_changes_nothing(
    files: tuple[Path, Path, Path], authority: Authority
):
    chain, key, client_ca = files
    held = Certificates(chain, key, client_ca)
    before = held.loaded
    key.write_bytes(authority.issue(f"other-{next(NUMBER)}").key.read_bytes())
    said = f"ssl_certfile {chain}, ssl_keyfile {key}: cannot be read as a certificate and its key in PEM, without a passphrase: "
    with pytest.raises(ConfigError) as refused:
        held.reload()
    assert str(refused.value) == said + "key values mismatch"
    assert held.loaded is before


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Have two ends shake hands without a socket; the client's."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    open_ends = [theirs, ours]
    for _ in range(10):
        for end in open_ends[:]:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                open_ends.remove(end)
    assert open_ends == []
    return theirs


def client_of(authority: Authority, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.set_alpn_protocols(list(protocols))
    return context


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_is_loaded_is_shown_and_speaks_http_1_1(
    in_memory: bool, files: tuple[Path, Path, Path], authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create")
    server = Certificates(files[0], files[1], None).context()
    client = shake(server, client_of(authority, "h2", "http/1.1"))
    assert (client.selected_alpn_protocol(), client.version()) == ("http/1.1", "TLSv1.3")
    shown = client.getpeercert(binary_form=True)
    assert shown == ssl.PEM_cert_to_DER_cert(files[0].read_text().partition("\n-----BEGIN")[0] + "\n")
    old = client_of(authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake(server, old).version() == "TLSv1.2"


def test_a_client_without_a_certificate_is_refused_where_they_need_one(
    files: tuple[Path, Path, Path], authority: Authority
):
    server = Certificates(*files).context()
    client = client_of(authority)
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # of 1.3 the client learns of it after its handshake
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        shake(server, client)
    issued = authority.issue(f"client-{next(NUMBER)}")
    client.load_cert_chain(issued.certificate, issued.key)
    assert shake(server, client).version() == "TLSv1.2"


@pytest.mark.parametrize(("over", "is_read"), [(0, True), (1, False)])
def test_a_file_is_read_up_to_four_mebibytes(over: int, is_read: bool, files: tuple[Path, Path, Path]):
    chain, key, _ = files
    body = chain.read_bytes()
    chain.write_bytes(body + b"#" * ((4 << 20) + over - len(body)))
    if is_read:
        assert len(Certificates(chain, key, None).loaded.chain) == 4 << 20
    else:
        with pytest.raises(ConfigError, match=f"--ssl_certfile {chain}: cannot be read"):
            Certificates(chain, key, None)


# Settings


def test_tls_is_on_where_both_files_are_named_and_refused_where_one_is(files: tuple[Path, Path, Path]):
    chain, key, client_ca = map(str, files)
    assert Certificates.of(ServerSettings()) is None
    both = Certificates.of(ServerSettings(ssl_certfile=chain, ssl_keyfile=key))
    assert both is not None
    assert both.files == files[:2]
    all_three = Certificates.of(ServerSettings(ssl_certfile=chain, ssl_keyfile=key, ssl_ca_certs=client_ca))
    assert all_three is not None
    assert all_three.files == files


@pytest.mark.parametrize(
    "names", [("ssl_certfile",), ("ssl_keyfile",), ("ssl_ca_certs",), ("ssl_certfile", "ssl_ca_certs")]
)
def test_a_file_that_lacks_its_other_half_is_refused(names: tuple[str, ...], files: tuple[Path, Path, Path]):
    named: dict[str, Any] = {name: str(files[0]) for name in names}
    said = "that needs --ssl_certfile and --ssl_keyfile" if names == ("ssl_ca_certs",) else "belong together"
    with pytest.raises(ConfigError, match=said):
        Certificates.of(ServerSettings(**named))
