"""Model files: found, told apart by content, read whole or refused with a reason; never a crash, never code from the file."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fuzz
from hypothesis import strategies as st

from serinus.errors import ConfigError
from xgboost_server import modelfile, ubjson
from xgboost_support import LEGACY, legacy, save, train


@pytest.mark.parametrize("name", ["model.ubj", "model.json", "fraud.ubj", "m.bst"])
def test_the_only_model_of_a_folder_is_found(name: str, tmp_path: Path) -> None:
    booster = train(trees=1)
    save(booster, tmp_path, "made.ubj").rename(tmp_path / name)
    for other in ("model-settings.json", "model.ubj.verdict.json", ".hidden.json", "README.md"):
        (tmp_path / other).write_text("{}")
    assert modelfile.find(tmp_path).name == name
    assert modelfile.find(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no XGBoost model .* among: nothing"),
        (["notes.txt"], "among: notes.txt"),
        (["a.ubj", "b.json"], r"several model files \(a.ubj, b.json\)"),
        (["model.ubj", "model.json"], "several model files"),
        (["model.pkl"], "pickled models are not loaded"),
    ],
    ids=str,
)
def test_a_folder_without_just_one_model_is_refused(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=message):
        modelfile.find(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        modelfile.find(tmp_path / "absent")


def test_the_model_named_model_is_taken_among_several(tmp_path: Path) -> None:
    for name in ("model.ubj", "old.ubj"):
        (tmp_path / name).write_text("{}")
    assert modelfile.find(tmp_path).name == "model.ubj"


@pytest.mark.parametrize("suffix", ["ubj", "json"])
def test_content_decides_on_the_format_whatever_the_suffix(suffix: str, tmp_path: Path) -> None:
    path = save(train(trees=1), tmp_path, f"made.{suffix}").rename(tmp_path / "model.bin")
    assert modelfile.read(path).format == suffix


def test_both_formats_hold_the_same_model(tmp_path: Path) -> None:
    booster = train(trees=3)
    booster.feature_names = [f"f{i}" for i in range(6)]
    booster.set_attr(best_iteration="1")
    first, second = (modelfile.read(save(booster, tmp_path, f"model.{suffix}")) for suffix in ("ubj", "json"))
    assert first.sha256 != second.sha256
    for name in ("objective", "features", "groups", "base_score", "attributes", "feature_names", "booster"):
        assert getattr(first, name) == getattr(second, name), name
    for one, other in zip(first.model["trees"], second.model["trees"], strict=True):
        np.testing.assert_array_equal(np.asarray(one["split_conditions"], np.float32),
                                      np.asarray(other["split_conditions"], np.float32))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "values"), [("5E-1", (0.5,)), ("[5E-1]", (0.5,)), ("[1E-1,2E-1,-3]", (0.1, 0.2, -3.0)), ("0.5", (0.5,))]
)
def test_base_scores_of_every_version_are_read(text: str, values: tuple[float, ...], tmp_path: Path) -> None:
    document = json.loads(save(train(trees=1), tmp_path, "m.json").read_text())
    document["learner"]["learner_model_param"]["base_score"] = text
    (tmp_path / "m.json").write_text(json.dumps(document))
    assert modelfile.read(tmp_path / "m.json").base_score == values


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b"not a model at all",
        b'{"learner": 3}',
        b'{"learner": {"learner_model_param": {"base_score": "nan"}, "objective": {"name": ""}, "gradient_booster": {"name": ""}}}',
        b"{L\0\0\0\0\0\0\0\7learner",
        b"\x80\x04\x95pickle",
    ],
    ids=str,
)
def test_what_is_no_model_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.ubj"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.ubj: (not an XGBoost model|pickled models are not loaded)"):
        modelfile.read(path)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One model in each format."""
    folder = tmp_path_factory.mktemp("held")
    booster = train(trees=2, depth=2)
    files = {suffix: save(booster, folder, f"m.{suffix}").read_bytes() for suffix in ("ubj", "json")}
    models = json.loads((LEGACY / "1.7.6.json").read_text())["models"]
    return {
        **files,
        "bin": base64.b64decode(models["logistic"]["file"]),
        "dart": base64.b64decode(models["dart"]["file"]),
    }


