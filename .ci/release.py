"""Make a release of this tree: `make release VERSION=0.2.0`, or with ARGS=--dry-run see what it would do.

Checks that the tree is clean, the version is a later semantic one, its tag is not taken, the changelog has something to tell and nothing is left
that was to go by then; writes version, changelog and the tags of images; commits, builds the wheels from that commit, tags it. It pushes nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import difflib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

VERSION_FILE = "runtimes/serinus/__init__.py"
CHANGELOG = "CHANGELOG.md"
UNRELEASED = "## Unreleased\n"
WITH_TAGS = (
    "inferenceservices/**/*.yaml",
    "manifests/**/*.yaml",
    "runtimes/README.md",
    "inferenceservices/README.md",
    "runtimes/serinus/cli/commands/build_image.py",
)
"""Files that name the images' tag or the wheel's version."""
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


def numbers(version: str) -> tuple[int, int, int]:
    """Split a version.

    Raises:
        ValueError: it is no MAJOR.MINOR.PATCH.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise ValueError(f"VERSION={version!r}: expected MAJOR.MINOR.PATCH (semver.org), such as 0.2.0")
    return int(found[1]), int(found[2]), int(found[3])


def read_version(root: Path) -> str:
    """The version of the tree."""
    found = re.search(r'^__version__ = "([^"]+)"$', (root / VERSION_FILE).read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{VERSION_FILE}: no __version__")
    return found[1]


def git(root: Path, *words: str) -> str:
    """Run git in the tree."""
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout


def find_problems(root: Path, old: str, new: str) -> list[str]:
    """What keeps this tree from being released under a version."""
    found = []
    if numbers(new) <= numbers(old):
        found.append(f"VERSION={new}: not later than {old}")
    if git(root, "status", "--porcelain", "--untracked-files=no").strip():
        found.append("the tree has changes that are not committed: commit or stash them")
    if git(root, "tag", "--list", f"v{new}").strip():
        found.append(f"the tag v{new} is there already")
    text = (root / CHANGELOG).read_text()
    own = text.partition(UNRELEASED)[2].partition("\n## ")[0]
    if UNRELEASED not in text or not own.strip():
        found.append(f"{CHANGELOG}: nothing under Unreleased")
    if numbers(new)[:2] == numbers(old)[:2] and re.search(r"^### (Added|Removed)|\*\*To do:\*\*", own, re.MULTILINE):
        found.append(
            f"{CHANGELOG}: something is added, removed or to be done by users, so a patch version will not do: raise MINOR"
        )
    from serinus.cli.serving.deprecations import DEPRECATIONS

    found += [
        f"{each.name} was to go with {each.goes}: remove it"
        for each in DEPRECATIONS
        if numbers(each.goes) <= numbers(new)
    ]
    return found


def plan_edits(root: Path, old: str, new: str, today: dt.date) -> dict[Path, str]:
    """The new text of each file that changes."""
    edits: dict[Path, str] = {}
    path = root / VERSION_FILE
    edits[path] = path.read_text().replace(f'__version__ = "{old}"', f'__version__ = "{new}"')
    path = root / CHANGELOG
    edits[path] = path.read_text().replace(UNRELEASED, f"{UNRELEASED}\n## {new} - {today.isoformat()}\n", 1)
    whole = re.compile(rf"(?<=[\s:\-]){re.escape(old)}(?![\w.]*\d)")
    for pattern in WITH_TAGS:
        for path in sorted(root.glob(pattern)):
            text = path.read_text()
            changed = "".join(
                whole.sub(new, line) if re.search(r"newTag:|_server|serinus_base|serinus-\d|features:", line) else line
                for line in text.splitlines(keepends=True)
            )
            if changed != text:
                edits[path] = changed
    return edits


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0, 1 (the tree cannot be released), 2 (asked wrongly).
    """
    parser = argparse.ArgumentParser(prog="make release VERSION=...", description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--dry-run", action="store_true", help="show the changes and commands, and do nothing")
    parser.add_argument("--no-wheels", action="store_true", help="leave the wheels to another machine: make wheel")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    root, new = options.root, options.version
    try:
        old = read_version(root)
        problems = find_problems(root, old, new)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems and not options.dry_run:
        return 1
    edits = plan_edits(root, old, new, dt.datetime.now(dt.timezone.utc).date())
    commands = [["git", "commit", "-qam", f"Release {new}"], ["git", "tag", "-a", f"v{new}", "-m", f"serinus {new}"]]
    if not options.no_wheels:
        commands.insert(1, ["make", "wheel"])  # before the tag: what cannot be built is not tagged
    if options.dry_run:
        for path, text in edits.items():
            name = str(path.relative_to(root))
            print(
                "".join(
                    difflib.unified_diff(path.read_text().splitlines(True), text.splitlines(True), name, name, n=0)
                ),
                end="",
            )
        for command in commands:
            print("+ " + " ".join(command))
        return 1 if problems else 0
    for path, text in edits.items():
        path.write_text(text)
    for command in commands:
        subprocess.run(command, cwd=root, check=True)
    print(
        f"released {new}: {len(edits)} files, tag v{new}. Next: git push --follow-tags; make images TAG={new}, and push them; dist/ to the index"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
