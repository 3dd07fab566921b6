"""Folders of apps: the class that each says it is, read without an import."""

from __future__ import annotations

import importlib.abc
import sys
from pathlib import Path
from typing import Any

import pytest

from serinus.manifests.serving_runtimes import app_class


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("__serinus_class__ = 'a.b:C'", "a.b:C"),
        ("__serinus_class__: str = 'a.b:C'", "a.b:C"),
        ("from .b import C as __unused\n__serinus_class__ = C", "edge_app"),
        ("__serinus_class__: str", "edge_app"),
        ("other = __serinus_class_ = 'a'", None),
        ("", None),
        ("this is no Python", None),
    ],
)
def test_an_app_says_its_class_without_being_imported(
    text: str, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "edge_app").mkdir()
    (tmp_path / "edge_app" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert app_class("edge_app") == found


def test_what_is_no_app_folder_has_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "edge_module.py").write_text("__serinus_class__ = 'a:B'")
    (tmp_path / "edge_space").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("edge_module", "edge_space", "edge_nothing", "not-a-name", "", "a.b", "__main__"):
        assert app_class(name) is None, name


class Refusing(importlib.abc.MetaPathFinder):
    """Says of one name why it cannot be looked for."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.error = name, error

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname == self.name:
            raise self.error


@pytest.mark.parametrize("error", [ImportError("not on this machine"), ValueError("no spec")])
def test_what_the_interpreter_cannot_look_for_has_no_class(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "edge_refused").mkdir()
    (tmp_path / "edge_refused" / "__init__.py").write_text("__serinus_class__ = 'a:B'")
    monkeypatch.syspath_prepend(tmp_path)
    assert app_class("edge_refused") == "a:B"
    monkeypatch.setattr(sys, "meta_path", [Refusing("edge_refused", error), *sys.meta_path])
    assert app_class("edge_refused") is None


@pytest.mark.parametrize("body", [b"\xff\xfe", b"x = (", b"\0"], ids=["no UTF-8", "no Python", "a zero byte"])
def test_what_cannot_be_read_has_no_class(body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "edge_unreadable").mkdir()
    (tmp_path / "edge_unreadable" / "__init__.py").write_bytes(body)
    monkeypatch.syspath_prepend(tmp_path)
    assert app_class("edge_unreadable") is None
