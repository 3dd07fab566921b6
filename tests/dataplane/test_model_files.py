"""Which files tell a model from another, up to which size by what they hold, and beyond by size and time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serinus.dataplane import model_files
from serinus.dataplane.model_files import fingerprint, is_unchanged

MOST_HASHED = 64 * 1024 * 1024
MOST_FILES = 1024


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_files_are_told_by_their_place_and_the_first_half_of_half_a_digest(tmp_path: Path):
    found = fingerprint(folder_of(tmp_path, "model.bin", "labels/en.txt", "labels/de/a.txt"))
    assert found == {name: digest_of(name.encode()) for name in ("model.bin", "labels/en.txt", "labels/de/a.txt")}
    assert {len(digest) for digest in found.values()} == {16}
    assert fingerprint(tmp_path / "model.bin") == {"model.bin": digest_of(b"model.bin")}


@pytest.mark.parametrize(
    "name",
    [".hidden", ".git/config", "a/.cache/b", "__pycache__/model.pyc", "a/__pycache__/b.pyc", "model.bin.verdict.json"],
)
def test_what_is_no_part_of_a_model_is_left_out(name: str, tmp_path: Path):
    assert set(fingerprint(folder_of(tmp_path, "model.bin", name))) == {"model.bin"}


@pytest.mark.parametrize("name", ["A/model.bin", "z/model.bin", "_a/b", "verdict.json", "a.hidden", "__pycache__.bin"])
def test_what_only_looks_like_it_is_a_part(name: str, tmp_path: Path):
    assert set(fingerprint(folder_of(tmp_path, "model.bin", name))) == {"model.bin", name}


def test_a_link_to_nothing_is_no_file(tmp_path: Path):
    folder_of(tmp_path, "model.bin")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert set(fingerprint(tmp_path)) == {"model.bin"}


@pytest.mark.parametrize(("more", "by_content"), [(0, True), (1, False)])
def test_up_to_sixty_four_mebibytes_together_contents_count_and_not_times(
    more: int, by_content: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Read as its size alone: the contents of 64 MiB are a second of SHA-256 on a busy machine.
    monkeypatch.setattr(Path, "read_bytes", lambda path: str(path.stat().st_size).encode())
    sparse(tmp_path / "a.bin", MOST_HASHED - 10)
    sparse(tmp_path / "b.bin", 10 + more)
    before = fingerprint(tmp_path)
    os.utime(tmp_path / "a.bin", ns=(0, 5))
    assert is_unchanged(before, fingerprint(tmp_path)) is by_content
    assert fingerprint(tmp_path)["a.bin"] == (
        digest_of(str(MOST_HASHED - 10).encode()) if by_content else f"{MOST_HASHED - 10} 5"
    )


@pytest.mark.parametrize(
    ("most", "count", "is_one"),
    [
        (8, 8, False),
        (8, 9, True),
        pytest.param(MOST_FILES, 1024, False, marks=pytest.mark.slow),
        pytest.param(MOST_FILES, 1025, True, marks=pytest.mark.slow),
    ],
)
def test_of_more_than_a_thousand_and_twenty_four_files_one_digest_stands_for_all(
    most: int, count: int, is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert model_files._MOST_FILES == MOST_FILES
    monkeypatch.setattr(model_files, "_MOST_FILES", most)
    for number in range(count):
        (tmp_path / f"{number:04}").touch()
    before = fingerprint(tmp_path)
    assert list(before) == [""] if is_one else len(before) == count
    os.utime(tmp_path / "0007", ns=(0, 5))
    assert is_unchanged(before, fingerprint(tmp_path)) is not is_one


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        (lambda folder: folder_of(folder, "later.txt"), True),
        (lambda folder: (folder / "a.bin").touch(), True),
        (lambda folder: (folder / "a.bin").write_bytes(b"other"), False),
        (lambda folder: (folder / "a.bin").unlink(), False),
        (lambda folder: (folder / "a.bin").rename(folder / "c.bin"), False),
    ],
    ids=["a file beside them", "touched", "written", "gone", "renamed"],
)
def test_a_model_is_the_same_as_long_as_each_file_of_it_is(
    change: Callable[[Path], object], is_same: bool, tmp_path: Path
):
    before = fingerprint(folder_of(tmp_path, "a.bin", "b.bin"))
    change(tmp_path)
    assert is_unchanged(before, fingerprint(tmp_path)) is is_same


def test_no_files_are_the_same_as_any(tmp_path: Path):
    assert fingerprint(None) == fingerprint(tmp_path / "none") == fingerprint(tmp_path) == {}
    assert is_unchanged({}, {"a.bin": "x"})
    assert not is_unchanged({"a.bin": "x"}, {})


def test_a_file_that_goes_while_it_is_looked_at_leaves_the_model_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder_of(tmp_path, "a.bin", "b.bin")

    def gone(path: Path) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    assert fingerprint(tmp_path) == {}
