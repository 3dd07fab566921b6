"""The fraud ensemble's learned half: calibration, the auto-encoder, and the shipped members against the frameworks themselves."""

from __future__ import annotations

import json
import math
import os
import pickletools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from deferred import Deferred
from fraud_features.calibration import fit_blend, fit_thresholds, platt, sigmoid
from fraud_features.features import FEATURE_NAMES
from fraud_features.sample import load_history, load_sample
from fraud_features.store import MemoryStore
from fraud_features.stream import replay
from fraud_support import SERVICE
from serinus import ModelSettings
from serinus.errors import ConfigError, ModelFailed
from serinus.testing import InMemoryClient

torch = Deferred("torch")
torch_classes = Deferred("torch_classes")
Ensemble = Deferred("ensemble_server", "Ensemble")
anomaly = Deferred("fraud_features.anomaly")
AutoEncoder = Deferred("fraud_features.anomaly", "AutoEncoder")
Strangeness = Deferred("fraud_features.anomaly", "Strangeness")
save = Deferred("fraud_features.anomaly", "save")
strangeness = Deferred("fraud_features.anomaly", "strangeness")
train_autoencoder = Deferred("fraud_features.anomaly", "train_autoencoder")

MODEL = SERVICE / "model"
DOCUMENT = yaml.safe_load((MODEL / "ensemble.yaml").read_text())

pytestmark = [
    pytest.mark.slow,  # importing PyTorch takes ~2 s
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    model = Ensemble("fraud", str(MODEL))
    model.load()
    return model


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """Of the committed held-out day."""
    store = MemoryStore()
    replay(load_history(SERVICE / "data"), store)
    return replay(load_sample(SERVICE / "data"), store)


def request(features: np.ndarray, amount: float = 10.0, terminal: bytes = b"T-none") -> dict[str, np.ndarray]:
    terminals = np.empty(len(features), object)
    terminals[:] = terminal
    return {"features": features, "amount": np.full(len(features), amount), "terminal_id": terminals}


# Calibration.


def test_platt_finds_the_slope_and_offset_that_made_the_labels():
    r = np.random.default_rng(0)
    margins = r.normal(0, 3, 200_000)
    labels = (r.random(len(margins)) < 1 / (1 + np.exp(-(0.7 * margins - 1.2)))).astype(int)
    a, b = platt(margins, labels)
    assert a == pytest.approx(0.7, abs=0.02)
    assert b == pytest.approx(-1.2, abs=0.03)


def test_a_blend_finds_the_weights_that_made_the_labels():
    r = np.random.default_rng(1)
    columns = r.normal(0, 2, (200_000, 2))
    labels = (r.random(len(columns)) < sigmoid(0.9 * columns[:, 0] + 0.3 * columns[:, 1] - 1)).astype(int)
    blend = fit_blend(columns, labels)
    assert [*blend.weights, blend.bias] == pytest.approx([0.9, 0.3, -1], abs=0.03)


def test_a_member_that_would_weigh_less_than_nothing_is_left_out():
    r = np.random.default_rng(2)
    columns = r.normal(0, 2, (20_000, 2))
    labels = (r.random(len(columns)) < sigmoid(columns[:, 0] - 0.4 * columns[:, 1])).astype(int)
    blend = fit_blend(columns, labels)
    assert blend.weights[1] == 0.0
    assert blend.weights[0] > 0.5


def test_thresholds_keep_their_precision_and_their_budgets():
    r = np.random.default_rng(3)
    labels = (r.random(20_000) < 0.05).astype(int)
    scores = sigmoid(r.normal(-4, 1, 20_000) + 6 * labels)
    strange = r.normal(0, 1, 20_000)
    found = fit_thresholds(labels, scores, strange, by_score=0.015, by_anomaly=0.005)
    declined, reviewed = found.held(scores, strange)
    assert labels[declined].mean() >= 0.95
    assert reviewed.mean() == pytest.approx(0.02, abs=0.0005)
    for_strangeness = reviewed & (scores < found.review)
    assert for_strangeness.mean() == pytest.approx(0.005, abs=0.0002)
    none = fit_thresholds(labels, scores, strange, by_score=0.02, by_anomaly=0.0)
    assert not (none.held(scores, strange)[1] & (scores < none.review)).any()


# The auto-encoder.


def genuine(rows: int, seed: int = 0) -> np.ndarray:
    """Features in which the columns hang together, a tenth of one of them missing."""
    r = np.random.default_rng(seed)
    common = r.gamma(2, 20, (rows, 1))
    found = (common * r.uniform(0.5, 1.5, (rows, len(FEATURE_NAMES)))).astype(np.float32)
    found[r.random(rows) < 0.1, FEATURE_NAMES.index("last_place_km")] = np.nan
    return found


def test_the_same_rows_and_seed_give_the_same_network_and_another_seed_another():
    rows = genuine(3000)
    first, again, other = (strangeness(train_autoencoder(rows, seed), rows) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_what_is_unlike_the_rows_of_training_is_stranger():
    model = train_autoencoder(genuine(6000), 1)
    usual, odd = genuine(500, seed=5), genuine(500, seed=5)
    odd[:, FEATURE_NAMES.index("terminal_home_km")] *= 40
    odd[:, FEATURE_NAMES.index("amount")] /= 40
    assert np.median(strangeness(model, odd)) > np.quantile(strangeness(model, usual), 0.99)


def test_the_folded_network_is_the_trained_one_written_otherwise():
    rows = genuine(400)
    torch.manual_seed(3)
    trained = AutoEncoder(FEATURE_NAMES, rows)
    usual = torch.rand(len(anomaly.COLUMNS), dtype=torch.float64) + 0.5
    with torch.no_grad():
        normal = trained.normal(torch.from_numpy(rows))
        errors = (trained(normal) - normal) / (usual * len(anomaly.COLUMNS) ** 0.5)
        expected = torch.log(errors.square().sum(1).sqrt()).numpy()
        folded = strangeness(Strangeness(trained, usual).eval(), rows)
    np.testing.assert_allclose(folded, expected, rtol=1e-12)


def test_the_saved_network_answers_the_same_and_names_its_columns(tmp_path: Path):
    rows = genuine(2000)
    model = train_autoencoder(rows, 1)
    save(model, tmp_path / "anomaly.pt")
    loaded = torch.jit.load(str(tmp_path / "anomaly.pt"))
    assert loaded.feature_names == list(FEATURE_NAMES)
    # TorchScript runs addmm(bias, x, w) as mm and add, so it rounds the bias last where eager PyTorch may round it first: 64 products
    # in float64 differ by some 1e-15 then, and with the instruction set by whether they do at all.
    np.testing.assert_allclose(loaded(torch.from_numpy(rows)).numpy(), strangeness(model, rows), rtol=1e-12, atol=1e-12)


def test_the_shipped_file_is_small_and_names_no_python_but_pytorchs_and_no_path():
    path = MODEL / "anomaly.pt"
    assert path.stat().st_size < 100_000
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".debug_pkl")]
        for name in (name for name in archive.namelist() if name.endswith(".pkl")):
            for opcode, argument, _ in pickletools.genops(archive.read(name)):
                if opcode.name == "GLOBAL":
                    assert str(argument).split()[0].split(".")[0] in {"__torch__", "torch", "collections"}
    names = torch.jit.load(str(path)).feature_names
    assert tuple(names) == FEATURE_NAMES


