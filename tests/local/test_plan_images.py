"""Which command an image stands for: what was mapped, its own, an app's, or none."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import yaml

from serinus.local.plan.image_commands import Command, local_class, parse_image_options, resolve_image
from serinus.manifests.containers import Container
from serinus.manifests.documents import Document, Source, load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.problems import Problems

SERVE = (sys.executable, "-m", "serinus.cli", "serve")
APPS = {"xgboost_server", "fraud_features"}


def document_of(**annotations: str) -> Document:
    value = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "a", "annotations": annotations},
        "spec": {"predictor": {"containers": [{"name": "kserve-container", "image": "x"}]}},
    }
    (found,) = load_text(yaml.safe_dump(value), "folder/a.yaml")
    return found


def resolved(image: str, *command: str, mapped: Any = None) -> tuple[Command | None, list[str]]:
    """The command, and what is wrong."""
    problems = Problems()
    source = Source(((document_of(), ("spec", "predictor", "containers", 0)),))
    container = Container("kserve-container", image, command, (), (), (), (), "", None, None, source)
    found = resolve_image(container, mapped or {}, problems, find_app=lambda name: "C" if name in APPS else None)
    return found, [f"{problem.message}; {problem.mend}" for problem in problems.errors]


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ([], {}),
        (["a=b"], {"a": ("b",)}),
        (["a=b c 'd e'", "reg/x:1=python -m y"], {"a": ("b", "c", "d e"), "reg/x:1": ("python", "-m", "y")}),
        (["a=b", "a=c"], {"a": ("c",)}),
        (["a=b --x=y"], {"a": ("b", "--x=y")}),
    ],
)
def test_an_option_names_an_image_and_its_command(options: list[str], table: dict[str, tuple[str, ...]]):
    assert parse_image_options(options) == table


@pytest.mark.parametrize("option", ["a", "=b", "a=", "a=  ", ""])
def test_an_option_without_a_name_or_a_command_is_refused(option: str):
    with pytest.raises(ValueError, match=f"^--image {option}: expected NAME=COMMAND"):
        parse_image_options(["x=y", option])


@pytest.mark.parametrize(
    ("image", "known"),
    [
        ("reg/team/a:1", "reg/team/a:1"),
        ("reg/team/a:1", "reg/team/a"),
        ("reg/team/a:1", "a"),
        ("reg:5000/team/a:1", "reg:5000/team/a"),
        ("reg:5000/team/a", "reg:5000/team/a"),
        ("reg:5000/a:1.2", "reg:5000/a"),
        ("reg/a@sha256:12", "reg/a@sha256:12"),
        ("reg/a@sha256:12", "reg/a"),
        ("reg/a:1@sha256:12", "reg/a"),
        ("reg:5000/a@sha256:12", "reg:5000/a"),
        ("a", "a"),
        ("a:1", "a"),
    ],
)
def test_an_image_is_mapped_as_it_is_written_without_its_tag_or_by_its_last_part(image: str, known: str):
    mapped = {known: ["sleep", "1"], "other": ["no"]}
    assert resolved(image, "own", mapped=mapped) == (Command(("sleep", "1"), {}, ours=False), [])


@pytest.mark.parametrize("known", ["reg", "team/a", "reg:5000", "a:1", "reg:5000/team/a:2", "reg:5000/team"])
def test_another_name_maps_it_not(known: str):
    assert resolved("reg:5000/team/a:1", "own", mapped={known: ["no"]})[0] == Command(("own",), {}, ours=False)


def test_the_longest_name_that_is_mapped_wins():
    mapped = {"a": ["3"], "reg/a": ["2"], "reg/a:1": ["1"]}
    for words in ("1", "2", "3"):
        found, _ = resolved("reg/a:1", mapped=mapped)
        assert found is not None
        assert found.words == (words,)
        del mapped[{"1": "reg/a:1", "2": "reg/a", "3": "a"}[words]]


PYTHON = sys.executable


@pytest.mark.parametrize(
    ("command", "words", "ours"),
    [
        (("sleep", "1"), ("sleep", "1"), False),
        (("python", "-m", "x"), (PYTHON, "-m", "x"), False),
        (("python3", "x.py"), (PYTHON, "x.py"), False),
        (("python3.11", "x.py"), ("python3.11", "x.py"), False),
        (("serinus", "serve", "--x"), (PYTHON, "-m", "serinus.cli", "serve", "--x"), True),
        (("serinus", "serve"), SERVE, True),
        (("serinus", "lint"), ("serinus", "lint"), False),
        (("serinus",), ("serinus",), False),
        (("other", "serve"), ("other", "serve"), False),
    ],
)
def test_a_containers_own_command_is_run_with_this_python(command: tuple[str, ...], words: tuple[str, ...], ours: bool):
    assert resolved("reg/xgboost_server:1", *command) == (Command(words, {}, ours=ours), [])


@pytest.mark.parametrize(
    ("image", "env"),
    [
        ("reg/xgboost_server:1", {"SERINUS_CLASS": "xgboost_server"}),
        ("xgboost_server-fraud_features", {"SERINUS_CLASS": "xgboost_server", "SERINUS_TRANSFORMER": "fraud_features"}),
        ("reg/other", None),
        ("reg/xgboost_server-other", None),
        ("reg/other-fraud_features", None),
        ("reg/xgboost_server-", None),
    ],
)
def test_an_image_of_an_app_or_of_two_is_served_and_any_other_is_told(image: str, env: dict[str, str] | None):
    found, errors = resolved(image)
    if env is not None:
        assert (found, errors) == (Command(SERVE, env, ours=True), [])
    else:
        assert found is None
        (error,) = errors
        assert f"{image} is no image of this project ({image.removeprefix('reg/')} is no installed app folder)" in error
        assert f"give its command with --image {image}='COMMAND', set command:" in error


def test_the_mend_names_the_image_without_its_tag():
    assert "--image reg:5000/a='COMMAND'" in resolved("reg:5000/a:1@sha256:12")[1][0]


def test_a_container_without_an_image_is_told_to_have_one():
    assert resolved("") == (None, ["container kserve-container has no image; add image"])
    assert resolved("", "sleep") == (Command(("sleep",), {}, ours=False), [])


@pytest.mark.parametrize(
    ("named", "path"),
    [
        ("model.py:Mine", "folder/model.py:Mine"),
        ("sub/model.py:Mine", "folder/sub/model.py:Mine"),
        ("/abs/model.py:Mine", "/abs/model.py:Mine"),
        ("package.module:Mine", "package.module:Mine"),
        ("package:model.py", "package:model.py"),
        (None, None),
        ("", None),
    ],
)
def test_a_class_of_a_file_lies_beside_its_manifest(named: str | None, path: str | None):
    annotations = {} if named is None else {"serinus.dev/local-class": named}
    service = parse_inference_service(document_of(**annotations))
    expected = None if path is None else Command(SERVE, {"SERINUS_CLASS": path}, ours=True)
    assert local_class(service) == expected
