"""What of a folder goes into an image: the model's files, the code, its requirements, which runtime or class serves it.

A folder is read as people lay it out: `model/` holds the model's files where there is one, else they lie beside the code; Python modules
and packages beside it are code, `test_*.py` is not. Nothing is imported: classes are found in the text of the modules.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from ..loading.directory import SETTINGS_FILE
from ..loading.model_formats import RUNTIMES, TORCHSERVE, infer_implementation, is_runtime
from ..small_file import read_bytes, read_text
from .left_out import LeftOut

__all__ = ["ImageSource", "find_source"]

_PROJECT_FILES: Final = re.compile(
    r"\..*|__pycache__|venv|dist|build|tests?|test_.*\.py|conftest\.py|setup\.py|pyproject\.toml|requirements.*\.txt|request\.json|response\.json"
    r"|Dockerfile|Makefile|README.*|.*\.pyc|(kustomization|inferenceservice|servingruntime|clusterservingruntime|canary)[^/]*\.ya?ml"
)
"""What lies beside a model and serves it in no way."""
_BASES: Final = frozenset({"Model", "RequestModel", "MLModel"})
"""Names of the classes that models of one's own derive from: serinus's, KServe's, MLServer's."""
_HOSTED: Final = ("kserve", "mlserver")
"""Packages whose import in the code asks for the extra of that name."""
_EXTRAS_BESIDES: Final = ("fraud_features", "image_pixels", "recommender_features")
"""Classes of the installed package that are no runtimes, each an extra too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """What an image is made of."""

    name: str
    """The model's, in URLs."""
    model: tuple[Path, ...]
    """Files and folders that become the image's `/mnt/models`."""
    code: tuple[Path, ...]
    """Modules and packages that become importable."""
    implementation: str
    """`module:Class` or a runtime's name; empty: the model's own settings say it."""
    extras: tuple[str, ...]
    """Of the package serinus, beside `serve`."""
    requirements: Path | None
    """A requirements file of pip's."""
    request: Path | None
    """The model's sample request, V2 or V1."""
    folder: Path | None = None
    """Links of what is copied may not lead out of it; None: what is copied was named itself."""