# The shipped ensemble.


def test_the_shipped_members_blend_as_the_frameworks_and_the_documented_formula_say(
    ensemble: Ensemble, features: np.ndarray
):
    import xgboost

    parameters = DOCUMENT["combiner"]["parameters"]
    blend = parameters["blend"]
    booster = xgboost.Booster(model_file=str(MODEL / "fraud.ubj"))
    margins = booster.predict(xgboost.DMatrix(features, feature_names=list(FEATURE_NAMES)), output_margin=True)
    with torch.inference_mode():
        strange = torch.jit.load(str(MODEL / "anomaly.pt"))(torch.from_numpy(features)).numpy()
    anomaly = next(rule for rule in parameters["rules"] if rule["rule"] == "anomaly")
    outputs = ensemble.predict_arrays(request(features), {})
    fired = 0
    for row in range(len(features)):
        log_odds = blend["bias"]
        for name, z in (("xgb", margins[row]), ("anomaly", strange[row])):
            share = blend["members"][name]
            log_odds += share["weight"] * (share["platt"]["a"] * float(z) + share["platt"]["b"])
        score = 1 / (1 + math.exp(-log_odds))
        assert outputs["score"][row] == pytest.approx(score, abs=2e-6)
        codes = outputs["reasons"][row].split(b";")
        assert (b"ANOMALY" in codes) == (strange[row] > anomaly["limit"])
        if codes == [b"ANOMALY"]:
            fired += 1
            assert outputs["decision"][row] == b"review"
        if b"SCORE_DECLINE" in codes and b"VELOCITY_LIMIT" not in codes:
            assert outputs["decision"][row] == b"decline"
    assert fired > 0


def test_rows_score_alike_alone_and_together_to_the_last_bit(ensemble: Ensemble, features: np.ndarray):
    together = ensemble.predict_arrays(request(features[:500]), {})
    in_sevens = [ensemble.predict_arrays(request(features[at : min(at + 7, 500)]), {}) for at in range(0, 500, 7)]
    alone = [ensemble.predict_arrays(request(features[at : at + 1]), {}) for at in range(500)]
    for name, array in together.items():
        assert np.concatenate([answer[name] for answer in in_sevens]).tolist() == array.tolist()
        assert np.concatenate([answer[name] for answer in alone]).tolist() == array.tolist()


