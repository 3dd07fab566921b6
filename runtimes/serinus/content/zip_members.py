"""Members of a zip archive that somebody else made, read in the room that their size takes.

Theory of operation. `zipfile` unpacks a deflated member piece by piece, and no more than a read asks for. Of bzip2, LZMA and Zstandard it unpacks all
that it has read (`ZipExtFile._read1`), and a kilobyte of bzip2 may hold gigabytes: one read is enough to fill the memory, whatever is counted afterwards.
LZMA and Zstandard also take as large a window as the member says. And a read without a size unpacks up to 2 GiB of a deflated member before it looks at
the size that the directory gives (`ZipExtFile.MAX_N`). What writes models stores or deflates, so nothing else is read.
"""

from __future__ import annotations

import zipfile
from typing import Final

__all__ = ["check_packing", "read_member"]

_NAMES: Final = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard"}
"""APPNOTE.TXT, 4.4.5."""


def check_packing(member: zipfile.ZipInfo) -> None:
    """Refuse a member whose reading is not bounded.

    Raises:
        ValueError: it is neither stored nor deflated.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packing = _NAMES.get(member.compress_type, f"method {member.compress_type}")
        raise ValueError(
            f"member {member.filename[:200]!r} is packed with {packing}, whose reading takes memory without a bound; "
            "stored or deflated was expected: pack the archive again (zip -Z deflate)"
        )


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Read a member whole, in no more room than the archive's directory says; the caller bounds that.

    Raises:
        ValueError: it is neither stored nor deflated.
        zipfile.BadZipFile: it is damaged, or is not what the directory says.
    """
    check_packing(member)
    with archive.open(member) as opened:
        return opened.read(member.file_size)
