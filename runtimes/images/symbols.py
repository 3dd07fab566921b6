"""Remove from a shared library what only debuggers read: its table of all symbols and its debugging sections, as `strip` does.

PyTorch's library for CPUs is published with 89 MB of them. What the loader needs (the dynamic symbols) and what exceptions need (`.eh_frame`) are
part of what is loaded, and stay. A base image has no `strip`; of the ELF format (System V ABI, Chapter 4) little is asked: compilers put
all that is not loaded at the file's end, so the file is cut where that begins, and what else was there is written again. A file of
another layout is left alone.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_SYMTAB, _NOBITS = 2, 8
_ALLOCATED = 0x2
_EXTENDED = 0xFF00
"""Section numbers from here on have a meaning of their own (SHN_LORESERVE)."""


def remove_symbols(path: Path) -> int:
    """Cut one file.

    Returns:
        By how many bytes it became smaller; 0: it is no such file, or of a layout that is not cut.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER.size)
        if len(start) < _HEADER.size or not start.startswith(_ELF64_LITTLE):
            return 0
        head = list(_HEADER.unpack(start))
        segments_at, sections_at, segment_count, section_count, names_index = (
            head[5],
            head[6],
            head[10],
            head[12],
            head[13],
        )
        if head[9] != _SEGMENT.size or head[11] != _SECTION.size or not 0 < names_index < section_count < _EXTENDED:
            return 0
        file.seek(segments_at)
        segments = [_SEGMENT.unpack(file.read(_SEGMENT.size)) for _ in range(segment_count)]
        file.seek(sections_at)
        sections = [list(_SECTION.unpack(file.read(_SECTION.size))) for _ in range(section_count)]
        file.seek(sections[names_index][4])
        dropped = _dropped(sections, names_index, file.read(sections[names_index][5]))
        # Where what is loaded ends, the tables of the format included.
        loaded = [segment[2] + segment[5] for segment in segments]
        loaded += [each[4] + each[5] for each in sections if each[2] & _ALLOCATED and each[1] != _NOBITS]
        end = max([segments_at + segment_count * _SEGMENT.size, *loaded])
        moved = [
            index for index, each in enumerate(sections) if each[4] >= end and each[1] and not each[2] & _ALLOCATED
        ]
        if not dropped or not dropped <= set(moved) or sections_at < end:
            return 0
        file.seek(0)
        content = bytearray(file.read(end))
        for index in moved:
            if index in dropped:
                continue
            content += bytes(-len(content) % max(1, sections[index][8]))
            file.seek(sections[index][4])
            sections[index][4] = len(content)
            content += file.read(sections[index][5])
    number = {old: new for new, old in enumerate(index for index in range(section_count) if index not in dropped)}
    content += bytes(-len(content) % 8)
    head[6], head[12], head[13] = len(content), len(number), number[names_index]
    for index in number:
        sections[index][6] = number.get(sections[index][6], 0)
        content += _SECTION.pack(*sections[index])
    content[: _HEADER.size] = _HEADER.pack(*head)
    before = path.stat()
    if len(content) >= before.st_size:
        return 0
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return before.st_size - len(content)


def _dropped(sections: list[list[int]], names_index: int, names: bytes) -> set[int]:
    """The numbers of the sections that go: the symbol table with its names, and `.debug_*`."""
    found = set()
    for index, section in enumerate(sections):
        if section[1] == _SYMTAB:
            found |= {index, section[6]}
        elif names[section[0] :].startswith(b".debug_"):
            found.add(index)
    return found - {names_index, 0}