@pytest.mark.parametrize("form", ["ubj", "json", "bin", "dart"])
def test_a_file_cut_short_is_refused_at_every_length(form: str, held: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "model"
    for size in range(0, len(held[form]) - 1, 37):
        path.write_bytes(held[form][:size])
        with pytest.raises(ConfigError, match="not an XGBoost model"):
            modelfile.read(path)


@given(data=st.data(), form=st.sampled_from(["ubj", "json", "bin", "dart"]))
@fuzz(max_examples=400, deadline=None)
@pytest.mark.slow
def test_a_damaged_file_is_read_or_refused_and_never_walked_astray(
    data: st.DataObject, form: str, held: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from serinus.engines.tree_adapter import NotCovered
    from xgboost_server.forest_reader import choose_iterations, compile_forest

    content = bytearray(held[form])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        file = modelfile.read(path)
        forest = compile_forest(file, choose_iterations(file, "best"), missing=float("nan"), threads=1)
    except (ConfigError, NotCovered, ValueError):
        return
    if forest.columns < 1000 and forest.groups < 1000:
        assert forest.predict(np.zeros((9, forest.columns), np.float32)).shape == (9, forest.groups)


@given(st.binary(max_size=200))
@fuzz(max_examples=200, deadline=None)
def test_any_bytes_decode_as_ubjson_or_are_refused(data: bytes) -> None:
    try:
        ubjson.decode(data)
    except ubjson.UbjsonError:
        pass


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"Z", None),
        (b"T", True),
        (b"i\xff", -1),
        (b"U\xff", 255),
        (b"I\xff\xfe", -2),
        (b"l\x00\x00\x00\x05", 5),
        (b"d" + struct.pack(">f", 1.5), 1.5),
        (b"D" + struct.pack(">d", 1.1), 1.1),
        (b"SU\x02hi", "hi"),
        (b"Ca", "a"),
        (b"NZ", None),
        (b"[i\x01T]", [1, True]),
        (b"[#i\x02i\x01T", [1, True]),
        (b"{U\x01ai\x01}", {"a": 1}),
        (b"{#i\x01U\x01ai\x01", {"a": 1}),
        (b"{$i#i\x01U\x01a\x07", {"a": 7}),
        (b"[$S#i\x01U\x01a", ["a"]),
    ],
    ids=str,
)
def test_ubjson_values_decode(data: bytes, value: object) -> None:
    assert ubjson.decode(data) == value


@pytest.mark.parametrize(
    ("marker", "form", "values"),
    [(b"d", ">f4", [1.5, -2]), (b"D", ">f8", [1.1]), (b"i", ">i1", [-1, 2]), (b"U", ">u1", [255]), (b"I", ">i2", [-300]),
     (b"l", ">i4", [70_000]), (b"L", ">i8", [2**40])],
)  # fmt: skip
def test_ubjson_typed_arrays_are_arrays_in_native_order(marker: bytes, form: str, values: list) -> None:
    array = ubjson.decode(b"[$" + marker + b"#U" + bytes([len(values)]) + np.array(values, form).tobytes())
    assert array.dtype == np.dtype(form).newbyteorder("=")
    np.testing.assert_array_equal(array, np.array(values, form))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[$d#U\x09\0", "an array of 36 bytes, 1 are left"),
        (b"[" * 100, "nested deeper than 64"),
        (b"SU\x05hi", "a string of 5 bytes, 2 are left"),
        (b"SSU\x01a", "a length must be an integer"),
        (b"[#i\xff", "negative length -1"),
        (b"[$di", "a typed container needs a count"),
        (b"[$Z#L\x7f\0\0\0\0\0\0\0", "holds nothing"),
        (b"{U\x01aTU\x01aT}", "'a' is there twice"),
        (b"?", "unknown type '\\?'"),
        (b"SU\x01\xff", "not UTF-8"),
        (b"", "ends within a value"),
    ],
    ids=str,
)
def test_malformed_ubjson_is_refused_with_the_place(data: bytes, message: str) -> None:
    with pytest.raises(ubjson.UbjsonError, match=message):
        ubjson.decode(data)


def test_an_old_binary_file_is_read_without_its_prefix_too(tmp_path: Path) -> None:
    path, *_ = legacy("1.7.6", "logistic", tmp_path)
    held = path.read_bytes()
    assert held.startswith(b"binf")
    path.write_bytes(held[4:])
    assert modelfile.read(path).format == "binary"
