"""Dispatch of the command `serinus`: `serve` pays only for itself, every other command is an operator's."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `serinus`; None: the process's own.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["serve"]:
        from .serving.serve import main as serve

        return serve(words[1:])
    from .operator import run

    return run(words)
