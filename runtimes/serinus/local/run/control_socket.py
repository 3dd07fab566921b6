"""How the commands talk to a running supervisor: one JSON object each way over a unix socket in the state folder.

`{"op": "status"}` is answered by `{"ok": true, ...}`, a failure by `{"ok": false, "error": "...", "problems": [...]}`. The socket
and its folder belong to the user alone. `Client` blocks; the server's side is in `serinus.local.run.daemon`.

Operations: `status`; `apply` (paths, wait_s), whose answer names the services of its paths in `applied`; `restart` (name); `down`
(name, empty: everything); `traffic` (name, percent or null, canary, wait_s, warm_s), which is what patching `canaryTrafficPercent`, or
a canary's `trafficPercent`, is in a cluster; `mirror` (name, percent, canary): a copy of so many percent of the requests to the canary.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

from ...errors import ConfigError

__all__ = ["Client", "ControlFailed", "NotRunning", "is_own_peer", "reached_address", "socket_path"]


class NotRunning(ConfigError):
    """No supervisor answers in this state folder."""


class ControlFailed(ConfigError):
    """The supervisor refused; `details` are the problems as JSON objects, where there are any."""

    def __init__(self, message: str, details: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.details = details


def socket_path(state: Path) -> Path:
    """The control socket of a state folder.

    A path too long for a socket address (108 bytes, unix(7)) is replaced by a short one in the temporary folder.
    """
    path = state.resolve() / "control.sock"
    if len(os.fsencode(path)) < 100:
        return path
    word = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"serinus-{os.getuid()}-{word}.sock"


def is_own_peer(connection: Any) -> bool:
    """Whether the other end of a unix socket is a process of this user, or of root; also where the system does not tell.

    The folder of the socket is the user's; where its path is too long the socket is in a folder of everybody, in which another user may put one of
    that name first, or reach ours before its mode is set.

    Args:
        connection: a socket, or asyncio's stand-in for one.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in (os.geteuid(), 0)


class Client:
    """One state folder's supervisor, as a command sees it."""

    def __init__(self, state: Path) -> None:
        self.state = state

    @property
    def is_running(self) -> bool:
        """Whether a supervisor answers."""
        try:
            self.ask("status", timeout_s=10.0)
        except ConfigError:
            return False
        return True

    def ask(self, op: str, *, timeout_s: float = 600.0, **fields: Any) -> dict[str, Any]:
        """Ask once and wait for the answer.

        Raises:
            NotRunning: nothing listens.
            ControlFailed: the supervisor refused, or did not answer in time.
        """
        path = socket_path(self.state)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            try:
                connection.connect(str(path))
            except OSError:
                raise NotRunning(f"nothing runs in {self.state}; start it with: serinus up PATH") from None
            if not is_own_peer(connection):
                raise ControlFailed(f"{path} is another user's; give another --state-dir", [])
            try:
                connection.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
                with connection.makefile("rb") as reader:
                    line = reader.readline()
            except OSError as error:
                raise ControlFailed(f"the supervisor in {self.state} did not answer: {error}", []) from None
        if not line:
            raise ControlFailed(f"the supervisor in {self.state} closed the connection", [])
        answer = json.loads(line)
        if not answer.get("ok"):
            raise ControlFailed(str(answer.get("error")), answer.get("problems", []))
        return answer


def reached_address(host: str, port: int) -> str:
    """Where this machine's processes reach something that listens on a host: `ADDRESS:PORT`, as a URL has it.

    Args:
        host: an address; empty, `0.0.0.0` and `::` are all of this machine's.
        port: its port.
    """
    reached = "127.0.0.1" if host in {"", "0.0.0.0"} else "::1" if host == "::" else host
    return f"[{reached}]:{port}" if ":" in reached else f"{reached}:{port}"
