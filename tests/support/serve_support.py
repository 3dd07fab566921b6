"""`serinus serve` as a real process on free loopback ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warm_start
from waiting import wait_until
from warm_start import WarmProcess

__all__ = ["Served", "ask_server", "serving"]


def ask_server(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """Send one request to a server of this machine, on a connection of its own; returns the status and the JSON (or text) of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        sent = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        content = answer.read().decode()
        is_json = (answer.headers.get("Content-Type") or "").startswith("application/json")
        return answer.status, json.loads(content) if content and is_json else content
    finally:
        connection.close()


@dataclass
class Served:
    """A running server."""

    process: WarmProcess | subprocess.Popen[Any]
    http_port: int
    grpc_port: int
    log: Path

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send one request on a connection of its own; returns the status and the JSON (or text) of the answer."""
        return ask_server(self.http_port, method, path, body, headers)

    def stop(self, *, timeout_s: float = 30) -> int:
        """Send SIGTERM and wait; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def serving(
    tmp_path: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60,
    python: str = sys.executable,
    fresh: bool = False,
) -> Iterator[Served]:
    """Start `serinus serve` with these arguments; ready on entry, stopped on exit.

    In a container where SERVE_IMAGE names an image: so tests/images runs whole suites against one.

    Args:
        tmp_path: an empty folder, for its log.
        arguments: flags and folders.
        environment: variables besides this process's.
        timeout_s: for its start.
        python: another interpreter, or what starts one.
        fresh: by the interpreter, as a user starts it; else its imports are made before it begins (`warm_start`).
    """
    log = tmp_path / "serve.log"
    flags = ["--host", "127.0.0.1", "--http_port", "0", "--grpc_port", "0"]
    words = ["serve", *flags, *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SERINUS_", "MLSERVER_"))}
    variables = {**clean, **(environment or {})}
    with log.open("w") as output:
        if image := os.environ.get("SERVE_IMAGE"):
            command = _contained(image, tmp_path, environment or {}, words[1:])
            process = subprocess.Popen(
                command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        elif fresh or python != sys.executable:
            process = warm_start.fresh(words, env=variables, out=output, session=True, python=[python])
        else:
            process = warm_start.start(words, env=variables, out=output, session=True)
    try:

        def ready() -> re.Match[str] | None:
            if process.poll() is not None:
                raise RuntimeError(f"serinus serve ended with status {process.returncode}:\n{log.read_text()}")
            return re.search(r"REST on 127\.0\.0\.1:(\d+)(?:, gRPC on 127\.0\.0\.1:(\d+))?", log.read_text())

        wait_until(ready, limit_s=timeout_s)
        found = ready()
        assert found
        yield Served(process, int(found[1]), int(found[2] or 0), log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _contained(image: str, folder: Path, environment: Mapping[str, str], arguments: list[str]) -> list[str]:
    """The command that runs an image as the manifests do, on this machine's loopback, with the test's folder and what it imports."""
    support = Path(__file__).resolve().parent
    folder.chmod(0o755)  # pytest's are for their owner alone, and the container's user is another
    limits = [
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--cpus",
        "0.5",
    ]
    mounts = ["-v", f"{folder}:{folder}:ro", "-v", f"{support}:{support}:ro"]
    # A test names its own class or repository, not the one that the image names.
    variables = {"SERINUS_CLASS": "", "SERINUS_TRANSFORMER": "", **environment}
    given = [part for name, value in variables.items() for part in ("-e", f"{name}={value}")]
    return [
        os.environ.get("DOCKER", "docker"),
        "run",
        "--rm",
        "--network",
        "host",
        *limits,
        *mounts,
        *given,
        image,
        *arguments,
    ]
