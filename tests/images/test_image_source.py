"""What of a folder goes into an image, and the Dockerfile that says so."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import orjson
import pytest

import mar_support
from container_support import write_engine
from serinus.errors import ConfigError, UpstreamFailed
from serinus.images.container_engine import find_engine
from serinus.images.dockerfile import Recipe, check_arguments, image_name, write_context, write_dockerfile
from serinus.images.first_answer import request_for
from serinus.images.image_source import ImageSource, find_source
from serinus.images.package_wheel import choose_wheel

CLASS = "from serinus import Model\n\n\nclass Mine(Model):\n    pass\n"
HOSTED = "import kserve\n\n\nclass Theirs(kserve.Model):\n    pass\n"
LIGHTGBM = "tree\nversion=v4\n"


def lay(folder: Path, files: dict[str, str]) -> Path:
    """Write files, by their paths."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


CASES: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    (
        "a model file of a runtime",
        {"model.txt": LIGHTGBM},
        {"implementation": "lightgbm_server", "extras": ("lightgbm_server",), "model": ("model.txt",)},
    ),
    (
        "a class alone",
        {"mine.py": CLASS},
        {"implementation": "mine:Mine", "extras": (), "model": (), "code": ("mine.py",)},
    ),
    (
        "a class and the folder of its model",
        {
            "mine.py": CLASS,
            "model/weights.json": "{}",
            "requirements.txt": "idna",
            "request.json": "{}",
        },
        {
            "implementation": "mine:Mine",
            "model": ("weights.json",),
            "requirements": "requirements.txt",
            "request": "request.json",
        },
    ),
    (
        "a class and the files of its model beside it",
        {
            "mine.py": CLASS,
            "weights.json": "{}",
            "test_mine.py": "",
            "README.md": "",
            "inferenceservice.yaml": "",
        },
        {"model": ("weights.json",), "code": ("mine.py",)},
    ),
    ("a class of KServe's", {"theirs.py": HOSTED}, {"implementation": "theirs:Theirs", "extras": ("kserve",)}),
    (
        "a class in a package",
        {"mine/__init__.py": "", "mine/model.py": CLASS},
        {"implementation": "mine.model:Mine", "code": ("mine",)},
    ),
    (
        "a folder of MLflow's, whose requirements are for MLflow",
        {
            "MLmodel": "flavors: {}",
            "model.ubj": "",
            "requirements.txt": "mlflow==3.1.0\nxgboost==3.0.0\n",
            "conda.yaml": "",
        },
        {
            "implementation": "mlflow_server",
            "extras": ("mlflow_server",),
            "requirements": None,
            "model": ("MLmodel", "conda.yaml", "model.ubj"),
        },
    ),
    (
        "settings that name a runtime",
        {
            "model/model-settings.json": json.dumps(
                {"name": "given", "implementation": "lightgbm_server.LightGBMModel"}
            ),
            "model/m.txt": LIGHTGBM,
        },
        {"name": "given", "implementation": "", "extras": ("lightgbm_server",)},
    ),
    (
        "settings that name a class of the folder",
        {
            "model-settings.json": json.dumps({"implementation": "mine.Mine"}),
            "mine.py": CLASS + "\n\nclass Other(Model):\n    pass\n",
        },
        {"implementation": "mine:Mine"},
    ),
]


@pytest.mark.parametrize(("files", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_folder_says_what_its_image_holds(files: dict[str, str], expected: dict[str, Any], tmp_path: Path):
    found = find_source(lay(tmp_path / "folder", files))
    assert found.name == expected.pop("name", "folder")
    for field, value in expected.items():
        own: Any = getattr(found, field)
        if field in ("model", "code"):
            own = tuple(path.name for path in own)
        assert (own.name if isinstance(own, Path) else own) == value, field


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        ({}, {}, "no model file and no class"),
        ({"a.py": CLASS, "b.py": CLASS}, {}, "--class a:Mine or --class b:Mine"),
        ({"a.py": CLASS}, {"implementation": "c:Mine"}, "no module c in"),
        ({"a.py": "class ("}, {}, "not Python"),
        ({"a.py": CLASS}, {"requirements": Path("none.txt")}, "no such file"),
        ({"notes.csv": "1,2"}, {}, "no model is recognised"),
        ({"model-settings.json": "{"}, {}, "not JSON"),
    ],
)
def test_a_folder_that_says_too_little_is_refused_with_the_mend(
    files: dict[str, str], options: dict[str, Any], says: str, tmp_path: Path
):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ConfigError, match=says):
        find_source(lay(folder, files), **options)


