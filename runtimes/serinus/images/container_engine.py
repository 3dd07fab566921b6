"""Docker or Podman, by their common commands: found, asked whether it answers, built with, a container run and removed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from ..secrecy import hide_named

__all__ = ["HARDENED", "ContainerEngine", "find_engine"]

_ENGINES: Final = ("docker", "podman")
_ASK_TIMEOUT_S: Final = 60.0
"""For a word with the engine; a build and a pull take as long as they take."""
HARDENED: Final = (
    "--read-only",
    "--tmpfs",
    "/tmp",  # noqa: S108 # the container's own
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--user",
    "1000:1000",
)
"""What the ServingRuntimes' security context says, in the engines' words."""


@dataclass(frozen=True, slots=True)
class ContainerEngine:
    """An engine that answers."""

    command: str
    architecture: str
    """Of the machine that it runs containers on (`amd64`, `arm64`); empty: it does not say."""

    def ask(self, *words: str) -> str:
        """Run a command; returns what it prints.

        Raises:
            ConfigError: it fails; with what it says.
        """
        done = subprocess.run(
            [self.command, *words], capture_output=True, text=True, check=False, timeout=_ASK_TIMEOUT_S
        )
        if done.returncode:
            raise ConfigError(
                f"{self.command} {' '.join(words[:2])}: {_last_line(done.stderr) or f'exit status {done.returncode}'}"
            )
        return done.stdout.strip()

    def build(self, context: Path, tag: str, arguments: Mapping[str, str], on_line: Callable[[str], None]) -> None:
        """Build an image.

        Args:
            context: folder with the Dockerfile.
            tag: the image's name.
            arguments: build arguments.
            on_line: called with each line that the engine says.

        Raises:
            ConfigError: the build fails; with the last lines.
        """
        # Anybody on this machine sees the words of a command: secrets go by name, and the engine takes their values from its environment.
        secrets = {name: value for name, value in arguments.items() if hide_named(name, value) != value}
        words = [
            word
            for name, value in arguments.items()
            for word in ("--build-arg", name if name in secrets else f"{name}={value}")
        ]
        said: list[str] = []
        # Without this BuildKit redraws the screen; the classic builder and Podman do not read it.
        environment = {**os.environ, **secrets, "BUILDKIT_PROGRESS": "plain"}
        command = [self.command, "build", "-f", str(context / "Dockerfile"), "-t", tag, *words, str(context)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process:
            if process.stdout is None:
                raise RuntimeError("a pipe was asked for")
            for line in process.stdout:
                said.append(line.rstrip())
                on_line(said[-1])
        if process.returncode:
            raise ConfigError([f"{self.command} build failed:", *(f"  {line}" for line in said[-25:] if line)])

    def size_bytes(self, image: str) -> int:
        """Bytes of an image with all of its layers, as the engine counts them; 0: it does not have the image."""
        try:
            return int(self.ask("image", "inspect", "-f", "{{.Size}}", image))
        except (ConfigError, ValueError):
            return 0

    @contextlib.contextmanager
    def container(self, image: str, port: int) -> Iterator[tuple[str, str]]:
        """Run an image without rights, with one of its ports on a free loopback one; removed at the end.

        Gives:
            Its id, and the address `127.0.0.1:PORT`.
        """
        identity = self.ask("run", "-d", *HARDENED, "-p", f"127.0.0.1::{port}", image).splitlines()[-1]
        try:
            yield identity, self._address(identity, port)
        finally:
            with contextlib.suppress(ConfigError, subprocess.TimeoutExpired):
                self.ask("rm", "-f", identity)

    def _address(self, identity: str, port: int) -> str:
        try:
            return self.ask("port", identity, f"{port}/tcp").splitlines()[0]
        except (ConfigError, IndexError):  # it has ended already; whoever waits for its answer tells why
            return ""

    def run_line(self, image: str, port: int) -> str:
        """The command by which a user runs an image as it was tried, with one of its ports on loopback."""
        return " ".join([self.command, "run", "--rm", *HARDENED, "-p", f"127.0.0.1:{port}:{port}", image])

    def is_running(self, identity: str) -> bool:
        """Whether a container lives."""
        return self.ask("inspect", "-f", "{{.State.Running}}", identity) == "true"

    def logs(self, identity: str) -> list[str]:
        """The lines that a container wrote."""
        done = subprocess.run(
            [self.command, "logs", identity],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        return done.stdout.splitlines()


def find_engine(named: str = "") -> ContainerEngine:
    """Find an engine that answers.

    Args:
        named: a command; empty: docker, then podman.

    Raises:
        ConfigError: none is installed, or none of those that are answers.
    """
    problems: list[str] = []
    for command in (named,) if named else _ENGINES:
        if shutil.which(command) is None:
            if named:
                raise ConfigError(f"--engine {named}: no such command on the PATH")
            continue
        try:
            done = subprocess.run(
                [command, "version", "--format", "json" if command.endswith("podman") else "{{json .}}"],
                capture_output=True,
                text=True,
                check=False,
                timeout=_ASK_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problems.append(f"{command} does not answer: {error}")
            continue
        if done.returncode == 0:
            return ContainerEngine(command, _architecture(done.stdout))
        problems.append(f"{command} does not answer: {_last_line(done.stderr)}")
    if problems:
        raise ConfigError(
            [*problems, "start its daemon, or have your user reach it; --context DIR writes the files without building"]
        )
    raise ConfigError(
        "no container engine: neither docker nor podman is on the PATH; install one, or have the files written for another "
        "machine's builder: --context DIR"
    )


def _architecture(told: str) -> str:
    """Read `docker version` or `podman version`, which differ in where they say it."""
    try:
        document: Any = json.loads(told)
    except ValueError:
        return ""
    part = document.get("Server") or document.get("Client") or {}
    return str(part.get("Arch") or str(part.get("OsArch") or "").rpartition("/")[2])


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
