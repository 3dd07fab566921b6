"""Compare the compiled engine with XGBoost on a model, and save the record: `python -m xgboost_server.verify MODEL [MODEL ...]`.

`serinus.engines.verify_command` says how; the folder's `model-settings.json` is read for `missing` and `iteration_range`, which
flags override.
"""

from __future__ import annotations

import sys
from typing import Any

from serinus.engines.verify_command import Flag, run

from .adapter import XGBoostAdapter

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    flags = (
        Flag("--missing", "missing", "value that counts as missing, beside NaN"),
        Flag("--iteration-range", "iteration_range", "best, all, or FIRST,END", _iteration_range),
    )
    return run(XGBoostAdapter, arguments, flags)


def _iteration_range(text: str) -> Any:
    first, comma, end = text.partition(",")
    try:
        return [int(first), int(end)] if comma else text
    except ValueError:
        raise ValueError("must be best, all or FIRST,END") from None


if __name__ == "__main__":
    sys.exit(main())
