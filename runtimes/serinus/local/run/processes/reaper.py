"""Ends what a supervisor leaves behind when it is killed: `reaper.py`, fed on standard input.

It reads `+PGID` when a process group begins and `-PGID` when it has ended. End of input means that the supervisor is gone: what
is left gets SIGTERM, and after a grace SIGKILL. Groups, so that workers of a server go with it. It imports nothing of serinus.
"""

from __future__ import annotations

import os
import signal
import sys
import time

GRACE_S = 5.0


def main() -> None:
    """Follow the list until the writer is gone, then end what is on it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        word = line.strip()
        if word[:1] == "+":
            groups.add(int(word[1:]))
        elif word[:1] == "-":
            groups.discard(int(word[1:]))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in list(groups):
            try:
                os.killpg(group, number)
            except (ProcessLookupError, PermissionError):
                groups.discard(group)
        end = time.monotonic() + GRACE_S
        while groups and number == signal.SIGTERM and time.monotonic() < end:
            time.sleep(0.05)
            for group in list(groups):
                try:
                    os.killpg(group, 0)
                except (ProcessLookupError, PermissionError):
                    groups.discard(group)


if __name__ == "__main__":
    main()
