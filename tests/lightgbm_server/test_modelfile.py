"""LightGBM text files that LightGBM's own reader would end the process over: mended, or refused in words, before it sees them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deferred import Deferred
from depth import draws
from lightgbm_server import modelfile, modeltext
from lightgbm_support import hurtful, load, rows, save, train
from serinus.errors import ConfigError
from serinus.loading import infer_implementation
from serinus.model import Call

pytestmark = pytest.mark.slow  # a process for each damaged file

lightgbm = Deferred("lightgbm")


def edited(change: Callable[[bytes], bytes], folder: Path, **trained: object) -> Path:
    path = save(train(**trained), folder)  # type: ignore[arg-type] # the trainer's own
    path.write_bytes(change(path.read_bytes()))
    return path


def line(key: str, value: str | None, which: int = 0) -> Callable[[bytes], bytes]:
    """Put another value on the `which`-th line of a key; None: take the line away."""

    def change(content: bytes) -> bytes:
        found = [match.span() for match in re.finditer(rf"^{key}=.*\n".encode(), content, re.MULTILINE)]
        start, end = found[which]
        return content[:start] + (b"" if value is None else f"{key}={value}\n".encode()) + content[end:]

    return change


ENDINGS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "CRLF": (lambda content: content.replace(b"\n", b"\r\n"), "Windows line endings (CRLF)"),
    "CRLF in its first lines": (lambda content: content.replace(b"\n", b"\r\n", 9), "Windows line endings (CRLF)"),
    "CRLF twice over": (lambda content: content.replace(b"\n", b"\r\r\n"), "Windows line endings (CRLF)"),
    "CR": (lambda content: content.replace(b"\n", b"\r"), "carriage returns (CR)"),
    "byte order mark": (lambda content: b"\xef\xbb\xbf" + content, "a byte order mark"),
    "byte order mark and CRLF": (
        lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
        "a byte order mark and Windows line endings",
    ),
}


@pytest.mark.parametrize("engine", ["auto", "booster"])
@pytest.mark.parametrize("name", ENDINGS)
def test_a_file_with_other_line_endings_answers_as_the_original_and_the_log_says_so(
    name: str, engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, said = ENDINGS[name]
    booster = train(categorical=True)
    path = edited(change, tmp_path, categorical=True)
    with caplog.at_level(logging.WARNING, "serinus.lightgbm"):
        model = load(path, engine=engine)
    assert said in caplog.text
    assert infer_implementation(path) == "lightgbm_server"
    sent = hurtful(booster)
    np.testing.assert_allclose(model.predict({"x": sent}, Call())["predict"], booster.predict(sent), 1e-6)
    explained = model.predict({"x": sent[:5]}, Call(outputs=frozenset({"contributions"})))["contributions"]
    np.testing.assert_array_equal(explained, booster.predict(sent[:5], pred_contrib=True))


@pytest.mark.timeout(20)  # each carriage return looked for the end of them all: minutes
def test_a_file_of_carriage_returns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_bytes(b"tree\nversion=v4\n" + b"\r" * 600_000)
    with pytest.raises(ConfigError, match="the line 'end of trees' is missing"):
        modelfile.read(path)


def test_a_plain_file_is_not_said_to_be_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "serinus.lightgbm"):
        modelfile.read(save(train(), tmp_path))
    assert not caplog.text


@pytest.mark.parametrize(
    "parameters",
    [
        {"objective": "binary", "categorical": True},
        {"objective": "multiclass", "categorical": True},
        {"objective": "multiclassova"},
        {"objective": "regression", "reg_sqrt": True},
        {"objective": "regression", "linear_tree": True},
        {"objective": "regression", "linear_tree": True, "categorical": True},
        {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"objective": "lambdarank", "boosting": "dart"},
        {"objective": "quantile", "leaves": 2},
    ],
    ids=lambda parameters: "-".join(map(str, parameters.values())),
)
def test_lightgbm_answers_the_written_text_to_the_last_bit_as_the_file(parameters: dict, tmp_path: Path) -> None:
    booster = train(**parameters)
    written = lightgbm.Booster(model_str=modeltext.write(modelfile.read(save(booster, tmp_path))))
    sent = hurtful(booster)
    kinds = [{}, {"raw_score": True}, {"pred_leaf": True}, {"start_iteration": 2, "num_iteration": 3}]
    kinds += [] if parameters.get("linear_tree") else [{"pred_contrib": True}]
    for kind in kinds:
        np.testing.assert_array_equal(written.predict(sent, **kind), booster.predict(sent, **kind))


def test_a_constant_linear_model_is_written_as_it_is_read(tmp_path: Path) -> None:
    booster = train("regression", data=rows(30), leaves=2, min_data_in_leaf=100, linear_tree=True)
    written = lightgbm.Booster(model_str=modeltext.write(modelfile.read(save(booster, tmp_path))))
    np.testing.assert_array_equal(written.predict(rows(9)), booster.predict(rows(9)))


def test_what_the_trainer_leaves_in_a_file_never_reaches_lightgbm(tmp_path: Path) -> None:
    """`parameters` of a model file name files and machines, and pandas' categories are JSON of anybody's."""

    def change(content: bytes) -> bytes:
        spoken = (
            b"parameters:\n[input_model: /etc/passwd]\n[output_model: /tmp/out]\n[machines: 192.0.2.1:1]\n[data: /x]\n"
        )
        return content.replace(b"parameters:\n", spoken) + b"pandas_categorical:[[\n"

    path = edited(change, tmp_path)
    text = modeltext.write(modelfile.read(path))
    assert not any(word in text for word in ("parameters", "passwd", "machines", "pandas", "feature_importances"))
    model = load(path, engine="booster")
    np.testing.assert_array_equal(model.predict({"x": rows(9)}, Call())["predict"], train().predict(rows(9)))


RUINED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an empty objective": (line("objective", "-"), "is not as LightGBM writes it"),
    "more classes than outputs": (line("objective", "multiclass num_class:9"), "does not fit 1 trees an iteration"),
    "a count of classes alone": (line("num_class", "3"), "num_class is 3, num_tree_per_iteration is 1"),
    "too few names": (line("feature_names", "a b"), "feature_names has 2 names, max_feature_idx says 6 features"),
    "a column that is none": (line("split_feature", "99 0"), "has 2 values, not 11"),
    "a line twice": (lambda content: content.replace(b"num_cat=", b"num_cat=0\nnum_cat=", 1), "is there twice"),
    "a child that is none": (line("left_child", "1000000000 " + "-1 " * 10), "a child is not one of 11 nodes"),
    "a child below all leaves": (line("left_child", "-99 " + "-1 " * 10), "a child is not one of 11 nodes"),
    "a node with two parents": (line("left_child", "1 1 " + "-1 " * 9), "two parents"),
    "a root with a parent": (line("right_child", "0 " + "-1 " * 10), "two parents, or the root has one"),
    "a decision that is none": (line("decision_type", "64 " + "2 " * 10), "decision_type has a value"),
    "leaves beyond all numbers": (line("num_leaves", "99999999999999999999"), "values, not"),
    "no leaves": (line("num_leaves", "0"), "a tree of 0 leaves"),
    "a negative count of sets": (line("num_cat", "-1"), "num_cat is -1"),
    "a count of rows that is none": (line("leaf_count", "-1 " + "1 " * 11), "leaf_count has a count that is none"),
    "half a file": (lambda content: content[: len(content) // 2], "the file was cut off"),
    "no file": (lambda _: b"", "not a LightGBM text model"),
    "zero bytes": (lambda content: content.replace(b"=", b"\0"), "is missing"),
}


@pytest.mark.parametrize("name", RUINED)
def test_a_ruined_file_is_refused_in_words(name: str, tmp_path: Path) -> None:
    change, said = RUINED[name]
    path = edited(change, tmp_path)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load(path, engine="booster")
    assert str(path) in str(caught.value)


def test_a_tree_of_thousands_of_levels_is_refused_for_lightgbm_goes_down_by_recursion(tmp_path: Path) -> None:
    path = save(train(trees=1), tmp_path)
    inner = 5000
    values = {
        "num_leaves": f"{inner + 1}",
        "split_feature": "0 " * inner,
        "threshold": "0.5 " * inner,
        "decision_type": "2 " * inner,
        "left_child": " ".join(str(node) for node in [*range(1, inner), -1]),
        "right_child": " ".join(str(~leaf) for leaf in range(1, inner + 1)),
        "leaf_value": "1 " * (inner + 1),
        "leaf_count": "1 " * (inner + 1),
        "internal_count": "1 " * inner,
    }
    content = path.read_bytes()
    for key, value in values.items():
        content = line(key, value)(content)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="deeper than 4096 levels"):
        load(path)


def test_linear_models_of_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    booster = train("regression", linear_tree=True, leaves=3, trees=2)
    path = save(booster, tmp_path)
    content = path.read_bytes()
    features = re.search(rb"^leaf_features=(.*[0-9].*)$", content, re.MULTILINE)
    assert features is not None
    path.write_bytes(content.replace(features[0], re.sub(rb"[0-9]+", b"77", features[0])))
    with pytest.raises(ConfigError, match="leaf_features lead out of the model's 6 columns"):
        load(path)


_MUTATIONS = """
import random, sys, warnings
sys.modules.update(sklearn=None, pandas=None)  # LightGBM imports them where they are, for nothing that is asked of it here: a second
from pathlib import Path
import numpy as np
from lightgbm_server import LightGBMModel
from serinus.errors import ConfigError
from serinus.model import Call
from serinus.settings import ModelSettings

