"""Names of classes to classes: what `--class`, `--transformer` and `implementation` may say, and what kind each is.

Accepted: `package` (its `__serinus_class__` names the class), `package:Class`, `package.module:Class`, `package.module.Class`,
`folder/file.py:Class`; in place of a class also a function that makes the model, or a ready instance. `folder/file.py` alone is a
script as it is written for KServe, which ends in `kserve.ModelServer().start([model])`: it runs as it would there, and the model
that it would start is the one (`scripts` serves several). Frameworks are recognised without importing
them: a class can only derive from `kserve.Model` if its own module has imported kserve.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import logging
import runpy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from ..model import Model

__all__ = ["Implementation", "Kind", "ScriptServer", "implementation_of", "is_script", "resolve", "run_script"]

_log = logging.getLogger("serinus.hosts")

Kind = Literal["serinus", "kserve", "mlserver", "torchserve", "function"]

_EXTRAS = {
    "kserve": "kserve",
    "mlserver": "mlserver",
    "xgboost": "xgboost-server",
    "numba": "xgboost-server",
    "lightgbm": "lightgbm-server",
    "sklearn": "sklearn-server",
    "skops": "sklearn-server",
    "catboost": "catboost-server",
    "torch": "torch-server",
    "onnxruntime": "onnx-server",
    "tensorflow": "tensorflow-server",
    "mlflow": "mlflow-server",
    "redis": "fraud-features",
}
"""Top-level module to the extra that installs it, as every pip knows it (before 23.3 pip finds no underscore)."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """What a name stands for."""

    name: str
    kind: Kind
    target: Any
    """A class, a function that makes a model, or an instance."""
    is_instance: bool = False


@dataclass(frozen=True, slots=True)
class ScriptServer:
    """What a script would start."""

    models: dict[str, Any]
    """By name."""
    repository: Any = None
    """Its `kserve.ModelRepository`, where `load` is the script's own; else None."""


def resolve(name: str, argv: Sequence[str] = (), beside: Path | None = None) -> Implementation:
    """Find what a name stands for.

    Args:
        name: see the module's docstring.
        argv: what `sys.argv[1:]` is while the module is imported: `import kserve` parses it (`kserve.model_server`), and
            modules written for KServe do likewise.
        beside: the folder of the `model-settings.json` that names it, for the message where the code lies there.

    Raises:
        ConfigError: it does not exist, needs a package that is not installed, or is nothing that can be hosted.
    """
    path, is_file, attribute = _file(name)
    if is_file and not path.is_file():
        raise ConfigError(f"{name!r}: no such file: {path}")
    with _arguments(argv):
        if is_file:
            target = (
                _attribute(_import_file(path, name), attribute, name) if attribute else _only(_run(path, name), name)
            )
        else:
            target = _load(name, beside)
    return implementation_of(target, name)


def implementation_of(target: Any, name: str = "") -> Implementation:
    """Tell what a class, function or instance at hand is.

    Raises:
        ConfigError: nothing that can be hosted.
    """
    name = name or getattr(target, "__qualname__", type(target).__qualname__)
    kind = _kind(target)
    if kind is not None:
        return Implementation(name, kind, target, is_instance=not inspect.isclass(target))
    if inspect.isroutine(target):
        return Implementation(name, "function", target)
    raise ConfigError(
        f"{name!r} is {_describe(target)}; expected a subclass of serinus.model.Model, kserve.Model, mlserver.MLModel or TorchServe's BaseHandler, "
        "a function that returns one, or an instance"
    )


def kind_of(model: Any) -> Kind | None:
    """Tell what kind of model an instance is; None: none that can be hosted."""
    return _kind(model)


