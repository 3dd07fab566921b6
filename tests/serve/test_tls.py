"""TLS and mTLS of whole servers over REST and gRPC, with certificates that openssl makes: who gets in, and what an exchange of files does."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from certificate_support import Authority, Issued
from depth import DEEP
from serinus.client import Client
from serinus.client.trust import Trust
from serinus.errors import ConfigError
from serinus.server.certificates import Certificates, validity
from serve_support import Served, serving
from waiting import wait_until

MODEL = """
from serinus import Model, TensorSpec

class Doubler(Model):
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)

    def predict(self, inputs, call):
        return {"y": inputs["x"] * 2}
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "strangers")


@pytest.fixture
def secret(tmp_path: Path, authority: Authority) -> Path:
    """A folder as Kubernetes mounts a Secret: names lead to ..data, which leads to a folder."""
    folder = tmp_path / "secret"
    folder.mkdir()
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (folder / name).symlink_to(Path("..data") / name)
    put(folder, authority.issue("server-1"), authority.certificate)
    return folder


def put(secret: Path, server: Issued, client_ca: Path) -> None:
    """Exchange what the Secret holds as the kubelet does: a new folder, and one rename of a link."""
    fresh = secret / f"..{time.monotonic_ns()}"
    fresh.mkdir()
    shutil.copy(server.certificate, fresh / "tls.crt")
    shutil.copy(server.key, fresh / "tls.key")
    shutil.copy(client_ca, fresh / "ca.crt")
    (secret / "..new").symlink_to(fresh.name)
    os.replace(secret / "..new", secret / "..data")


def arguments(tmp_path: Path, secret: Path, *more: str, mutual: bool = True) -> list[str]:
    file = tmp_path / "doubler.py"
    file.write_text(MODEL)
    words = ["--class", f"{file}:Doubler", "--model_name", "m", "--ssl_certfile", str(secret / "tls.crt")]
    words += ["--ssl_keyfile", str(secret / "tls.key"), *more]
    return [*words, "--ssl_ca_certs", str(secret / "ca.crt")] if mutual else words


def ask(server: Served, transport: str, trusted: Path, shown: Issued | None) -> list[float]:
    """Have the public client ask one question."""
    port = server.http_port if transport == "https" else server.grpc_port
    identity = {} if shown is None else {"certificate": shown.certificate, "key": shown.key}
    with Client(f"{transport}://127.0.0.1:{port}", authorities=trusted, retries=0, timeout_s=10, **identity) as client:
        return client.infer("m", {"x": [1.0, 2.0]})["y"].tolist()


def shown_by(port: int, trusted: Path, identity: Issued | None) -> bytes:
    """Give the certificate (DER) that a port shows now."""
    context = Trust(
        authorities=trusted,
        certificate=identity.certificate if identity else None,
        key=identity.key if identity else None,
    ).tls_context()
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        found = encrypted.getpeercert(True)
    assert found
    return found


