"""Why a container ended, for `kubectl describe pod`: a text at `terminationMessagePath` (Kubernetes, "Determine the Reason for Pod Failure").

Written only where there is such a file: the kubelet makes it before the container starts, and outside of one it is nobody's.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

__all__ = ["DEFAULT_PATH", "write_reason"]

DEFAULT_PATH: Final = "/dev/termination-log"
"""Of a container that sets no `terminationMessagePath`."""
_MOST_BYTES: Final = 4096
"""The kubelet reads no more of it (`MaxContainerTerminationMessageLength`)."""


def write_reason(reason: str, path: str) -> None:
    """Write why this process ends, in the place of what was there; a file that is not there or not writable is left alone.

    Args:
        reason: a sentence; what is beyond 4096 bytes is left out.
        path: of the file; empty: nothing is written.
    """
    if not path:
        return
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(file, reason.encode(errors="replace")[:_MOST_BYTES])
        finally:
            os.close(file)
