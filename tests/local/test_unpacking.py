"""Archives that are fetched: what is unpacked, and what an archive that means harm is refused for."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import lzma
import resource
import stat
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serinus.errors import ConfigError
from serinus.local.run.storage import fetch
from serinus.local.run.unpacking import unpack

Make = Callable[[Path], None]


def tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, mode: str = "w:gz") -> Make:
    def make(path: Path) -> None:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload] # one of its modes
            for name, content in members:
                entry = tarfile.TarInfo(name)
                entry.type = kind
                entry.size = len(content) if kind == tarfile.REGTYPE else 0
                entry.linkname = content.decode("latin-1") if kind != tarfile.REGTYPE else ""
                archive.addfile(entry, io.BytesIO(content))

    return make


def zipped(*members: tuple[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                entry = zipfile.ZipInfo(name)
                entry.external_attr = mode << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, content)

    return make


def lying_zip(path: Path) -> None:
    """Says in its directory that its file has 10 bytes."""
    zipped(("m.bin", b"\0" * 5_000_000))(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(content)


def long_header(path: Path) -> None:
    """The PAX header of its file has 200 MiB, which are some kilobytes in gzip."""
    head = tarfile.TarInfo("././@PaxHeader")
    head.type = tarfile.XHDTYPE
    head.size = 200 << 20
    with gzip.open(path, "wb", 1) as out:
        out.write(head.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(200):
            out.write(b"\0" * (1 << 20))


def large_directory(path: Path) -> None:
    """Has a directory of 20 MiB, by what its end says."""
    path.write_bytes(b"x" * 100 + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 20 << 20, 0, 0))


def packed(compression: int) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("m.bin", b"\0" * 1000)

    return make


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, content: bytes = b"", *, more: bytes = b"") -> bytes:
    """One entry of a tar file, its size as told.

    Args:
        more: put into the head's last bytes, where a sparse file has the flag of further maps.
    """
    head = tarfile.TarInfo(name)
    head.type, head.size = kind, max(size, 0)
    made = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        made[124:136] = b"\xff" * 8 + struct.pack(">i", size)
    made[482 : 482 + len(more)] = more
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made) + content + bytes(-len(content) % 512)


def pax(kind: bytes = tarfile.XHDTYPE, **fields: str) -> bytes:
    texts = b""
    for name, value in fields.items():
        rest = f" {name.replace('_', '.')}={value}\n".encode()
        digits = next(count for count in range(1, 9) if len(str(len(rest) + count)) == count)
        texts += b"%d" % (len(rest) + digits) + rest
    return entry("PaxHeader", kind, len(texts), texts)


def tarred(*entries: bytes) -> Make:
    return lambda path: path.write_bytes(gzip.compress(b"".join(entries) + bytes(1024), 1)) and None


SPARSE = {"GNU_sparse_major": "1", "GNU_sparse_minor": "0", "GNU_sparse_name": "m", "GNU_sparse_realsize": "0"}
MAP = b"5000\n" + b"0\n" * 10_000
MAPS = struct.pack("12s12s", b"%011o" % 1, b"%011o" % 1) * 21 + b"\x01" + bytes(7)
LONG = entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, 1 << 20, bytes(1 << 20))


GOOD = (("model/weights.bin", b"w" * 1000), ("config.json", b"{}"))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("m.tar", tar(*GOOD, mode="w")),
        ("m.tgz", tar(*GOOD)),
        ("m.tar.gz", tar(*GOOD)),
        ("m.tar.bz2", tar(*GOOD, mode="w:bz2")),
        ("m.zip", zipped(*GOOD)),
        ("dots.tar.gz", tar(*((f"./{name}", content) for name, content in GOOD))),
    ],
)
def test_an_archive_is_unpacked(tmp_path: Path, name: str, make: Make):
    make(tmp_path / "archive")
    (into := tmp_path / "into").mkdir()
    unpack(tmp_path / "archive", name, into)
    assert {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()} == dict(GOOD)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("m.tar.gz", tar(("a.bin", b"\0" * 2_000_000)), "it has more than 1000000 bytes; where that is right, set SERINUS_MAX_UNPACKED_BYTES"),
        ("m.zip", zipped(("a.bin", b"\0" * 2_000_000)), "it has more than 1000000 bytes; where that is right, set SERINUS_MAX_UNPACKED_BYTES"),
        ("m.zip", zipped(*((f"{n}", b"\0" * 300_000) for n in range(4))), "it has more than 1000000 bytes"),
        ("m.zip", lying_zip, "not a readable archive"),
        ("m.tar.gz", tar(*((f"{n}", b"") for n in range(60))), "more than 50 files; where that is right, set SERINUS_MAX_UNPACKED_FILES"),
        ("m.zip", zipped(*((f"{n}", b"") for n in range(60))), "more than 50 files"),
        ("m.zip", zipped(*((f"{n}/", b"") for n in range(60))), "more than 50 files"),
        ("m.zip", large_directory, "its directory alone has 20971520 bytes"),
        pytest.param("m.tar.gz", long_header, "it has a header of 209715200 bytes", marks=pytest.mark.slow),
        ("m.zip", packed(zipfile.ZIP_BZIP2), "'m.bin' is packed with bzip2"),
        ("m.zip", packed(zipfile.ZIP_LZMA), "'m.bin' is packed with LZMA"),
        ("m.tar", lambda path: path.write_bytes(lzma.compress(b"\0" * 1_000_000)), "it is packed with xz"),
        ("m.tar", lambda path: path.write_bytes(lzma.compress(b"\0" * 1_000_000, lzma.FORMAT_ALONE)), "it is packed with xz, LZMA"),
        ("m.tgz", tarred(pax(**SPARSE), entry("m", size=len(MAP), content=MAP)), "'m' is packed as a sparse file"),
        ("m.tgz", tarred(pax(GNU_sparse_map="0,0", GNU_sparse_size="0"), entry("m")), "'m' is packed as a sparse file"),
        ("m.tgz", tarred(pax(GNU_sparse_size="0", GNU_sparse_numblocks="0"), entry("m")), "'m' is packed as a sparse file"),
        ("m.tgz", tarred(entry("m", tarfile.GNUTYPE_SPARSE, more=b"\x01"), MAPS * 100), "'m' is packed as a sparse file"),
        ("m.tgz", tarred(*[LONG] * 2, entry("m")), "it has a header of 1048576 bytes; at most 1048576 of them are read"),
        ("m.tgz", tarred(*(part for name in "abc" for part in (pax(tarfile.XGLTYPE, **{name: "v" * 500_000}), entry(name)))), "it has a header of 500"),
        ("m.tgz", tarred(entry("m"), entry("n", size=-1024)), "'n' has a size below 0"),
        ("m.tgz", tarred(entry("m"), pax(size="-2048"), entry("n")), "'n' has a size below 0"),
        ("m.tgz", tarred(entry("m"), b"x" * 512, entry("n")), "not a readable archive"),
        ("m.tar", tar(("../out", b"x"), mode="w"), "'../out' would leave the folder"),
        ("m.tar", tar(("/out", b"x"), mode="w"), "'/out' would leave the folder"),
        ("m.zip", zipped(("a/../../out", b"x")), "would leave the folder"),
        ("m.zip", zipped(("/out", b"x")), "would leave the folder"),
        ("m.tar", tar(("link", b"/etc"), kind=tarfile.SYMTYPE, mode="w"), "'link' is a link or device"),
        ("m.tar", tar(("hard", b"/etc/passwd"), kind=tarfile.LNKTYPE, mode="w"), "'hard' is a link or device"),
        ("m.tar", tar(("pipe", b""), kind=tarfile.FIFOTYPE, mode="w"), "'pipe' is a link or device"),
        ("m.zip", zipped(("link", b"/etc"), mode=stat.S_IFLNK | 0o777), "'link' is a link or device"),
        ("m.tar", tar(("a", b"1"), ("a", b"2"), mode="w"), "'a' is in it twice"),
        ("m.tar.gz", lambda path: path.write_bytes(b"\x1f\x8b\x08\0" + b"\xff" * 100), "not a readable archive"),
        ("m.tar.gz", lambda path: path.write_bytes(gzip.compress(b"x" * 4000)[:-500]), "not a readable archive"),
        ("m.zip", lambda path: path.write_bytes(b"nothing of the kind"), "not a readable archive"),
    ],
)  # fmt: skip
def test_an_archive_that_means_harm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Make, words: str
):
    monkeypatch.setenv("SERINUS_MAX_UNPACKED_BYTES", "1000000")
    monkeypatch.setenv("SERINUS_MAX_UNPACKED_FILES", "50")
    make(tmp_path / "archive")
    (into := tmp_path / "into").mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError) as caught:
        unpack(tmp_path / "archive", name, into)
    assert words in str(caught.value)
    assert sum(path.stat().st_size for path in into.rglob("*") if path.is_file()) <= 1_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "into"]


def test_a_bound_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERINUS_MAX_UNPACKED_FILES", "many")
    tar(*GOOD)(tmp_path / "archive")
    with pytest.raises(ConfigError, match="SERINUS_MAX_UNPACKED_FILES is 'many'; a whole number was expected"):
        unpack(tmp_path / "archive", "m.tar.gz", tmp_path)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (served := tmp_path / "served").mkdir()
    zipped(("model.json", b"{}"), ("m.zip", b"of the same name"))(served / "m.zip")
    zipped(("model.json", b"\0" * 2_000_000))(served / "large.zip")
    (served / "model.bin").write_bytes(b"\0" * 2_000_000)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_what_is_fetched_is_bounded_too_and_leaves_nothing(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "cache"

    def get(name: str) -> Path:
        return fetch(f"{address}/{name}", base=tmp_path, cache=cache, mounts={})

    assert sorted(path.name for path in get("m.zip").iterdir()) == ["m.zip", "model.json"]
    monkeypatch.setenv("SERINUS_MAX_UNPACKED_BYTES", "1000000")
    before = sorted(cache.iterdir())
    with pytest.raises(ConfigError, match=r"large\.zip: it is not unpacked: it has more than 1000000 bytes"):
        get("large.zip")
    with pytest.raises(ConfigError, match=r"model\.bin: it is not fetched: it has more than 1000000 bytes"):
        get("model.bin")
    assert sorted(cache.iterdir()) == before
