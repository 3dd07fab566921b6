"""Images made from ours: `RUN pip install` installs where serinus runs, and the README's Dockerfile is what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from image_support import ROOT, build, container, docker, has_engine, make_variable

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not has_engine(), reason="needs a Docker engine"),
]

PURE = "iniconfig"
"""A package that no image of ours has: pure Python, a few kilobytes."""
README = ROOT / "runtimes" / "README.md"


def block(language: str, beginning: str) -> str:
    """The one code block of the README in this language that begins so."""
    found = [
        text
        for text in re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
        if text.startswith(beginning)
    ]
    assert len(found) == 1, (language, beginning, len(found))
    return found[0]


@pytest.mark.parametrize("name", make_variable("IMAGES"))
def test_what_pip_installs_in_an_image_made_from_ours_is_there_when_it_runs(name: str, tmp_path: Path):
    (tmp_path / "own.py").write_text(
        f"import {PURE}\nfrom serinus import Model, TensorSpec\n\n\nclass Own(Model):\n"
        '    inputs = outputs = (TensorSpec("x", "FP32", (-1,)),)\n\n    def predict(self, inputs, call):\n'
        f"        return {{'x': inputs['x'] + len({PURE}.__name__)}}\n"
    )
    lines = [
        f"FROM {build(name)}",
        f"RUN pip install {PURE}",
        "COPY own.py ./",
        "ENV SERINUS_CLASS=own:Own SERINUS_TRANSFORMER=",
    ]
    (tmp_path / "Dockerfile").write_text("\n".join(lines) + "\n")
    image = f"derived-{name}:test"
    docker("build", "-q", "-t", image, str(tmp_path))
    try:
        with container(image, "--model_name", "own") as started:
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
            assert started.ask("/v2/models/own/infer", body)["outputs"][0]["data"] == [1 + len(PURE)]
            assert docker("exec", started.id, "id", "-u") == "1000"
            assert docker("exec", started.id, "pip", "--version").split(" from ")[1].startswith("/opt/serinus/")
    finally:
        docker("rmi", image)


def test_the_dockerfile_of_the_readme_serves_the_class_beside_it(tmp_path: Path):
    text = block("dockerfile", "FROM serinus_base")
    assert len(text.strip().splitlines()) == 6
    text = re.sub(r"(?<=FROM serinus_base:)\S+", build("serinus_base").split(":")[1], text)
    (tmp_path / "Dockerfile").write_text(text)
    (tmp_path / "requirements.txt").write_text(f"{PURE}\n")
    (tmp_path / "my_model.py").write_text(block("python", "import json"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.json").write_text('{"bias": 3}\n')
    docker("build", "-q", "-t", "my_model:test", str(tmp_path))
    try:
        with container("my_model:test", "--model_name", "mine") as started:
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}
            assert started.ask("/v2/models/mine/infer", body)["outputs"][0]["data"] == [4, 5]
            docker("exec", started.id, "python", "-c", f"import {PURE}")
    finally:
        docker("rmi", "my_model:test")