def find_source(
    path: Path, *, implementation: str = "", requirements: Path | None = None, name: str = ""
) -> ImageSource:
    """Read what a path offers for an image.

    Args:
        path: a folder, a model file or a Python module.
        implementation: `module:Class`, or a runtime's name; empty: found.
        requirements: a requirements file; None: `requirements.txt` in the folder, where it is and not MLflow's.
        name: the model's; empty: its settings', else the folder's or file's.

    Raises:
        ConfigError: nothing to serve, or several classes; a file that is named is not there.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory")
    folder = path if path.is_dir() else path.parent
    left_out = LeftOut(path if path.is_dir() else None)
    code = (path,) if path.suffix == ".py" else tuple(_code(folder, left_out)) if path.is_dir() else ()
    model, model_dir = _model(path, folder, code, left_out)
    own = _settings(model_dir)
    found = implementation or _named_in_settings(own, code)
    if not found and code:
        found = _class_in(path, code)
    if not found and not own.get("implementation"):
        if not model:
            raise ConfigError(
                f"{path}: no model file and no class here; a class derives from serinus.Model, kserve.Model or MLServer's MLModel, "
                "or is named: --class module:Class"
            )
        found = infer_implementation(model_dir)
    is_archive = found == TORCHSERVE and not implementation
    # MLflow's own list is of all that loading by MLflow takes (mlflow itself, xgboost with CUDA); the runtime's extra is what serving takes.
    is_mlflow = found == "mlflow_server"
    if requirements is None and (folder / "requirements.txt").is_file() and not is_mlflow:
        requirements = folder / "requirements.txt"
    if requirements is not None and not requirements.is_file():
        raise ConfigError(f"--requirements {requirements}: no such file")
    module = re.split(r"[:.]", found, maxsplit=1)[0]
    known = (*(runtime.package for runtime in RUNTIMES), *_EXTRAS_BESIDES)
    if (
        found
        and not is_archive
        and module not in known
        and not any(each.stem == module for each in code)
        and requirements is None
    ):
        names = ", ".join(each.stem for each in code) or "none"
        raise ConfigError(
            f"--class {found}: no module {module} in {folder} (there: {names}), and no requirements bring it"
        )
    packages = [module, re.split(r"[:.]", str(own.get("implementation") or ""), maxsplit=1)[0]]
    extras = [package for package in dict.fromkeys(packages) if package in known]
    extras += ["torch_server"] if is_archive else []  # what its handler needs beside PyTorch, requirements say
    extras += [package for package in _HOSTED if package in _imports(code)]
    places = (folder, *(() if model_dir is None or model_dir.is_file() else (model_dir,)))
    return ImageSource(
        name=name or str(own.get("name") or "") or (path.resolve().name if path.is_dir() else path.stem),
        model=model,
        code=code,
        implementation="" if is_archive else found,  # an archive says what it is
        extras=tuple(extras),
        requirements=requirements,
        folder=path if path.is_dir() else None,
        request=next((place / "request.json" for place in places if (place / "request.json").is_file()), None),
    )


def _code(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if _PROJECT_FILES.fullmatch(path.name) or path.name == "model" or left_out.has(path):
            continue
        if (path.is_file() and path.suffix == ".py") or (path / "__init__.py").is_file():
            yield path


def _model(path: Path, folder: Path, code: Sequence[Path], left_out: LeftOut) -> tuple[tuple[Path, ...], Path | None]:
    """Files of the model, and the file or folder that says what it is."""
    if path.is_file() and path.suffix != ".py":
        return (path,), path
    within = folder / "model"
    if within.is_dir():
        return tuple(sorted(each for each in within.iterdir() if not left_out.has(each))), within
    if path.is_file():
        return (), None
    beside = (each for each in sorted(folder.iterdir()) if each not in code)
    files = tuple(each for each in beside if not _PROJECT_FILES.fullmatch(each.name) and not left_out.has(each))
    return files, folder if files else None


def _settings(model_dir: Path | None) -> dict[str, Any]:
    if model_dir is None or not (model_dir / SETTINGS_FILE).is_file():
        return {}
    try:
        document = json.loads(read_text(model_dir / SETTINGS_FILE))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{model_dir / SETTINGS_FILE}: not JSON: {error}") from None
    return document if isinstance(document, dict) else {}


def _named_in_settings(own: dict[str, Any], code: Sequence[Path]) -> str:
    """The class that the model's settings name, where it is of this folder's code: an image's owner allows it by building it."""
    named = str(own.get("implementation") or "")
    if not named or is_runtime(named):
        return ""
    module, _, last = named.replace(":", ".").rpartition(".")
    return f"{module}:{last}" if any(each.stem == module.partition(".")[0] for each in code) else ""


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(read_bytes(path), filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{path}: not Python: {error or 'nested too deep'}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; a module was expected") from None


def _modules(code: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Each module's file and dotted name."""
    for path in code:
        for file in (path,) if path.is_file() else sorted(path.rglob("*.py")):
            parts = file.relative_to(path.parent).with_suffix("").parts
            yield file, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _class_in(path: Path, code: Sequence[Path]) -> str:
    """The one class of a model in the code; empty: none."""
    found = [
        f"{module}:{node.name}"
        for file, module in _modules(code)
        for node in _parse(file).body
        if isinstance(node, ast.ClassDef) and any(_last_name(base) in _BASES for base in node.bases)
    ]
    if len(found) > 1:
        raise ConfigError(
            f"{path}: {len(found)} classes of models: name one of them, --class {' or --class '.join(found)}"
        )
    return found[0] if found else ""


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _imports(code: Sequence[Path]) -> set[str]:
    """Top packages that the code imports, at any depth of its text."""
    names: set[str] = set()
    for file, _ in _modules(code):
        for node in ast.walk(_parse(file)):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names
