"""What an operator says by mistake, or as another server takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightgbm_support import save, train
from serinus.cli.serving.options import parse
from serinus.cli.serving.serve import _server_settings
from serinus.cli.serving.startup_models import find_models
from serinus.errors import ConfigError
from serinus.loading import installed


@pytest.mark.parametrize("host", ["", " "])
def test_an_empty_host_is_refused_and_not_taken_for_every_address(host):
    parsed = parse(["./model", "--host", host], {})
    with pytest.raises(ConfigError, match=r"--host is empty; 0\.0\.0\.0 is every address"):
        _server_settings(parsed.values)


@pytest.mark.parametrize("name", ["SERINUS_HOST", "MLSERVER_HOST"])
def test_an_empty_variable_says_nothing(name):
    assert _server_settings(parse(["./model"], {name: ""}).values).host == "127.0.0.1"


def test_a_runtime_of_mlservers_that_is_not_installed_is_ours_in_a_variable_too(tmp_path: Path):
    model = save(train("binary"), tmp_path)
    variables = {
        "MLSERVER_MODEL_NAME": "m",
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_lightgbm.LightGBMModel",
        "MLSERVER_MODEL_URI": str(model),
    }
    (settings,) = find_models(parse([], variables), None).models
    assert (settings.name, settings.implementation) == ("m", "lightgbm_server")


def test_a_runtime_that_is_installed_and_any_other_name_stay_as_they_are():
    assert installed("json.JSONDecoder") == "json.JSONDecoder"
    assert installed("") == ""
