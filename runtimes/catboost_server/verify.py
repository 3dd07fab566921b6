"""Compare the compiled engine with CatBoost on a model, and save the record: `python -m catboost_server.verify MODEL [MODEL ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from serinus.engines.verify_command import run

from .adapter import CatBoostAdapter

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return run(CatBoostAdapter, arguments)


if __name__ == "__main__":
    sys.exit(main())
