"""Archives of models, unpacked within bounds: whoever wrote one that is fetched from elsewhere must not fill this machine.

Theory of operation. What an archive says of itself is believed only where it says too much: bytes are counted as they are written. An archive's directory
and its long names are read into memory before any file, so both are bounded too. No entry leads out of the folder or is a link or a device.
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
"""Of one header of a tar file that is no file: long names, PAX. Linux's PATH_MAX is 4096."""
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


class _BoundedHead(tarfile.TarInfo):
    """An entry of a tar file; one that is no file, but a long name or other fields of the next entry, is read whole and so bounded."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _OF_THE_NEXT and self.size > _NAME_BYTES:
            raise Refused(f"it has a header of {self.size} bytes; at most {_NAME_BYTES} are read")
        return super()._proc_member(archive)  # type: ignore[misc] # subclasses of TarInfo are given entries by it; it has no public name


def _tarred(file: Path) -> Entries:
    """Give the entries of a tar file, in any compression that the standard library knows."""
    with tarfile.open(file, tarinfo=_BoundedHead) as archive:
        for entry in archive:
            if not (entry.isfile() or entry.isdir()):
                raise Refused(f"member {entry.name[:200]!r} is a link or device")
            yield entry.name, partial(archive.extractfile, entry) if entry.isfile() else None
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] # not in its stubs; a file of empty entries would fill the memory