def source(**changes: Any) -> ImageSource:
    fields: dict[str, Any] = {
        "name": "m",
        "model": (),
        "code": (),
        "implementation": "",
        "extras": (),
        "requirements": None,
        "request": None,
    }
    return ImageSource(**{**fields, **changes})


def test_an_image_without_a_base_keeps_where_packages_came_from_to_a_stage_of_its_own(tmp_path: Path):
    recipe = Recipe(
        source=source(requirements=tmp_path / "r.txt"), wheel="serinus-1-py3-none-any.whl", arguments=("PIP_INDEX_URL",)
    )
    first, last = write_dockerfile(recipe).split("\n\n")
    assert "ARG PIP_INDEX_URL=" in first
    assert "pip install -r" in first
    assert "PIP_INDEX_URL" not in last
    assert "USER 1000:1000" in last


def test_an_image_from_a_base_is_the_six_lines_that_one_writes_by_hand(tmp_path: Path):
    recipe = Recipe(
        source=source(requirements=tmp_path, code=(tmp_path,), model=(tmp_path,), implementation="a:B"),
        base="serinus_base:0.1.0",
    )
    lines = [line for line in write_dockerfile(recipe).splitlines() if not line.startswith("#")]
    assert lines[0] == "FROM serinus_base:0.1.0"
    assert "RUN pip install -r requirements.txt" in lines
    assert 'ENV SERINUS_CLASS="a:B"' in lines
    assert not any(line.startswith(("USER", "ENTRYPOINT")) for line in lines)


def test_credentials_would_stay_in_an_image_from_a_base_and_are_refused():
    values = {"PIP_INDEX_URL": "https://me:secret@index.example.com/simple"}
    check_arguments(("PIP_INDEX_URL",), values, base="")
    with pytest.raises(ConfigError, match="PIP_INDEX_URL has credentials") as told:
        check_arguments(("PIP_INDEX_URL",), values, base="serinus_base:0.1.0")
    assert "secret" not in str(told.value)


def test_a_context_is_readable_by_whoever_runs_the_image_and_is_never_written_over(tmp_path: Path):
    code = lay(tmp_path / "code", {"a.py": CLASS}) / "a.py"
    code.chmod(0o600)
    write_context(Recipe(source=source(code=(code,)), base="b"), tmp_path / "context", None)
    assert (tmp_path / "context" / "app" / "a.py").stat().st_mode & 0o777 == 0o644
    with pytest.raises(ConfigError, match="not empty"):
        write_context(Recipe(source=source(), base="b"), tmp_path / "context", None)


@pytest.mark.parametrize(
    ("name", "architecture", "says"),
    [
        ("serinus-0.1.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "amd64", None),
        ("serinus-0.1.0-py3-none-any.whl", "arm64", None),
        ("serinus-0.1.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "arm64", "Linux on aarch64"),
        ("serinus-0.1.0-py3-none-macosx_14_0_arm64.whl", "arm64", "Linux on aarch64"),
        ("other-1-py3-none-any.whl", "amd64", "not a wheel of serinus"),
    ],
)
def test_a_wheel_has_to_be_one_for_the_machine_of_the_image(
    name: str, architecture: str, says: str | None, tmp_path: Path
):
    wheel = tmp_path / name
    with zipfile.ZipFile(wheel, "w"):
        pass
    if says is None:
        assert choose_wheel(wheel, tmp_path, architecture) == wheel
        return
    with pytest.raises(ConfigError, match=says):
        choose_wheel(wheel, tmp_path, architecture)


def test_a_package_that_is_installed_in_place_is_no_wheel(tmp_path: Path):
    with pytest.raises(ConfigError, match="--wheel dist/serinus"):
        choose_wheel(None, tmp_path, "amd64")


def test_without_an_engine_one_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="neither docker nor podman"):
        find_engine()
    with pytest.raises(ConfigError, match="--engine nerdctl: no such command"):
        find_engine("nerdctl")


def test_an_engine_that_does_not_answer_says_why_and_the_next_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    write_engine(tmp_path, "docker", says="Cannot connect to the Docker daemon", status=1)
    write_engine(tmp_path, "podman", says="no sub-uids", status=125)
    with pytest.raises(ConfigError) as told:
        find_engine()
    assert "Cannot connect to the Docker daemon" in str(told.value)
    assert "no sub-uids" in str(told.value)
    (tmp_path / "podman").write_text('#!/bin/sh\necho \'{"Client": {"OsArch": "linux/arm64"}}\'\n')
    found = find_engine()
    assert (found.command, found.architecture) == ("podman", "arm64")


def test_the_request_of_an_image_is_the_example_of_the_page_with_every_value():
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "t", "datatype": "BYTES", "shape": [-1]},
        {"name": "image", "datatype": "UINT8", "shape": [-1, 30, 30]},
    ]
    made = request_for(orjson.dumps({"name": "m", "inputs": inputs}))
    assert made is not None
    assert made["inputs"][:2] == [
        {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]},
        {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["text"]},
    ]
    assert len(made["inputs"][2]["data"]) == 900, "a page leaves so many out; a request cannot"
    assert request_for(b'{"name": "m", "inputs": []}') is None
    with pytest.raises(UpstreamFailed, match="the image"):
        request_for(b"[]")