def der(issued: Issued) -> bytes:
    return ssl.PEM_cert_to_DER_cert(issued.certificate.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_only_clients_with_a_good_certificate_get_in(
    workers: str, tmp_path: Path, secret: Path, authority: Authority, stranger: Authority
):
    bad: dict[str, Issued | None] = {
        "none": None,
        "a stranger's": stranger.issue("client"),
        "expired": authority.issue("expired", begins_in_days=-3, ends_in_days=-1),
        "not yet valid": authority.issue("early", begins_in_days=2),
    }
    good = authority.issue("client")
    with serving(tmp_path, *arguments(tmp_path, secret, "--workers", workers)) as server:
        for transport in ("https", "grpcs"):
            assert ask(server, transport, authority.certificate, good) == [2.0, 4.0]
            for case, identity in bad.items():
                with pytest.raises(
                    Exception, match=r"(?i)tls|ssl|certificate|connect|unavailable|closed|reset"
                ) as caught:
                    ask(server, transport, authority.certificate, identity)
                assert "AssertionError" not in repr(caught.value), case
            with pytest.raises(Exception, match=r"(?i)tls|ssl|certificate|connect|unavailable|handshake"):
                ask(server, transport, stranger.certificate, good)
        log = server.log.read_text()
        server.stop()
    assert "TLS, for clients with certificates" in log or workers == "2"
    assert "PRIVATE KEY" not in log


@pytest.mark.slow
def test_older_versions_than_tls_1_2_and_no_tls_at_all_get_nothing(tmp_path: Path, secret: Path, authority: Authority):
    with serving(tmp_path, *arguments(tmp_path, secret, mutual=False)) as server:
        for port in (server.http_port, server.grpc_port):
            for version, is_good in (
                (ssl.TLSVersion.TLSv1, False),
                (ssl.TLSVersion.TLSv1_1, False),
                (ssl.TLSVersion.TLSv1_2, True),
                (ssl.TLSVersion.TLSv1_3, True),
            ):
                assert handshakes(port, version, authority) is is_good, (port, version)
            with socket.create_connection(("127.0.0.1", port), 10) as plain:
                plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = plain.recv(1000)
            assert b"200 OK" not in answer
            assert b"live" not in answer
        server.stop()


def handshakes(port: int, version: ssl.TLSVersion, authority: Authority) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers("ALL:@SECLEVEL=0")  # as far down as this client's OpenSSL goes
        context.load_verify_locations(authority.certificate)
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
                return encrypted.version() is not None
        except (ssl.SSLError, ConnectionError):
            return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "http", "how"),
    # Each two of them meet; a deep run has all three.
    list(itertools.product(("1", "2"), ("thin", "uvicorn"), ("change", "SIGHUP")))
    if DEEP
    else [
        ("1", "thin", "change"),
        ("1", "uvicorn", "SIGHUP"),
        ("2", "thin", "SIGHUP"),
        ("2", "uvicorn", "change"),
    ],
)
def test_exchanged_files_are_for_new_connections_and_open_ones_go_on(
    how: str, http: str, workers: str, tmp_path: Path, secret: Path, authority: Authority, stranger: Authority
):
    old, new = authority.issue("client"), stranger.issue("client")
    trusted = tmp_path / "both.pem"
    trusted.write_bytes(authority.certificate.read_bytes() + stranger.certificate.read_bytes())
    engine = "native" if http == "thin" else "grpcio"
    words = arguments(tmp_path, secret, "--workers", workers, "--http", http, "--grpc", engine)
    with serving(tmp_path, *words) as server:
        ports = (server.http_port, server.grpc_port)
        context = Trust(authorities=trusted, certificate=old.certificate, key=old.key).tls_context()
        open_one = context.wrap_socket(
            socket.create_connection(("127.0.0.1", ports[0]), 10), server_hostname="127.0.0.1"
        )
        assert is_answered(open_one)
        replaced = stranger.issue("server-2")
        put(secret, replaced, stranger.certificate)
        if how == "SIGHUP":
            server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.log.read_text().count("TLS certificate: read again") >= int(workers), limit_s=20)
        for port in ports:
            # Whichever worker accepts; REST changes in a turn of its loop, after the line of the log.
            tries = 12 if workers == "2" else 1
            wait_until(
                lambda port=port, tries=tries: all(
                    try_shown(port, trusted, new) == der(replaced) for _ in range(tries)
                ),
                limit_s=20,
            )
        for transport in ("https", "grpcs"):
            assert ask(server, transport, trusted, new) == [2.0, 4.0]
            with pytest.raises(Exception, match=r"(?i)tls|ssl|certificate|connect|unavailable|closed|reset"):
                ask(server, transport, trusted, old)
        assert is_answered(open_one), "a connection that was open goes on"
        open_one.close()
        assert server.process.poll() is None
        page = metrics(server, trusted, new)
        server.stop()
    expires = validity(der(replaced))[1]
    assert f'serinus_tls_certificate_expiry_timestamp_seconds{{certificate="server"}} {expires:.0f}' in page.replace(
        ".0\n", "\n"
    )
    assert 'certificate="client_ca"' in page


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_of_a_thousand_calls_during_an_exchange_none_is_lost(
    workers: str, tmp_path: Path, secret: Path, authority: Authority
):
    """On connections that stay and on new ones; both certificates are of the CA that the clients trust."""
    replaced = authority.issue("server-2")
    halfway, done, each = threading.Event(), itertools.count(1), 125

    def work(client_number: int) -> list[list[float]]:
        answers: list[list[float]] = []
        while len(answers) < each:
            with Client(
                f"grpcs://127.0.0.1:{server.grpc_port}", authorities=authority.certificate, retries=0, timeout_s=20
            ) as client:
                # Four clients keep their connection, four come anew for every fifth call.
                for _ in range(each if client_number < 4 else 5):
                    answers.append(client.infer("m", {"x": [1.0, 2.0]})["y"].tolist())
                    if next(done) == 8 * each // 2:
                        halfway.set()
        return answers

    words = arguments(tmp_path, secret, "--workers", workers, mutual=False)
    with serving(tmp_path, *words) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert f"gRPC on 127.0.0.1:{server.grpc_port} (native)" in server.log.read_text() or workers == "2"
        running = [pool.submit(work, number) for number in range(8)]
        assert halfway.wait(60)
        put(secret, replaced, authority.certificate)
        server.process.send_signal(signal.SIGHUP)
        answers = [answer for one in running for answer in one.result(60)]
        for _ in range(4):  # whichever worker accepts
            wait_until(lambda: try_shown(server.grpc_port, authority.certificate, None) == der(replaced), limit_s=20)
        assert server.stop() == 0
    assert answers == [[2.0, 4.0]] * (8 * each)


