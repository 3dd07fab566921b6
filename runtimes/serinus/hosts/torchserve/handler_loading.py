"""The entry point of a handler: a function `handle(data, context)`, or the method of the one class of its module.

Source: pytorch/serve, ts/model_loader.py. A handler's neighbours are importable while it is loaded and initialised; they are taken out of the table
of modules then, since two archives may each have a `model.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .base_handler import list_classes_from_module
from .handler_context import Context
from .mar_archive import Archive
from .ts_modules import register

__all__ = ["Entry", "entry_of_archive", "entry_of_class"]

Entry = Callable[[Any, Context], Any]
"""Answers a batch: a list of items, and the context."""


def entry_of_archive(archive: Archive, context: Context) -> Entry:
    """Load an archive's handler and initialise it.

    Raises:
        ConfigError: there is none, it has no entry point, or is one of TorchServe's own, which is not installed.
        Exception: what its own code raises.
    """
    file, _, function = archive.handler.partition(":")
    path = archive.folder / (file if file.endswith(".py") else f"{file}.py")
    register()
    with _beside(archive.folder):
        if path.is_file():
            module = _module(path)
        else:
            module = _own_handler(archive)
        named = getattr(module, function or "handle", None)
        if inspect.isfunction(named):
            named(None, context)  # how TorchServe initialises a function
            return named
        if function:
            raise ConfigError(f"{path.name}: has no function {function!r}, which the manifest names as the handler")
        classes = [one for one in list_classes_from_module(module) if callable(getattr(one, "handle", None))]
        if len(classes) != 1:
            names = ", ".join(one.__name__ for one in classes) or "none"
            raise ConfigError(
                f"{path.name}: one class with a method 'handle', or a function 'handle', was expected; there are {names}"
            )
        return entry_of_class(classes[0], context)


def entry_of_class(handler: Any, context: Context) -> Entry:
    """Make a handler of its class, or take an instance, and initialise it."""
    made: Any = handler() if inspect.isclass(handler) else handler
    made.initialize(context)
    return made.handle


def _module(path: Path) -> Any:
    name = f"torchserve_handler_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # noqa: S101 # a file of Python
    assert spec.loader is not None  # noqa: S101 # likewise
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return module


def _own_handler(archive: Archive) -> Any:
    name = archive.handler
    try:
        return importlib.import_module(f"ts.torch_handler.{name}")
    except ImportError:
        raise ConfigError(
            f"{archive.folder}: the handler is {name!r}, which is no file of the archive; one of TorchServe's own handlers needs torchserve "
            "(pip install torchserve torchvision)"
        ) from None


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let a handler import its neighbours, before all else now, and after all else later."""
    place = str(folder)
    before = set(sys.modules)
    hidden = {name: sys.modules.pop(name) for name in _neighbours(folder) if name in sys.modules}
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        sys.path.append(place)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(folder):
                del sys.modules[name]
        sys.modules.update(hidden)


def _neighbours(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.py") if path.stem not in sys.stdlib_module_names]
