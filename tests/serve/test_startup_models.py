"""Which models are served under which names, and what a repository may hold beside them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deferred import Deferred
from serinus.cli.serving import startup_models
from serinus.cli.serving.options import parse
from serinus.cli.serving.startup_models import discover, find_models, repository_names
from serinus.errors import ConfigError
from serve_support import serving

pytestmark = pytest.mark.slow  # most tests start a server

xgboost = Deferred("xgboost")


@pytest.fixture(scope="module")
def booster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "model.ubj"
    rows = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    xgboost.train({"max_depth": 2}, xgboost.DMatrix(rows, rows[:, 0]), 2).save_model(file)
    return file


def _model(folder: Path, name: str = "model.onnx") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    return folder


def _names(*words: object, environment: dict[str, str] | None = None) -> list[tuple[str, str]]:
    parsed = parse([str(word) for word in words], environment or {})
    return [(settings.name, settings.version) for settings in find_models(parsed, None).models]


def test_folders_and_files_are_served_by_their_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fraud, recommender = _model(tmp_path / "fraud"), _model(tmp_path / "recommender")
    assert _names(fraud, recommender) == [("fraud", ""), ("recommender", "")]
    assert _names(fraud) == [("fraud", "")]
    assert _names("--model_dir", f"file://{fraud}/") == [("fraud", "")]
    assert _names("--class", "onnx_server", fraud) == [("fraud", "")]
    assert _names(fraud / "model.onnx") == [("model", "")]
    (tmp_path / "latest").symlink_to(fraud)
    assert _names(tmp_path / "latest") == [("latest", "")]
    monkeypatch.chdir(fraud)
    assert _names(".") == [("fraud", "")]
    assert _names("../recommender") == [("recommender", "")]
    assert _names("--class", "a.b:C") == [("model", "")]


def test_what_names_a_model_comes_before_its_folder(tmp_path: Path):
    fraud = _model(tmp_path / "fraud")
    assert _names(fraud, "--model_name", "m") == [("m", "")]
    assert _names(fraud, environment={"INFERENCE_SERVICE_NAME": "service"}) == [("service", "")]
    (fraud / "model-settings.json").write_text('{"name": "own"}')
    assert _names(fraud) == [("own", "")]
    assert _names(fraud, environment={"INFERENCE_SERVICE_NAME": "service"}) == [("own", "")]
    (fraud / "model-settings.json").write_text("{}")
    assert _names(fraud) == [("fraud", "")]


def test_a_setting_that_the_operator_gives_is_told_from_one_of_the_model_s_files(tmp_path: Path):
    fraud = _model(tmp_path / "fraud")
    (fraud / "model-settings.json").write_text(
        '{"parameters": {"extra": {"providers": ["cpu"], "optimization": "basic"}}}'
    )
    parsed = parse([str(fraud), "--extra", "optimization=all"], {})
    (settings,) = find_models(parsed, None).models
    assert settings.extra == {"providers": ["cpu"], "optimization": "all"}
    assert settings.told == {"optimization"}


def test_numbered_folders_are_versions_of_the_folder_that_they_lie_in(tmp_path: Path):
    for name, version in (("resnet", "1"), ("resnet", "7"), ("other", "3")):
        _model(tmp_path / name / version, "saved_model.pb")
    assert _names(tmp_path / "resnet") == [("resnet", "7")]
    assert _names(tmp_path / "resnet" / "1") == [("resnet", "1")]
    assert _names(tmp_path / "resnet", tmp_path / "other") == [("resnet", "7"), ("other", "3")]
    environment = {"INFERENCE_SERVICE_NAME": "service"}
    assert _names(tmp_path / "resnet", tmp_path / "other", environment=environment) == [("resnet", "7"), ("other", "3")]


def test_two_folders_of_one_name_are_told_where_they_lie(tmp_path: Path):
    a, b = _model(tmp_path / "a" / "fraud"), _model(tmp_path / "b" / "fraud")
    with pytest.raises(ConfigError, match=f"two models are called 'fraud': {a}, {b}; give each a name"):
        _names(a, b)


def test_what_kserve_puts_at_its_own_place_is_called_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mounted = _model(tmp_path / "models")
    monkeypatch.setattr(startup_models, "_DEFAULT_MODEL_DIR", mounted)
    assert _names() == [("model", "")]
    assert _names("--model_dir", mounted) == [("model", "")]
    assert _names("--model_dir", mounted / "model.onnx") == [("model", "")]
    file = tmp_path / "single" / "models"
    file.parent.mkdir()
    (mounted / "model.onnx").rename(file)
    monkeypatch.setattr(startup_models, "_DEFAULT_MODEL_DIR", file)
    assert _names("--class", "onnx_server", "--model_dir", file) == [("model", "")]


def test_a_repository_that_is_filled_by_requests_is_empty_at_start_whatever_class_the_image_names(tmp_path: Path):
    _model(tmp_path / "fraud")
    parsed = parse(
        ["--model_repository", str(tmp_path), "--load_models_at_startup", "false"], {"SERINUS_CLASS": "xgboost_server"}
    )
    assert find_models(parsed, tmp_path).models == []
    again = discover(parsed, tmp_path, "fraud")
    assert again is not None
    assert [settings.implementation for settings in again] == ["xgboost_server"]


VOLUME = ("lost+found", "__pycache__", ".git", "..data")


@pytest.fixture
def volume(booster: Path) -> Iterator[Path]:
    """A volume's root with two good models, what lies about there, a folder that nobody may read, and models that do not load."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for folder in (*VOLUME, "secret", "notes", "broken", "odd", "fraud", "recommender"):
            (root / folder).mkdir()
        for folder in ("fraud", "recommender"):
            (root / folder / "model.ubj").write_bytes(booster.read_bytes())
        (root / "notes" / "README.txt").write_text("no model")
        (root / "broken" / "model.ubj").write_bytes(b"no model")
        (root / "odd" / "model-settings.json").write_text('{"name": "strange", "implementatoin": "x"}')
        (root / "secret").chmod(0)
        (root / "file.txt").write_text("")
        yield root


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root reads what it may not: be somebody else, as in an image."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_repository_leaves_out_what_holds_no_models_and_says_so(volume: Path):
    parsed = parse(["--model_repository", str(volume)], {})
    with as_nobody():
        found = find_models(parsed, volume)
        assert repository_names(volume) == ["broken", "fraud", "notes", "recommender", "strange"]
        assert discover(parsed, volume, "secret") is None
        assert discover(parsed, volume, "lost+found") is None
    assert [settings.name for settings in found.models] == ["broken", "fraud", "recommender"]
    assert found.spared == {"broken", "fraud", "recommender"}
    assert set(found.broken) == {"notes", "strange"}
    assert "no model is recognised here" in found.broken["notes"]
    assert "did you mean 'implementation'?" in found.broken["strange"]
    reason = " (it cannot be read: Permission denied)"
    assert found.left_out == (*sorted(str(volume / name) for name in VOLUME), f"{volume / 'secret'}{reason}")