def try_shown(port: int, trusted: Path, identity: Issued | None) -> bytes | None:
    try:
        return shown_by(port, trusted, identity)
    except (OSError, ssl.SSLError):
        return None


def is_answered(connection: ssl.SSLSocket) -> bool:
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while b"true" not in answer:
        piece = connection.recv(4096)
        if not piece:
            return False
        answer += piece
    return answer.startswith(b"HTTP/1.1 200")


def metrics(server: Served, trusted: Path, identity: Issued) -> str:
    context = Trust(authorities=trusted, certificate=identity.certificate, key=identity.key).tls_context()
    with (
        socket.create_connection(("127.0.0.1", server.http_port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        encrypted.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        pieces = []
        while piece := encrypted.recv(65536):
            pieces.append(piece)
    return b"".join(pieces).decode()


@pytest.mark.slow
def test_a_bad_exchange_keeps_what_was_there_and_says_so(tmp_path: Path, secret: Path, authority: Authority):
    first = shown_file(secret)
    other, expired = authority.issue("server-3"), authority.issue("old", begins_in_days=-3, ends_in_days=-1)
    early = authority.issue("early-server", begins_in_days=2)
    with serving(tmp_path, *arguments(tmp_path, secret, mutual=False)) as server:
        for number, (said, certificate, key) in enumerate(
            (
                ("key values mismatch", other.certificate.read_bytes(), None),
                ("holds no certificate", other.certificate.read_bytes()[:300], other.key.read_bytes()),
                ("holds no certificate", b"", b""),
                ("cannot be read as a certificate", other.certificate.read_bytes(), b"half a k"),
                ("expired on", expired.certificate.read_bytes(), expired.key.read_bytes()),
                ("is not valid before", early.certificate.read_bytes(), early.key.read_bytes()),
            ),
            1,
        ):
            (secret / "tls.crt").resolve().write_bytes(certificate)
            if key is not None:
                (secret / "tls.key").resolve().write_bytes(key)
            server.process.send_signal(signal.SIGHUP)
            wait_until(
                lambda number=number: server.log.read_text().count("not taken, what was read before stays") >= number,
                limit_s=20,
            )
            assert said in server.log.read_text(), said
            for port in (server.http_port, server.grpc_port):
                assert shown_by(port, authority.certificate, None) == first
        (secret / "tls.crt").resolve().unlink()
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "cannot be read: No such file" in server.log.read_text(), limit_s=20)
        assert shown_by(server.http_port, authority.certificate, None) == first
        assert server.stop() == 0
    assert "PRIVATE KEY" not in server.log.read_text()


def shown_file(secret: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert((secret / "tls.crt").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_ends_no_server_that_has_nothing_to_read(workers: str, tmp_path: Path):
    file = tmp_path / "doubler.py"
    file.write_text(MODEL)
    with serving(tmp_path, "--class", f"{file}:Doubler", "--model_name", "m", "--workers", workers) as server:
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
            assert server.ask("GET", "/v2/health/ready")[0] == 200
        assert server.stop() == 0


BAD_FILES: dict[str, Callable[[Path, Authority], None]] = {
    "key of another": lambda folder, authority: copy(authority.issue("x").key, folder / "tls.key"),
    "no certificate": lambda folder, authority: (folder / "tls.crt").resolve().write_text("no certificate"),
    "damaged": lambda folder, authority: (
        (folder / "tls.crt").resolve().write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    ),
    "no CA": lambda folder, authority: (folder / "ca.crt").resolve().write_text("nobody"),
    "a folder": lambda folder, authority: replace_by_folder(folder / "tls.key"),
    "a FIFO": lambda folder, authority: replace_by_fifo(folder / "tls.crt"),
}


def copy(source: Path, target: Path) -> None:
    target.resolve().write_bytes(source.read_bytes())


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_do_not_fit_are_refused_at_start(case: str, secret: Path, authority: Authority):
    BAD_FILES[case](secret, authority)
    with pytest.raises(ConfigError, match=r"ssl_(certfile|keyfile|ca_certs)") as caught:
        Certificates(secret / "tls.crt", secret / "tls.key", secret / "ca.crt")
    assert "PRIVATE" not in str(caught.value)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(secret: Path, tmp_path: Path):
    locked = tmp_path / "locked.key"
    words = ["ec", "-in", secret / "tls.key", "-aes256", "-passout", "pass:hunter2hunter2", "-out", locked]
    subprocess.run(["openssl", *words], check=True, timeout=30, capture_output=True)
    code = (
        "import sys; from pathlib import Path; from serinus.server.certificates import Certificates\n"
        "Certificates(Path(sys.argv[1]), Path(sys.argv[2]), None)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, secret / "tls.crt", locked], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    assert "without a passphrase" in ended.stderr
    assert "Enter" not in ended.stdout + ended.stderr


def test_times_of_certificates_are_those_that_openssl_reads(authority: Authority):
    for issued in (authority.issue("a"), authority.issue("b", begins_in_days=-9000, ends_in_days=20_000)):
        words = ["x509", "-in", issued.certificate, "-noout", "-startdate", "-enddate"]
        said = subprocess.run(["openssl", *words], check=True, timeout=30, capture_output=True, text=True).stdout
        expected = tuple(ssl.cert_time_to_seconds(line.partition("=")[2]) for line in said.splitlines())
        assert validity(der(issued)) == expected


@pytest.fixture(scope="module")
def whole(authority: Authority) -> bytes:
    return der(authority.issue("whole"))


def test_a_damaged_certificate_is_refused_and_not_misread(whole: bytes):
    for length in range(200):
        with pytest.raises((ValueError, IndexError)):
            validity(whole[:length])


HELLO = bytes.fromhex("1603010200010001fc0303")
"""The beginning of a ClientHello of 512 bytes: the rest never comes."""


@pytest.mark.slow
def test_a_handshake_that_is_half_done_holds_no_end(tmp_path: Path, secret: Path):
    with serving(tmp_path, *arguments(tmp_path, secret, "--drain_timeout_s", "20", mutual=False)) as server:
        halves = [socket.create_connection(("127.0.0.1", port), 10) for port in (server.http_port, server.grpc_port)]
        halves += [socket.create_connection(("127.0.0.1", port), 10) for port in (server.http_port, server.grpc_port)]
        for half in halves[:2]:
            half.sendall(HELLO)
        assert shown_by(server.http_port, secret / "ca.crt", None), "so the server has taken those before, too"
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15, "it waited for handshakes that never end"
        for half in halves:
            half.close()