content, path, draw = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
numbers = [b"-1", b"0", b"99", b"2147483647", b"-2147483648", b"99999999999999999999", b"1e400", b"nan", b"", b"x", b"1.5", b"\\xff"]
loaded = refused = 0
while loaded + refused < int(sys.argv[4]):
    lines = content.split(b"\\n")
    at = draw.randrange(lines.index(b"end of trees"))
    key, equals, values = lines[at].partition(b"=")
    words = values.split(b" ")
    words[draw.randrange(len(words))] = draw.choice(numbers)
    choices = [[], [lines[at]] * 2, [key + equals + b" ".join(words)], [key + equals + draw.choice(numbers)], [lines[at][:-1]]]
    lines[at : at + 1] = draw.choice(choices)
    whole = draw.choice([b"\\n", b"\\n", b"\\r\\n", b"\\r"]).join(lines)
    path.write_bytes(draw.choice([whole, whole, whole[: draw.randrange(len(whole))], whole + b"\\0garbage"]))
    try:
        model = LightGBMModel(ModelSettings(name="m", model_dir=path, extra={"engine": "booster"}))
        model.load()
        rows = np.full((3, model.inputs[0].shape[1]), np.nan)
        with np.errstate(all="ignore"):
            model.predict({"x": rows}, Call(outputs=frozenset({"predict", "margin"})))
        loaded += 1
    except ConfigError:
        refused += 1
print(loaded, refused)
"""


@pytest.mark.parametrize(
    "trained", [{"categorical": True}, {"objective": "regression", "linear_tree": True}], ids=["binary", "linear"]
)
def test_no_mutation_of_a_file_ends_the_process(trained: dict, tmp_path: Path) -> None:
    path = save(train(trees=3, leaves=5, **trained), tmp_path)
    count = draws(150, 60)
    arguments = [sys.executable, "-c", _MUTATIONS, str(path), str(tmp_path / "mutated.txt"), "7", str(count)]
    ran = subprocess.run(arguments, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    loaded, refused = map(int, ran.stdout.split()[-2:])
    assert min(loaded, refused) > count * 2 // 15