@contextlib.contextmanager
def _arguments(argv: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = [before[0] if before else "serinus", *argv]
    try:
        yield
    finally:
        sys.argv = before


def _load(name: str, beside: Path | None) -> Any:
    module_name, colon, attribute = name.partition(":")
    if colon:
        return _attribute(_import(module_name, name, beside), attribute, name)
    if not _exists(module_name):
        parent, dot, attribute = module_name.rpartition(".")
        if dot and _exists(parent):
            return _attribute(_import(parent, name, beside), attribute, name)
    module = _import(module_name, name, beside)
    named = getattr(module, "__serinus_class__", None)
    if named is None:
        classes = sorted(key for key, value in vars(module).items() if inspect.isclass(value) and _kind(value))
        hint = f" (it has {', '.join(classes)})" if classes else ""
        raise ConfigError(f"{name!r} names a package without __serinus_class__; name the class too: {name}:Class{hint}")
    return _load(named, None) if isinstance(named, str) else named


def _file(name: str) -> tuple[Path, bool, str]:
    """Split `folder/file.py:Class`; whether it is one at all."""
    path, _, attribute = name.partition(":")
    return Path(path), path.endswith(".py"), attribute


def _import_file(path: Path, name: str) -> Any:
    """Import a file whose folder need not be on the module path; what lies beside it can be imported from it."""
    path = path.resolve()
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    module_name = path.stem if loaded is None and path.stem not in sys.stdlib_module_names else f"hosted_{path.stem}"
    loader = importlib.machinery.SourceFileLoader(module_name, str(path))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(module_name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[module_name] = module
    try:
        with _beside(path), _reported(name):
            try:
                loader.exec_module(module)
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != "ts":
                    raise
                from .torchserve.ts_modules import register

                register()  # a handler of TorchServe's, which is not installed
                loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, ModuleNotFoundError):
            raise _needed(error, name) from error
        raise
    return module


def is_script(name: str) -> bool:
    """Tell a script by its name: a file of code, and no class in it."""
    _, is_file, attribute = _file(name)
    return is_file and not attribute


def run_script(name: str, argv: Sequence[str] = ()) -> ScriptServer:
    """Run a script as Python would, up to `kserve.ModelServer.start`, and take what it hands over there.

    Args:
        name: the script's path.
        argv: `sys.argv[1:]` while it runs.

    Raises:
        ConfigError: there is no such file, it does not run, or it starts no server with a model.
    """
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{name!r}: no such file: {path}")
    with _arguments(argv):
        return _run(path, name)


def _run(path: Path, name: str) -> ScriptServer:
    try:
        import kserve
    except ModuleNotFoundError:
        raise ConfigError(
            f"{name!r} names no class, so it is a script that starts KServe's server, and KServe's SDK is not installed "
            f"(pip install 'serinus[kserve]'); a class is named behind a colon: {name}:Class"
        ) from None

    from .earlier_kserve import accept_earlier_classes

    accept_earlier_classes()  # before the script makes its models
    started: dict[str, Any] = {}
    repositories: list[Any] = []

    def start(server: Any, models: Sequence[Any]) -> None:
        if type(server.registered_models).load is not kserve.ModelRepository.load:
            repositories.append(server.registered_models)
        started.update(server.registered_models.get_models())
        started.update({getattr(model, "name", str(index)): model for index, model in enumerate(models)})
        _warn_of_server(name, server)

    original, kserve.ModelServer.start = kserve.ModelServer.start, start  # type: ignore[method-assign] # until the script ends
    try:
        with _beside(path), _reported(name):
            runpy.run_path(str(path), run_name="__main__")
    except ModuleNotFoundError as error:
        raise _needed(error, name) from error
    finally:
        kserve.ModelServer.start = original  # type: ignore[method-assign] # back again
    if not started and not repositories:
        raise ConfigError(f"{name!r} starts no kserve.ModelServer with a model; name the class to serve: {name}:Class")
    return ScriptServer(started, repositories[-1] if repositories else None)


def _warn_of_server(name: str, server: Any) -> None:
    """Say what a script wants of KServe's server that it does not get from this one."""
    from kserve import model_server

    for option in ("http_port", "grpc_port", "workers", "enable_grpc"):
        value = getattr(server, option)
        if value != getattr(model_server.args, option):
            _log.warning("%s: its ModelServer(%s=%r) has no effect here; give --%s", name, option, value, option)
    app = model_server.app
    if app.user_middleware or any(type(route).__name__ == "APIRoute" for route in app.routes):
        _log.warning("%s: what it adds to KServe's FastAPI app (routes, middleware) is not served here", name)


def _only(server: ScriptServer, name: str) -> Any:
    started = server.models
    if len(started) != 1:
        raise ConfigError(f"{name!r} starts a server of {len(started)} models; name the class to serve: {name}:Class")
    return next(iter(started.values()))


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let a file import its neighbours: before all else while it runs, as under Python, and after all else later."""
    folder = str(path.resolve().parent)
    known = folder in sys.path
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if not known:
            sys.path.append(folder)


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """Say of code that does not run when it is imported what it says itself."""
    try:
        yield
    except SystemExit as error:
        raise ConfigError(
            f"{name!r} ended with status {error.code} when it was imported; where its command line needs a further flag "
            "(it said so above), give it with --extra FLAG=VALUE"
        ) from error
    except (SyntaxError, argparse.ArgumentError) as error:
        raise ConfigError(f"{name!r} cannot be imported: {error}") from error


def _exists(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _import(module_name: str, name: str, beside: Path | None) -> Any:
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"{name!r} is no name of a class; expected package, package:Class or package.module:Class")
    try:
        with _reported(name):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing.partition(".")[0] in _EXTRAS and missing.partition(".")[0] != module_name.partition(".")[0]:
            raise _needed(error, name) from error
        if module_name == missing or module_name.startswith(f"{missing}."):
            first = module_name.partition(".")[0]
            if beside is not None and ((beside / f"{first}.py").exists() or (beside / first).is_dir()):
                raise ConfigError(
                    f"{name!r} is code in the model directory {beside}, and code is not loaded from there by itself; "
                    f"to trust it, start with PYTHONPATH={beside}"
                ) from error
            raise ConfigError(
                f"{name!r}: there is no package {missing!r} here; install it, or add its folder to PYTHONPATH"
            ) from error
        raise _needed(error, name) from error
    except ImportError as error:
        raise ConfigError(f"{name!r} cannot be imported: {error}") from error


def _needed(error: ModuleNotFoundError, name: str) -> ConfigError:
    root = (error.name or "").partition(".")[0]
    extra = f": pip install 'serinus[{_EXTRAS[root]}]'" if root in _EXTRAS else ""
    return ConfigError(f"{name!r} needs {root if extra else error.name}, which is not installed{extra}")


def _attribute(module: Any, attribute: str, name: str) -> Any:
    target = module
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            classes = sorted(key for key, value in vars(module).items() if inspect.isclass(value) and _kind(value))
            hint = f"; it has {', '.join(classes)}" if classes else ""
            raise ConfigError(f"{name!r}: {module.__name__} has no {attribute!r}{hint}") from None
    return target


def _kind(target: Any) -> Kind | None:
    cls = target if inspect.isclass(target) else type(target)
    if issubclass(cls, Model):
        return "serinus"
    for kind, module, base in (
        ("kserve", "kserve.model", "BaseKServeModel"),
        ("mlserver", "mlserver.model", "MLModel"),
        ("torchserve", "ts.torch_handler.base_handler", "BaseHandler"),
    ):
        loaded = sys.modules.get(module)
        if loaded is not None and issubclass(cls, getattr(loaded, base)):
            return kind  # type: ignore[return-value] # the literals of the loop's tuple
    return None


def _describe(target: Any) -> str:
    if inspect.isclass(target):
        bases = ", ".join(base.__name__ for base in target.__mro__[1:-1]) or "nothing"
        return f"the class {target.__name__}, derived from {bases}"
    if inspect.ismodule(target):
        return "a module"
    return f"a {type(target).__name__}"