def test_a_folder_of_models_that_is_named_leaves_the_same_out(volume: Path):
    for name in ("notes", "broken", "odd"):
        shutil.rmtree(volume / name)
    with as_nobody():
        found = find_models(parse([str(volume)], {}), None)
    assert [settings.name for settings in found.models] == ["fraud", "recommender"]
    assert len(found.left_out) == len(VOLUME) + 1


def test_a_bad_model_of_a_folder_of_models_stops_no_other_unless_it_is_to(volume: Path):
    found = find_models(parse([str(volume)], {}), None)
    assert [settings.name for settings in found.models] == ["broken", "fraud", "recommender"]
    assert found.spared == {"broken", "fraud", "recommender"}
    assert found.broken.keys() >= {"notes", "strange"}
    with pytest.raises(ConfigError, match="did you mean 'implementation'"):
        find_models(parse([str(volume), "--exit_on_error"], {}), None)


def test_a_model_that_is_named_or_lies_beside_data_must_load(tmp_path: Path):
    a, b = _model(tmp_path / "a"), _model(tmp_path / "b")
    assert find_models(parse([str(a), str(b)], {}), None).spared == frozenset()
    (tmp_path / "one" / "data").mkdir(parents=True)
    (tmp_path / "one" / "data" / "rows.csv").write_text("1")
    _model(tmp_path / "one" / "model")
    with pytest.raises(ConfigError, match="no model is recognised"):
        find_models(parse([str(tmp_path / "one")], {}), None)


def test_a_folder_out_of_a_folder_of_models_is_led_to_by_no_link(tmp_path: Path):
    outside = _model(tmp_path / "outside")
    for name in ("a", "b"):
        _model(tmp_path / "models" / name)
    (tmp_path / "models" / "c").symlink_to(outside)
    (tmp_path / "models" / "d").mkdir()
    (tmp_path / "models" / "d" / "notes.txt").write_text("")
    found = find_models(parse([str(tmp_path / "models")], {}), None)
    assert [settings.name for settings in found.models] == ["a", "b"]
    assert "leads out" in found.broken["c"]


def test_one_model_at_a_volumes_root_is_found_beside_what_may_not_be_read(volume: Path):
    (volume / "model.onnx").write_bytes(b"")
    with as_nobody():
        (settings,) = find_models(parse([str(volume)], {}), None).models
    assert (settings.implementation, settings.model_dir) == ("onnx_server", volume)


