"""Compare the compiled engine with LightGBM on a model, and save the record: `python -m lightgbm_server.verify MODEL [MODEL ...]`.

`serinus.engines.verify_command` says how; the folder's `model-settings.json` is read for the iterations.
"""

from __future__ import annotations

import sys

from serinus.engines.verify_command import run

from .adapter import LightGBMAdapter

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    return run(LightGBMAdapter, arguments)


if __name__ == "__main__":
    sys.exit(main())
