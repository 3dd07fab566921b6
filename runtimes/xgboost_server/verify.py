"""Compare the compiled engine with XGBoost on a model, and keep the verdict: `python -m xgboost_server.verify MODEL [MODEL ...]`.

Run while an image or a model folder is built, so that no start imports xgboost. MODEL is a model file or its folder; the
folder's `model-settings.json` is read for `missing` and `iteration_range`. Exit status: 0 all agree; 1 a model is left to the
Booster or cannot be loaded; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import orjson

from serinus.errors import ConfigError

from . import modelfile, verdict
from .forest import NotCovered, compile_forest, iterations
from .options import Options
from .reference import Reference, installed_version

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xgboost_server.verify",
        description="Compare the compiled engine with XGBoost on a model, and keep the verdict.",
    )
    parser.add_argument("model", nargs="+", type=Path, help="model file, or the folder that holds it")
    parser.add_argument("--missing", help="value that counts as missing, beside NaN")
    parser.add_argument("--iteration-range", help="best, all, or FIRST,END")
    chosen = parser.parse_args(arguments)
    status = 0
    for location in chosen.model:
        try:
            agrees, line = _verify(location, _extra(location, chosen.missing, chosen.iteration_range))
        except ConfigError as error:
            agrees, line = False, str(error)
        print(line, file=sys.stdout if agrees else sys.stderr)
        status = status if agrees else 1
    return status


def _extra(location: Path, missing: str | None, iteration_range: str | None) -> dict[str, Any]:
    """The settings in force: those of the folder, then those of the command line."""
    folder = location if location.is_dir() else location.parent
    extra: dict[str, Any] = {}
    try:
        parameters = orjson.loads((folder / "model-settings.json").read_bytes()).get("parameters", {})
        extra.update((name, parameters[name]) for name in Options.__dataclass_fields__ if name in parameters)
        extra.update(parameters.get("extra") or {})
    except FileNotFoundError:
        pass
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder / 'model-settings.json'}: cannot be read: {error}") from None
    if missing is not None:
        extra["missing"] = missing
    if iteration_range is not None:
        first, comma, end = iteration_range.partition(",")
        try:
            extra["iteration_range"] = [int(first), int(end)] if comma else iteration_range
        except ValueError:
            raise ConfigError(f"--iteration-range {iteration_range!r}: must be best, all or FIRST,END") from None
    return extra


def _verify(location: Path, extra: dict[str, Any]) -> tuple[bool, str]:
    """Compare one model; returns whether the engine may serve it, and a line that says so."""
    options = Options.parse(extra)
    file = modelfile.read(modelfile.find(location))
    try:
        used = iterations(file, options.iteration_range)
    except ValueError as error:
        raise ConfigError(f"{file.path}: {error}") from None
    reference = Reference(file, used, missing=options.missing, threads=1)
    try:
        forest, _ = compile_forest(file, used, missing=options.missing, threads=1)
    except NotCovered as reason:
        return False, f"{file.path}: served by xgboost's Booster: {reason}"
    found = verdict.verify(file, forest, reference, xgboost=installed_version(), missing=options.missing)
    place = verdict.keep(file, found)
    kept = f"kept in {place}" if place else "could be kept nowhere"
    says = (
        "the compiled engine agrees"
        if found.agrees
        else "served by xgboost's Booster, since the compiled engine differs"
    )
    return found.agrees, f"{file.path}: {says}: {found}; {kept}"


if __name__ == "__main__":
    sys.exit(main())
