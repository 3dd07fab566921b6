"""`serinus up` as a process, and the manifests of the tiny server that it runs in the local runner's tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import warm_start
from command_support import command
from tiny_server import METHOD, ask
from warm_start import WarmProcess

__all__ = ["METHOD", "SERVER", "Up", "all_ready", "ask", "container", "is_running", "manifest", "pids_below", "up"]

SERVER = Path(__file__).with_name("tiny_server.py").resolve()


def container(*args: str, name: str = "kserve-container", extra: str = "") -> str:
    """A container block of the tiny server, to be indented by 6."""
    words = ", ".join(json.dumps(word) for word in (*args,))
    return (
        f"- name: {name}\n        image: tiny\n"
        f"        command: [python, {json.dumps(str(SERVER))}, --http_port=8080, --grpc_port=8081]\n"
        f"        args: [{words}]\n"
        "        resources: {requests: {cpu: 100m, memory: 64Mi}}\n"
        f"        env: [{{name: PROTOCOL, value: v2}}]{extra}\n"
    )


def manifest(
    *args: str, name: str = "fraud", percent: int | None = None, transformer: Sequence[str] = (), annotations: str = ""
) -> str:
    """An InferenceService of the tiny server, perhaps with a transformer before it."""
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"
        f"metadata:\n  name: {name}\n{annotations}spec:\n  predictor:\n"
    )
    if percent is not None:
        text += f"    canaryTrafficPercent: {percent}\n"
    text += f"    containers:\n      {container(*args)}"
    if transformer:
        block = container(*transformer).replace("--http_port=8080, ", "")
        text += f"  transformer:\n    containers:\n      {block}"
    return text


class Up:
    """A `serinus up` that runs."""

    def __init__(self, process: WarmProcess | subprocess.Popen[Any], folder: Path, log: Path) -> None:
        self.process = process
        self.folder = folder
        self.state = folder / ".serinus"
        self.log = log

    @property
    def row(self) -> dict[str, Any]:
        """The first process of the first service."""
        from serinus.local.run.control_socket import Client

        return Client(self.state).ask("status", timeout_s=20)["services"][0]["components"][0]

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the service's folder, in this process: one of its own takes 0.4 s of CPU to import what this one has."""
        done = command(self.folder, *words)
        assert not check or done.returncode == 0, done.stdout + done.stderr + self.output()
        return done

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A command that goes on; whoever starts it ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "serinus.cli", *words],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def status(self) -> dict[str, Any]:
        """What `serinus status -o json` prints, asked from here: a process of the command line takes 0.4 s of CPU to ask it."""
        from serinus.local.run.control_socket import Client

        return Client(self.state).ask("status", timeout_s=30.0)

    def wait(self, holds: Any, what: str, timeout_s: float = 40.0) -> dict[str, Any]:
        """Wait until the status is as wanted."""
        end = time.monotonic() + timeout_s
        status: dict[str, Any] = {}
        from serinus.local.run.control_socket import Client, NotRunning

        while time.monotonic() < end:
            assert self.process.poll() is None, self.output()
            with contextlib.suppress(NotRunning):
                status = Client(self.state).ask("status", timeout_s=10)
                if holds(status):
                    return status
            time.sleep(0.05)  # other processes start and stop, and nobody is told
        raise AssertionError(f"{what} did not come true: {json.dumps(status, indent=1)}\n{self.output()}")

    @property
    def gateway(self) -> str:
        return f"127.0.0.1:{json.loads((self.state / 'supervisor.json').read_text())['port']}"

    def infer(self, host: str = "fraud.default.localhost", model: str = "fraud") -> dict[str, Any]:
        status, headers, body = ask(self.gateway, f"/v2/models/{model}/infer", b"{}", host=host)
        assert status == 200, (status, body)
        return {**json.loads(body), "header": headers.get("x-serinus-revision")}

    def infer_grpc(self, host: str = "fraud.default.localhost") -> dict[str, Any]:
        """Likewise over gRPC, of a server that was told to serve it."""
        import grpc

        with grpc.insecure_channel(self.gateway, options=[("grpc.default_authority", host)]) as channel:
            answer, call = channel.unary_unary(METHOD).with_call(b"{}", timeout=20)
            initial = dict(call.initial_metadata())
            return {**json.loads(answer), "header": initial.get("x-serinus-revision")}


def all_ready(status: dict[str, Any]) -> bool:
    return bool(status["services"]) and all(service["ready"] for service in status["services"])


def pids_below(status: dict[str, Any]) -> set[int]:
    found = {row["pid"] for service in status["services"] for row in service["components"]}
    return {pid for pid in (*found, status["gateway"]["pid"], status["pid"]) if pid}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] != b"Z"
    except OSError:
        return False


@contextlib.contextmanager
def up(
    folder: Path,
    *words: str,
    ready: bool = True,
    env: dict[str, str] | None = None,
    python: Sequence[str] = (sys.executable,),
) -> Iterator[Up]:
    """Run `serinus up` in the foreground of a folder until the block ends."""
    log = folder / "up.log"
    command, variables = ["up", *words, "--port", "0"], {**os.environ, **(env or {})}
    with log.open("wb") as out:
        if tuple(python) == (sys.executable,):
            process = warm_start.start(command, env=variables, cwd=folder, out=out)
        else:
            process = warm_start.fresh(command, env=variables, cwd=folder, out=out, python=python)
    running = Up(process, folder, log)
    try:
        if ready:
            running.wait(all_ready, "ready")
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
