"""What is cut off a library is what `strip` takes; what is loaded stays byte for byte, and it loads."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(sysconfig.get_path("purelib"))


def _symbols() -> ModuleType:
    spec = importlib.util.spec_from_file_location("images_symbols", ROOT / "runtimes" / "images" / "symbols.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


remove_symbols = _symbols().remove_symbols
WITH_SYMBOLS = sorted(SITE.glob("uvloop/loop*.so")) + sorted(SITE.glob("httptools/parser/parser*.so"))


def sections(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {each.name: each.data() for each in ELFFile(file).iter_sections()}


@pytest.mark.parametrize("library", WITH_SYMBOLS, ids=lambda path: path.name.split(".")[0])
def test_a_cut_library_has_all_that_is_loaded_and_no_debugging_section(library: Path, tmp_path: Path):
    cut = tmp_path / library.name
    shutil.copy2(library, cut)
    before, saved = sections(cut), remove_symbols(cut)
    after = sections(cut)
    assert saved > 0
    assert cut.stat().st_size == library.stat().st_size - saved
    assert cut.stat().st_mtime == library.stat().st_mtime
    gone = before.keys() - after.keys()
    assert {".symtab", ".strtab"} <= gone
    assert all(name in (".symtab", ".strtab") or name.startswith(".debug_") for name in gone)
    assert {name: after[name] for name in after} == {name: before[name] for name in after}
    assert remove_symbols(cut) == 0, "there is nothing more to cut"
    if shutil.which("strip"):
        stripped = tmp_path / "stripped.so"
        subprocess.run(["strip", "-o", str(stripped), str(library)], check=True)
        assert abs(stripped.stat().st_size - cut.stat().st_size) < 4096


def test_a_cut_module_is_imported_and_works(tmp_path: Path):
    (library,) = SITE.glob("httptools/parser/parser*.so")
    shutil.copytree(SITE / "httptools", tmp_path / "httptools")
    for file in (tmp_path / "httptools").rglob("*.so"):
        remove_symbols(file)
    assert (tmp_path / "httptools" / "parser" / library.name).stat().st_size < library.stat().st_size
    code = "import httptools; assert httptools.__file__.startswith(%r); assert httptools.parse_url(b'http://h/p?q').path == b'/p'"
    subprocess.run([sys.executable, "-c", code % str(tmp_path)], check=True, env={"PYTHONPATH": str(tmp_path)})


@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF", b"GROUP ( libc.so.6 )\n", b"\x7fELF\x01\x01" + bytes(60), b"\x7fELF\x02\x01" + bytes(60)],
)
def test_what_is_no_library_is_left_alone(content: bytes, tmp_path: Path):
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    assert remove_symbols(path) == 0
    assert path.read_bytes() == content


def test_a_library_whose_loaded_part_is_last_is_left_alone(tmp_path: Path):
    """As patchelf leaves one that it has given a longer path: a loaded section behind the symbols."""
    (library,) = SITE.glob("httptools/parser/parser*.so")
    content = bytearray(library.read_bytes())
    at, size, count = struct.unpack_from("<Q", content, 40)[0], *struct.unpack_from("<HH", content, 58)
    loaded = next(
        place for place in range(at, at + size * count, size) if content[place + 4] == 1 and content[place + 8] & 2
    )
    struct.pack_into("<QQ", content, loaded + 24, len(content) - 8, 8)  # its place in the file, and its size
    path = tmp_path / "moved.so"
    path.write_bytes(content)
    assert remove_symbols(path) == 0
    assert path.read_bytes() == content