def test_the_ensemble_earns_its_batching(tmp_path: Path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    with InMemoryClient(ModelSettings(name="fraud", implementation="ensemble_server", model_dir=folder)) as client:
        assert client.metadata.parameters["batching"] == "joined", client.metadata.parameters["batching_reason"]
        assert client.plane.model_config("fraud").max_batch_rows == 4096


def test_features_that_are_missing_or_infinite_still_give_a_score(ensemble: Ensemble):
    for value in (np.nan, np.inf, -np.inf):
        rows = np.full((3, len(FEATURE_NAMES)), value, np.float32)
        rows[:, FEATURE_NAMES.index("customer_count_1h")] = 1.0
        assert np.isfinite(ensemble.predict_arrays(request(rows), {})["score"]).all()


def test_both_members_are_told_in_the_metadata_and_run_in_one_thread(ensemble: Ensemble):
    members: dict[str, Any] = ensemble.serinus_details["members"]
    assert set(members) == {"xgb", "anomaly"}
    assert members["anomaly"]["file"] == "anomaly.pt"
    assert members["anomaly"]["threads"] == 1
    assert torch.get_num_threads() == 1


def shipped(folder: Path, *changes: tuple[str, str]) -> Ensemble:
    """The shipped model directory, with changes of its `ensemble.yaml`."""
    for file in MODEL.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    text = (folder / "ensemble.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "ensemble.yaml").write_text(text)
    return Ensemble("fraud", str(folder))


def test_an_anomaly_without_a_floor_ends_the_matter_before_the_score(tmp_path: Path, features: np.ndarray):
    model = shipped(tmp_path, (", action: review, floor: true", ", action: review, code: STRANGE"))
    model.load()
    outputs = model.predict_arrays(request(features), {})
    strange = [at for at, reasons in enumerate(outputs["reasons"]) if reasons == b"STRANGE;SCORE_DECLINE"]
    assert strange
    assert {outputs["decision"][at] for at in strange} == {b"review"}


def test_a_network_of_other_columns_is_refused_with_the_line_of_its_member(tmp_path: Path):
    model = shipped(tmp_path)
    other = [*FEATURE_NAMES[1:], FEATURE_NAMES[0]]
    save(train_autoencoder(genuine(1000), 1, other), tmp_path / "anomaly.pt")
    with pytest.raises(ConfigError) as caught:
        model.load()
    (problem,) = caught.value.problems
    line = (tmp_path / "ensemble.yaml").read_text().splitlines().index("  - name: anomaly") + 1
    assert f"ensemble.yaml:{line}: member 'anomaly': column 0 of 'features' is 'amount'" in problem


def test_a_member_that_answers_nan_is_at_fault_and_not_the_client(tmp_path: Path, features: np.ndarray):
    model = shipped(tmp_path)
    torch.jit.script(torch_classes.Broken().eval()).save(str(tmp_path / "anomaly.pt"))
    model.load()
    with pytest.raises(ModelFailed, match="member 'anomaly', row 0: its score is NaN"):
        model.predict_arrays(request(features[:2]), {})


def test_without_pytorch_the_steps_that_were_kept_are_enough_and_without_them_the_extra_is_named(tmp_path: Path):
    without = shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("anomaly.pt.verdict.json"))
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from ensemble_server import Ensemble\n"
        "from serinus.errors import ConfigError\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n"
        "        print('ready', Ensemble('fraud', folder).load())\n"
        "    except ConfigError as error:\n"
        "        print(repr(str(error)))\n"
    )
    environment = {**os.environ, "SERINUS_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program, str(without), str(MODEL)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    said, ready = [line for line in ran.stdout.splitlines() if line.startswith(("'", '"', "ready"))]
    assert "member 'anomaly'" in said.replace("\\'", "'")
    assert "serinus[torch-server]" in said
    assert ready == "ready True"


# What the README tells.


def test_the_readme_tells_both_members_and_what_is_caught_of_unseen_kinds():
    readme = (SERVICE / "README.md").read_text()
    measured = json.loads((MODEL / "metrics.json").read_text())
    for figures in (measured["test"], measured["test_members"]["xgb"], measured["test_members"]["anomaly"]):
        assert f"| {figures['auc_pr']:.3f} |" in readme
        assert f"{figures['brier']:.4f}" in readme
    for entry in json.loads((SERVICE / "novelty.json").read_text()):
        if entry["held_out"]:
            cells = [
                f"{100 * entry[name][key]:.1f} %"
                for key in ("unseen_held", "frauds_held", "genuine_held")
                for name in ("xgboost_alone", "ensemble")
            ]
            assert f"| {entry['unseen_frauds']} | " + " | ".join(cells) + " |" in readme
