"""Archives of models, unpacked within bounds: whoever wrote one that is fetched from elsewhere must not fill this machine.

Theory of operation. What an archive says of itself is believed only where it says too much: bytes are counted as they are written. An archive's directory,
its long names and other headers are read into memory before any file, so all are bounded too; and what is packed so that one read of it may fill the
memory (zip's bzip2 and LZMA, xz, maps of sparse files) is not read. No entry leads out of the folder or is a link or a device.
`SERINUS_MAX_UNPACKED_BYTES` and `SERINUS_MAX_UNPACKED_FILES` raise the bounds, for an archive that is trusted.
"""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Final

from ...content.zip_members import check_packing
from ...errors import ConfigError

__all__ = ["ARCHIVES", "Bound", "Refused", "unpack"]

ARCHIVES: Final = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".zip")
"""Ends of names that KServe's storage initializer unpacks."""
_BYTES: Final = "SERINUS_MAX_UNPACKED_BYTES"
_FILES: Final = "SERINUS_MAX_UNPACKED_FILES"
_MOST_BYTES: Final = 64 << 30
"""Of all files together, as of TorchServe's archives."""
_MOST_FILES: Final = 10_000
"""As of TorchServe's archives; a folder of weights in pieces has some hundred."""
_DIRECTORY_BYTES: Final = 16 << 20
"""Of a zip file's directory: 100,000 entries with names of 100 bytes."""
_NAME_BYTES: Final = 1 << 20
"""Of the headers of a tar file that are no file, before one that is: long names, PAX. Linux's PATH_MAX is 4096. So much of those for all files, too."""
_READ_AS: Final = ((b"\x1f\x8b", "r:gz"), (b"BZh", "r:bz2"), (b"", "r:"))
"""How a tar file is read, by its first bytes; its name may say something else."""
_UNBOUNDED: Final = (b"\xfd7zXZ\0", b"\x5d\0\0", b"\x28\xb5\x2f\xfd")
"""xz, LZMA and Zstandard take as large a window as the file says, up to 4 GiB, and no reader of the standard library bounds it."""
_PIECE_BYTES: Final = 1 << 20
_END: Final = b"PK\x05\x06"
_END_64: Final = b"PK\x06\x06"
"""Signatures of the end of a zip file's directory (APPNOTE.TXT, 4.3.16 and 4.3.14)."""
_TAIL_BYTES: Final = 1 << 17
"""The end of the directory is no further from the file's end: a comment has 65,535 bytes at the most."""
_DAMAGED: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What damaged, encrypted and unusual archives raise in the standard library; besides OSError."""


Entries = Generator[tuple[str, Callable[[], IO[bytes] | None] | None], None, None]
"""An archive's: names, and what begins to read each; None: a folder."""


class Refused(ValueError):
    """An archive that is sound, and is not unpacked."""


class Bound:
    """What may still be written of one fetch."""

    def __init__(self) -> None:
        self.most_bytes, self.most_files = _bound(_BYTES, _MOST_BYTES), _bound(_FILES, _MOST_FILES)
        self._bytes = self._files = 0

    def file(self) -> None:
        """Count an entry.

        Raises:
            Refused: there are too many.
        """
        self._files += 1
        if self._files > self.most_files:
            raise Refused(f"more than {self.most_files} files; where that is right, set {_FILES} to more")

    def piece(self, size: int) -> None:
        """Count bytes that are to be written.

        Raises:
            Refused: they are too many.
        """
        self._bytes += size
        if self._bytes > self.most_bytes:
            raise Refused(f"it has more than {self.most_bytes} bytes; where that is right, set {_BYTES} to more")


