"""Compare the compiled program with scikit-learn on a model, and save the record: `python -m sklearn_server.verify MODEL [MODEL ...]`.

With a record beside it, a skops file is served without scikit-learn. A pickle takes `--allow-pickle`, which runs what is in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from serinus.engines.not_covered import NotCovered
from serinus.errors import ConfigError
from serinus.settings import ModelSettings

from . import modelfile, verification
from .predictor import Predictor
from .program import compile_program

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sklearn_server.verify", description=__doc__)
    parser.add_argument("model", nargs="+", type=Path, help="model file, or the folder that holds it")
    parser.add_argument("--allow-pickle", action="store_true", help="load pickles, which runs whatever code they hold")
    asked = parser.parse_args(arguments)
    allowed = (modelfile.ALLOW_PICKLE,) if asked.allow_pickle else ()
    status = 0
    for location in asked.model:
        try:
            agrees, line = _verify(ModelSettings(name="model", model_dir=location, allow_implementation=allowed))
        except ConfigError as error:
            agrees, line = False, str(error)
        print(line, file=sys.stdout if agrees else sys.stderr)
        status = status if agrees else 1
    return status


def _verify(settings: ModelSettings) -> tuple[bool, str]:
    """Compare one model; returns whether the program may serve it, and a line that says so."""
    file = modelfile.find(settings)
    predictor = Predictor(file, settings)
    try:
        program = compile_program(predictor.model, threads=1)
    except NotCovered as reason:
        return False, f"{file.path}: served by scikit-learn: {reason}"
    found = verification.verify(file, program, predictor.columns, predictor)
    program.head.close()
    place = verification.save(file, found, replace=True)
    saved = f"saved in {place}" if place else "could be saved nowhere"
    says = (
        "the compiled program agrees" if found.agrees else "served by scikit-learn, since the compiled program differs"
    )
    return found.agrees, f"{file.path}: {says}: {found}; {saved}"


if __name__ == "__main__":
    sys.exit(main())
