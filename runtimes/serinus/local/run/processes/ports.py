"""Free loopback ports for processes that are told their port before they start."""

from __future__ import annotations

import errno
import random
import socket

__all__ = ["PortBook"]

LOWEST, HIGHEST = 20000, 32767
"""Below Linux's ephemeral range (32768-60999): a connection's source port never takes a server's port while it restarts."""


class PortBook:
    """Hands out ports that nothing listens on, none of them twice while it is held."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311 (spreads ports; no secret)
        self._held: set[int] = set()

    def take(self) -> int:
        """Hold a free port.

        Raises:
            OSError: none is free.
        """
        for _ in range(2000):
            port = self._random.randint(LOWEST, HIGHEST)
            if port not in self._held and is_free(port):
                self._held.add(port)
                return port
        raise OSError(f"no free port between {LOWEST} and {HIGHEST}")

    def release(self, *ports: int) -> None:
        """Let ports go."""
        self._held.difference_update(ports)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now.

    Raises:
        OSError: nobody can: the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if host != "127.0.0.1" and error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            return False
        return True
