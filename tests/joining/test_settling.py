"""What is decided of each function of a model, and which of it is kept for a later start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from serinus import Call, Model, ModelSettings, TensorSpec
from serinus.dataplane.joining.decision import Batching, decide, first_dimension, settle
from serinus.errors import InvalidInput, ModelFailed
from serinus.model import Provenance
from serinus.protocol.types import Signature
from serinus.settings import BatchSettings

X, Y = (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),)
FIXED = (TensorSpec("x", "FP32", (4, 3)),)
RECORD = "model.bin.batching.verdict.json"


class Functions(Model):
    """Doubles rows, sums them up or refuses them, by its signature."""

    batching = "earned"
    inputs, outputs = X, Y
    default_signature = "main"

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.signatures = {name: Signature(X, Y) for name in ("main", "doubles", "sums")}
        self.told: list[bool] = []
        self.asked: set[str] = set()

    def join_rows(self, joined: bool) -> None:
        self.told.append(joined)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        name = call.parameters.get("signature_name", "")
        self.asked.add(name)
        return {"y": np.cumsum(inputs["x"], axis=0) if name == "sums" else inputs["x"] * 2}


def made(folder: Path | None = None) -> Functions:
    settings = ModelSettings(name="m")
    model = Functions(settings)
    if folder is not None:
        (folder / "model.bin").write_bytes(b"x" * 3_000_000)
        model.provenance = Provenance((folder / "model.bin",), {"framework": "1"})
    return model


def decided(model: Functions, *, clock: Any = lambda: 0.0, error: Exception | None = None, **fields: Any) -> Batching:
    @contextlib.contextmanager
    def trial() -> Iterator[Any]:
        if error is not None:
            raise error
        yield model.predict

    return decide(model, ModelSettings(name="m", **fields), trial, clock, could=True)


def test_each_function_is_judged_by_itself_and_those_that_join_are_not_named():
    found = decided(made())
    assert found.joined
    assert not found.doubtful
    assert set(found.signatures) == {"sums"}
    assert "differs from its answer alone" in found.signatures["sums"]


def test_the_default_function_is_asked_without_its_name_and_once():
    model = made()
    decided(model)
    assert model.asked == {"", "doubles", "sums"}


@pytest.mark.parametrize(("most", "is_joined"), [(0, False), (1, False), (2, True)])
def test_where_one_row_is_the_most_nothing_is_joined_and_nothing_asked(most: int, is_joined: bool):
    model = made()
    found = decided(model, batch=BatchSettings(max_batch_rows=most))
    assert (found.joined, bool(model.asked)) == (is_joined, is_joined)
    assert is_joined or found.reason == "max_batch_rows is 1"


def test_the_models_own_example_is_for_its_default_function_alone():
    class Picky(Functions):
        def warmup_inputs(self) -> Mapping[str, np.ndarray]:
            return {"x": np.full((1, 3), 5000, np.float32)}

        def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
            if np.any(inputs["x"] < 1000):
                raise InvalidInput("numbers of a thousand and more are expected")
            return super().predict(inputs, call)

    found = decided(Picky(ModelSettings(name="m")))
    assert found.joined
    assert set(found.signatures) == {"doubles", "sums"}


def test_the_log_says_that_a_check_begins_and_nothing_of_it_where_a_record_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    told = "checking whether rows are independent"
    with caplog.at_level("INFO", "serinus.model"):
        decided(made(tmp_path))
        assert told in caplog.text
        caplog.clear()
        decided(made(tmp_path))
    assert told not in caplog.text


def test_a_function_whose_rows_are_fixed_is_not_asked():
    model = made()
    model.signatures = {"main": Signature(X, Y), "sums": Signature(FIXED, Y)}
    assert dict(decided(model).signatures) == {}
    assert model.asked == {""}


def test_where_the_default_function_is_not_joined_none_is_and_the_others_are_not_asked():
    model = made()
    model.predict = lambda inputs, call: (
        model.asked.add(call.parameters.get("signature_name", ""))
        or {  # type: ignore[method-assign]
            "y": np.cumsum(inputs["x"], axis=0)
        }
    )
    found = decided(model)
    assert (found.joined, dict(found.signatures), model.asked) == (False, {}, {""})


@pytest.mark.parametrize("sure", [None, True])
def test_a_check_that_cannot_be_made_joins_nothing_but_by_the_owners_word(sure: bool | None):
    found = decided(made(), error=ModelFailed("no process"), batchable=sure)
    assert found.joined is bool(sure)
    assert "whether rows are independent could not be checked: no process" in found.reason
    assert dict(found.signatures) == {}


@pytest.mark.parametrize("sure", [None, False, True])
def test_a_model_that_does_not_say_what_it_takes_is_joined_by_its_owners_word_alone(sure: bool | None):
    model = made()
    model.inputs = ()
    found = decided(model, batchable=sure)
    assert found.joined is bool(sure)
    assert ("its inputs are not declared, so nothing was checked" in found.reason) is (sure is not False)
    assert ("'batchable': " in found.reason) is (sure is not None)
    assert model.asked == set()


def test_what_was_found_is_kept_and_found_again(tmp_path: Path):
    first = decided(made(tmp_path))
    body = orjson.loads((tmp_path / RECORD).read_bytes())
    assert {name: one["outcome"] for name, one in body["functions"].items()} == {
        "": "independent",
        "doubles": "independent",
        "sums": "dependent",
    }
    again = made(tmp_path)
    found = decided(again)
    assert again.asked == set()
    assert (found.joined, found.reason, dict(found.signatures)) == (True, first.reason, dict(first.signatures))


@pytest.mark.parametrize(
    "damage", ["of another file", "without functions", "of no form", "with an odd outcome", "no JSON"]
)
def test_where_the_first_record_is_none_the_next_place_is_looked_at(damage: str, tmp_path: Path):
    decided(made(tmp_path))
    record = tmp_path / RECORD
    body = orjson.loads(record.read_bytes())
    kept = tmp_path / "cache" / "verdicts" / f"{body['sha256']}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    record.rename(kept)
    if damage == "of another file":
        body["sha256"] = "0" * 64
    elif damage == "without functions":
        del body["functions"]
    elif damage == "of no form":
        body["functions"] = {"": {"outcome": "independent"}}
    elif damage == "with an odd outcome":
        body["functions"][""]["outcome"] = "perhaps"
    record.write_bytes(b"{" if damage == "no JSON" else orjson.dumps(body))
    again = made(tmp_path)
    assert decided(again).joined
    assert again.asked == set()


@pytest.mark.parametrize("change", ["the file", "the last byte of the file", "a fact", "the owner's word", "the rows"])
def test_what_decides_the_answers_makes_another_record(change: str, tmp_path: Path):
    decided(made(tmp_path))
    model, fields = made(tmp_path), {}
    if change == "the file":
        (tmp_path / "model.bin").write_bytes(b"other")
    elif change == "the last byte of the file":
        (tmp_path / "model.bin").write_bytes(b"x" * 2_999_999 + b"y")
    elif change == "a fact":
        model.provenance = Provenance((tmp_path / "model.bin",), {"framework": "2"})
    elif change == "the owner's word":
        fields = {"batchable": True}
    else:
        model.inputs = (TensorSpec("x", "FP32", (-1, 4)),)
    decided(model, **fields)
    assert model.asked


# What changes in a model's folder, and whether the rows are checked again.
CHANGES: dict[str, tuple[str, bool]] = {
    "a file": ("weights/part.bin", True),
    "a file that is new": ("weights/other.bin", True),
    "a file far below": ("weights/a/b/c.bin", True),
    "a hidden file": ("weights/.lock", False),
    "a record": ("weights/part.bin.verdict.json", False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_all_files_of_a_folder_decide_the_answers_but_what_is_kept_there_about_it(change: str, tmp_path: Path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "part.bin").write_bytes(b"x")
    first = made()
    first.provenance = Provenance((tmp_path / "weights",), {})
    decided(first)
    assert first.asked
    name, is_checked = CHANGES[change]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"y")
    again = made()
    again.provenance = Provenance((tmp_path / "weights",), {})
    decided(again)
    assert bool(again.asked) is is_checked


@pytest.mark.parametrize("is_writable", [True, False])
def test_what_can_be_kept_nowhere_is_said_in_the_log(
    is_writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    model = made(tmp_path)
    if (
        not is_writable
    ):  # a folder in the record's place, and a file in the cache's, are as good as unwritable, for root too
        (tmp_path / RECORD).mkdir()
        (tmp_path / "file").touch()
        monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "file"))
    assert decided(model).joined
    assert ("what was found can be saved nowhere" in caplog.text) is not is_writable


def test_what_was_not_found_out_in_time_is_not_kept(tmp_path: Path):
    now = [0.0]

    def clock() -> float:
        now[0] += 100.0
        return now[0]

    model = made(tmp_path)
    assert not decided(model, clock=clock).joined
    assert not (tmp_path / RECORD).exists()
    decided(model, error=ModelFailed("no process"))
    assert not (tmp_path / RECORD).exists()


def test_nothing_is_kept_of_a_model_that_does_not_say_what_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path))
    assert decided(made()).joined
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"functions": {}},
        {"functions": {"sums": {"outcome": "independent", "reason": ""}}},
        {"functions": {"": {"outcome": "late", "reason": ""}}},
        {"functions": {"": {"outcome": "independent"}}},
        {"functions": {"": "independent"}},
        {"functions": []},
        {"sha256": "other"},
    ],
)
def test_a_record_that_says_less_is_none(damage: dict[str, Any], tmp_path: Path):
    decided(made(tmp_path))
    body = orjson.loads((tmp_path / RECORD).read_bytes())
    (tmp_path / RECORD).write_bytes(orjson.dumps({**body, **damage}))
    model = made(tmp_path)
    decided(model)
    assert model.asked


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        (X, Y, ""),
        (FIXED, Y, "input 'x' has shape [4, 3], whose first dimension is not free"),
        (X, FIXED, "output 'x' has shape [4, 3], whose first dimension is not free"),
        ((TensorSpec("s", "FP32", ()),), Y, "input 's' has shape [], whose first dimension is not free"),
        (FIXED, FIXED, "input 'x' has shape [4, 3], whose first dimension is not free"),
    ],
)
def test_the_first_dimension_of_every_tensor_is_that_of_rows(inputs: Any, outputs: Any, said: str):
    assert first_dimension(inputs, outputs) == said


def test_a_model_and_its_processes_are_told_no_first_and_then_what_was_decided():
    model, told = made(), []

    @contextlib.contextmanager
    def trial() -> Iterator[Any]:
        assert model.told == [False], "while it is checked it joins nothing"
        yield model.predict

    settle(model, ModelSettings(name="m"), trial, lambda: 0.0, told=told.append)
    assert model.told == told == [False, True]
    assert set(model.unbatched_signatures) == {"sums"}
    assert model.details["batching"] == "joined"
    model = made()
    settle(model, ModelSettings(name="m", batchable=False), trial, lambda: 0.0)
    assert model.told == [False]
    assert model.details["batching"] == "alone"
