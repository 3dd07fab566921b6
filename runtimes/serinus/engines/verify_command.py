"""The command `python -m <framework>_server.verify MODEL [MODEL ...]`: compare the compiled walk with the framework, save the record.

Run while an image or a model folder is built, so that no start imports the framework. MODEL is a model file or its folder; the
settings of the folder's `model-settings.json` are in force. Exit status: 0 all agree; 1 a model is left to the framework's
predictor or cannot be loaded; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..errors import ConfigError
from ..settings import ModelSettings
from . import tree_verification
from .tree_adapter import NotCovered, TreeAdapter

__all__ = ["Flag", "run"]


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of the command that stands for one of the model's settings.

    Args:
        flag: "--iteration-range".
        setting: its name in `parameters.extra`.
        text: for the help.
        parse: from the flag's text to the setting's value; raises ValueError with what was expected.
    """

    flag: str
    setting: str
    text: str
    parse: Callable[[str], Any] = str


def run(adapter_class: type[TreeAdapter], arguments: Sequence[str] | None, flags: Sequence[Flag] = ()) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {adapter_class.package}.verify",
        description=f"Compare the compiled engine with {adapter_class.framework} on a model, and save the record of it.",
    )
    parser.add_argument("model", nargs="+", type=Path, help="model file, or the folder that holds it")
    for flag in flags:
        parser.add_argument(flag.flag, dest=flag.setting, help=flag.text)
    chosen = parser.parse_args(arguments)
    status = 0
    for location in chosen.model:
        try:
            extra = _settings_of(location, adapter_class) | _read_flags(flags, vars(chosen))
            agrees, line = _verify(adapter_class, location, extra)
        except ConfigError as error:
            agrees, line = False, str(error)
        print(line, file=sys.stdout if agrees else sys.stderr)
        status = status if agrees else 1
    return status


def _settings_of(location: Path, adapter_class: type[TreeAdapter]) -> dict[str, Any]:
    """The settings in force, of the model's folder."""
    path = (location if location.is_dir() else location.parent) / "model-settings.json"
    try:
        parameters = orjson.loads(path.read_bytes()).get("parameters", {})
        known = adapter_class.options_class.told
        extra = {name: parameters[name] for name in known if name in parameters}
        return {**extra, **(parameters.get("extra") or {})}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _read_flags(flags: Sequence[Flag], chosen: Mapping[str, str | None]) -> dict[str, Any]:
    extra = {}
    for flag in flags:
        text = chosen[flag.setting]
        if text is not None:
            try:
                extra[flag.setting] = flag.parse(text)
            except ValueError as error:
                raise ConfigError(f"{flag.flag} {text!r}: {error}") from None
    return extra


def _verify(adapter_class: type[TreeAdapter], location: Path, extra: Mapping[str, Any]) -> tuple[bool, str]:
    """Compare one model; returns whether the walk may serve it, and a line that says so."""
    settings = ModelSettings(name="model", model_dir=location)
    adapter = adapter_class(settings, adapter_class.options_class.parse(extra))
    fallback = f"served by {adapter.framework}'s {adapter.predictor}"
    path = adapter.facts.path
    predictor = adapter.load_predictor(threads=1)
    try:
        forest = adapter.compile(threads=1)
    except NotCovered as reason:
        return False, f"{path}: {fallback}: {reason}"
    found = tree_verification.verify(adapter, forest, predictor)
    forest.close()
    place = tree_verification.save(adapter, found, replace=True)
    saved = f"saved in {place}" if place else "could be saved nowhere"
    says = "the compiled engine agrees" if found.agrees else f"{fallback}, since the compiled engine differs"
    return found.agrees, f"{path}: {says}: {found}; {saved}"
