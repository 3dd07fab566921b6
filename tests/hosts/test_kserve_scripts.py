"""Files that KServe users start with python, hosted as they are: their models, flags and repositories."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deferred import Deferred
from hosts_support import hosted, serving
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.errors import (
    ConfigError,
    InvalidInput,
    NotFound,
)
from serinus.hosts import build_model
from serinus.hosts.kserve.scripts import script_models, settings_from_script
from serinus.settings import ModelSettings

kserve = Deferred("kserve")


SCRIPT = """
import argparse
import kserve
import beside_the_script

parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
parser.add_argument("--weight", type=float, required=True)
args, _ = parser.parse_known_args()


class Weighted(kserve.Model):
    def predict(self, payload, headers=None):
        return {"predictions": [self.name, args.weight, beside_the_script.OFFSET]}


if __name__ == "__main__":
    model = Weighted(args.model_name)
    model.load()
    kserve.ModelServer(workers=1).start([model])
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_the_script.py").write_text("OFFSET = 5\n")
    path = tmp_path / "calendar.py"  # as one of Python's own modules is called
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("named", ["", ":Weighted"], ids=["script", "class"])
async def test_a_file_is_hosted_as_a_script_or_by_its_class_and_reads_its_own_flags(script: Path, named: str):
    before = kserve.ModelServer.start
    async with serving(f"{script}{named}", extra={"weight": 2}) as plane:
        assert await plane.predict_v1("m", b'{"instances": [1]}') == {"predictions": ["m", 2.0, 5]}
    assert kserve.ModelServer.start is before


SCRIPT_OF_SEVERAL = """
import kserve
from kserve.model_repository import ModelRepository

args = kserve.model_server.args


class Named(kserve.Model):
    def predict(self, payload, headers=None):
        return {"predictions": [self.name]}


if __name__ == "__main__":
    stored = Named("stored")
    stored.load()
    repository = ModelRepository()
    repository.update(stored)
    models = [Named("first"), Named("second")]
    for model in models:
        model.load()
    server = kserve.ModelServer(registered_models=repository, workers=7)
    server.start(models)
"""


async def test_a_script_gives_every_model_that_it_starts_and_runs_again_when_one_is_loaded_again(
    script: Path, caplog: pytest.LogCaptureFixture
):
    script.write_text(SCRIPT_OF_SEVERAL)
    settings = ModelSettings(name="", implementation=str(script), threads=3)
    found = settings_from_script(settings, None, keep_name=True)
    assert [(one.name, one.threads) for one in found] == [("stored", 3), ("first", 3), ("second", 3)]
    plane = Plane(Registry(build_model))
    await plane.start(found)
    try:
        before = hosted(plane, "first")
        await plane.registry.load("first", {})
        assert hosted(plane, "first") is not before
        for name in ("stored", "first", "second"):
            assert await plane.predict_v1(name, b'{"instances": []}') == {"predictions": [name]}
    finally:
        await plane.close()
    assert "ModelServer(workers=7) has no effect here; give --workers" in caplog.text


OF_A_REPOSITORY = """
import kserve
from kserve import Model, ModelRepository, ModelServer


class Named(Model):
    loads = 0

    def __init__(self, name):
        super().__init__(name)
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": [self.name, self.loads]}


class Mine(ModelRepository):
    loads = 0

    COROUTINEdef load(self, name):
        if name == "broken":
            raise OSError("its disk is gone")
        if name in ("first", "later"):
            self.loads += 1
            model = Named(name)
            model.loads = self.loads
            self.update(model)
            return True
        return False


if __name__ == "__main__":
    server = ModelServer(registered_models=Mine("/nowhere"))
    server.start([STARTED])
"""


@pytest.mark.parametrize("coroutine", ["", "async "])
@pytest.mark.parametrize("started", ['Named("first")', ""])
async def test_a_scripts_own_repository_is_asked_for_every_load(tmp_path: Path, coroutine: str, started: str):
    file = tmp_path / "mine.py"
    file.write_text(OF_A_REPOSITORY.replace("COROUTINE", coroutine).replace("STARTED", started))
    script = script_models(ModelSettings(name="", implementation=str(file)), None, keep_name=False)
    plane = Plane(Registry(build_model, discover=script.discover))
    await plane.start(script.models)
    try:
        if started:
            assert await plane.predict_v1("first", b"{}") == {"predictions": ["first", 0]}
        for number, name in enumerate(("first", "later", "later"), 1):
            await plane.load(name)
            assert await plane.predict_v1(name, b"{}") == {"predictions": [name, number]}
        await plane.unload("later")
        with pytest.raises(NotFound):
            await plane.predict_v1("later", b"{}")
        await plane.load("later")
        with pytest.raises(NotFound, match="model 'none' is none that the script's repository loads"):
            await plane.load("none")
        with pytest.raises(InvalidInput, match="its repository does not load it: its disk is gone"):
            await plane.load("broken")
        assert "none" not in {row["name"] for row in plane.repository_index()}
    finally:
        await plane.close()


async def test_a_repository_without_a_load_of_its_own_has_the_script_run_again(tmp_path: Path):
    file = tmp_path / "mine.py"
    own = OF_A_REPOSITORY.replace("COROUTINEdef load", "def other").replace("STARTED", 'Named("first")')
    file.write_text(own)
    assert script_models(ModelSettings(name="", implementation=str(file)), None, keep_name=False).discover is None


@pytest.mark.parametrize(("keep_name", "expected"), [(True, "given"), (False, "own")])
def test_an_only_model_of_a_script_has_the_scripts_name_for_it_unless_one_is_given(
    script: Path, keep_name: bool, expected: str
):
    script.write_text("import kserve\nkserve.ModelServer().start([kserve.Model('own')])\n")
    settings = ModelSettings(name="given", implementation=str(script))
    (found,) = settings_from_script(settings, None, keep_name=keep_name)
    assert found.name == expected


@pytest.mark.parametrize(
    ("source", "named", "message"),
    [
        (SCRIPT, ":Weighted", r"ended with status 2 .* --extra FLAG=VALUE"),
        (SCRIPT, "", r"ended with status 2 .* --extra FLAG=VALUE"),
        ("import kserve\n", "", r"starts no kserve.ModelServer with a model; name the class to serve: .*\.py:Class"),
        ("import kserve\nclass A(kserve.Model): pass\n", ":B", "has no 'B'; it has A"),
        ("import kserve\nclass A(:\n", ":A", "cannot be imported: invalid syntax"),
        ("import not_installed_here\n", ":A", "needs not_installed_here, which is not installed"),
        ("import not_installed_here\n", "", "needs not_installed_here, which is not installed"),
        ("import kserve\nkserve.ModelServer().start([1, 2])\n", "", "starts a server of 2 models"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(script: Path, source: str, named: str, message: str):
    script.write_text(source)
    with pytest.raises(ConfigError, match=message):
        build_model(ModelSettings(name="m", implementation=f"{script}{named}"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        build_model(ModelSettings(name="m", implementation=f"{tmp_path}/none.py:A"))
