"""The pinned versions can be installed on each Python that they are for: a reader's `make setup` finds packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import distributions

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from image_support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = [
    entry.rpartition(" ")[2] for entry in PROJECT["project"]["classifiers"] if entry.startswith("Programming Language")
]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line]


def asked_on(requirement: Requirement, python: str) -> bool:
    where = {"python_version": python, "python_full_version": f"{python}.99", "sys_platform": "linux", "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(where)


def wanted() -> Iterator[Requirement]:
    """What pyproject.toml asks for by name, but for the extra whose environment has no pins."""
    project = PROJECT["project"]
    lists = [
        project["dependencies"],
        *(lines for extra, lines in project["optional-dependencies"].items() if extra != "mlserver"),
        *PROJECT["dependency-groups"].values(),
    ]
    for line in (line for lines in lists for line in lines if isinstance(line, str)):
        yield Requirement(line)


@pytest.mark.parametrize("python", PYTHONS)
def test_a_pinned_version_that_is_installed_here_takes_every_python_that_it_is_pinned_for(python: str):
    here = {
        (canonicalize_name(each.name), each.version): each.metadata.get("Requires-Python") for each in distributions()
    }
    refused = []
    known = 0
    for pin in PINS:
        version = next(iter(pin.specifier)).version
        takes = here.get((canonicalize_name(pin.name), version))
        if takes is not None and asked_on(pin, python):
            known += 1
            if not SpecifierSet(takes).contains(f"{python}.99"):
                refused.append(f"{pin.name} {version} takes {takes}")
    assert refused == []
    assert known > 50


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_pinned_for_some_python_is_pinned_for_every_one_that_it_is_asked_for_on(python: str):
    pinned = {canonicalize_name(pin.name): False for pin in PINS}
    for pin in PINS:
        pinned[canonicalize_name(pin.name)] |= asked_on(pin, python)
    names = {canonicalize_name(each.name) for each in wanted() if asked_on(each, python)}
    assert sorted(name for name in names if pinned.get(name) is False) == []
