"""`serinus tune` on a tiny real model, with real servers and real load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from serinus.cli import main
from serinus.loading import settings_from_directory

FRAUD = Path(__file__).parents[2] / "inferenceservices" / "fraud" / "model" / "fraud.ubj"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (FRAUD.name, FRAUD.name + ".verdict.json"):
        if FRAUD.with_name(name).is_file():
            shutil.copy(FRAUD.with_name(name), folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_settings_that_hold_the_slo_are_found_and_written(model: Path, tmp_path: Path) -> None:
    # A bound that a crowded machine holds, too: what is tested is the way from the SLO to the files.
    words = [
        "tune",
        str(model),
        "--slo",
        "p50<2s,p99<5s",
        "--rate",
        "50/s",
        "--budget",
        "8s",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    found = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert found["capacity_per_s"] > 0
    assert found["limit"][0] in {"queue", "compute", "memory", "transport"}
    assert found["resources"]["min_replicas"] >= 1
    assert all(trial["server"]["cpus"] > 0 for trial in found["trials"] if trial["sent"] > 1)
    # The compiled trees predict on the event loop, where native threads and instances do nothing: none is tried.
    assert {trial["config"]["instances"] for trial in found["trials"]} == {1}
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
    (settings,) = settings_from_directory(model)
    assert settings.execution == found["config"]["execution"]
    assert settings.batch.max_batch_rows == found["config"]["max_batch_rows"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_slo_out_of_reach_says_the_best_found_and_writes_no_settings(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", str(model), "--slo", "p50<1us", "--budget", "3s", "-o", str(tmp_path / "out")]
    assert main(words) == 1
    assert "no settings hold p50<0.001ms; the best found: p50" in capsys.readouterr().out
    assert not (model / "model-settings.json").exists()


def test_a_bad_slo_or_rate_starts_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(model), "--slo", "fast"]) == 1
    assert main(["tune", str(model), "--slo", "p99<1s", "--rate", "many"]) == 1
    assert main(["tune", str(model), "--slo", "p99<1s", "--budget", "long"]) == 1
    error = capsys.readouterr().err
    assert "'fast': not an objective" in error
    assert "--rate 'many'" in error
    assert "--budget 'long'" in error
