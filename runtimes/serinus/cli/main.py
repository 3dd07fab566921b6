"""Dispatch of the command `serinus`: `serve` pays only for itself, every other command is an operator's."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence

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

        return _interruptible(serve, words[1:])
    from .operator import run

    return _interruptible(run, words)


def _interruptible(command: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """Run a command that Ctrl-C ends without a traceback, whatever it is at; see `serinus.quiet_interrupt`."""
    quiet = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    try:
        if quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return command(words)
    except KeyboardInterrupt:
        return 130
    finally:
        if quiet:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
