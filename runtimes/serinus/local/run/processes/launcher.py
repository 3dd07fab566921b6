"""Starts one process that dies with its parent: `launcher.py PARENT_PID COMMAND [ARGS]`.

On Linux the kernel sends SIGTERM when the parent ends, however it ends (prctl(2), PR_SET_PDEATHSIG). It is a program of its own
because code between fork and exec in a process with threads may deadlock (Python, subprocess: preexec_fn).
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call above
            sys.exit(0)
    try:
        os.execvp(command[0], command)  # noqa: S606 (that is its purpose)
    except OSError as error:
        print(f"serinus: {command[0]}: cannot be started: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
