"""`make release` in a copy of the tree: what it changes, what it refuses, and that a dry run does nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from representative import every
from serinus import __version__
from serinus.cli.serving.deprecations import Deprecation

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = load()


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a release touches, in a repository of their own."""
    tmp_path = tmp_path_factory.mktemp("begun")
    for pattern in (release.VERSION_FILE, release.CHANGELOG, *release.WITH_TAGS):
        for path in ROOT.glob(pattern):
            to = tmp_path / path.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "t")
    git(tmp_path, "config", "user.email", "t@example.com")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "Begin")
    return tmp_path


@pytest.fixture
def tree(begun: Path, tmp_path: Path) -> Path:
    """A repository of those files, of this test alone."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(tree: Path, version: str, *flags: str) -> int:
    return release.main([version, "--root", str(tree), "--no-wheels", *flags])


def later(minor: int = 1) -> str:
    major, now, _ = release.numbers(__version__)
    return f"{major}.{now + minor}.0"


@pytest.mark.slow
def test_a_release_moves_the_version_the_changelog_and_every_images_tag_and_is_tagged(tree: Path):
    assert run(tree, later()) == 0
    assert release.read_version(tree) == later()
    assert f"{release.UNRELEASED}\n## {later()} - 20" in (tree / "CHANGELOG.md").read_text()
    tags = [
        line
        for path in tree.rglob("kustomization.yaml")
        for line in path.read_text().splitlines()
        if "newTag: " in line
    ]
    assert len(tags) > 20
    assert {line.split("newTag: ")[1].strip('"') for line in tags} == {later()}
    assert f"FROM serinus_base:{later()}" in (tree / "runtimes" / "README.md").read_text()
    left = [
        str(path)
        for path in tree.rglob("*.yaml")
        if f":{__version__}" in path.read_text() or f": {__version__}\n" in path.read_text()
    ]
    assert left == []
    assert git(tree, "status", "--porcelain") == ""
    assert git(tree, "tag", "--list").split() == [f"v{later()}"]
    assert git(tree, "log", "-1", "--format=%s").strip() == f"Release {later()}"


@pytest.mark.slow
def test_a_dry_run_shows_it_and_changes_nothing(tree: Path, capsys: pytest.CaptureFixture[str]):
    before = git(tree, "rev-parse", "HEAD")
    assert run(tree, later(), "--dry-run") == 0
    said = capsys.readouterr().out
    assert f'+__version__ = "{later()}"' in said
    assert f"+ git tag -a v{later()}" in said
    assert git(tree, "rev-parse", "HEAD") == before
    assert git(tree, "status", "--porcelain") == ""
    assert git(tree, "tag", "--list") == ""


@pytest.mark.parametrize(
    ("version", "says"),
    every(
        3,
        [("1.0", "expected MAJOR.MINOR.PATCH"), ("01.2.3", "expected MAJOR.MINOR.PATCH"), ("0.0.1", "not later than")],
        names=2,
    ),
)
def test_a_version_that_is_none_or_not_later_is_refused(
    tree: Path, version: str, says: str, capsys: pytest.CaptureFixture[str]
):
    assert run(tree, version) in (1, 2)
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_added_is_no_patch_and_an_empty_changelog_no_release(tree: Path, capsys: pytest.CaptureFixture[str]):
    major, minor, patch = release.numbers(__version__)
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n### Added\n\n- a thing\n")
    git(tree, "commit", "-qam", "Tell")
    assert run(tree, f"{major}.{minor}.{patch + 1}") == 1
    assert "raise MINOR" in capsys.readouterr().err
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    assert run(tree, later()) == 1
    said = capsys.readouterr().err
    assert "nothing under Unreleased" in said
    assert "not committed" in said


@pytest.mark.slow
def test_what_was_to_go_by_then_keeps_a_release_back(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    entry = Deprecation("--old_flag", __version__, later(), "--new_flag")
    monkeypatch.setattr("serinus.cli.serving.deprecations.DEPRECATIONS", (entry,))
    assert run(tree, later()) == 1
    assert "--old_flag was to go" in capsys.readouterr().err
