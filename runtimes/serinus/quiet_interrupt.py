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

__all__ = ["is_command"]


def is_command(words: Sequence[str]) -> bool:
    """Whether a process with these words (`sys.orig_argv` without the interpreter) is the command, by its script or by `-m`."""
    for index, word in enumerate(words):
        if word == "-m":
            return list(words[index + 1 : index + 2]) == ["serinus.cli"]
        if not word.startswith("-"):
            return os.path.basename(word) == "serinus"
    return False


if (
    is_command(sys.orig_argv[1:])
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
