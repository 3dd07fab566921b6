"""How pages and messages name the extras: as every pip knows them."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from serinus.hosts import implementations

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"(?:serinus|whl)\[([A-Za-z][\w,. -]*)\]")
"""An install line: `pip install 'serinus[serve,xgboost-server]'`."""


def written() -> dict[str, set[str]]:
    """Extras by the file that names them; the project's own metadata may spell them as it likes."""
    folders = ("README.md", "runtimes", "transformers", "inferenceservices", "manifests")
    names = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    found: dict[str, set[str]] = {}
    for name in names:
        if name.endswith((".md", ".py", ".tmpl", ".yaml", "Dockerfile")):
            for extras in NAMED.findall((ROOT / name).read_text()):
                found.setdefault(name, set()).update(each.strip() for each in extras.split(","))
    return found


def known() -> set[str]:
    return {name.replace("_", "-") for name in metadata.metadata("serinus").get_all("Provides-Extra") or []}


def test_pages_and_messages_name_extras_as_every_pip_knows_them():
    """Wheels have `xgboost-server` (PyPA, Core metadata); pip before 23.3 leaves out `xgboost_server` with a warning, and installs the rest."""
    found = written()
    assert {"README.md", "inferenceservices/README.md", "runtimes/torch_server/module.py"} <= set(found)
    wrong = {name: extras - known() for name, extras in found.items() if extras - known()}
    assert wrong == {}


@pytest.mark.parametrize("module", ["xgboost", "sklearn", "kserve", "redis"])
def test_a_class_whose_framework_is_missing_names_an_extra_as_every_pip_knows_it(module: str):
    said = str(implementations._needed(ModuleNotFoundError(name=module), "mine.model:Mine"))
    (extra,) = NAMED.findall(said)
    assert extra in known()
