"""A framework of a page, served by the compiled engine: it reads a file, votes in float64 over float32 rows, and knows no margins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serinus import verification_records
from serinus.engines import tree_verification, verify_command
from serinus.engines.tree_adapter import NotCovered, TreeAdapter, TreeFacts
from serinus.engines.tree_model import CompiledTreeModel
from serinus.errors import ConfigError, InvalidInput, NotSupported
from serinus.model import Call
from serinus.native.trees.forest64 import Forest64
from serinus.native.trees.walker import Trees
from serinus.settings import ModelSettings

CLASSES = 3


class Votes:
    """The framework's own predictor: one split a tree, read off the document, averaged in NumPy."""

    columns = 2

    def __init__(self, stumps: list[dict[str, Any]]) -> None:
        self._stumps = stumps

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        total = np.zeros((len(rows), CLASSES))
        for stump in self._stumps:
            value = rows[:, stump["column"]]
            left = np.where(np.isnan(value), stump["missing_left"], value.astype(np.float64) <= stump["threshold"])
            total += np.where(left[:, None], stump["left"], stump["right"])
        return total / len(self._stumps)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.outputs(rows).argmax(axis=1).astype(np.float64)

    def margins(self, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("votes have no margins")

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        raise NotSupported("output 'contributions' is not offered: votes are not explained")


class VotesAdapter(TreeAdapter):
    """All that the framework costs."""

    framework = "votes"
    package = "votes_server"
    predictor = "Booster"
    input_dtype = np.dtype(np.float32)
    output_dtype = np.dtype(np.float64)
    version = "1.0"
    loaded: list[Path] = []  # noqa: RUF012 # shared on purpose: the tests count

    def __init__(self, settings: ModelSettings, options: Any) -> None:
        assert settings.model_dir is not None
        path = settings.model_dir / "votes.json"
        content = path.read_bytes()
        self.stumps = json.loads(content)
        self.facts = TreeFacts(
            path=path,
            sha256=hashlib.sha256(content).hexdigest(),
            columns=2,
            groups=CLASSES,
            feature_names=("a", "b"),
            task="multiclass",
            predicts_class=True,
            offers_margin=False,
            offers_probability=True,
            details={"trees": len(self.stumps)},
        )

    @classmethod
    def installed_version(cls) -> str:
        return cls.version

    def compile(self, *, threads: int) -> Forest64:
        if any("linear" in stump for stump in self.stumps):
            raise NotCovered("linear leaves")
        count = len(self.stumps)
        value, vectors = [], []
        for stump in self.stumps:
            value += [stump["threshold"], len(vectors), len(vectors) + 1]
            vectors += [stump["left"], stump["right"]]
        trees = Trees(
            starts=np.arange(0, 3 * count + 1, 3),
            left=np.tile([1, -1, -1], count).astype(np.int32),
            right=np.tile([2, -1, -1], count).astype(np.int32),
            feature=np.repeat([stump["column"] for stump in self.stumps], 3).astype(np.int32),
            value=np.array(value, np.float64),
            default_left=np.repeat([stump["missing_left"] for stump in self.stumps], 3),
            outputs=np.zeros(count, np.int32),
        )
        return Forest64(
            trees, vectors=np.array(vectors), columns=2, groups=CLASSES, divisor=float(count), threads=threads
        )

    def load_predictor(self, *, threads: int) -> Votes:
        if not self.version:
            raise ConfigError("votes is not installed")
        self.loaded.append(self.facts.path)
        return Votes(self.stumps)

    def split_values(self) -> Mapping[int, np.ndarray]:
        return {
            column: np.array([stump["threshold"] for stump in self.stumps if stump["column"] == column])
            for column in (0, 1)
        }


class VotesModel(CompiledTreeModel):
    platform = "votes_json"
    adapter_class = VotesAdapter


@pytest.fixture(autouse=True)
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(VotesAdapter, "loaded", [])
    return VotesAdapter.loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Votes whose thresholds are no float32 numbers; leaves are votes for one class, so that ties are common."""
    random = np.random.default_rng(3)
    stumps = [
        {
            "column": int(number % 2),
            "threshold": float(random.normal()),
            "missing_left": bool(random.random() < 0.5),
            "left": np.eye(CLASSES)[random.integers(CLASSES)].tolist(),
            "right": np.eye(CLASSES)[random.integers(CLASSES)].tolist(),
        }
        for number in range(16)
    ]
    (tmp_path / "votes.json").write_text(json.dumps(stumps))
    return tmp_path


def _load(folder: Path, **extra: Any) -> VotesModel:
    model = VotesModel(ModelSettings(name="m", model_dir=folder, extra=extra))
    model.load()
    return model


def _rows(count: int) -> np.ndarray:
    random = np.random.default_rng(4)
    rows = random.normal(size=(count, 2)).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows


def _change(folder: Path, **changed: Any) -> None:
    stumps = json.loads((folder / "votes.json").read_text())
    stumps[3] |= changed
    (folder / "votes.json").write_text(json.dumps(stumps))


@pytest.mark.parametrize("engine", ["forest", "booster"])
def test_answers_are_the_frameworks_by_either_engine(engine: str, folder: Path) -> None:
    _load(folder)
    model = _load(folder, engine=engine)
    assert model.details["engine"] == engine
    rows = _rows(300)
    votes = Votes(json.loads((folder / "votes.json").read_text()))
    got = model.predict({"x": rows}, Call(outputs=frozenset({"predict", "class", "probability"})))
    np.testing.assert_array_equal(got["predict"], votes.predict(rows))
    np.testing.assert_array_equal(model.predict({"x": rows}, Call())["predict"], votes.predict(rows))
    np.testing.assert_array_equal(got["probability"], votes.outputs(rows))
    np.testing.assert_array_equal(got["class"], votes.predict(rows).astype(np.int64))
    assert got["class"].dtype == np.int64


def test_the_metadata_says_what_the_framework_says(folder: Path) -> None:
    model = _load(folder)
    assert {spec.name: (spec.datatype, spec.shape) for spec in model.inputs} == {"input-0": ("FP32", (-1, 2))}
    assert {spec.name: (spec.datatype, spec.shape) for spec in model.outputs} == {
        "predict": ("FP64", (-1,)),
        "probability": ("FP64", (-1, CLASSES)),
        "class": ("INT64", (-1,)),
        "contributions": ("FP64", (-1, CLASSES, 3)),
    }
    assert model.details["trees"] == 16
    assert model.details["feature_names"] == ["a", "b"]
    with pytest.raises(InvalidInput, match="output 'margin': the model offers class, contributions, predict"):
        model.predict({"x": _rows(1)}, Call(outputs=frozenset({"margin"})))


def test_a_record_spares_the_framework_and_lapses_with_its_version(
    tmp_path: Path, folder: Path, loaded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _load(folder).details
    assert first["engine_reason"].startswith(
        "verified: largest difference 0 in prediction, 0 in margin, over 4096 rows"
    )
    assert _load(folder).details == first
    assert len(loaded) == 1
    monkeypatch.setattr(VotesAdapter, "version", "2.0")
    _load(folder)
    assert len(loaded) == 2
    came = json.loads((folder / ("votes.json" + verification_records.SUFFIX)).read_text())
    (own,) = verification_records.load((tmp_path / "cache" / "verdicts").iterdir())
    assert (came["votes"], own["votes"], own["engine64"], own["agrees"]) == ("1.0", "2.0", 1, True)


def test_what_the_walk_does_not_cover_or_does_otherwise_is_the_frameworks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _change(folder, linear=True)
    assert _load(folder).details["engine_reason"] == "linear leaves"
    assert "served by votes's Booster: linear leaves" in caplog.text
    _change(folder, linear=True, threshold=0.25)
    monkeypatch.setattr(VotesAdapter, "compile", _compile_moved)
    model = _load(folder)
    assert model.details["engine"] == "booster"
    assert "the compiled engine differs: largest difference " in model.details["engine_reason"]
    with pytest.raises(ConfigError, match="'forest', but the compiled engine differs"):
        _load(folder, engine="forest")


def _compile_moved(adapter: VotesAdapter, *, threads: int) -> Forest64:
    """Compile with one threshold a float32 step off."""
    stumps = [{name: value for name, value in stump.items() if name != "linear"} for stump in adapter.stumps]
    moved = object.__new__(VotesAdapter)
    stumps[3]["threshold"] = float(np.nextafter(np.float32(0.25), np.float32(1)))
    moved.stumps = stumps
    return _COMPILE(moved, threads=threads)


_COMPILE = VotesAdapter.compile


def test_explanations_are_the_frameworks_to_refuse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _load(folder)
    wanted = Call(outputs=frozenset({"contributions"}))
    with pytest.raises(NotSupported, match="votes are not explained"):
        model.predict({"x": _rows(1)}, wanted)
    model = _load(folder)
    monkeypatch.setattr(VotesAdapter, "version", "")
    with pytest.raises(NotSupported, match="not offered here: votes is not installed"):
        model.predict({"x": _rows(1)}, wanted)


def test_the_command_reads_flags_and_the_folders_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model-settings.json").write_text('{"parameters": {"extra": {"output_name": "y"}}}')
    flag = verify_command.Flag("--number", "output_name", "a number", int)
    assert verify_command.run(VotesAdapter, [str(folder)]) == 0
    assert "the compiled engine agrees" in capsys.readouterr().out
    assert verify_command.run(VotesAdapter, [str(folder), "--number", "x"], [flag]) == 1
    assert "--number 'x': invalid literal" in capsys.readouterr().err
    (folder / "model-settings.json").write_text('{"parameters": {"extra": {"engin": 1}}}')
    assert verify_command.run(VotesAdapter, [str(folder)]) == 1
    assert "did you mean engine" in capsys.readouterr().err


def test_a_difference_is_absolute_up_to_one_and_relative_above() -> None:
    for got, wanted, expected in (
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.5], [0.25], 0.25),
        ([1010.0], [1000.0], 0.01),
        ([np.nan, np.inf, -np.inf], [np.nan, np.inf, -np.inf], 0.0),
        ([np.nan], [1.0], np.inf),
        ([np.inf], [-np.inf], np.inf),
        ([], [], 0.0),
    ):
        assert tree_verification.largest_difference(np.array(got), np.array(wanted)) == pytest.approx(expected)
