"""Where a record of a verification is written, and which ones are left as they came."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from serinus import verification_records

RECORD = {"sha256": "a", "framework": "2"}
FILES = {"files_sha256": "f", "sha256": "k2", "framework": "2"}
# What lies beside the model and in the cache before a save, the record, and whether it is written (beside, in the cache).
SAVES: dict[str, tuple[str | None, str | None, Mapping[str, Any], Sequence[bool]]] = {
    "nothing is there": (None, None, RECORD, (True, False)),
    "another version's, of this file": ('{"sha256": "a", "framework": "1"}', None, RECORD, (False, True)),
    "another version's, in both": ('{"sha256": "a"}', '{"sha256": "a"}', RECORD, (False, True)),
    "of another file": ('{"sha256": "b", "framework": "1"}', None, RECORD, (True, False)),
    "another file's in the cache": (None, '{"sha256": "a"}', RECORD, (True, False)),
    "damaged": ("{", None, RECORD, (True, False)),
    "no object": ("[]", None, RECORD, (True, False)),
    "of no file": ("{}", None, RECORD, (True, False)),
    "of the same files under another key": ('{"files_sha256": "f", "sha256": "k1"}', None, FILES, (False, True)),
    "of other files under the same key": ('{"files_sha256": "g", "sha256": "k2"}', None, FILES, (True, False)),
    "a record that names no file": ("{}", None, {"about": "nothing"}, (True, False)),
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Beside the model, and in the cache."""
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))
    found = list(verification_records.paths(tmp_path / "m.ubj", "a"))
    found[1].parent.mkdir(parents=True)
    return found


def contents(places: Sequence[Path]) -> list[str | None]:
    return [path.read_text() if path.is_file() else None for path in places]


@pytest.mark.parametrize("case", SAVES)
def test_a_record_that_came_with_the_model_is_left_and_the_new_one_goes_to_the_cache(case: str, places: list[Path]):
    *before, record, written = SAVES[case]
    for path, body in zip(places, before, strict=True):
        if body is not None:
            path.write_text(body)
    place = verification_records.save(places, record)
    assert place == places[written.index(True)]
    after = contents(places)
    assert [now != was for now, was in zip(after, before, strict=True)] == list(written)
    assert json.loads(place.read_text()) == record


def test_who_asks_for_a_record_gets_it_beside_the_model(places: list[Path]):
    places[0].write_text('{"sha256": "a", "framework": "1"}')
    assert verification_records.save(places, RECORD, replace=True) == places[0]
    assert json.loads(places[0].read_text()) == RECORD


def test_a_record_is_replaced_where_no_cache_can_be_written(places: list[Path]):
    places[0].write_text('{"sha256": "a", "framework": "1"}')
    places[1].parent.rmdir()
    places[1].parent.write_text("")  # a file stands for a folder that cannot be written, for root too
    assert verification_records.save(places, RECORD) == places[0]
    assert verification_records.save([], RECORD) is None


# Variables of the environment, and where a record lies beside that of its model; nothing: nowhere.
PLACES: dict[str, tuple[dict[str, str], str]] = {
    "ours": ({"SERINUS_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a/verdicts/k.json"),
    "everybody's": ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/serinus/verdicts/k.json"),
    "ours is empty": ({"SERINUS_CACHE_DIR": "", "XDG_CACHE_HOME": "/b"}, "/b/serinus/verdicts/k.json"),
    "a home": ({"HOME": "/c"}, "/c/.cache/serinus/verdicts/k.json"),
    "everybody's is empty": ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/serinus/verdicts/k.json"),
}


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize(("about", "name"), [("", "m.ubj.verdict.json"), ("batching", "m.ubj.batching.verdict.json")])
def test_a_record_lies_beside_its_model_or_in_the_cache(
    about: str, name: str, case: str, monkeypatch: pytest.MonkeyPatch
):
    for variable in ("SERINUS_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    variables, cached = PLACES[case]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    found = list(verification_records.paths(Path("/models/m.ubj"), "k", about))
    assert found == [Path("/models") / name, Path(cached)]


def test_without_a_home_folder_there_is_no_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SERINUS_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    assert list(verification_records.paths(Path("/models/m.ubj"), "k")) == [Path("/models/m.ubj.verdict.json")]


def test_everybody_may_read_a_record_and_nothing_is_left_beside_it(places: list[Path]):
    previous = os.umask(0o077)
    try:
        place = verification_records.save(places, RECORD)
    finally:
        os.umask(previous)
    assert place == places[0]
    assert stat.S_IMODE(place.stat().st_mode) == 0o644
    assert [path.name for path in place.parent.iterdir() if path.is_file()] == [place.name]
    assert place.read_bytes() == b'{\n  "sha256": "a",\n  "framework": "2"\n}\n'


@pytest.mark.parametrize(("more", "is_read"), [(0, True), (1, False)])
def test_a_record_of_sixty_four_mebibytes_is_read_and_one_byte_more_is_not(
    more: int, is_read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert verification_records._MOST_BYTES == 64 * 1024 * 1024
    monkeypatch.setattr(verification_records, "_MOST_BYTES", 100)
    (tmp_path / "r.json").write_bytes(b"{}" + b" " * (98 + more))
    assert list(verification_records.load([tmp_path / "r.json"])) == ([{}] if is_read else [])


def test_a_record_that_cannot_be_put_in_place_leaves_nothing_and_goes_on_to_the_next(places: list[Path]):
    places[0].mkdir()
    assert verification_records.save(places, RECORD) == places[1]
    assert [path.name for path in places[0].parent.iterdir() if path.is_file()] == []