def test_a_folder_that_may_not_be_read_is_told_where_it_is_asked_for(volume: Path):
    with as_nobody(), pytest.raises(ConfigError, match=r"secret.*: cannot be read: Permission denied"):
        find_models(parse([str(volume / "secret")], {}), None)


def test_with_exit_on_error_all_that_is_wrong_in_a_repository_is_told_at_once(volume: Path):
    parsed = parse(["--model_repository", str(volume), "--exit_on_error"], {})
    with pytest.raises(ConfigError) as caught:
        find_models(parsed, volume)
    assert len(caught.value.problems) >= 2


def test_two_folders_of_a_repository_that_call_themselves_alike_stop_no_other(tmp_path: Path):
    for folder in ("a", "b"):
        (_model(tmp_path / folder) / "model-settings.json").write_text('{"name": "same"}')
    _model(tmp_path / "c")
    found = find_models(parse(["--model_repository", str(tmp_path)], {}), tmp_path)
    assert [settings.name for settings in found.models] == ["c"]
    assert "two models are called 'same'" in found.broken["same"]
    with pytest.raises(ConfigError, match="two models are called 'same'"):
        discover(parse(["--model_repository", str(tmp_path)], {}), tmp_path, "same")


def test_a_bad_model_of_a_repository_is_listed_with_its_reason_and_the_others_are_served(
    volume: Path, booster: Path, tmp_path: Path
):
    with serving(tmp_path, "--model_repository", str(volume)) as served:
        status, index = served.ask("POST", "/v2/repository/index", {})
        states = {entry["name"]: (entry["state"], entry.get("reason", "")) for entry in index}
        assert status == 200
        assert states["fraud"] == states["recommender"] == ("READY", "")
        for name, reason in (
            ("broken", "model.ubj"),
            ("notes", "no model is recognised here"),
            ("strange", "did you mean 'implementation'?"),
        ):
            assert states[name][0] == "UNAVAILABLE"
            assert reason in states[name][1]
            assert served.ask("GET", f"/v2/models/{name}/ready")[0] == 503
            status, answer = served.ask("POST", f"/v2/models/{name}/infer", {"inputs": []})
            assert (status, reason in answer["error"]) == (503, True)
        assert not states.keys() & set(VOLUME)
        assert served.ask("GET", "/v2/health/ready")[0] == 200
        log = served.log.read_text()
        assert f"left out, not taken for a model: {volume}/lost+found" in log
        assert "model 'broken' does not load" in log
        # Mended, it is loaded by request, and nothing of the failure is left.
        (volume / "odd" / "model-settings.json").write_text(json.dumps({"name": "strange", "version": "3"}))
        (volume / "odd" / "model.ubj").write_bytes(booster.read_bytes())
        assert served.ask("POST", "/v2/repository/models/notes/load", {})[0] == 400
        assert served.ask("POST", "/v2/repository/models/strange/load", {})[0] == 200
        index = served.ask("POST", "/v2/repository/index", {})[1]
        assert [entry for entry in index if entry["name"] == "strange"] == [
            {"name": "strange", "version": "3", "state": "READY", "reason": ""}
        ]


def test_strict_readiness_waits_for_every_model_of_the_repository(volume: Path, booster: Path, tmp_path: Path):
    (volume / "secret").rmdir()  # which root may read
    with serving(tmp_path, "--model_repository", str(volume), "--strict_readiness") as served:
        assert served.ask("GET", "/v2/health/ready")[0] == 503
        assert served.ask("GET", "/v2/models/fraud/ready")[0] == 200
        (volume / "broken" / "model.ubj").write_bytes(booster.read_bytes())
        assert served.ask("POST", "/v2/repository/models/broken/load", {})[0] == 200
        for name in ("notes", "strange"):
            assert served.ask("GET", "/v2/health/ready")[0] == 503
            assert served.ask("POST", f"/v2/repository/models/{name}/unload", {})[0] == 200
        assert served.ask("GET", "/v2/health/ready")[0] == 200


def test_a_repository_of_nothing_but_bad_models_is_up_and_not_ready(tmp_path: Path):
    repository = tmp_path / "repository"
    _model(repository / "bad", "model.ubj")
    with serving(tmp_path, "--model_repository", str(repository)) as served:
        assert served.ask("GET", "/v2/health/live")[0] == 200
        assert served.ask("GET", "/v2/health/ready")[0] == 503
        assert served.ask("POST", "/v2/repository/index", {})[1][0]["state"] == "UNAVAILABLE"
    with (
        pytest.raises(RuntimeError, match="ended with status 1"),
        serving(tmp_path, "--model_repository", str(repository), "--exit_on_error"),
    ):
        pass
