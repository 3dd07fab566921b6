"""Play a page of Markdown as a stranger would: its files are written, its shell lines run in order, in one folder.

A block of Python or YAML whose first line is `# NAME` is that file. A line of a `sh` block that starts `serinus serve` is left running, and stopped
before the next `serinus serve` or `serinus up`; one that ends with `&` runs beside those after it. What is changed is the machine's: port 8080 is a
free one, and what `exchange` says.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from waiting import wait_until

__all__ = ["Player", "blocks_of", "playing"]


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


@dataclass
class Player:
    """Where the page is played."""

    folder: Path
    environment: Mapping[str, str]
    exchange: Callable[[str], str | None]
    """Another line for a line; None: it is left out."""
    port: int = 0
    said: dict[str, str] = field(default_factory=dict)
    """What each line of the page printed."""
    _server: subprocess.Popen[str] | None = None
    _beside: list[subprocess.Popen[str]] = field(default_factory=list)

    def play(self, page: str) -> None:
        """Play all blocks."""
        for language, text in blocks_of(page):
            if language == "sh":
                for line in text.splitlines():
                    self._line(line)
            elif (name := re.match(r"# (\S+\.\w+)\n", text)) is not None:
                (self.folder / name[1]).write_text(self._here(text))

    def _here(self, text: str) -> str:
        return text.replace("127.0.0.1:8080", f"127.0.0.1:{self.port}")

    def _line(self, line: str) -> None:
        wanted = self.exchange(line)
        if wanted is None:
            return
        if line.startswith("cd "):
            self.folder = self.folder / line.split()[1]
            return
        wanted = self._here(wanted)
        if line.startswith(("serinus serve", "serinus up")):
            self.stop_server()
        if line.startswith("serinus serve"):
            self._server = self._start(f"{wanted} --http_port {self.port} --grpc_port 0")
            wait_until(self._is_ready, limit_s=60)
            return
        if line.startswith("serinus up") and "--detach" in line:
            wanted += f" --port {self.port}"
        if wanted.endswith("&"):
            self._beside.append(self._start(wanted.removesuffix("&")))
            return
        done = subprocess.run(
            ["bash", "-c", wanted],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        self.said[line] = done.stdout

    def _start(self, words: str) -> subprocess.Popen[str]:
        log = self.folder / f"started-{len(self.said)}.log"
        with log.open("w") as out:
            return subprocess.Popen(
                shlex.split(words),
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def _is_ready(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, "\n".join(path.read_text() for path in self.folder.glob("started-*.log"))
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=5):
                return True
        except OSError:
            return False

    def stop_server(self) -> None:
        """End the server that runs, if one does."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            assert self._server.wait(30) in (0, 130, -signal.SIGINT)
            self._server = None

    def close(self) -> None:
        """End all that was started."""
        for process in (*self._beside, *([self._server] if self._server is not None else [])):
            if process.poll() is None:
                process.terminate()
                process.wait(30)
        subprocess.run(["serinus", "down"], cwd=self.folder, env=self.environment, capture_output=True, check=False)


@contextmanager
def playing(folder: Path, program_folder: Path, exchange: Callable[[str], str | None], **more: str) -> Iterator[Player]:
    """A player with the programs of one folder and the system's, and a clean environment."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_", "DOCKER_"))}
    environment = {
        **kept,
        "PATH": f"{program_folder}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "SERINUS_CACHE_DIR": str(folder / ".cache"),
        **more,
    }
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    player = Player(folder, environment, exchange, port)
    try:
        yield player
    finally:
        player.close()
