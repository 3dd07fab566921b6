"""Compare the compiled engine with LightGBM on a model, and keep the verdict: `python -m lightgbm_server.verify MODEL [MODEL ...]`.

Run while an image or a model folder is built, so that no start imports lightgbm. MODEL is a model file or its folder; the
folder's `model-settings.json` is read for the iterations. Exit status: 0 all agree; 1 a model is left to the Booster or
cannot be loaded; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import orjson

from serinus.artifacts import find_file
from serinus.errors import ConfigError
from serinus.settings import ModelSettings

from . import modelfile, verdict
from .forest import NotCovered, compile_forest, iterations
from .options import Options
from .reference import Reference, installed_version

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lightgbm_server.verify",
        description="Compare the compiled engine with LightGBM on a model, and keep the verdict.",
    )
    parser.add_argument("model", nargs="+", type=Path, help="model file, or the folder that holds it")
    status = 0
    for location in parser.parse_args(arguments).model:
        try:
            agrees, line = _verify(location)
        except ConfigError as error:
            agrees, line = False, str(error)
        print(line, file=sys.stdout if agrees else sys.stderr)
        status = status if agrees else 1
    return status


def _extra(location: Path) -> dict[str, Any]:
    """The settings in force, of the model's folder."""
    path = (location if location.is_dir() else location.parent) / "model-settings.json"
    try:
        parameters = orjson.loads(path.read_bytes()).get("parameters", {})
        extra = {name: parameters[name] for name in Options.__dataclass_fields__ if name in parameters}
        return {**extra, **(parameters.get("extra") or {})}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _verify(location: Path) -> tuple[bool, str]:
    """Compare one model; returns whether the engine may serve it, and a line that says so."""
    options = Options.parse(_extra(location))
    settings = ModelSettings(name="model", model_dir=location)
    file = modelfile.read(find_file(settings, modelfile.SUFFIXES, preferred=modelfile.PREFERRED))
    try:
        used = iterations(file, options.start_iteration_predict, options.num_iteration_predict)
    except ValueError as error:
        raise ConfigError(f"{file.path}: {error}") from None
    reference = Reference(file, used, threads=1)
    try:
        forest, _ = compile_forest(file, used, threads=1)
    except NotCovered as reason:
        return False, f"{file.path}: served by lightgbm's Booster: {reason}"
    found = verdict.verify(file, forest, reference, lightgbm=installed_version())
    place = verdict.keep(file, found)
    kept = f"kept in {place}" if place else "could be kept nowhere"
    says = (
        "the compiled engine agrees"
        if found.agrees
        else "served by lightgbm's Booster, since the compiled engine differs"
    )
    return found.agrees, f"{file.path}: {says}: {found}; {kept}"


if __name__ == "__main__":
    sys.exit(main())
