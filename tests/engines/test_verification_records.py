"""Where a record of a verification is written, and which ones are left as they came."""

from __future__ import annotations

import json
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