@pytest.mark.parametrize(("name", "expected"), [("My Model_2", "my-model-2"), ("été", "t"), ("--", "model")])
def test_an_image_is_named_after_its_model_as_registries_allow(name: str, expected: str):
    assert image_name(name) == expected


def test_an_extra_is_written_as_every_pip_knows_it():
    """Debian's pip 23.0 leaves out `[sklearn_server]` with a warning: the wheel's metadata have `sklearn-server`."""
    text = write_dockerfile(Recipe(source=source(extras=("sklearn_server",)), wheel="serinus-1-py3-none-any.whl"))
    assert "[serve,sklearn-server]" in text


LINKS: list[tuple[str, dict[str, str], str]] = [
    ("to a file elsewhere", {"folder/model/extra.txt": "../../secret"}, "leads out of"),
    ("to a folder elsewhere", {"folder/model/more": "../../elsewhere"}, "leads out of"),
    ("of a folder's to a file elsewhere", {"folder/model/sub/extra.txt": "../../../secret"}, "leads out of"),
    ("of the code's", {"folder/theirs.py": "../elsewhere/key"}, "leads out of"),
    (
        "to a hidden folder with a link in it",
        {"folder/model/a": "../.b", "folder/.b/c": "../../secret"},
        "leads out of",
    ),
    ("to the folder that it is in", {"folder/model/sub/again": "."}, "circle"),
    ("to each other's folders", {"folder/model/a/x": "../b", "folder/model/b/x": "../a"}, "circle"),
]


@pytest.mark.parametrize(("links", "why"), [case[1:] for case in LINKS], ids=[case[0] for case in LINKS])
def test_a_link_that_leads_out_of_the_folder_or_in_a_circle_is_refused(tmp_path: Path, links: dict[str, str], why: str):
    lay(tmp_path, {"folder/mine.py": CLASS, "folder/model/w.json": "{}", "secret": "s", "elsewhere/key": "k"})
    for name, target in links.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    found = find_source(tmp_path / "folder", implementation="mine:Mine")
    with pytest.raises(ConfigError, match=why):
        write_context(Recipe(source=found, base="b"), tmp_path / "context", None)


def test_a_link_within_the_folder_becomes_what_it_leads_to(tmp_path: Path):
    folder = lay(tmp_path / "folder", {"mine.py": CLASS, "model/w.json": "{}", "weights/v2": "2"})
    (folder / "model/weights").symlink_to("../weights/v2")
    write_context(Recipe(source=find_source(folder), base="b"), tmp_path / "context", None)
    assert (tmp_path / "context/model/weights").read_text() == "2"
    assert not (tmp_path / "context/model/weights").is_symlink()


def test_a_name_is_no_variable_and_no_instruction_of_the_Dockerfile(tmp_path: Path):
    settings = json.dumps({"name": 'a"\nRUN id #$HOME ${HOME}', "implementation": "lightgbm_server"})
    folder = lay(tmp_path / "folder", {"model.txt": LIGHTGBM, "model-settings.json": settings})
    text = write_dockerfile(Recipe(source=find_source(folder), base="b"))
    assert "\nRUN id" not in text
    assert "$HOME" not in text.replace("\\$", "")
    assert "${" not in text.replace("\\$", "")


@pytest.mark.parametrize("base", ["", "serinus_base:0.1.0"])
def test_code_that_a_models_files_may_choose_is_allowed_in_the_image_where_it_is_said(tmp_path: Path, base: str):
    folder = lay(tmp_path / "folder", {"model.txt": LIGHTGBM})
    recipe = Recipe(source=find_source(folder), base=base, wheel="serinus-1-py3-none-any.whl")
    assert "ALLOW" not in write_dockerfile(recipe)
    text = write_dockerfile(dataclasses.replace(recipe, allowed=("pickle", "mine.*")))
    assert 'ENV SERINUS_ALLOW_IMPLEMENTATION="pickle,mine.*"\n' in text


def test_an_archive_of_torchserves_is_a_model_and_no_class(tmp_path: Path):
    archive = mar_support.words(tmp_path)
    found = find_source(archive)
    assert (found.implementation, found.model, found.extras) == ("", (archive,), ("torch_server",))
