"""`serinus build` with a real engine: what it makes serves, what does not serve is told, and nothing is left running."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from container_support import build_wheel, engine_answers
from serinus.cli.main import main

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not engine_answers(), reason="needs a Docker engine"),
]

CLASS = """
from serinus import Model, TensorSpec


class Mine(Model):
    inputs = outputs = (TensorSpec("x", "FP32", (-1,)),)

    def load(self):
        LOAD

    def predict(self, inputs, call):
        return {"x": inputs["x"] + 1}
"""
FIRST = "serinus-build-test:1"
SECOND = "serinus-build-test:2"


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of a class without a base, from this tree's wheel."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "mine").mkdir()
    (folder / "mine" / "mine.py").write_text(CLASS.replace("LOAD", "pass"))
    wheel = build_wheel(folder / "dist")
    assert main(["build", str(folder / "mine"), "--tag", FIRST, "--wheel", str(wheel)]) == 0
    yield FIRST
    docker("rmi", "-f", SECOND, FIRST)


def asked(
    folder: Path, base: str, capsys: pytest.CaptureFixture[str], *, load: str = "pass", request: object = None
) -> tuple[int, str]:
    """Build a class from a base; returns the exit status and all that was said."""
    (folder / "mine.py").write_text(CLASS.replace("LOAD", load))
    if request is not None:
        (folder / "request.json").write_text(json.dumps(request))
    capsys.readouterr()
    status = main(["build", str(folder), "--name", "mine", "--tag", SECOND, "--base", base, "--timeout", "60"])
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (None, "made up by the model's metadata: x FP32 [1] = 1"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}, "request.json: x FP32 [2] = 2"),
        ({"instances": [1, 2]}, "request.json: {'predictions': [2"),
    ],
    ids=["none", "V2", "V1"],
)
def test_an_image_is_asked_the_models_own_request(
    first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request_: object, says: str
):
    status, said = asked(tmp_path, first, capsys, request=request_)
    assert status == 0, said
    assert says in said
    assert f"over {first}" in said


@pytest.mark.parametrize(
    ("load", "request_", "says"),
    [
        ("raise ValueError('no weights here')", None, "no weights here"),
        ("open('/app/written', 'w')", None, "Read-only file system"),
        ("open('/etc/shadow')", None, "Permission denied"),
        (
            "pass",
            {"inputs": [{"name": "z", "datatype": "FP32", "shape": [1], "data": [1]}]},
            "request.json was answered 400",
        ),
        ("pass", {"rows": []}, "neither a V2 request"),
    ],
)
def test_an_image_that_does_not_serve_is_told_with_the_reason_and_left_running_nowhere(
    first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], load: str, request_: object, says: str
):
    before = docker("ps", "-aq", "--filter", f"ancestor={SECOND}")
    status, said = asked(tmp_path, first, capsys, load=load, request=request_)
    assert status == 1
    assert says in said
    assert docker("ps", "-aq", "--filter", f"ancestor={SECOND}") == before == ""


def test_a_build_that_fails_says_what_the_engine_said(first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "requirements.txt").write_text("serinus==0.0.1.dev999\n")
    status, said = asked(tmp_path, first, capsys)
    assert status == 1
    assert "build failed" in said
    assert "0.0.1.dev999" in said


def test_nothing_of_where_packages_come_from_is_in_the_image(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", first)
    assert "ENTRYPOINT" in history
    assert "PIP_INDEX_URL" not in history
    assert json.loads(docker("inspect", "-f", "{{json .Config.User}}", first)) == "1000:1000"
