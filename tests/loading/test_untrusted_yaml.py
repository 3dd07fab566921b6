"""YAML that comes with a model: nothing in it costs more than its text is long."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mlflow_server import mlmodel
from serinus.content.untrusted_yaml import load_untrusted
from serinus.errors import ConfigError
from serinus.hosts.torchserve import handler_model
from serinus.hosts.torchserve.mar_archive import Archive
from serinus.settings import ModelSettings


def merges(levels: int) -> str:
    lines = ["a0: &a0 {x: 1, y: 2, z: 3}"]
    lines += [f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


def laughs(levels: int, key: str = "a{}") -> str:
    lines = [f"{key.format(0)}: &a0 [lol]"]
    lines += [f"{key.format(n)}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "merge keys": (merges(12), "merge key"),
    "a merge key by its tag": ("a: &a {b: 1}\nc: {!!merge x: *a}", "merge key"),
    "a billion laughs": (laughs(10), "values with its aliases written out"),
    "an alias to what it is in": ("a: &a [1, *a]", "\\*a names what is not there before it"),
    "an alias of nothing": ("a: *b", "b"),
    "nesting": ("[" * 100_000, "nested too deep"),
    "nesting by aliases": ("\n".join(["a0: &a0 []", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100))]), "nested too deep"),
    "a number of sixties": ("a: 1" + ":59" * 200_000, "a number of 600001 digits"),
    "a long number": ("a: " + "9" * 5000, "a number of 5000 digits"),
    "a tag that makes objects": ("a: !!python/object/apply:os.system [id]", "constructor"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_document_that_means_harm_is_refused_before_it_costs_anything(name: str):
    text, words = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, yaml.MarkedYAMLError), match=words):
            load_untrusted(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000_000


@pytest.mark.parametrize(
    "text", ["a: 1", "- [1, {b: [c]}]", "a: &x [1, 2]\nb: [*x, *x]\nc: *x", "a: &x text\nb: *x", ""]
)
def test_an_honest_document_is_what_the_safe_loader_reads(text: str):
    assert load_untrusted(text) == yaml.safe_load(text)


def _of_mlflow(folder: Path, text: str) -> None:
    (folder / "MLmodel").write_text(text)
    mlmodel.read(ModelSettings(name="m", model_dir=folder))


def _of_torchserve(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    handler_model._config(Archive(folder, {"model": {"configFile": "config.yaml"}}, "handler.py"))


@pytest.mark.parametrize("read", [_of_mlflow, _of_torchserve], ids=["MLmodel", "a TorchServe archive's configFile"])
@pytest.mark.parametrize("text", [merges(12), laughs(12), laughs(12) + "\nbatchSize: *a11\nflavors: *a11"])
def test_every_file_of_a_model_in_yaml_is_held_to_it(tmp_path: Path, text: str, read: Callable[[Path, str], None]):
    with pytest.raises(ConfigError, match=r"merge key|written out|nested too deep"):
        read(tmp_path, text)
