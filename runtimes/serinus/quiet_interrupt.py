"""Ctrl-C while the command `serinus` is still importing ends it without a traceback.

Theory of operation. Python turns SIGINT into an exception from its own start on, and the imports of a command take up to seconds: whoever thinks
better of it meanwhile would be shown the inside of some package. So the package's first import gives SIGINT back its default where this process
is the command, and nowhere else; nothing has been started by then that would be left behind. `serinus.cli.main` turns it into an exception
again when the command begins.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

__all__ = ["command_words", "is_command"]


def is_command(words: Sequence[str]) -> bool:
    """Whether a process with these words (`sys.orig_argv` without the interpreter) is the command, by its script or by `-m`."""
    return _place(words) is not None


def command_words(words: Sequence[str]) -> list[str]:
    """What follows the command's name in the words of its process; nothing where it is another."""
    place = _place(words)
    return [] if place is None else list(words[place + 1 :])


def _place(words: Sequence[str]) -> int | None:
    """The index of the command's name."""
    for index, word in enumerate(words):
        if word == "-m":
            return index + 1 if list(words[index + 1 : index + 2]) == ["serinus.cli"] else None
        if not word.startswith("-"):
            return index if os.path.basename(word) == "serinus" else None
    return None


if (
    is_command(sys.orig_argv[1:])
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