def _bound(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    if not value:
        return default
    if not value.isdecimal() or not value.isascii():
        raise ConfigError(f"{name} is {value[:32]!r}; a whole number was expected")
    return int(value)


def unpack(file: Path, name: str, into: Path) -> None:
    """Unpack an archive.

    Args:
        file: where it lies, outside `into`.
        name: how it is called; its end, one of `ARCHIVES`, tells what it is.
        into: an empty folder.

    Raises:
        ConfigError: it is damaged, would be too much, or an entry would leave the folder; what was written stays.
    """
    bound = Bound()
    entries = _zipped(file) if name.endswith(".zip") else _tarred(file)
    try:
        with closing(entries):
            for entry, begin in entries:
                bound.file()
                target = into / _inside(entry)
                source = begin() if begin is not None else None
                if source is None:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("xb") as made:
                    while piece := source.read(_PIECE_BYTES):
                        bound.piece(len(piece))
                        made.write(piece)
    except Refused as error:
        raise ConfigError(f"it is not unpacked: {error}") from None
    except FileExistsError as error:
        raise ConfigError(f"not a readable archive: {Path(error.filename or '').name!r} is in it twice") from None
    except _DAMAGED as error:
        raise ConfigError(f"not a readable archive: {error}") from None
    except OSError as error:  # gzip's too
        raise ConfigError(f"cannot be unpacked: {error.strerror or error}") from None


def _inside(name: str) -> PurePosixPath:
    """Give an entry's path below the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise Refused(f"member {name[:200]!r} would leave the folder")
    return path


def _zipped(file: Path) -> Entries:
    """Give the entries of a zip file, and what begins to read each; None: a folder."""
    if (size := _directory_bytes(file)) > _DIRECTORY_BYTES:
        raise Refused(f"its directory alone has {size} bytes; at most {_DIRECTORY_BYTES} are read")
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind and kind not in (stat.S_IFREG, stat.S_IFDIR):
                raise Refused(f"member {entry.filename[:200]!r} is a link or device")
            try:
                check_packing(entry)
            except ValueError as error:
                raise Refused(str(error)) from None
            yield entry.filename, None if entry.is_dir() else partial(archive.open, entry)


def _directory_bytes(file: Path) -> int:
    """Read what the end of a zip file says of its directory's size; 0 where there is no end, which `zipfile` refuses."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        tail = opened.read(_TAIL_BYTES)
    sizes = [0]
    for signature, offset, width in ((_END, 12, 4), (_END_64, 40, 8)):
        at = tail.find(signature)
        while at >= 0:
            size = int.from_bytes(tail[at + offset : at + offset + width], "little")
            if not (width == 4 and size == 0xFFFF_FFFF):  # else the other one has it
                sizes.append(size)
            at = tail.find(signature, at + 1)
    return max(sizes)


_OF_THE_NEXT: Final = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


_BROKEN_HEAD: Final = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined] # not in its stubs
_ReadError: Final = tarfile.ReadError


class _BoundedHead(tarfile.TarInfo):
    """An entry of a tar file; what is no file, but a long name or other fields of the next entry, is read whole and so bounded.

    The methods have no public names; they are those by which `tarfile` lets subclasses take part ("TarInfo objects" in its source).
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> tarfile.TarInfo:
        """Read the next entry; one that is damaged is no end of the archive, as `TarFile.next` takes it to be."""
        try:
            return super().fromtarfile(tarfile)
        except _BROKEN_HEAD as error:
            raise _ReadError(str(error)) from None

    def _proc_member(self, archive: _BoundedTar) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            _refuse_sparse(self)
        if self.type in _OF_THE_NEXT:
            archive.count_head(self.size, of_all=self.type == tarfile.XGLTYPE)
        else:
            archive.waiting_bytes = 0
        return super()._proc_member(archive)  # type: ignore[misc] # subclasses of TarInfo are given entries by it; it has no public name

    def _block(self, count: int) -> int:
        if count < 0:  # the archive would be read from an earlier place, for ever
            raise Refused(f"member {self.name[:200]!r} has a size below 0")
        return super()._block(count)  # type: ignore[misc] # as above

    def _proc_gnusparse_00(self, of: tarfile.TarInfo, *_: object) -> None:
        _refuse_sparse(of)

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


def _refuse_sparse(entry: tarfile.TarInfo) -> None:
    """A map of its pieces may be as long as all that was packed, and is read before any of them."""
    raise Refused(f"member {entry.name[:200]!r} is packed as a sparse file; pack it without --sparse")


class _BoundedTar(tarfile.TarFile):
    """Counts the bytes of headers that are kept."""

    tarinfo = _BoundedHead
    waiting_bytes = 0
    """Of those for the entry that comes next."""
    kept_bytes = 0
    """Of those for all entries."""

    def count_head(self, size: int, *, of_all: bool) -> None:
        """Count a header.

        Raises:
            Refused: it, or those before it with it, have too many bytes.
        """
        self.waiting_bytes += size
        self.kept_bytes += size if of_all else 0
        if max(self.waiting_bytes, self.kept_bytes) > _NAME_BYTES:
            raise Refused(f"it has a header of {size} bytes; at most {_NAME_BYTES} of them are read")


def _tarred(file: Path) -> Entries:
    """Give the entries of a tar file: plain, or packed by gzip or bzip2."""
    with file.open("rb") as opened:
        head = opened.read(8)
    if head.startswith(_UNBOUNDED):
        raise Refused(
            "it is packed with xz, LZMA or Zstandard, whose reading takes memory without a bound; pack it with gzip"
        )
    mode = next(mode for beginning, mode in _READ_AS if head.startswith(beginning))
    with _BoundedTar.open(file, mode) as archive:  # type: ignore[call-overload] # one of its modes
        for entry in archive:
            if not (entry.isfile() or entry.isdir()):
                raise Refused(f"member {entry.name[:200]!r} is a link or device")
            yield entry.name, partial(archive.extractfile, entry) if entry.isfile() else None
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] # not in its stubs; a file of empty entries would fill the memory
