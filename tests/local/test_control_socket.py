"""Who may talk to a supervisor, and whom a command talks to: processes of the same user, wherever the socket lies."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serinus.local.run.control_socket import Client, ControlFailed, is_own_peer, socket_path

pytestmark = pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system tells no user of a peer")


def test_the_other_end_is_told_by_its_user(monkeypatch: pytest.MonkeyPatch):
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert is_own_peer(left)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4711)  # a second user is not ours to make
        assert is_own_peer(right) is (os.getuid() == 0)


LISTENER = """
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
os.setuid(4711)
server.listen()  # whose credentials a client is told
print(flush=True)
connection, _ = server.accept()
print(connection.recv(100), flush=True)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="takes the rights to be another user")
def test_a_command_tells_nothing_to_the_socket_of_another_user(tmp_path: Path):
    words = [sys.executable, "-c", LISTENER, str(socket_path(tmp_path))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()
        with pytest.raises(ControlFailed, match="is another user's; give another --state-dir"):
            Client(tmp_path).ask("status", timeout_s=5.0)
        assert listener.stdout.readline() == "b''\n"


async def test_a_stand_in_of_asyncio_tells_its_peer_too(tmp_path: Path):
    seen: list[bool] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(is_own_peer(writer.get_extra_info("socket")))
        writer.close()

    async with await asyncio.start_unix_server(serve, str(tmp_path / "s")):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        await reader.read()
        writer.close()
    assert seen == [True]
