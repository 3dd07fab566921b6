"""Files in a model directory that never end, are too large, or have names that are no text: a start and a listing go on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from serinus import verification_records
from serinus.artifacts import declares_no_batch
from serinus.bounds import ModelBounds
from serinus.cli.serving.startup_models import own_name, repository_names
from serinus.dataplane.sizes import check_settings
from serinus.errors import ConfigError
from serinus.loading import settings_from_directory
from serinus.settings import ModelSettings
from serinus.small_file import MOST_BYTES, read_bytes, read_text


def sparse(path: Path, size: int = 1 << 40) -> None:
    with path.open("wb") as opened:
        opened.truncate(size)


KINDS = {
    "fifo": (os.mkfifo, "no regular file"),
    "sparse file of a terabyte": (sparse, "1099511627776 bytes"),
    "device without an end": (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    "folder": (Path.mkdir, "directory"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_only_small_regular_files_are_read(tmp_path, kind):
    make, why = KINDS[kind]
    make(tmp_path / "file")
    with pytest.raises(OSError, match=why):
        read_bytes(tmp_path / "file")


def test_a_file_of_the_very_limit_is_read_and_one_byte_more_is_not(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", most_bytes=5) == b"12345"
    with pytest.raises(OSError, match="is 5 bytes, 4 at most"):
        read_bytes(tmp_path / "file", most_bytes=4)


def test_a_file_whose_size_is_not_told_is_read_no_further_than_the_limit():
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_bytes(Path("/proc/self/status"), most_bytes=10)


def test_line_ends_of_a_small_text_are_those_of_unix(tmp_path):
    (tmp_path / "file").write_bytes(b"a\r\nb\rc\n")
    assert read_text(tmp_path / "file") == "a\nb\nc\n"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_that_cannot_be_read_is_passed_over(tmp_path, kind):
    KINDS[kind][0](tmp_path / "m.verdict.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert list(verification_records.load([tmp_path / "m.verdict.json", tmp_path / "other.json"])) == [{"a": 1}]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_a_triton_configuration_that_cannot_be_read_says_nothing(tmp_path, kind):
    KINDS[kind][0](tmp_path / "config.pbtxt")
    assert not declares_no_batch(tmp_path)


@pytest.mark.parametrize(
    ("size", "no"), [("0", True), ("000", True), ("8", False), ("9" * 5000, False), ("0" * 5000, True)]
)
def test_a_triton_configuration_may_say_a_size_of_any_length(tmp_path, size, no):
    (tmp_path / "config.pbtxt").write_text(f"max_batch_size: {size}\n")
    assert declares_no_batch(tmp_path) is no


@pytest.mark.timeout(20)  # each empty line looked for the end of them all: minutes
@pytest.mark.parametrize("blank", ["\n", " ", "\r\n", "\t\n"])
def test_a_triton_configuration_may_have_any_number_of_empty_lines(tmp_path, blank):
    (tmp_path / "config.pbtxt").write_text(blank * 200_000 + "\n \tmax_batch_size:\n 0\n", newline="")
    assert declares_no_batch(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_a_repository_is_listed_whatever_lies_where_settings_would(tmp_path, kind):
    (tmp_path / "model").mkdir()
    KINDS[kind][0](tmp_path / "model" / "model-settings.json")
    assert own_name(tmp_path / "model") == "model"


def test_a_settings_file_that_is_too_large_is_refused_in_words(tmp_path):
    sparse(tmp_path / "model-settings.json")
    with pytest.raises(ConfigError, match=rf"cannot be read: .*{MOST_BYTES} at most"):
        settings_from_directory(tmp_path)


@pytest.mark.parametrize("word", ["NaN", "Infinity"])
def test_a_time_that_is_no_number_is_refused_and_not_taken_for_none(tmp_path, word):
    (tmp_path / "model-settings.json").write_text(
        f'{{"name": "m", "implementation": "xgboost_server", "max_batch_time": {word}}}'
    )
    (settings,) = settings_from_directory(tmp_path)
    with pytest.raises(ConfigError, match=r"max_delay_s is (nan|inf)"):
        check_settings(settings, ModelBounds())


@pytest.mark.slow
@pytest.mark.timeout(20)
def test_a_key_that_is_there_twice_is_found_among_many(tmp_path):
    pairs = [f'"k{index}": 1' for index in range(200_000)]
    (tmp_path / "model-settings.json").write_text("{" + ", ".join([*pairs, '"k199999": 2']) + "}")
    with pytest.raises(ConfigError, match="'k199999' is there twice"):
        settings_from_directory(tmp_path)


NAMES = {
    "line end": "m\n2026-01-01 00:00:00.000 INFO serinus: all is well",
    "escape sequence": "m\x1b[2J",
    "half of a surrogate pair": "m\ud800",
    "no end": "m" * 256,
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("what", ["name", "version"])
def test_a_model_cannot_be_called_what_no_log_can_show(kind, what):
    fields = {"name": "m", what: NAMES[kind]}
    with pytest.raises(ConfigError, match=what) as caught:
        check_settings(ModelSettings(**fields), ModelBounds())
    assert str(caught.value).isprintable()


def test_names_of_other_alphabets_are_names():
    check_settings(ModelSettings(name="canari doré 金丝雀", version="v1.2 β"), ModelBounds())


def test_an_index_leaves_out_what_can_be_no_name(tmp_path):
    for name in (b"good", b"\xff\xfe", b"line\nend"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "model-settings.json").write_text(json.dumps({"name": "\ud800"}))
    assert repository_names(tmp_path) == ["good"]
