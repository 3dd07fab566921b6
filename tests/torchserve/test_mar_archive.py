"""Damaged and hostile archives are refused, and nothing of them lands outside the folder that they are unpacked to."""

from __future__ import annotations

import json
import random
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

import mar_support
from serinus.errors import ConfigError
from serinus.hosts.torchserve.mar_archive import open_archive


def with_entry(path: Path, name: str, content: bytes = b"x", mode: int = 0) -> Path:
    mar_support.archive(path, "h.py", {"h.py": ""})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as made:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        made.writestr(info, content)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("../out", 0, "leads out"),
        ("a/../../out", 0, "leads out"),
        ("/out", 0, "leads out"),
        ("C:/out", 0, "leads out"),
        ("..\\out", 0, "leads out"),
        ("link", stat.S_IFLNK | 0o777, "a link or a device"),
        ("fifo", stat.S_IFIFO | 0o644, "a link or a device"),
    ],
)
def test_an_entry_that_leads_out_or_is_no_file_is_refused(name: str, mode: int, words: str, tmp_path: Path):
    path = with_entry(tmp_path / "m.mar", name, b"/etc/passwd", mode)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ConfigError, match=words):
        open_archive(path, into)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("compression", "named"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")])
def test_what_is_packed_so_that_one_read_may_fill_the_memory_is_not_read(compression: int, named: str, tmp_path: Path):
    path = mar_support.archive(tmp_path / "m.mar", "h.py", {"h.py": ""})
    with zipfile.ZipFile(path, "a", compression) as made:
        made.writestr("bomb", bytes(1000))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ConfigError, match=f"'bomb' is packed with {named}, .* pack the archive again"):
        open_archive(path, into)


def test_an_entry_for_the_archive_itself_is_no_trouble(tmp_path: Path):
    path = with_entry(tmp_path / "m.mar", "./", b"")
    into = tmp_path / "into"
    into.mkdir()
    assert open_archive(path, into).handler == "h.py"


@pytest.mark.slow
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path):
    path = with_entry(tmp_path / "m.mar", "bomb", bytes(200 << 20))
    assert path.stat().st_size < 1 << 20
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ConfigError, match="far more than it holds"):
        open_archive(path, into)
    assert (into / "bomb").stat().st_size < 150 << 20


@pytest.mark.slow  # writes an archive of many entries
def test_more_entries_than_the_bound_are_refused(tmp_path: Path):
    path = tmp_path / "m.mar"
    with zipfile.ZipFile(path, "w") as made:
        for index in range(10_001):
            made.writestr(str(index), b"")
    with pytest.raises(ConfigError, match="at most 10000"):
        open_archive(path, tmp_path / "into")


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, "is not there"),
        ("{", "cannot be read"),
        ("[]", "has no 'model'"),
        ({"model": {}}, "model.handler is None"),
        ({"model": {"handler": ""}}, "a name was expected"),
        ({"model": {"handler": "../h.py"}}, "leads out"),
        ({"model": {"handler": "h.py", "serializedFile": "/etc/passwd"}}, "leads out"),
        ({"model": {"handler": "h.py", "serializedFile": "absent.pt"}}, "is not in the archive"),
        ({"model": {"handler": "h.py", "configFile": 3}}, "a name was expected"),
    ],
)
def test_a_manifest_that_is_none_is_refused_in_words(manifest: Any, words: str, tmp_path: Path):
    folder = tmp_path / "m"
    (folder / "MAR-INF").mkdir(parents=True)
    if manifest is not None:
        (folder / "MAR-INF" / "MANIFEST.json").write_text(
            manifest if isinstance(manifest, str) else json.dumps(manifest)
        )
    path = tmp_path / "m.mar"
    with zipfile.ZipFile(path, "w") as made:
        for file in folder.rglob("*"):
            if file.is_file():
                made.write(file, file.relative_to(folder))
    (tmp_path / "into").mkdir()
    with pytest.raises(ConfigError, match=words):
        open_archive(path, tmp_path / "into")


@pytest.mark.slow
def test_no_damage_of_an_archive_ends_in_anything_but_words(tmp_path: Path):
    whole = mar_support.words(tmp_path).read_bytes()
    chance = random.Random(5)
    refused = 0
    for index in range(300):
        made = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(made))
            if chance.random() < 0.7:
                made[at] = chance.randrange(256)
            else:
                del made[at : at + chance.randint(1, 60)]
        path, into = tmp_path / "damaged.mar", tmp_path / f"into-{index}"
        path.write_bytes(bytes(made))
        into.mkdir()
        try:
            open_archive(path, into)
        except ConfigError:
            refused += 1
    assert refused > 100
