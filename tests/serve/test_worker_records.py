"""What the supervisor of several workers keeps: signs of life, the set of models; and how two processes tell that they load the same files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serinus.dataplane.model_files import fingerprint, is_unchanged
from serinus.server.termination_message import write_reason
from serinus.server.workers.present_models import PresentModels
from serinus.server.workers.pulse import Pulse, is_stopped
from waiting import wait_until


def test_silence_is_the_time_since_the_last_sign():
    pulse = Pulse(1.0)
    pulse.hear(0, 0.0)
    pulse.hear(1, 0.0)
    assert pulse.look(1.0) == {0: 1.0, 1: 1.0}
    pulse.hear(1, 1.5)
    assert pulse.look(2.0) == {0: 2.0, 1: 0.5}
    pulse.forget(0)
    assert pulse.look(3.0) == {1: 1.5}


def test_time_that_the_supervisor_itself_missed_is_nobodys_silence():
    pulse = Pulse(1.0)
    pulse.hear(0, 0.0)
    pulse.look(1.0)
    assert pulse.look(1001.0)[0] == pytest.approx(2.0)
    assert pulse.look(1002.0)[0] == pytest.approx(3.0)


@pytest.mark.parametrize(("second", "silent_s"), [(2.0, 2.0), (2.9, 2.9), (3.0, 3.0), (3.5, 2.0), (100.0, 2.0)])
def test_a_look_that_comes_up_to_an_interval_late_is_no_pause_of_the_supervisor(second: float, silent_s: float):
    pulse = Pulse(1.0)
    pulse.hear(0, 0.0)
    assert pulse.look(1.0) == {0: 1.0}
    assert pulse.look(second) == {0: pytest.approx(silent_s)}


def test_before_the_first_look_nothing_was_missed_and_nobody_is_silent_for_less_than_nothing():
    pulse = Pulse(1.0)
    pulse.forget(3)
    pulse.hear(0, 0.0)
    pulse.hear(1, 60.0)
    assert pulse.look(50.0) == {0: 50.0, 1: 0.0}
    assert Pulse(1.0).look(5.0) == {}


@pytest.mark.parametrize(
    ("stat", "is_it"),
    [
        ("7 (python) T 1 7", True),
        ("7 (python) t 1 7", False),
        ("7 (python) S 1 7", False),
        ("7 (python) Z 1 7", False),
        ("7 (a) T (b) S 1 7", False),
        ("7 (a) S (b) T 1 7", True),
        ("7 (T) S 1 T", False),
        ("7 (python)", False),
        ("", False),
        (None, False),
    ],
)
def test_a_process_is_stopped_in_the_state_that_its_name_does_not_make(stat: str | None, is_it: bool, tmp_path: Path):
    if stat is not None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "stat").write_text(stat)
    assert is_stopped(7, tmp_path) is is_it


def test_a_stopped_process_is_known_and_one_that_is_gone_is_none():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert not is_stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(process.pid))
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: not is_stopped(process.pid))
    finally:
        process.kill()
        process.wait()
    assert not is_stopped(process.pid)


def test_the_set_of_the_first_round_is_what_all_have():
    present = PresentModels()
    both = {"a": {"1": {"f": "x"}, "2": {}}, "b": {"": {}}}
    present.settle([both, {"a": {"1": {"f": "x"}}, "c": {"": {}}}])
    assert present.document() == {"a": {"versions": {"1": {"f": "x"}}, "parameters": {}, "change": 0}}
    assert present.differs(both)
    assert not present.differs({"a": {"1": {}}})


def test_each_change_has_a_number_of_its_own_and_an_unload_is_remembered():
    present = PresentModels()
    present.settle([{"a": {"": {}}}])
    assert present.change("a", {"2": {"f": "y"}}, {"config": "{}"}) == 1
    assert present.change("b", {"": {}}, {}) == 2
    assert present.change("b", {}, {"unload_dependents": True}) == 3
    assert present.document() == {
        "a": {"versions": {"2": {"f": "y"}}, "parameters": {"config": "{}"}, "change": 1},
        "b": {"versions": {}, "parameters": {}, "change": 3},
    }
    assert not present.differs({"a": {"2": {}}})


@pytest.mark.parametrize(
    ("loaded", "names"),
    [
        ([{}], {}),
        ([{"a": {"1": {}, "2": {}}}], {"a": {"1", "2"}}),
        ([{"a": {"1": {}}}, {}], {}),
        ([{}, {"a": {"1": {}}}], {}),
        ([{"a": {"1": {}}}, {"a": {"2": {}}}], {}),
        ([{"a": {"1": {}, "2": {}}}, {"a": {"2": {}, "3": {}}}, {"a": {"2": {}}}], {"a": {"2"}}),
        ([{"a": {"1": {}}}, {"a": {"1": {}}}, {"b": {"1": {}}}], {}),
    ],
)
def test_the_set_has_the_versions_that_each_worker_has(loaded: list[Any], names: dict[str, set[str]]):
    present = PresentModels()
    present.change("old", {"": {}}, {})
    present.settle(loaded)
    assert {name: set(one["versions"]) for name, one in present.document().items()} == names


@pytest.mark.parametrize(
    ("loaded", "differs"),
    [
        ({"a": {"1": {}, "2": {}}}, False),
        ({"a": {"2": {"f": "other"}, "1": {}}}, False),
        ({"a": {"1": {}}}, True),
        ({"a": {"1": {}, "2": {}, "3": {}}}, True),
        ({"a": {"1": {}, "2": {}}, "b": {"": {}}}, True),
        ({"a": {"1": {}, "2": {}}, "gone": {"": {}}}, True),
        ({}, True),
    ],
)
def test_a_worker_differs_that_lacks_a_version_or_has_one_too_many(loaded: Any, differs: bool):
    present = PresentModels()
    present.change("gone", {}, {})
    present.change("a", {"1": {}, "2": {}}, {})
    assert present.differs(loaded) is differs


def test_what_is_told_of_the_set_is_a_copy():
    present, versions, parameters = PresentModels(), {"1": {"f": "x"}}, {"config": "{}"}
    present.change("a", versions, parameters)
    before = present.document()
    versions["2"] = {}
    parameters.clear()
    told = present.document()
    assert told == before
    told["a"]["versions"].clear()
    told["a"]["parameters"].clear()
    assert present.document() == before


def test_files_are_the_same_by_content_and_what_is_written_beside_them_later_changes_nothing(tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(b"one")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "en.txt").write_text("a")
    before = fingerprint(tmp_path)
    assert set(before) == {"model.bin", "labels/en.txt"}
    (tmp_path / "model.bin").touch()
    for name in ("model.bin.verdict.json", ".hidden", "cache.txt"):
        (tmp_path / name).write_text("later")
    assert is_unchanged(before, fingerprint(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"two")
    assert not is_unchanged(before, fingerprint(tmp_path))
    (tmp_path / "model.bin").unlink()
    assert not is_unchanged(before, fingerprint(tmp_path))


def test_large_files_are_told_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serinus.dataplane.model_files._MOST_HASHED_BYTES", 4)
    file = tmp_path / "model.bin"
    file.write_bytes(b"large")
    before = fingerprint(file)
    assert is_unchanged(before, fingerprint(file))
    file.write_bytes(b"other")
    os.utime(file, ns=(0, 0))
    assert not is_unchanged(before, fingerprint(file))


def test_what_has_no_files_is_unchanged(tmp_path: Path):
    assert fingerprint(None) == fingerprint(tmp_path / "none") == {}
    assert is_unchanged({}, {"model.bin": "x"})


def test_a_reason_replaces_what_was_there_and_is_cut_at_what_the_kubelet_reads(tmp_path: Path):
    file = tmp_path / "termination-log"
    write_reason("nothing is made", str(file))
    assert not file.exists()
    file.write_text("x" * 100)
    write_reason("because", str(file))
    assert file.read_text() == "because"
    write_reason("y" * 10_000, str(file))
    assert file.stat().st_size == 4096
    write_reason("nowhere", "")
