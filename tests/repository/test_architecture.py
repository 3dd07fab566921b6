"""The tree is as the README draws it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = (ROOT / "runtimes", ROOT / "transformers")
PACKAGES = sorted(path.parent.name for root in SOURCE_ROOTS for path in root.glob("*/__init__.py"))


@pytest.mark.parametrize("root", SOURCE_ROOTS, ids=lambda path: path.name)
def test_a_source_root_is_never_a_package(root: Path):
    assert not (root / "__init__.py").exists(), (
        f"{root.name}/__init__.py would shadow an installed package of that name"
    )


@pytest.mark.slow
def test_no_folder_bears_the_name_of_a_package_that_we_install():
    installed = {name for name, owners in metadata.packages_distributions().items() if set(owners) != {"serinus"}}
    assert not installed & set(PACKAGES)


def test_every_package_is_in_the_wheel_and_held_by_the_layers():
    text = (ROOT / "pyproject.toml").read_text()
    listed = text.split("root_packages = [", 1)[1].split("]", 1)[0]
    assert [name for name in PACKAGES if f'"{name}"' not in listed] == []


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "serinus"])
def test_every_image_has_its_extra_and_readme(package: str):
    extras = metadata.metadata("serinus").get_all("Provides-Extra") or []
    assert package.replace("_", "-") in {extra.replace("_", "-") for extra in extras}
    assert any((root / package / "README.md").is_file() for root in SOURCE_ROOTS)


def _modules() -> list[str]:
    package = importlib.import_module("serinus")
    found = [module.name for module in pkgutil.walk_packages(package.__path__, "serinus.")]
    return ["serinus", *(name for name in found if not name.endswith(("__main__", "hatch_build", "_pb2", "_kernels")))]


@pytest.mark.slow  # imports every module of the library
@pytest.mark.parametrize("name", _modules())
def test_whatever_a_module_exports_exists(name: str):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if "mlserver" not in str(error):  # it is never in one environment with KServe
            raise
        pytest.skip("needs MLServer, which has an environment of its own")
    exported = getattr(module, "__all__", None)
    if exported is None:
        return
    assert [entry for entry in exported if not hasattr(module, entry)] == []


@pytest.mark.slow  # as above
def test_no_dataclass_has_a_default_that_python_3_10_refuses():
    """No dict, list or set may be one there, not even a hashable one; later versions take that, and so do the tests that run on them."""
    refused = []
    for name in _modules():
        with contextlib.suppress(ImportError):  # the test above says which may fail
            for each in vars(importlib.import_module(name)).values():
                if isinstance(each, type) and dataclasses.is_dataclass(each) and each.__module__ == name:
                    defaults = ((field.name, field.default) for field in dataclasses.fields(each))
                    refused += [
                        f"{name}.{each.__name__}.{of}" for of, value in defaults if isinstance(value, (dict, list, set))
                    ]
    assert refused == []


@pytest.mark.slow
def test_serve_imports_nothing_that_only_operators_need():
    code = (
        "import sys, serinus.cli.serving.serve, serinus.server.lifecycle, serinus.hosts;"
        "print(sorted({'typer', 'rich', 'kserve', 'mlserver', 'fastapi', 'pandas', 'xgboost', 'yaml'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_console_script_and_entry_point_loads():
    points = list(metadata.distribution("serinus").entry_points)
    assert {point.name for point in points} >= {"serinus"}
    for point in points:
        point.load()
